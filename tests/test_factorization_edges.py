"""Odd data: empty rows, more topics than the data has, topics that die, sizes at the ends of float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from nmf_dask.blocks import Sizes
from nmf_dask.config import ModelSettings
from nmf_dask.factorization import Close, Fit
from nmf_dask.in_memory import Factorization, factorize
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.divergence import beta_divergence, frobenius_norm
from nmf_dask.kernels.objective import Frobenius
from nmf_dask.schedule import least_fall
from tests.matrices import collection_of, text_like, weights_of

LOSSES = {
    "Frobenius mu": {"beta_loss": "frobenius", "solver": "mu"},
    "Frobenius cd": {"beta_loss": "frobenius", "solver": "cd"},
    "KL mu": {"beta_loss": "kullback-leibler", "solver": "mu"},
}
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_init = pytest.mark.parametrize("init", ["random", "nndsvd", "nndsvda"])


def sound(X: Any, result: Factorization, beta_loss: str) -> None:
    """Finite, not negative, and of the loss that is told."""
    for factor in (result.W, result.H):
        assert np.isfinite(factor).all()
        assert factor.min() >= 0
    size = X.sum() / max(np.count_nonzero(X.toarray() if sp.issparse(X) else X), 1) or 1.0
    # At a size of one: scikit-learn's formula takes what is under 1e-7 for zero.
    exact = beta_divergence(X / size, result.W / size, result.H, beta_loss, square_root=True)
    exact *= size if beta_loss == "frobenius" else np.sqrt(size)
    # Frobenius: a difference of sums of the size of ‖X‖², whose float32 digits end there.
    slack = 2e-3 * frobenius_norm(X)
    assert result.rows[-1].reconstruction_err == pytest.approx(exact, rel=1e-5, abs=slack)


def fitted(X: Any, loss: str, k: int, start: tuple[Any, Any] | None = None, **settings: Any) -> Factorization:
    model = ModelSettings(n_components=k, max_iter=settings.pop("max_iter", 30), **LOSSES[loss], **settings)
    result = factorize(X, model, *(start or ()))
    sound(X, result, model.beta_loss)
    return result


@every_loss
@every_init
def test_documents_without_terms_get_no_weights(loss: str, init: str) -> None:
    X = text_like(60, 40, 4, 0).toarray()
    X[[0, 17, 18, 59]] = 0
    result = fitted(sp.csr_array(X), loss, 4, init=init)
    assert not result.W[[0, 17, 18, 59]].any()
    assert result.W[[1, 16, 19, 58]].any(axis=1).all()


@every_loss
@every_init
def test_terms_in_no_document_get_no_weight(loss: str, init: str) -> None:
    X = text_like(60, 40, 4, 0).toarray()
    X[:, [0, 39]] = 0
    result = fitted(sp.csr_array(X), loss, 4, init=init)
    assert result.H[:, [0, 39]].max() <= 1e-6 * result.H.max()


@every_loss
@every_init
@pytest.mark.parametrize("k", [1, 12, 20])
def test_one_topic_as_many_as_terms_and_more(loss: str, init: str, k: int) -> None:
    X = text_like(50, 12, 4, 1)
    assert fitted(X, loss, k, init=init).W.shape == (50, k)


@every_loss
@every_init
def test_more_topics_than_rank(loss: str, init: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.random((40, 2)) @ rng.random((2, 15))
    result = fitted(X, loss, 6, init=init, max_iter=200, tol=0)
    if init != "nndsvd" or "mu" not in loss:  # multiplicative updates keep the zeros of nndsvd
        assert result.rows[-1].reconstruction_err < 0.05 * frobenius_norm(X)


@every_loss
@every_init
def test_rows_that_are_all_equal(loss: str, init: str) -> None:
    X = np.tile([0.0, 1.0, 2.0, 0.0, 0.5], (30, 1))
    result = fitted(X, loss, 3, init=init, max_iter=100, tol=0)
    np.testing.assert_allclose(result.W @ result.H, X, atol=0.02)


@every_loss
@every_init
@pytest.mark.parametrize("n", [1, 3, 9])
def test_fewer_documents_than_strips_or_topics(loss: str, init: str, n: int) -> None:
    X = text_like(n, 30, 3, 0)
    model = ModelSettings(n_components=4, init=init, max_iter=5, rounds=6, **LOSSES[loss])
    result = factorize(X, model, n_strips=7)
    assert result.W.shape == (n, 4)
    sound(X, result, model.beta_loss)


@every_loss
@every_init
@pytest.mark.parametrize("stored", [False, True])
def test_a_matrix_of_zeros(loss: str, init: str, stored: bool) -> None:
    result = fitted(0 * text_like(10, 8, 2, 0) if stored else sp.csr_array((10, 8)), loss, 3, init=init)
    assert result.rows[-1].reconstruction_err == pytest.approx(0.0, abs=1e-6)


@every_loss
@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("rounds", ["auto", 4])
def test_the_size_of_the_values_makes_no_difference(loss: str, scale: float, rounds: Any) -> None:
    """Weights of 1e-6 or 1e6: a floor that bites, or a sum that overflows, would end at another loss."""
    X = text_like(200, 80, 5, 2)

    rng = np.random.default_rng(0)
    W, H = rng.random((200, 5)), rng.random((5, 80))

    def relative(X: Any) -> float:
        size = np.sqrt(X.mean() / 5)
        result = fitted(X, loss, 5, (size * W, size * H), max_iter=40, tol=0, rounds=rounds)
        # The divergence scales as X for KL and as X² for Frobenius; what is told is its root.
        return result.rows[-1].reconstruction_err / (np.sqrt(X.sum()) if "KL" in loss else frobenius_norm(X))

    assert relative(X * scale) == pytest.approx(relative(X), rel=1e-3)


@every_loss
def test_values_of_very_different_sizes_give_no_nan(loss: str) -> None:
    X = text_like(60, 40, 4, 0)
    X.data *= 10.0 ** np.random.default_rng(0).integers(-8, 8, X.nnz)
    model = ModelSettings(n_components=5, max_iter=60, tol=0, **LOSSES[loss])
    result = factorize(X, model)
    assert np.isfinite(result.W).all()
    assert np.isfinite(result.H).all()
    assert np.isfinite([row.reconstruction_err for row in result.rows]).all()


def start_with_a_dead_topic(X: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    scale = np.sqrt(X.mean() / k)
    W, H = scale * rng.random((X.shape[0], k)), scale * rng.random((k, X.shape[1]))
    W[:, 2], H[2] = 0, 0
    return W, H


@every_loss
@pytest.mark.parametrize("rounds", ["auto", 1, 4])
def test_a_dead_topic_is_reseeded(loss: str, rounds: Any) -> None:
    """And wins documents in every share of the rows: a zero in W could never come back."""
    X = text_like(400, 80, 5, 2)
    result = fitted(X, loss, 5, start_with_a_dead_topic(X, 5), rounds=rounds, max_iter=60, tol=0)
    assert result.dead == ()
    holders = result.W[:, 2] > 1e-3 * result.W[:, 2].max()
    assert (np.add.reduceat(holders, np.arange(0, 400, 50)) > 3).all()
    four = factorize(
        X, ModelSettings(n_components=4, max_iter=60, tol=0, **LOSSES[loss]),
        *(np.delete(f, 2, axis) for axis, f in zip((1, 0), start_with_a_dead_topic(X, 5), strict=True)),
    )  # fmt: skip
    assert result.rows[-1].reconstruction_err < 0.995 * four.rows[-1].reconstruction_err


@every_loss
@pytest.mark.parametrize("rounds", ["auto", 1])
def test_a_topic_that_dies_late_is_not_taken_back(loss: str, rounds: Any) -> None:
    """Near convergence its first pass ends higher; taken back, it would lose the weights it has just got."""
    X = text_like(400, 80, 4, 2)
    W, H = start_with_a_dead_topic(X, 5)
    keep = [0, 1, 3, 4]
    model = ModelSettings(n_components=4, max_iter=150, tol=0, **LOSSES[loss])
    four = factorize(X, model, W[:, keep], H[keep])
    W[:, keep], H[keep] = four.W, four.H
    result = fitted(X, loss, 5, (W, H), max_iter=40, rounds=rounds)
    assert result.dead == ()
    assert result.rows[-1].reconstruction_err < four.rows[-1].reconstruction_err


@every_loss
def test_the_pass_that_gives_a_new_topic_its_weights_stands(loss: str) -> None:
    """However high it ends: taken back, the topic would lose them, and be dead again."""
    X = text_like(100, 40, 5, 2)
    W, H = start_with_a_dead_topic(X, 5)
    blocks = collection_of("local", X, (100,), 2, W)
    model = ModelSettings(n_components=5, rounds=1, tol=0.5, **LOSSES[loss])
    fit = Fit.of(blocks.sizes, model, float(X.data.mean()))
    state = fit.advance(blocks, fit.begin(pad_H(H)))
    assert state.reseeded == 1
    assert not weights_of(blocks)[:, 2].any()
    nothing_left = state.rows[0]._replace(reconstruction_err=0.0)
    state = fit.advance(blocks, replace(state, rows=(nothing_left,), momentum=5.0))
    assert state.iteration == 2
    assert state.stop_reason is None
    assert weights_of(blocks)[:, 2].any()


@every_loss
def test_the_last_pass_reseeds_nothing(loss: str) -> None:
    """What is returned would hold noise that no document has any weight of, or a loss that is not its own."""
    X = text_like(100, 40, 5, 2)
    result = fitted(X, loss, 5, start_with_a_dead_topic(X, 5), max_iter=1)
    assert result.dead == (2,)
    assert not result.H[2].any()


@every_loss
def test_penalties_leave_the_dead_dead(loss: str) -> None:
    X = text_like(400, 80, 5, 2)
    start = start_with_a_dead_topic(X, 5)
    result = fitted(X, loss, 5, start, alpha_W=1e-4, l1_ratio=1.0)
    assert 2 in result.dead


@every_loss
def test_plain_passes_leave_the_dead_dead(loss: str) -> None:
    """As scikit-learn does: such a fit promises its numbers."""
    X = text_like(100, 40, 5, 2)
    result = fitted(X, loss, 5, start_with_a_dead_topic(X, 5), rounds=1, sweeps=1)
    assert result.dead == (2,)


@every_loss
def test_momentum_does_not_let_H_grow_without_end(loss: str) -> None:
    """Each carried step makes H larger and W smaller, if nothing holds it: past float32 within 200 passes."""
    X = text_like(400, 80, 5, 2)
    sizes = [fitted(X, loss, 5, max_iter=passes, tol=0).H.sum() for passes in (10, 100)]
    assert sizes[1] < 3 * sizes[0]


@pytest.mark.parametrize("loss", ["Frobenius mu", "KL mu"])
def test_a_round_that_sees_nobody_of_a_topic_leaves_it_alone(loss: str) -> None:
    """H's old rows are all that is known of it then; at zero it would not come back, or W would overflow."""
    X = text_like(200, 80, 4, 2)
    rng = np.random.default_rng(0)
    scale = np.sqrt(X.mean() / 4)
    W, H = scale * rng.random((200, 4)), scale * rng.random((4, 80))
    W[:50, 1] = 0  # the first of four rounds, with one strip
    model = ModelSettings(n_components=4, rounds=4, max_iter=1, **LOSSES[loss])
    result = factorize(X, model, W, H, n_strips=1)
    assert result.dead == ()
    assert result.H[1].sum() > 0.1 * np.median(result.H.sum(axis=1))


@pytest.mark.parametrize("solver", ["mu", "cd"])
def test_no_topic_is_lost_to_momentum(solver: str) -> None:
    """A topic that falls everywhere, by more than momentum leaves of it, stays, at the size that it fell to."""
    rng = np.random.default_rng(0)
    before = pad_H(rng.random((3, 40)) + 0.5)
    after = before.copy()
    after[:, 1] *= 0.1
    after[::2, 0] *= 1.5
    close = Close(Frobenius(solver=solver), 1, 2.0)
    carried = close._carried_on(after, before)
    np.testing.assert_allclose(carried.sum(axis=0), after.sum(axis=0), rtol=1e-5)
    assert (carried[:, :3] > 0).all()
    assert not carried[:, 3:].any()


def test_the_price_of_passes_decides_when_they_end() -> None:
    """More data never ask for a smaller fall, and the largest for the same one, however large they are."""
    falls = [
        least_fall(Sizes(10**3 * scale, 10**4, 10**5 * scale, 50), "frobenius")
        for scale in (1, 30, 300, 10**6)
    ]
    assert falls == sorted(falls)
    assert (
        falls[0] < falls[1] < falls[2] == falls[3] == least_fall(Sizes(10**9, 10**4, 10**11, 50), "frobenius")
    )
