"""The factorization of one matrix in this process, and W alone under an H that is given."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.beginning import begin, fit_of
from nmf_dask.blocks import LocalBlocks, Sizes, cut_strips
from nmf_dask.config import ModelSettings
from nmf_dask.factorization import Fit
from nmf_dask.fixed import FixedH
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.matrices import LARGEST, Csr, from_scipy, frozen
from nmf_dask.observer import Pass
from nmf_dask.schedule import strip_count

Floats = NDArray[np.float32]


class Factorization(NamedTuple):
    """What `factorize` returns: W (n, k) and H (k, m) float32, one row a pass, why it stopped, topics nobody has."""

    W: Floats
    H: Floats
    rows: tuple[Pass, ...]
    stop_reason: str
    dead: tuple[int, ...]


def factorize(
    X: Any,
    model: ModelSettings,
    W: NDArray[Any] | None = None,
    H: NDArray[Any] | None = None,
    n_strips: int | None = None,
    threads: int = 1,
) -> Factorization:
    """Factorize one matrix in this process: X ≈ W H, with X (n, m) SciPy sparse or dense and not negative.

    X may be a list of such, one below the other.
    `W` (n, k) and `H` (k, m) are where it starts; without both it starts as `model.init` says. Rows are visited in
    `n_strips` strips (None: as many as the sizes ask for), `threads` at once; the schedule takes the order of the rows
    for random. Raises ValueError where the arrays do not fit each other, and for values that are negative, not finite
    in float32 or, in X, over 1e15.
    """
    csrs = [_checked_csr(block) for block in (X if isinstance(X, list) else [X])]
    if (W is None) != (H is None):
        raise ValueError(f"{'W' if H is None else 'H'} alone is given; a start needs W and H, or neither")
    rows, nnz = [csr.n_rows for csr in csrs], sum(csr.nnz for csr in csrs)
    sizes = Sizes(sum(rows), csrs[0].n_columns, nnz, model.n_components)
    strips = cut_strips(rows, n_strips or strip_count(sizes, model.beta_loss))
    total = sum(float(csr.data.sum(dtype=np.float64)) for csr in csrs)
    scale = total / max(nnz, 1)
    with LocalBlocks.of(csrs, sizes, strips, threads) as blocks:
        if W is None or H is None:
            fit, state = fit_of(sizes, model, scale), begin(blocks, model, total)
        else:
            fit = Fit.of(sizes, model, scale)
            state = fit.begin(_custom_start(blocks, W, H))
        while state.stop_reason is None:
            state = fit.advance(blocks, state)
        state = fit.finished(blocks, state)
    k = model.n_components
    weights = np.concatenate(blocks.W)[:, :k]
    HT = state.outcome.HT[:, :k]
    dead = tuple(np.flatnonzero(~weights.any(axis=0) | ~HT.any(axis=0)).tolist())
    return Factorization(weights, HT.T.copy(), state.rows, state.stop_reason or "", dead)


def _checked_csr(X: Any) -> Csr:
    if isinstance(X, Csr):
        return X  # as it was made: checked already
    if len(np.shape(X)) != 2 or 0 in np.shape(X):
        raise ValueError(
            f"X has shape {np.shape(X)}; a matrix (n, m) of one row and column at least is asked for"
        )
    with np.errstate(over="ignore"):  # infinities are refused
        csr = frozen(from_scipy(X))
    _check_values("X", csr.data)
    if csr.data.max(initial=0) > LARGEST:
        raise ValueError(f"X holds {csr.data.max():g}, whose sums are beyond float32; scale it first")
    return csr


def _check_values(name: str, values: Floats) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or values beyond float32; replace them first")
    if values.size and values.min() < 0:
        raise ValueError(f"{name} holds {values.min():g}; NMF takes no negative values")


def _custom_start(blocks: LocalBlocks, W: NDArray[Any], H: NDArray[Any]) -> Floats:
    n, m, _, k = blocks.sizes
    if W.shape != (n, k) or H.shape != (k, m):
        raise ValueError(
            f"W has shape {W.shape} and H {H.shape}; X and n_components ask for {(n, k)} and {(k, m)}"
        )
    with np.errstate(over="ignore"):
        W, H = np.asarray(W, np.float32), np.asarray(H, np.float32)
    _check_values("W", W)
    _check_values("H", H)
    padded, low = pad_H(W.T), 0
    for own in blocks.W:
        own[:] = padded[low : low + len(own)]
        low += len(own)
    return pad_H(H)


def fold_in(X: Csr, HT: Floats, model: ModelSettings) -> Floats:
    """W (n, kp) of the rows of X under a fixed H, `HT` (m, kp): scikit-learn's `NMF.transform` run to its end.

    Each row's problem is convex and solved by itself (`nmf_dask.folding`); a row without terms gets zeros.
    """
    return FixedH.of(HT, model).weights(X)
