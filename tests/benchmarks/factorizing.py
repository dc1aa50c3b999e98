"""What a child does to factorize the staged matrix: nmf-dask in one process, and scikit-learn."""

from __future__ import annotations

import time
import warnings
from typing import Any

from tests.benchmarks.problems import loss, read_blocks, read_matrix

MANY = 10_000  # passes: so many that the tolerance ends a fit


class Clock:
    """Wall and CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Both, as a run tells them."""
        return {"seconds": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}


def ours(
    folder: str, k: int, beta_loss: str, threads: int, max_iter: int = MANY, **model: Any
) -> dict[str, Any]:
    """A child: a fit as `nmf_dask.in_memory.factorize` does it, with the clock read after every pass.

    The clock starts before the blocks' W is made and holds the start of W and H.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    from nmf_dask.config import ModelSettings

    settings = ModelSettings(n_components=k, beta_loss=beta_loss, max_iter=max_iter, **model)
    # As on a cluster: strips are what runs at once, each with one thread of BLAS.
    threadpool_limits(1, user_api="blas")
    blocks = read_blocks(folder)
    _fit(_few_rows(blocks, k), settings.model_copy(update={"max_iter": 8}), threads)
    fitted, state, curve = _fit(blocks, settings, threads)
    W, H = np.concatenate(fitted.W)[:, :k], state.outcome.HT[:, :k].T
    return {
        "init_seconds": curve[0]["seconds"],
        "curve": curve[1:],
        "total_seconds": curve[-1]["seconds"],
        "passes": len(state.rows),
        "stop_reason": state.stop_reason,
        "loss": loss(read_matrix(folder), W, H, beta_loss),
        "pass_seconds": [row.seconds for row in state.rows],
    }


def _few_rows(blocks: list[Any], k: int) -> list[Any]:
    """Enough rows to meet every kernel before the clock runs."""
    first = blocks[0]
    n = min(first.n_rows, 20 * k)
    end = first.indptr[n]
    return [first._replace(indptr=first.indptr[: n + 1], indices=first.indices[:end], data=first.data[:end])]


def _fit(blocks: list[Any], model: Any, threads: int) -> tuple[Any, Any, list[dict[str, Any]]]:
    """The fitted blocks, the last state, and (pass, seconds since the start, loss) after init and every pass."""
    from nmf_dask.beginning import begin, fit_of
    from nmf_dask.blocks import LocalBlocks, Sizes, cut_strips
    from nmf_dask.schedule import start_passes, strip_count

    rows = [X.n_rows for X in blocks]
    nnz = sum(len(X.data) for X in blocks)
    total = float(sum(X.data.sum(dtype="float64") for X in blocks))
    sizes = Sizes(sum(rows), blocks[0].n_columns, nnz, model.n_components)
    clock = Clock()
    strips = cut_strips(rows, strip_count(sizes, model.beta_loss))
    local = LocalBlocks.of(blocks, sizes, strips, threads)
    fit = fit_of(sizes, model, scale=total / nnz)
    state = begin(local, model, total)
    before = start_passes(model, sizes)
    curve = [{"passes": before, "loss": None} | clock.read()]
    while state.stop_reason is None:
        state = fit.advance(local, state)
        curve.append(_point(state, before, clock))
    state = fit.finished(local, state)
    curve[-1] = _point(state, before, clock)
    local.close()
    return local, state, curve


def _point(state: Any, before: int, clock: Clock) -> dict[str, Any]:
    """A pass that was taken back costs time, and its row is that of the pass before."""
    return {"passes": before + len(state.rows), "loss": state.rows[-1].reconstruction_err} | clock.read()


def theirs(
    folder: str, k: int, beta_loss: str, solver: str, max_iter: int, random_state: int
) -> dict[str, Any]:
    """A child: scikit-learn's NMF from its own nndsvda, whose time counts, until its tolerance is met."""
    from sklearn.decomposition import NMF

    X = read_matrix(folder)
    settings = {"n_components": k, "beta_loss": beta_loss, "solver": solver, "init": "nndsvda"}
    model = NMF(**settings, max_iter=max_iter, random_state=random_state)
    _warm_up(X[: 20 * k], settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clock = Clock()
        W = model.fit_transform(X)
        took = clock.read()
    found = loss(X, W, model.components_, beta_loss)
    return {"total_seconds": took["seconds"], "iterations": int(model.n_iter_), "loss": found} | took


def _warm_up(X: Any, settings: dict[str, Any]) -> None:
    from sklearn.decomposition import NMF

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        NMF(**(settings | {"init": "nndsvda", "max_iter": 2})).fit_transform(X)


def their_iteration(folder: str, k: int, beta_loss: str, iterations: int) -> dict[str, Any]:
    """A child: seconds of one iteration of scikit-learn's mu, from two fits of different length."""
    import numpy as np
    from sklearn.decomposition import NMF

    X = read_matrix(folder)
    rng = np.random.default_rng(0)
    W, H = (rng.random(shape, np.float32) for shape in ((X.shape[0], k), (k, X.shape[1])))
    seconds = []
    for max_iter in (1, 1 + iterations):
        model = NMF(k, init="custom", solver="mu", beta_loss=beta_loss, max_iter=max_iter, tol=0)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit_transform(X, W=W.copy(), H=H.copy())
        seconds.append(time.perf_counter() - started)
    return {"iteration_seconds": (seconds[1] - seconds[0]) / iterations}


def their_curve(
    folder: str, k: int, beta_loss: str, solver: str, max_iter: int, random_state: int
) -> dict[str, Any]:
    """A child: scikit-learn's loss over time, by fits of a few iterations that each go on where the last ended.

    The clock runs in the fits alone, the loss is computed between them. The first fit holds the init; each of the
    others adds the milliseconds that scikit-learn needs to check its input.
    """
    from sklearn.decomposition import NMF

    X = read_matrix(folder)
    settings = {
        "n_components": k,
        "beta_loss": beta_loss,
        "solver": solver,
        "tol": 0,
        "random_state": random_state,
    }
    curve: list[dict[str, Any]] = []
    factors: dict[str, Any] = {}
    seconds, done = 0.0, 0
    _warm_up(X[: 20 * k], {"n_components": k, "beta_loss": beta_loss, "solver": solver})
    while done < max_iter:
        steps = min(max(1, done // 4), max_iter - done)
        model = NMF(**settings, init="custom" if done else "nndsvda", max_iter=steps)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            W = model.fit_transform(X, **factors)
        seconds += time.perf_counter() - started
        done += steps
        factors = {"W": W, "H": model.components_}
        curve.append({"passes": done, "seconds": seconds, "loss": loss(X, W, model.components_, beta_loss)})
    return {"curve": curve}
