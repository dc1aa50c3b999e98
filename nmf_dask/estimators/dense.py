"""The factorization of dense rows: products by BLAS, in the type of the input, for any beta-divergence.

Passes are scikit-learn's iterations, number by number but for rounding, and so are the stop rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.dense import exact_rows, sweep_rows

Array = NDArray[Any]
Doubles = NDArray[np.float64]

FOLD_ROWS = 2048  # that a thread folds in at a time

EPSILON = float(np.finfo(np.float32).eps)  # scikit-learn's: of WH and of denominators
TILE_NUMBERS = 1 << 18  # of WH at a time: they stay in the nearest caches
CHECKED_EVERY = 10  # passes, as in scikit-learn's mu


class Penalties(NamedTuple):
    """As they stand in the objective: scaled by the features (those of W) and by the rows (those of H)."""

    l1_W: float = 0.0
    l2_W: float = 0.0
    l1_H: float = 0.0
    l2_H: float = 0.0


class DenseFit(NamedTuple):
    """W (n, k), H (k, m), passes made, and whether they ended before their most."""

    W: Array
    H: Array
    n_iter: int
    converged: bool


@dataclass(frozen=True)
class Dense:
    """A dense matrix in row blocks, all of one type and width, and what is minimized over it."""

    blocks: Sequence[Array]
    beta: float
    penalties: Penalties
    solver: str

    def rows(self, A: Array) -> Iterator[tuple[Array, Array]]:
        """Each block with its rows of A."""
        low = 0
        for X in self.blocks:
            yield X, A[low : low + len(X)]
            low += len(X)

    def tiles(self, A: Array) -> Iterator[tuple[Array, Array]]:
        """The same in tiles of rows whose WH is small."""
        height = max(1, TILE_NUMBERS // self.blocks[0].shape[1])
        for X, rows in self.rows(A):
            for low in range(0, len(X), height):
                yield X[low : low + height], rows[low : low + height]

    def XHt(self, H: Array) -> Array:
        """X Hᵀ (n, k)."""
        # From the left: three quarters of the time of X @ H.T where X is long, and of Xᵀ W half.
        return np.ascontiguousarray(np.concatenate([H @ X.T for X in self.blocks], axis=1).T)

    def XtW(self, W: Array) -> Array:
        """Xᵀ W (m, k)."""
        total: Array = sum(rows.T @ X for X, rows in self.rows(W))  # type: ignore[assignment]
        return np.ascontiguousarray(total.T)

    def divergence(self, W: Array, H: Array) -> float:
        """The beta-divergence of X and W H, as scikit-learn's `_beta_divergence` has it."""
        total = 0.0
        for X, rows in self.tiles(W):
            total += _divergence(X, rows @ H, self.beta)
        return max(total, 0.0)

    def fit(
        self, W: Array, H: Array, tol: float, max_iter: int, order: np.random.RandomState | None = None
    ) -> DenseFit:
        """Passes from W and H on, which are changed. `order` shuffles the coordinates of cd, a sweep at a time."""
        if self.solver == "cd":
            return self._by_coordinates(W, H, tol, max_iter, order)
        return self._by_products(W, H, tol, max_iter, True)

    def weights(self, H: Array, tol: float, max_iter: int) -> Array:
        """W (n, k) under a fixed H. Of Frobenius each row's exact minimum, for others by mu from equal weights."""
        if self.beta == 2:
            return exact_weights(self.blocks, H, self.penalties).astype(self.blocks[0].dtype, copy=False)
        n = sum(map(len, self.blocks))
        mean = sum(float(X.sum(dtype=np.float64)) for X in self.blocks) / (n * H.shape[1])
        W = np.full((n, len(H)), np.sqrt(mean / len(H)), self.blocks[0].dtype)
        return self._by_products(W, H, tol, max_iter, False).W

    def _by_coordinates(
        self, W: Array, H: Array, tol: float, max_iter: int, order: np.random.RandomState | None
    ) -> DenseFit:
        own, k = W.dtype.type, len(H)
        HT = np.ascontiguousarray(H.T)
        l1_W, l2_W, l1_H, l2_H = map(own, self.penalties)
        first = 0.0

        def turns() -> NDArray[np.int64]:
            return np.arange(k) if order is None else order.permutation(k).astype(np.int64)

        for n_iter in range(1, max_iter + 1):
            violation = sweep_rows(W, self.XHt(HT.T), HT.T @ HT, l1_W, l2_W, turns(), 1)
            violation += sweep_rows(HT, self.XtW(W), W.T @ W, l1_H, l2_H, turns(), 1)
            first = first or violation
            if first == 0 or violation <= tol * first:
                return DenseFit(W, np.ascontiguousarray(HT.T), n_iter, True)
        return DenseFit(W, np.ascontiguousarray(HT.T), max_iter, False)

    def _by_products(self, W: Array, H: Array, tol: float, max_iter: int, both: bool) -> DenseFit:
        """Multiplicative updates (Févotte and Idier 2011), with scikit-learn's exponents and penalties."""
        one = self._frobenius_pass if self.beta == 2 else self._beta_pass
        first = before = self._error(W, H) if tol > 0 else 0.0
        for n_iter in range(1, max_iter + 1):
            one(W, H, both)
            if tol > 0 and n_iter % CHECKED_EVERY == 0:
                error = self._error(W, H)
                if first == 0 or (before - error) / first < tol:
                    return DenseFit(W, H, n_iter, True)
                before = error
        return DenseFit(W, H, max_iter, False)

    def _error(self, W: Array, H: Array) -> float:
        return float(np.sqrt(2 * self.divergence(W, H)))

    def _frobenius_pass(self, W: Array, H: Array, both: bool) -> None:
        l1_W, l2_W, l1_H, l2_H = self.penalties
        _multiply(W, self.XHt(H), W @ (H @ H.T), l1_W, l2_W)
        if both:
            _multiply(H, self.XtW(W).T, (W.T @ W) @ H, l1_H, l2_H)

    def _beta_pass(self, W: Array, H: Array, both: bool) -> None:
        l1_W, l2_W, l1_H, l2_H = self.penalties
        beta = self.beta
        gamma = 1 / (2 - beta) if beta < 1 else 1 / (beta - 1) if beta > 2 else 1.0
        above, below = np.zeros_like(H), np.zeros_like(H)
        h_sums = H.sum(axis=1)
        for X, w in self.tiles(W):
            numerators, powers = _beta_terms(X, w @ H, beta)
            _multiply(w, numerators @ H.T, h_sums if powers is None else powers @ H.T, l1_W, l2_W, gamma)
            if both:
                numerators, powers = _beta_terms(X, w @ H, beta)
                above += w.T @ numerators
                below += w.sum(axis=0)[:, np.newaxis] if powers is None else w.T @ powers
        # As scikit-learn: weights would go on falling for ever.
        least = np.finfo(np.float64).eps
        if beta < 1:
            np.putmask(W, least > W, 0.0)
        if both:
            _multiply(H, above, below, l1_H, l2_H, gamma)
            if beta <= 1:
                np.putmask(H, least > H, 0.0)


def exact_weights(blocks: Sequence[Any], H: Array, penalties: Penalties, threads: int = 1) -> Doubles:
    """W (n, k) at each row's exact Frobenius minimum under H (k, m), of NumPy or CSR blocks; float64 inside."""
    H = H.astype(np.float64)
    HT = np.ascontiguousarray(H.T)
    G = H @ HT + penalties.l2_W * np.eye(len(H))

    def some(X: Any) -> Doubles:
        C = np.ascontiguousarray(X @ HT - penalties.l1_W, np.float64)
        W = np.empty_like(C)
        exact_rows(C, G, W)
        return W

    parts = [X[low : low + FOLD_ROWS] for X in blocks for low in range(0, X.shape[0], FOLD_ROWS)]
    if threads == 1 or len(parts) == 1:
        return np.concatenate([some(part) for part in parts])
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(some, parts)))


def _multiply(A: Array, above: Array, below: Array, l1: float, l2: float, gamma: float = 1.0) -> None:
    """A ← A ∘ (above / (below + l1 + l2 A))^gamma, in place."""
    below = below + A.dtype.type(l1) + A.dtype.type(l2) * A
    below[below == 0] = EPSILON
    ratio = above / below
    if gamma != 1:
        ratio **= gamma
    A *= ratio


def _beta_terms(X: Array, WH: Array, beta: float) -> tuple[Array, Array | None]:
    """X ∘ WH^(β-2) and WH^(β-1) (None: ones); WH is overwritten."""
    if beta < 2:
        np.maximum(WH, EPSILON, out=WH)
    if beta == 1:
        return np.divide(X, WH, out=WH), None
    numerators = WH ** (beta - 2)
    powers = numerators * WH
    numerators *= X
    return numerators, powers


def _divergence(X: Array, WH: Array, beta: float) -> float:
    if beta == 2:
        np.subtract(X, WH, out=WH)
        return 0.5 * float(np.einsum("ij,ij->", WH, WH, dtype=np.float64))
    total = float(WH.sum(dtype=np.float64))
    x = X[here := X > EPSILON].astype(np.float64)
    wh = np.maximum(WH[here], EPSILON).astype(np.float64)
    if beta == 1:
        return float(x @ np.log(x / wh)) - float(x.sum()) + total
    if beta == 0:
        return float((x / wh - np.log(x / wh)).sum()) - X.size
    powers = float((np.maximum(WH, EPSILON).astype(np.float64) ** beta).sum())
    cross = float(x @ wh ** (beta - 1))
    return (float((x**beta).sum()) - beta * cross + (beta - 1) * powers) / (beta * (beta - 1))
