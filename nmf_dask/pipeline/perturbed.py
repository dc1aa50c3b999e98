"""Fits of samples of a matrix, for the choice of k: tasks that read the staged blocks, and stage what they find.

A sample is drawn with replacement, from each block its share of rows (a bootstrap of fewer than all rows, "m out of
n"): so that a fit costs less than one of the corpus, and rows are left that it did not see.

Fits do not start from what another one found. On planted corpora of 7 and 15 topics (tests/planted.py, two seeds each,
k from two below to four above, six fits), starting from H of all rows took 12.0 passes on average where independent
starts took 12.7; what it saved was the start itself. But fits that begin in one place agree: of a k two too large, the
silhouette of the least stable topic rose from below -0.4 to between 0.56 and 0.87, which counts as stable.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.fixed import FixedH
from nmf_dask.in_memory import factorize
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.divergence import products_at
from nmf_dask.kernels.matrices import Csr, from_scipy, to_scipy
from nmf_dask.pipeline.fitting import Problem
from nmf_dask.schedule import SAMPLE_NONZEROS
from nmf_dask.selection import clustered, unit_rows
from nmf_dask.staging import Stage
from nmf_dask.store import StageDamaged, read_arrays, top_features, write_arrays
from nmf_dask.vocabulary import Vocabulary

Rows = NDArray[np.int64]

HELD_OUT_ROWS = 2000  # of a fit: enough for the third digit of the loss
# Of the fits: where topics are found, not their last digits. From 1e-2 to 1e-1 no planted number was found otherwise,
# and fits of 24,000 abstracts took 9 passes in place of 17.
MOST_PASSES = 60
TOL = 1e-1


class Fitted(NamedTuple):
    """Numbers of one fit; losses as `selection.Candidate` has them, that of held-out rows NaN where there are none."""

    loss: float
    held_out_loss: float
    n_iter: int
    seconds: float


class Stable(NamedTuple):
    """What the fits of one k have in common."""

    least: float
    mean: float
    terms: list[list[str]]
    """The top terms of each cluster's mean."""


@dataclass(frozen=True)
class PerturbedFits:
    """Fits of samples of the staged blocks of a problem. Picklable."""

    problem: Problem
    stage: Stage
    share: float
    n_documents: int

    def make(self, k: int, seed: int) -> Fitted:
        """A task: the fit of `k` topics to sample number `seed`, unless an earlier attempt staged it."""
        file = self.stage.folder / "fits" / f"k-{k:05d}-{seed:03d}.arrow"
        with suppress(StageDamaged, KeyError):
            loss, held_out, n_iter, seconds = read_arrays(file)["numbers"].tolist()
            return Fitted(loss, held_out, int(n_iter), seconds)
        started = time.perf_counter()
        fitted, others = self._sample(seed)
        given = self.problem.model
        model = given.model_copy(
            update={
                "n_components": k,
                "random_state": (given.random_state + seed) % 2**32,
                "tol": max(given.tol, TOL),
                "max_iter": min(given.max_iter, MOST_PASSES),
            }
        )
        found = factorize(fitted, model)
        X = from_scipy(fitted)
        size = 0.5 * float(np.square(X.data, dtype=np.float64).sum())
        if given.beta_loss != "frobenius":
            size = float(X.data.sum(dtype=np.float64))
        loss = _measure(0.5 * found.rows[-1].reconstruction_err ** 2, size, given.beta_loss)
        held_out = _completed(from_scipy(others), FixedH.of(pad_H(found.H), model))
        seconds = time.perf_counter() - started
        numbers = np.array([loss, held_out, len(found.rows), seconds])
        write_arrays(file, {"H": found.H, "numbers": numbers})
        return Fitted(loss, held_out, len(found.rows), seconds)

    def _sample(self, seed: int) -> tuple[Any, Any]:
        """Rows that are fitted, drawn with replacement, and some of those that were not drawn; SciPy matrices."""
        from scipy.sparse import vstack

        n_blocks = len(self.problem.block_rows)
        share = min(self.share, SAMPLE_NONZEROS / max(self.problem.sizes.nnz, 1))
        most = -(-HELD_OUT_ROWS // n_blocks)
        drawn, left = [], []
        for block, n_rows in enumerate(self.problem.block_rows):
            random = np.random.default_rng([self.problem.model.random_state, 5, seed, block])
            rows = (
                np.sort(random.integers(0, n_rows, max(1, round(n_rows * share))))
                if n_rows
                else np.zeros(0, int)
            )
            unseen = np.ones(n_rows, bool)
            unseen[rows] = False
            X = to_scipy(self.problem.blocks(block))
            # In another order: a schedule takes that of the rows for random.
            drawn.append(X[random.permutation(rows)])
            left.append(X[np.flatnonzero(unseen)[:most]])
        return vstack(drawn, "csr"), vstack(left, "csr")

    def stable(self, k: int, n_fits: int, n_terms: int, fits: Sequence[Fitted]) -> Stable:
        """A task: cluster the topics of the fits of `k`, two fits in memory at a time beside their cosines.

        `fits` says that their files are there; one that is not, is made again.
        """
        similar = np.empty((n_fits, k, n_fits, k), np.float32)
        for one in range(n_fits):
            H = unit_rows(self._H(k, one))
            for other in range(one, n_fits):
                cosines = H @ unit_rows(self._H(k, other)).T
                similar[one, :, other, :], similar[other, :, one, :] = cosines, cosines.T
        found = clustered(similar)
        mean = np.zeros((k, H.shape[1]), np.float32)
        for one in range(n_fits):
            mean[found.cluster[one]] += unit_rows(self._H(k, one))
        terms = Vocabulary.from_table(self.stage.vocabulary.read_parquet(), self.n_documents).term
        top = top_features(mean, n_terms)
        named = [[terms[j].as_py() for j in row.tolist() if mean[t, j] > 0] for t, row in enumerate(top)]
        return Stable(found.least, found.mean, named)

    def _H(self, k: int, seed: int) -> NDArray[np.float32]:
        file = self.stage.folder / "fits" / f"k-{k:05d}-{seed:03d}.arrow"
        try:
            H: NDArray[np.float32] = read_arrays(file)["H"]
        except (StageDamaged, KeyError):
            file.delete()
            self.make(k, seed)
            H = read_arrays(file)["H"]
        return H


def _measure(divergence: float, size: float, beta_loss: str) -> float:
    """The loss as a share of what no topics would leave: of norms for Frobenius, of divergences otherwise."""
    if size <= 0:
        return float("nan")
    share = max(divergence, 0.0) / size
    return float(np.sqrt(share)) if beta_loss == "frobenius" else share


def _completed(X: Csr, fixed: FixedH) -> float:
    """Half of each row's terms folded in, the loss of what the row holds elsewhere.

    Terms alternate, in the order of the columns. What W H says of the terms that were folded in does not count: X has
    nothing there to hold against it, and all of it would count as error, the more the better W H fits them.
    """
    first = np.ones(X.nnz, bool)
    first[1::2] = False
    begins = np.repeat(X.indptr[:-1], np.diff(X.indptr))
    first ^= begins % 2 == 1  # each row begins with the first half
    one, other = (_only(X, kept) for kept in (first, ~first))
    both = (np.diff(one.indptr) > 0) & (np.diff(other.indptr) > 0)
    W = fixed.weights(one)
    divergence, size = fixed.loss(other, W, both)
    rows = np.repeat(np.arange(one.n_rows), np.diff(one.indptr))
    asked = both[rows]
    folded = products_at(rows[asked], one.indices[asked], W, fixed.HT.T)
    divergence -= 0.5 * float(folded @ folded) if fixed.beta_loss == "frobenius" else float(folded.sum())
    return _measure(divergence, size, fixed.beta_loss)


def _only(X: Csr, kept: NDArray[np.bool_]) -> Csr:
    indptr = np.concatenate(([0], np.cumsum(kept)))[X.indptr]
    return Csr(indptr.astype(np.int64), X.indices[kept], X.data[kept], X.n_columns)
