"""The fit against scikit-learn, pass by pass, and the same on every collection of blocks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from nmf_dask.blocks import Blocks, LocalBlocks
from nmf_dask.config import ModelSettings
from nmf_dask.distributed import DaskTasks, TaskBlocks
from nmf_dask.factorization import Fit, FitState
from nmf_dask.in_memory import factorize
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.divergence import beta_divergence
from tests.matrices import COLLECTIONS, collection_of, text_like, weights_of

N, M, K = 120, 70, 5
BLOCK_ROWS = (50, 1, 0, 69)  # strips begin and end within blocks, and run over several
PASSES = (1, 2, 10, 50)
LOSSES = {
    "Frobenius mu": {"beta_loss": "frobenius", "solver": "mu"},
    "Frobenius cd": {"beta_loss": "frobenius", "solver": "cd"},
    "KL mu": {"beta_loss": "kullback-leibler", "solver": "mu"},
}
PENALTIES = {
    "none": {},
    "L2": {"alpha_W": 2e-3, "alpha_H": 1e-3, "l1_ratio": 0.0},
    "both": {"alpha_W": 2e-3, "alpha_H": 1e-3, "l1_ratio": 0.3},
    "L1": {"alpha_W": 1e-3, "alpha_H": 5e-4, "l1_ratio": 1.0},
}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(params=COLLECTIONS)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Blocks]]:
    """Make a collection of the parameter's kind: (X, W, strips) → Blocks."""
    made: list[Blocks] = []

    def one(
        X: sp.csr_array, W: np.ndarray, n_strips: int, block_rows: tuple[int, ...] = BLOCK_ROWS
    ) -> Blocks:
        on = request.getfixturevalue("client") if request.param == "dask tasks" else None
        made.append(collection_of(request.param, X, block_rows, n_strips, W, on))
        return made[-1]

    yield one
    for blocks in made:
        if isinstance(blocks, LocalBlocks):
            blocks.close()


@cache
def problem() -> tuple[sp.csr_array, np.ndarray, np.ndarray]:
    """X with an empty row, and a W and H of scikit-learn's scale."""
    X = text_like(N, M, K, seed=0)
    X.data[X.indptr[17] : X.indptr[18]] = 0
    X.eliminate_zeros()
    rng = np.random.default_rng(1)
    scale = np.sqrt(X.mean() / K)
    return X, scale * rng.random((N, K)), scale * rng.random((K, M))


@cache
def expected(loss: str, penalty: str, passes: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Error, W and H of scikit-learn."""
    X, W, H = problem()
    nmf = NMF(K, init="custom", max_iter=passes, tol=0, shuffle=False, **LOSSES[loss], **PENALTIES[penalty])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        W = nmf.fit_transform(X, W=W.copy(), H=H.copy())
    return nmf.reconstruction_err_, W, nmf.components_


def plain(**settings: Any) -> ModelSettings:
    return ModelSettings(n_components=K, rounds=1, sweeps=1, tol=0, **settings)


def mean_nonzero(X: sp.csr_array) -> float:
    return float(X.data.mean())


def run(fit: Fit, blocks: Blocks, H: np.ndarray) -> FitState:
    state = fit.begin(pad_H(H))
    while state.stop_reason is None:
        state = fit.advance(blocks, state)
    return fit.finished(blocks, state)


@pytest.mark.parametrize("n_strips", [1, 2, 7])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_pass_is_an_iteration_of_scikit_learn(make, loss: str, penalty: str, n_strips: int) -> None:
    X, W, H = problem()
    blocks = make(X, W, n_strips)
    fit = Fit.of(blocks.sizes, plain(max_iter=50, **LOSSES[loss], **PENALTIES[penalty]), mean_nonzero(X))
    state = fit.begin(pad_H(H))
    on_cluster = isinstance(blocks, TaskBlocks) and isinstance(blocks.tasks, DaskTasks)
    for passes in range(1, (10 if on_cluster else 50) + 1):  # a pass on the cluster takes 40 ms here
        state = fit.advance(blocks, state)
        if passes not in PASSES:
            continue
        err, expected_W, expected_H = expected(loss, penalty, passes)
        assert fit.finished(blocks, state).rows[-1].reconstruction_err == pytest.approx(err, rel=1e-5)
        own_H = blocks.fetch(state.outcome).HT[:, :K].T
        np.testing.assert_allclose(weights_of(blocks), expected_W, rtol=1e-3, atol=1e-3 * expected_W.max())
        np.testing.assert_allclose(own_H, expected_H, rtol=1e-3, atol=1e-3 * expected_H.max())
    assert (state.stop_reason == "max_iter") is not on_cluster


@cache
def reference_bytes(loss: str, rounds: Any) -> tuple[bytes, bytes]:
    X, W, H = problem()
    blocks = collection_of("local", X, BLOCK_ROWS, 5, W)
    return fitted_bytes(blocks, H, loss, rounds)


def fitted_bytes(blocks: Blocks, H: np.ndarray, loss: str, rounds: Any) -> tuple[bytes, bytes]:
    settings = ModelSettings(n_components=K, rounds=rounds, max_iter=8, tol=0, **LOSSES[loss])
    state = run(Fit.of(blocks.sizes, settings, mean_nonzero(problem()[0])), blocks, H)
    return blocks.fetch(state.outcome).HT.tobytes(), weights_of(blocks).tobytes()


@pytest.mark.parametrize("rounds", ["auto", 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_bytes_wherever_it_runs(make, loss: str, rounds: Any) -> None:
    X, W, H = problem()
    assert fitted_bytes(make(X, W, 5), H, loss, rounds) == reference_bytes(loss, rounds)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("settings", [{"sweeps": 1}, {"sweeps": 2}, {}], ids=["plain", "2 sweeps", "default"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whole_passes_never_raise_the_loss(loss: str, settings: dict[str, Any], seed: int) -> None:
    X = text_like(300, 100, 6, seed)
    model = ModelSettings(
        n_components=8, init="random", random_state=seed, rounds=1, max_iter=40, tol=0, **settings,
        **LOSSES[loss],
    )  # fmt: skip
    errors = np.array([row.reconstruction_err for row in factorize(X, model).rows])
    assert len(errors) == 40
    assert (np.diff(errors) <= 1e-6 * errors[:-1]).all()
    assert errors[-1] < 0.95 * errors[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_pass_that_went_too_far_leaves_nothing_behind(make, loss: str) -> None:
    """W and H are those before it, and the next pass starts from there with a shorter step."""
    X, W, H = problem()
    blocks = make(X, W, 2)
    settings = ModelSettings(n_components=K, rounds=1, sweeps=2, max_iter=500, tol=0, **LOSSES[loss])
    fit = Fit.of(blocks.sizes, settings, mean_nonzero(X))
    before = replace(fit.begin(pad_H(H)), momentum=40.0)
    for _ in range(30):
        W_before, HT_before = weights_of(blocks), blocks.fetch(before.outcome).HT
        state = fit.advance(blocks, before)
        if state.iteration == before.iteration:
            break
        before = replace(state, momentum=40.0)
    assert state.rows == before.rows
    assert state.momentum == 20.0
    np.testing.assert_array_equal(weights_of(blocks), W_before)
    np.testing.assert_array_equal(blocks.fetch(state.outcome).HT, HT_before)
    np.testing.assert_array_equal(blocks.fetch(state.outcome).factor.HT, HT_before)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("passes", [1, 2, 3, 7])
@pytest.mark.parametrize("rounds", ["auto", 1, 3])
def test_the_last_loss_is_that_of_what_is_returned(loss: str, passes: int, rounds: Any) -> None:
    """Cut in the middle of the passes of many rounds, too: their own sums are of older W and H."""
    X, W, H = problem()
    model = ModelSettings(n_components=K, max_iter=passes, tol=0, rounds=rounds, **LOSSES[loss])
    result = factorize(X, model, W, H)
    exact = beta_divergence(X, result.W, result.H, model.beta_loss, square_root=True)
    assert len(result.rows) == passes
    assert result.rows[-1].reconstruction_err == pytest.approx(exact, rel=1e-5)
    earlier = [row.reconstruction_err for row in result.rows[-2:]]
    assert earlier[-1] <= earlier[0] * (1 + 1e-6) or rounds == 3


@pytest.mark.parametrize("loss", LOSSES)
def test_plain_passes_stop_where_scikit_learn_stops(loss: str) -> None:
    """scikit-learn's mu looks every 10 iterations; its cd has a rule of its own, of the change of W and H."""
    X, W, H = problem()
    model = plain(max_iter=500, **LOSSES[loss]).model_copy(update={"tol": 1e-3})
    result = factorize(X, model, W, H)
    assert result.stop_reason == "tol"
    if "mu" in loss:
        nmf = NMF(K, init="custom", max_iter=500, tol=1e-3, **LOSSES[loss])
        nmf.fit_transform(X, W=W.copy(), H=H.copy())
        assert len(result.rows) == nmf.n_iter_


@pytest.mark.parametrize("loss", LOSSES)
def test_a_smaller_tolerance_stops_later_and_none_never(loss: str) -> None:
    X, W, H = problem()

    def fitted(tol: float) -> Any:
        return factorize(X, ModelSettings(n_components=K, tol=tol, max_iter=60, **LOSSES[loss]), W, H)

    loose, close, never = fitted(1.0), fitted(0.05), fitted(0.0)
    assert len(loose.rows) < len(close.rows) < len(never.rows) == 60
    assert (loose.stop_reason, close.stop_reason, never.stop_reason) == ("tol", "tol", "max_iter")
    assert loose.rows[-1].reconstruction_err >= close.rows[-1].reconstruction_err


def test_rows_number_the_passes() -> None:
    X, W, H = problem()
    rows = factorize(X, ModelSettings(n_components=K, rounds=3, max_iter=6, tol=0), W, H).rows
    assert [row.iteration for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {row.rounds for row in rows} == {1, 3}
    assert all(row.seconds > 0 for row in rows)
