"""Where a fit begins: with more topics than asked for, of which the weakest go.

Which local minimum a fit goes to is decided near its start. With half as many more, each finds a place; the ones
that the others can do without are the ones that would otherwise have been missing elsewhere. They go a few at a time,
and those that stay take over between.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nmf_dask.blocks import LocalBlocks, Sizes
from nmf_dask.config import ModelSettings
from nmf_dask.factorization import Fit, FitState, Outcome
from nmf_dask.initialization import pad_H, start
from nmf_dask.kernels.objective import cross
from nmf_dask.schedule import WidePasses, first_components, wide_passes

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


def fit_of(sizes: Sizes, model: ModelSettings, scale: float) -> Fit:
    """The fit that goes on from `begin`; `scale` is the mean of X's nonzeros."""
    fit = Fit.of(sizes, model, scale)
    return fit if first_components(model, sizes) == model.n_components else replace(fit, first=())


def begin(blocks: LocalBlocks, model: ModelSettings, total: float) -> FitState:
    """Start W, and return the state before the first pass of `fit_of`. `total` is the sum of X."""
    n, m, nnz, k = blocks.sizes
    mean, scale = total / (n * m), total / max(nnz, 1)
    fit, stages = fit_of(blocks.sizes, model, scale), wide_passes(model, blocks.sizes)
    if not stages:
        return fit.begin(start(blocks, model.init, model.random_state, mean))
    left = [stage.n_components for stage in stages[1:]] + [k]
    sizes = blocks.sizes._replace(n_components=stages[0].n_components)
    with LocalBlocks.of(blocks.blocks, sizes, blocks.strips, blocks.threads) as wide:
        HT = start(wide, model.init, model.random_state, mean)
        for stage, n_left in zip(stages, left, strict=True):
            outcome = _passed(wide, model, stage, scale, HT)
            kept = _strongest_of(wide, outcome, n_left)
            wide.keep_topics(kept)
            HT = pad_H(outcome.HT[:, kept].T)
    blocks.W = wide.W
    return fit.begin(HT)


def _passed(
    blocks: LocalBlocks, model: ModelSettings, stage: WidePasses, scale: float, HT: Floats
) -> Outcome:
    """What the passes of a stage leave; `blocks` hold its W."""
    settings = {"n_components": stage.n_components, "max_iter": len(stage.passes), "tol": 0.0}
    fit = replace(Fit.of(blocks.sizes, model.model_copy(update=settings), scale), first=stage.passes)
    state = fit.begin(HT)
    while state.stop_reason is None:
        state = fit.advance(blocks, state)
    passed: Outcome = state.outcome  # not carried on along its step: these are first passes
    return passed


def _strongest_of(blocks: LocalBlocks, outcome: Outcome, n: int) -> list[int]:
    k, S = blocks.sizes.n_components, outcome.WtW
    if S is None:  # rounds' sums decay
        S = np.sum([cross(W, W, blocks.parallel) for W in blocks.W], axis=0)
    return strongest(S[:k, :k], outcome.factor.gram[:k, :k], n)


def strongest(S: Doubles, G: Doubles, n: int) -> list[int]:
    """The `n` topics that are left when the one that the others can best do without goes, one after the other.

    S = WᵀW and G = H Hᵀ. Without topic t, least squares can make up for all but S_tt / (G⁻¹)_tt of the squared error
    by way of W, and for all but G_tt / (S⁻¹)_tt by way of H.
    """
    kept = list(range(len(S)))
    while len(kept) > n:
        s, g = S[np.ix_(kept, kept)], G[np.ix_(kept, kept)]
        cost = np.minimum(np.diag(s) / _inverse_diagonal(g), np.diag(g) / _inverse_diagonal(s))
        kept.pop(int(np.argmin(cost)))
    return kept


def _inverse_diagonal(A: Doubles) -> Doubles:
    """Of the inverse of a Gram matrix, which topics without weights, or equal ones, make singular."""
    ridge = 1e-12 * max(float(np.trace(A)), np.finfo(np.float64).tiny)
    return np.asarray(np.diag(np.linalg.inv(A + ridge * np.eye(len(A)))))
