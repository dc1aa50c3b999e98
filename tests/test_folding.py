"""W of one row: the exact minimum of its problem, whoever stands beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.optimize
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from nmf_dask.config import ModelSettings
from nmf_dask.fixed import FixedH
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.matrices import from_scipy
from nmf_dask.kernels.newton import FLOOR
from tests.matrices import text_like

LOSSES = ("frobenius", "kullback-leibler")
every_loss = pytest.mark.parametrize("beta_loss", LOSSES)


def model_of(beta_loss: str, k: int, **more: Any) -> ModelSettings:
    return ModelSettings(n_components=k, beta_loss=beta_loss, **more)


def folded(X: Any, H: np.ndarray, model: ModelSettings) -> np.ndarray:
    return FixedH.of(pad_H(H), model).weights(from_scipy(X))[:, : len(H)]


def random_H(random: np.random.Generator, k: int, m: int, kind: int) -> np.ndarray:
    """Topics as fits leave them: dense, sparse, of very different sizes, the same twice, without any weight."""
    H = random.gamma(0.3, size=(k, m))
    if kind == 1:
        H *= random.random((k, m)) < 0.2
    elif kind == 2:
        H *= 10.0 ** random.integers(-4, 4, (k, 1))
    elif kind == 3:
        H[k // 2 :] = H[: k - k // 2]
    elif kind == 4:
        H[0] = 0
        H[:, : m // 3] = 0
    return H.astype(np.float32)


def optimality(X: np.ndarray, W: np.ndarray, H: np.ndarray, model: ModelSettings) -> float:
    """How far W is from where no weight gains by a change (Karush, Kuhn and Tucker), beside the terms of its slope."""
    X, W, H = (np.asarray(one, np.float64) for one in (X, W, H))
    m = H.shape[1]
    l1, l2 = m * model.alpha_W * model.l1_ratio, m * model.alpha_W * (1 - model.l1_ratio)
    if model.beta_loss == "frobenius":
        up, down = X @ H.T, W @ (H @ H.T)
    else:
        sums = X.sum(axis=1, keepdims=True)
        floor = FLOOR * np.where(sums > 0, np.minimum(sums, 1), 1)  # of a small row less
        up, down = (X / np.maximum(W @ H, floor)) @ H.T, np.broadcast_to(H.sum(axis=1), W.shape)
    slope = down + l1 + l2 * W - up
    size = np.maximum(up + down + l1 + l2 * W, 1e-300)
    wrong = np.where(W > 0, np.abs(slope), np.maximum(-slope, 0)) / size
    return float(wrong[X.any(axis=1)].max(initial=0.0))


@given(
    seed=st.integers(0, 2**32 - 1), k=st.integers(1, 20), kind=st.integers(0, 4), penalty=st.integers(0, 2)
)
@settings(max_examples=60, deadline=None)
@every_loss
def test_no_weight_gains_by_a_change(beta_loss: str, seed: int, k: int, kind: int, penalty: int) -> None:
    random = np.random.default_rng(seed)
    m = int(random.integers(5, 60))
    H = random_H(random, k, m, kind)
    X = (random.gamma(0.5, size=(12, m)) * (random.random((12, m)) < 0.3)).astype(np.float32)
    alpha, ratio = ((0.0, 0.0), (1e-3, 0.0), (1e-3, 1.0))[penalty]
    model = model_of(beta_loss, k, alpha_W=alpha, l1_ratio=ratio)
    W = folded(X, H, model)
    assert np.isfinite(W).all()
    assert (W >= 0).all()
    # W is rounded to float32, which a steep divergence shows.
    assert optimality(X, W, H, model) < (2e-5 if beta_loss == "frobenius" else 1e-4)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
@every_loss
def test_a_row_has_the_same_bits_alone_and_in_any_batch(beta_loss: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    k, m, n = int(random.integers(1, 30)), int(random.integers(5, 80)), int(random.integers(2, 150))
    H = random_H(random, k, m, int(random.integers(0, 5)))
    X = sp.random_array((n, m), density=0.2, rng=random, dtype=np.float32).tocsr()
    X.data *= random.choice([1e-2, 1.0, 1e2], len(X.data)).astype(np.float32)
    model = model_of(beta_loss, k)
    whole = folded(X, H, model)
    order = random.permutation(n)
    assert folded(X[order], H, model).tobytes() == whole[order].tobytes()
    for i in random.choice(n, 3):
        assert folded(X[[i]], H, model).tobytes() == whole[[i]].tobytes()
    assert folded(X[: n // 2], H, model).tobytes() == whole[: n // 2].tobytes()


def test_frobenius_is_scipys_nnls() -> None:
    X, H = text_like(60, 80, 6, 0).toarray(), random_H(np.random.default_rng(0), 6, 80, 0)
    expected = np.array([scipy.optimize.nnls(H.T.astype(float), row)[0] for row in X])
    np.testing.assert_allclose(folded(X, H, model_of("frobenius", 6)), expected, atol=1e-6 * expected.max())


def test_the_solver_of_the_fit_is_no_matter() -> None:
    X, H = text_like(60, 80, 6, 0), random_H(np.random.default_rng(0), 6, 80, 0)
    mu, cd = (folded(X, H, model_of("frobenius", 6, solver=solver)) for solver in ("mu", "cd"))
    assert mu.tobytes() == cd.tobytes()


def test_a_row_of_millionths_keeps_its_weights() -> None:
    """Kullback-Leibler: scikit-learn's floor is larger than all its products. Nothing but the size is another."""
    random = np.random.default_rng(0)
    H, X = random_H(random, 8, 60, 1), text_like(20, 60, 4, 0).toarray()
    whole = folded(X, H, model_of("kullback-leibler", 8))
    for size in (1e-6, 1e-12, 1e-25):
        W = folded(X * size, H, model_of("kullback-leibler", 8))
        np.testing.assert_allclose(W / size, whole, rtol=1e-4, atol=1e-5 * whole.max())


@every_loss
def test_ends_of_the_scale(beta_loss: str) -> None:
    """One term, all terms, a term that no topic has; a row of such terms alone; k beyond the terms."""
    random = np.random.default_rng(0)
    H = random_H(random, 40, 10, 0)
    H[:, 9] = 0
    X = np.zeros((5, 10), np.float32)
    X[0, 3], X[1], X[2, [2, 9]], X[3, 9] = 1, 1, 0.5, 1
    model = model_of(beta_loss, 40)
    W = folded(X, H, model)
    assert optimality(X[:3], W[:3], H, model) < 1e-4
    assert W[:3].any(axis=1).all()
    assert not W[3:].any()


def test_the_slices_of_a_model_are_no_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from nmf_dask import TopicModel, fit
    from tests.small_corpora import generated_texts, settings_of, write_corpus

    texts = generated_texts(120)
    fit(settings_of(write_corpus(tmp_path / "c", texts), tmp_path / "m", run={"log_format": "text"}))
    model = TopicModel.load(str(tmp_path / "m"))
    whole = model.transform(texts)
    monkeypatch.setattr("nmf_dask.model.SLICE_ROWS", 7)
    assert model.transform(pa.array(texts)).tobytes() == whole.tobytes()
