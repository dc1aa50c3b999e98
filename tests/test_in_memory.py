"""`factorize` and `fold_in`: what goes in, what is refused, and W under a fixed H."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import NMF

from nmf_dask.config import ModelSettings
from nmf_dask.in_memory import factorize, fold_in
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.divergence import beta_divergence
from nmf_dask.kernels.matrices import from_scipy
from tests.matrices import text_like

LOSSES = {
    "Frobenius mu": {"beta_loss": "frobenius", "solver": "mu"},
    "Frobenius cd": {"beta_loss": "frobenius", "solver": "cd"},
    "KL mu": {"beta_loss": "kullback-leibler", "solver": "mu"},
}
every_loss = pytest.mark.parametrize("loss", LOSSES)
FEW = ModelSettings(n_components=4, max_iter=4, tol=0)


def unsorted(X: sp.csr_array) -> sp.csr_array:
    """The same matrix with each row's entries turned around."""
    order = np.concatenate([np.arange(X.indptr[i + 1] - 1, X.indptr[i] - 1, -1) for i in range(X.shape[0])])
    turned = sp.csr_array((X.data[order], X.indices[order], X.indptr), shape=X.shape)
    assert not turned.has_sorted_indices
    return turned


def doubled(X: sp.csr_array) -> sp.csr_array:
    """The same matrix, each entry in two halves: no format of SciPy promises that there is one a place."""
    return sp.csr_array((np.repeat(X.data / 2, 2), np.repeat(X.indices, 2), X.indptr * 2), shape=X.shape)


FORMS = {
    "dense": lambda X: X.toarray(),
    "csc": lambda X: X.tocsc(),
    "csr_matrix": sp.csr_matrix,
    "unsorted": unsorted,
    "halves": doubled,
    "float32": lambda X: X.astype(np.float32),
    "int64 indices": lambda X: sp.csr_array(
        (X.data, X.indices.astype(np.int64), X.indptr.astype(np.int64)), shape=X.shape
    ),
    "explicit zeros": lambda X: sp.csr_array(
        (np.append(X.data, 0.0), np.append(X.indices, 0), np.append(X.indptr[:-1], X.indptr[-1] + 1)),
        shape=X.shape,
    ),
}


@pytest.mark.parametrize("form", FORMS)
@every_loss
def test_any_form_of_a_matrix_gives_the_same_factors(loss: str, form: str) -> None:
    X = text_like(50, 40, 4, 0)
    X = sp.csr_array(sp.vstack([X, sp.csr_array(([0.5], ([0], [39])), shape=(1, 40))]))
    model = FEW.model_copy(update=LOSSES[loss])
    expected = factorize(X, model)
    given = FORMS[form](X)
    held = given.copy()
    result = factorize(given, model)
    np.testing.assert_allclose(result.W, expected.W, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(result.H, expected.H, rtol=1e-3, atol=1e-5)
    err = expected.rows[-1].reconstruction_err
    assert result.rows[-1].reconstruction_err == pytest.approx(err, rel=1e-4)
    for name in ("data", "indices") if sp.issparse(given) else ():  # what the caller holds is not changed
        np.testing.assert_array_equal(getattr(given, name), getattr(held, name))


def test_W_and_H_of_the_caller_are_not_changed() -> None:
    X = text_like(50, 40, 4, 0)
    W, H = np.ones((50, 4), np.float32), np.random.default_rng(0).random((4, 40), np.float32)
    held = W.copy(), H.copy()
    result = factorize(X, FEW, W, H)
    assert np.array_equal(W, held[0])
    assert np.array_equal(H, held[1])
    assert not np.shares_memory(result.W, W)


@pytest.mark.parametrize(
    ("W_shape", "H_shape"), [((49, 4), (4, 40)), ((50, 4), (4, 41)), ((50, 5), (5, 40)), ((4, 50), (40, 4))]
)
def test_factors_of_other_shapes_are_refused_with_both_shapes(W_shape: Any, H_shape: Any) -> None:
    with pytest.raises(ValueError, match="shape") as caught:
        factorize(text_like(50, 40, 4, 0), FEW, np.ones(W_shape), np.ones(H_shape))
    for shape in (W_shape, H_shape, (50, 4), (4, 40)):
        assert str(shape) in str(caught.value)


@pytest.mark.parametrize("name", ["W", "H"])
def test_one_factor_alone_is_refused(name: str) -> None:
    factors = {"W": np.ones((50, 4)), "H": np.ones((4, 40))}
    with pytest.raises(ValueError, match=f"^{name} alone is given"):
        factorize(text_like(50, 40, 4, 0), FEW, **{name: factors[name]})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.25, "X holds -0.25; NMF takes no negative values"),
        (np.nan, "X holds NaN"),
        (np.inf, "X holds NaN"),
    ],
)
@pytest.mark.parametrize("form", ["dense", "csc"])
def test_values_that_have_no_factorization_are_refused(form: str, value: float, message: str) -> None:
    X = text_like(50, 40, 4, 0)
    X.data[7] = value
    with pytest.raises(ValueError, match=f"^{message}"):
        factorize(FORMS[form](X), FEW)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["W", "H"])
def test_starts_that_hold_such_values_are_refused(name: str, value: float) -> None:
    factors = {"W": np.ones((50, 4)), "H": np.ones((4, 40))}
    factors[name][2, 3] = value
    with pytest.raises(ValueError, match=f"^{name} holds"):
        factorize(text_like(50, 40, 4, 0), FEW, **factors)


@pytest.mark.parametrize("X", [np.ones(5), np.ones((2, 3, 4)), np.ones((0, 4)), sp.csr_array((4, 0))])
def test_what_is_no_matrix_is_refused(X: Any) -> None:
    with pytest.raises(ValueError, match=r"^X has shape") as caught:
        factorize(X, FEW)
    assert str(X.shape) in str(caught.value)


@pytest.mark.parametrize("value", [1e39, 1e18])  # a sum of squares of the second is too large
def test_values_beyond_float32_are_refused(value: float) -> None:
    X = np.ones((5, 4))
    X[2, 2] = value
    with pytest.raises(ValueError, match="beyond float32"):
        factorize(X, FEW)


@every_loss
@pytest.mark.parametrize("alpha", [0.0, 1e-3])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fold_in_is_the_transform_of_scikit_learn(loss: str, alpha: float) -> None:
    """Run until it stands still, scikit-learn's W is ours to 1e-4, and its loss no lower."""
    X, new = text_like(300, 60, 5, 0), text_like(80, 60, 5, 1)
    # Under KL scikit-learn 1.9 adds the L1 penalty to H's sums in place, once more every iteration of a transform.
    l1_ratio = 0.5 if "Frobenius" in loss else 0.0
    penalty = {"alpha_W": alpha, "alpha_H": 0.0, "l1_ratio": l1_ratio}
    nmf = NMF(5, init="nndsvda", tol=1e-7, max_iter=2000, **LOSSES[loss], **penalty).fit(X)
    nmf.set_params(tol=1e-12, max_iter=100_000)
    expected = nmf.transform(new)
    model = ModelSettings(n_components=5, **LOSSES[loss], **penalty)
    W = fold_in(from_scipy(new), pad_H(nmf.components_), model)
    assert not W[:, 5:].any()
    W = W[:, :5]
    assert np.linalg.norm(W - expected) <= 1e-4 * np.linalg.norm(expected)
    l1, l2 = 60 * alpha * l1_ratio, 60 * alpha * (1 - l1_ratio)

    def penalized(W: np.ndarray) -> float:
        divergence = beta_divergence(new, W, nmf.components_, model.beta_loss)
        return divergence + l1 * float(W.sum()) + l2 / 2 * float((W.astype(float) ** 2).sum())

    assert penalized(W) <= penalized(expected) * (1 + 1e-7)


@every_loss
def test_fold_in_of_documents_without_terms_is_zero(loss: str) -> None:
    X = text_like(20, 30, 3, 0).toarray()
    X[[0, 7]] = 0
    HT = pad_H(np.random.default_rng(0).random((3, 30)))
    W = fold_in(from_scipy(X), HT, ModelSettings(n_components=3, **LOSSES[loss]))
    assert np.isfinite(W).all()
    assert not W[[0, 7]].any()
    assert W[1].any()


@every_loss
def test_fold_in_takes_no_documents_at_all(loss: str) -> None:
    HT = pad_H(np.random.default_rng(0).random((3, 30)))
    W = fold_in(from_scipy(sp.csr_array((0, 30))), HT, ModelSettings(n_components=3, **LOSSES[loss]))
    assert W.shape == (0, 8)


@every_loss
@pytest.mark.parametrize("scale", [1e-9, 1e-2, 1e5])  # scikit-learn's own floor would leave nothing of 1e-9
def test_fold_in_scales_with_the_documents(loss: str, scale: float) -> None:
    X = text_like(30, 40, 4, 0)
    HT = pad_H(np.random.default_rng(0).random((4, 40)))
    model = ModelSettings(n_components=4, tol=1e-6, max_iter=1000, **LOSSES[loss])
    W, scaled = fold_in(from_scipy(X), HT, model), fold_in(from_scipy(X * scale), HT, model)
    np.testing.assert_allclose(scaled / scale, W, atol=1e-4 * W.max())
