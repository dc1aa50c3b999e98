"""What is minimized, one strip of rows at a time: the update of W, what H needs to know of it, the loss.

An objective is a small picklable value. It never sees more than one strip of X and the `Sums` that the strip's
rows add up to; H is updated from sums alone. Padding, layout and dtypes are those of
`nmf_dask.kernels.frobenius`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels import coordinate_descent, frobenius, kullback_leibler
from nmf_dask.kernels.matrices import Csr, on_cache_line, read_only, unset, zeros

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

TILE = 512  # rows: a tile of W, of X Hᵀ and of W G together fit the second-level cache for k up to 80
TALL = 2048  # rows of a tile of tall products: a task of a thread
# Of a weight of H that is not zero, since no product revives a zero: under any weight that matters, and its
# products with float32 weights are no denormals.
FLOOR = 1e-20
LEAST_KEPT = 0.1  # of a weight that is carried on along a step down


class Factor(NamedTuple):
    """H as every strip needs it.

    `HT` (m, kp), and `gram`: H Hᵀ (kp, kp) or, for KL, H's row sums (1, kp). `reset` (kp,), where there is one, is
    added to every row of W first: weights for topics that died, since no product revives a zero.
    """

    HT: Floats
    gram: Doubles
    reset: Floats | None = None


@dataclass
class Sums:
    """What a set of rows says to H; the sums of two sets of rows add up to those of their union."""

    XtW: Floats  # (m, kp); Frobenius: Xᵀ W, KL: Hᵀ ∘ (X / WH)ᵀ W, where H is what the rows were met with
    WtW: Doubles  # (kp, kp) Frobenius: Wᵀ W; (1, kp) KL: W's column sums
    # Frobenius: ‖X‖²; KL: the divergence of the new W and the H that the rows were met with.
    loss: float = 0.0
    n_rows: float = 0.0

    def __sizeof__(self) -> int:
        """With what it holds: a worker goes by it when it decides what to keep in memory."""
        return self.XtW.nbytes + self.WtW.nbytes

    def add(self, other: Sums) -> None:
        """Add the sums of other rows, in place."""
        self.XtW += other.XtW
        self.WtW += other.WtW
        self.loss += other.loss
        self.n_rows += other.n_rows

    def plus(self, other: Sums) -> Sums:
        """The sums of both sets of rows, as a new value."""
        return Sums(
            self.XtW + other.XtW,
            self.WtW + other.WtW,
            self.loss + other.loss,
            self.n_rows + other.n_rows,
        )

    def aged(self, decay: float, newer: Sums, parallel: Map = map) -> Sums:
        """These sums with less weight and newer ones with all of theirs, as a new value."""
        XtW = unset(*self.XtW.shape)

        def age(low: int) -> None:
            np.multiply(self.XtW[low : low + TILE], np.float32(decay), out=XtW[low : low + TILE])
            XtW[low : low + TILE] += newer.XtW[low : low + TILE]

        each_tile(parallel, age, len(XtW))
        return Sums(
            XtW,
            self.WtW * decay + newer.WtW,
            self.loss * decay + newer.loss,
            self.n_rows * decay + newer.n_rows,
        )

    def scaled(self, factor: float) -> Sums:
        """These sums with less weight, as a new value."""
        return Sums(
            self.XtW * np.float32(factor), self.WtW * factor, self.loss * factor, self.n_rows * factor
        )


@dataclass(frozen=True)
class Penalties:
    """scikit-learn's penalties; those of W scale with m, those of H with the number of rows that were summed."""

    l1_W: float = 0.0
    l2_W: float = 0.0
    l1_H: float = 0.0  # a row
    l2_H: float = 0.0  # a row


@dataclass(frozen=True)
class Objective(ABC):
    """One of the losses, with its solver and penalties."""

    penalties: Penalties = Penalties()

    @abstractmethod
    def factor(self, HT: Floats, parallel: Map = map) -> Factor:
        """H with what is derived from it once for all strips; `parallel` maps over tiles of features."""

    @abstractmethod
    def empty(self, n_features: int, kp: int) -> Sums:
        """The sums of no rows."""

    @abstractmethod
    def visit(
        self, X: Csr, start: int, stop: int, W: Floats, factor: Factor, sweeps: int, sums: Sums
    ) -> None:
        """Update W (stop - start, kp), the rows `start` to `stop` of X, in place; add their sums to `sums`."""

    def settled(self, sums: Sums, factor: Factor) -> Sums:
        """The sums of all rows that were met with `factor`, as H's update wants them."""
        return sums

    @abstractmethod
    def fold_in(self, X: Csr, start: int, stop: int, W: Floats, factor: Factor, sweeps: int) -> None:
        """Update W as `visit` does, without sums."""

    @abstractmethod
    def started(self, sums: Sums, factor: Factor, decay: float) -> Sums:
        """A history for decaying sums to begin with, worth 1 / (1 - decay) times `sums`, under which H is at rest.

        Without it, a feature that the first rows do not hold would get a zero in H for good, and so would a topic:
        one without weight in these rows is given a little.
        """

    @abstractmethod
    def update(self, factor: Factor, sums: Sums, sweeps: int, parallel: Map = map) -> Factor:
        """H after `sweeps` updates from `sums`, as a new value; `parallel` maps over tiles of features."""

    def extrapolated(self, HT: Floats, before: Floats, momentum: float) -> Floats:
        """H carried on along its last step by `momentum` times the step, not negative.

        Only what grew is carried on: no product revives a weight that was carried to zero, and so multiplicative
        updates for beta-divergences are extrapolated (BMMe: Hien, Leplat and Gillis, arXiv 2401.06646).
        """
        return np.asarray(HT + np.float32(momentum) * np.maximum(HT - before, 0))

    @abstractmethod
    def divergence(self, sums: Sums, factor: Factor) -> float:
        """The beta-divergence of the rows, not negative: of the W that the sums hold and `factor`.

        For KL `factor` must be what the rows were met with: its sums know the loss of no other H.
        """

    @abstractmethod
    def resting(self, HT: Floats, WtW: Doubles) -> Floats:
        """XtW of settled sums (rows, kp) with these `WtW` under which the columns `HT` of H are at rest."""

    @abstractmethod
    def kept(self, sums: Sums, factor: Factor) -> Sums:
        """Settled sums of rows that were met with `factor`, as H may go on from them when W is gone.

        With W as it was they bound what the rows lose under another H: the surrogate of Mairal, Bach, Ponce and Sapiro
        (JMLR 11, 2010), equation 6, for KL the majorizer of Lefèvre, Bach and Févotte (WASPAA 2011). Two such sums
        add up, and `surrogate` gives the bound.
        """

    @abstractmethod
    def surrogate(self, past: Sums, factor: Factor) -> float:
        """The bound that sums from `kept` give for another H; exact, for KL, at the H that they were kept with."""


@dataclass(frozen=True)
class Frobenius(Objective):
    """Half the squared Frobenius norm, by multiplicative updates or, `solver="cd"`, coordinate descent (HALS)."""

    solver: str = "mu"

    def factor(self, HT: Floats, parallel: Map = map) -> Factor:
        HT = read_only(on_cache_line(HT), np.float32)
        return Factor(HT, cross(HT, HT, parallel))

    def empty(self, n_features: int, kp: int) -> Sums:
        return Sums(zeros(n_features, kp), np.zeros((kp, kp)))

    def visit(
        self, X: Csr, start: int, stop: int, W: Floats, factor: Factor, sweeps: int, sums: Sums
    ) -> None:
        for low, w in self._swept(X, start, stop, W, factor, sweeps):
            sums.WtW += w.T @ w
            frobenius.add_XtW(X.indptr, X.indices, X.data, low, low + len(w), w, sums.XtW)
        sums.loss += _sum_squares(X, start, stop)
        sums.n_rows += stop - start

    def fold_in(self, X: Csr, start: int, stop: int, W: Floats, factor: Factor, sweeps: int) -> None:
        for _ in self._swept(X, start, stop, W, factor, sweeps):
            pass

    def _swept(
        self, X: Csr, start: int, stop: int, W: Floats, factor: Factor, sweeps: int
    ) -> Iterable[tuple[int, Floats]]:
        """Tiles of W after their sweeps, each with the row of X that it starts at."""
        _reset(W, factor)
        C, G = unset(TILE, W.shape[1]), read_only(factor.gram, np.float32)
        for low in range(start, stop, TILE):
            high = min(stop, low + TILE)
            w, c = W[low - start : high - start], C[: high - low]
            if sweeps:
                frobenius.multiply_HT(X.indptr, X.indices, X.data, low, high, factor.HT, c)
                self._solve(w, c, G, self.penalties.l1_W, self.penalties.l2_W, sweeps, 0.0)
            yield low, w

    def _solve(
        self, W: Floats, C: Floats, G: Floats, l1: float, l2: float, sweeps: int, floor: float
    ) -> None:
        """`sweeps` updates of the rows of W for W G ≈ C: of W with C = X Hᵀ, of Hᵀ with C = Xᵀ W."""
        C = read_only(C, np.float32)
        if self.solver == "cd":
            coordinate_descent.update_rows(W, C, G, l1, l2, sweeps)
            return
        WG = np.empty_like(W)
        for _ in range(sweeps):
            np.matmul(W, G, out=WG)
            frobenius.multiply_by_ratio(W, C, WG, l1, l2, floor)

    def started(self, sums: Sums, factor: Factor, decay: float) -> Sums:
        past = sums.scaled(1 / (1 - decay))
        diagonal = np.diag(past.WtW)
        past.WtW += np.diag(_least(diagonal) - diagonal)
        return replace(past, XtW=self.resting(factor.HT, past.WtW))

    def resting(self, HT: Floats, WtW: Doubles) -> Floats:
        return np.asarray(HT @ WtW.astype(np.float32))

    def kept(self, sums: Sums, factor: Factor) -> Sums:
        return sums

    def surrogate(self, past: Sums, factor: Factor) -> float:
        return 0.5 * (past.loss - 2.0 * _dot(past.XtW, factor.HT) + float(np.sum(past.WtW * factor.gram)))

    def update(self, factor: Factor, sums: Sums, sweeps: int, parallel: Map = map) -> Factor:
        HT, S = unset(*factor.HT.shape), read_only(sums.WtW, np.float32)
        l1, l2 = self.penalties.l1_H * sums.n_rows, self.penalties.l2_H * sums.n_rows

        def solve(low: int) -> None:
            HT[low : low + TILE] = factor.HT[low : low + TILE]
            self._solve(HT[low : low + TILE], sums.XtW[low : low + TILE], S, l1, l2, sweeps, FLOOR)

        each_tile(parallel, solve, len(HT))
        return self.factor(HT, parallel)

    def extrapolated(self, HT: Floats, before: Floats, momentum: float) -> Floats:
        if self.solver != "cd":
            return super().extrapolated(HT, before, momentum)
        # Coordinate descent revives zeros, so that what fell is carried on too (HER: Ang and Gillis, Neural
        # Computation 31, 2019): on four corpora 20 to 35 passes in place of 28 to 60. Not all the way: a topic
        # that falls everywhere would be gone.
        carried: Floats = HT - before
        carried *= np.float32(momentum)
        carried += HT
        np.maximum(carried, np.float32(LEAST_KEPT) * HT, out=carried)
        return carried

    def divergence(self, sums: Sums, factor: Factor) -> float:
        return max(self.surrogate(sums, factor), 0.0)


@dataclass(frozen=True)
class KullbackLeibler(Objective):
    """The generalized Kullback-Leibler divergence, by multiplicative updates."""

    floor: float = 1e-12

    def factor(self, HT: Floats, parallel: Map = map) -> Factor:
        HT = read_only(on_cache_line(HT), np.float32)
        return Factor(HT, HT.sum(axis=0, dtype=np.float64)[np.newaxis])

    def empty(self, n_features: int, kp: int) -> Sums:
        return Sums(zeros(n_features, kp), np.zeros((1, kp)))

    def visit(
        self, X: Csr, start: int, stop: int, W: Floats, factor: Factor, sweeps: int, sums: Sums
    ) -> None:
        _reset(W, factor)
        sums.loss += self._rows(X, start, stop, W, factor, sweeps, sums.XtW)
        w_sums = W.sum(axis=0, dtype=np.float64)
        sums.loss += float(w_sums @ factor.gram[0])
        sums.WtW += w_sums
        sums.n_rows += stop - start

    def settled(self, sums: Sums, factor: Factor) -> Sums:
        # H's numerator holds the H of its time: decayed sums mix rows that were met with different ones.
        return replace(sums, XtW=sums.XtW * factor.HT)

    def fold_in(self, X: Csr, start: int, stop: int, W: Floats, factor: Factor, sweeps: int) -> None:
        self._rows(X, start, stop, W, factor, sweeps, np.empty((0, W.shape[1]), np.float32))

    def _rows(
        self, X: Csr, start: int, stop: int, W: Floats, factor: Factor, sweeps: int, numerators: Floats
    ) -> float:
        h_sums = read_only(factor.gram[0], np.float32)
        part: float = kullback_leibler.update_rows(
            X.indptr, X.indices, X.data, start, stop, W, factor.HT, h_sums, sweeps,
            self.penalties.l1_W, self.penalties.l2_W, self.floor, numerators,
        )  # fmt: skip
        return part

    def started(self, sums: Sums, factor: Factor, decay: float) -> Sums:
        past = sums.scaled(1 / (1 - decay))
        past.WtW = _least(past.WtW)
        return replace(past, XtW=self.resting(factor.HT, past.WtW))

    def resting(self, HT: Floats, WtW: Doubles) -> Floats:
        return np.asarray(HT * WtW[0].astype(np.float32))

    def kept(self, sums: Sums, factor: Factor) -> Sums:
        return replace(sums, loss=2 * sums.loss - self.surrogate(sums, factor))

    def surrogate(self, past: Sums, factor: Factor) -> float:
        logs = sum(
            _dot_log(past.XtW[low : low + TILE], factor.HT[low : low + TILE])
            for low in range(0, len(factor.HT), TILE)
        )
        return past.loss + float(past.WtW[0] @ factor.gram[0]) - logs

    def update(self, factor: Factor, sums: Sums, sweeps: int, parallel: Map = map) -> Factor:
        l1, l2 = self.penalties.l1_H * sums.n_rows, self.penalties.l2_H * sums.n_rows
        w_sums = sums.WtW[0].astype(np.float32) + np.float32(l1)
        HT = unset(*factor.HT.shape)

        def divide(low: int) -> None:
            numerators, old = sums.XtW[low : low + TILE], factor.HT[low : low + TILE]
            new = numerators / np.maximum(w_sums + np.float32(l2) * old, np.float32(FLOOR))
            HT[low : low + TILE] = np.maximum(new, np.minimum(old, FLOOR))

        each_tile(parallel, divide, len(HT))
        return self.factor(HT)

    def divergence(self, sums: Sums, factor: Factor) -> float:
        return max(sums.loss, 0.0)


def _least(weights: Doubles) -> Doubles:
    return np.asarray(np.maximum(weights, 1e-6 * weights.max()))


def _reset(W: Floats, factor: Factor) -> None:
    if factor.reset is not None:
        W += factor.reset


def _sum_squares(X: Csr, start: int, stop: int) -> float:
    """Sum of the squares of rows `start` to `stop`; float32 within a stretch of values, float64 over stretches."""
    values = X.data[X.indptr[start] : X.indptr[stop]]
    return float(sum(np.dot(v, v).astype(np.float64) for v in _stretches(values)))


def _stretches(values: Floats) -> Iterable[Floats]:
    return (values[low : low + 8192] for low in range(0, len(values), 8192))


def each_tile(parallel: Map, work: Callable[[int], Any], length: int, tile: int = TILE) -> None:
    """Do `work` on each tile of `length` rows, given where it begins."""
    for _ in parallel(work, range(0, length, tile)):
        pass


def cross(A: Floats, B: Floats, parallel: Map, dtype: type = np.float32) -> Doubles:
    """Aᵀ B; in `dtype` within a tile of rows, float64 over tiles."""

    def one(low: int) -> Any:
        a, b = A[low : low + TALL], B[low : low + TALL]
        return a.T.astype(dtype, copy=False) @ b.astype(dtype, copy=False)

    total = np.zeros((A.shape[1], B.shape[1]))
    for product in parallel(one, range(0, len(A), TALL)):
        total += product
    return total


def _dot_log(N: Floats, H: Floats) -> float:
    """⟨N, log H⟩, where N is not zero."""
    tiny = np.finfo(np.float32).tiny
    return float(np.sum(N * np.log(np.maximum(H, tiny)), where=N > 0, dtype=np.float64))


def _dot(A: Floats, B: Floats) -> float:
    """⟨A, B⟩; float32 within a tile of rows, float64 over tiles."""
    return sum(float(np.vdot(A[low : low + TILE], B[low : low + TILE])) for low in range(0, len(A), TILE))
