"""The factorization of dense rows: products by BLAS, in the type of the input, for any beta-divergence.

Passes are scikit-learn's iterations, number by number but for rounding, and so are the stop rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from nmf_dask.kernels.dense import exact_rows, sweep_rows

Array = NDArray[Any]
Doubles = NDArray[np.float64]
T = TypeVar("T")

FOLD_ROWS = 2048  # that a thread folds in at a time

EPSILON = float(np.finfo(np.float32).eps)  # scikit-learn's: of WH and of denominators
PIECE_NUMBERS, PIECE_ROWS = 1 << 18, 32  # at least, of what a thread works on at a time
LONG_ROW = 100  # features from which BLAS is faster with H on the left, by a quarter, in float64
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


class Piece(NamedTuple):
    """Rows that a thread works on at a time, and where they are among all."""

    X: Array
    rows: slice


@dataclass
class Dense:
    """A dense matrix in row blocks, all of one type and width, and what is minimized over it.

    It is cut into pieces by its sizes alone, whatever `threads` there are to work on them: the sums are the same.
    Between threads that BLAS shares, a product is waited for many times; threads with a BLAS of their own meet once a
    pass, and what is done to W beside the products is shared too.
    """

    blocks: Sequence[Array]
    beta: float
    penalties: Penalties
    solver: str
    threads: int = 1
    pieces: list[Piece] = field(init=False)
    _pool: ThreadPoolExecutor | None = field(init=False, default=None)
    _opened: ExitStack = field(init=False, default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.pieces = list(_pieces(self.blocks))

    def __enter__(self) -> Self:
        if self.threads > 1 and len(self.pieces) > 1:
            self._opened.enter_context(threadpool_limits(1, user_api="blas"))
            self._pool = self._opened.enter_context(ThreadPoolExecutor(self.threads))
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        self._pool = None

    def each(self, function: Callable[[Piece], T]) -> list[T]:
        """What it gives of each piece, in their order; within a `with` several at once."""
        return list((self._pool.map if self._pool else map)(function, self.pieces))

    def divergence(self, W: Array, H: Array) -> float:
        """The beta-divergence of X and W H, as scikit-learn's `_beta_divergence` has it."""

        def of(piece: Piece) -> float:
            return sum(_divergence(X, w @ H, self.beta) for X, w in _tiles(piece, W))

        return max(sum(self.each(of)), 0.0)

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
            W = exact_weights(self.blocks, H, self.penalties, self.threads)
            return W.astype(self.blocks[0].dtype, copy=False)
        n = sum(map(len, self.blocks))
        mean = sum(float(X.sum(dtype=np.float64)) for X in self.blocks) / (n * H.shape[1])
        W = np.full((n, len(H)), np.sqrt(mean / len(H)), self.blocks[0].dtype)
        return self._by_products(W, H, tol, max_iter, False).W

    def _by_coordinates(
        self, W: Array, H: Array, tol: float, max_iter: int, order: np.random.RandomState | None
    ) -> DenseFit:
        own, k = W.dtype.type, len(H)
        HT = np.ascontiguousarray(H.T)
        l1_H, l2_H = own(self.penalties.l1_H), own(self.penalties.l2_H)
        first = 0.0

        def turns() -> NDArray[np.int64]:
            return np.arange(k) if order is None else order.permutation(k).astype(np.int64)

        for n_iter in range(1, max_iter + 1):
            told = self.each(partial(self._sweep, W, HT, HT.T @ HT, turns()))
            violation, WtX, WtW = _added(told)
            violation += sweep_rows(HT, np.ascontiguousarray(WtX.T), WtW, l1_H, l2_H, turns(), 1)
            first = first or violation
            if first == 0 or violation <= tol * first:
                return DenseFit(W, np.ascontiguousarray(HT.T), n_iter, True)
        return DenseFit(W, np.ascontiguousarray(HT.T), max_iter, False)

    def _sweep(
        self, W: Array, HT: Array, HHt: Array, turns: NDArray[np.int64], piece: Piece
    ) -> tuple[float, Array, Array]:
        """A sweep of a piece's W; how far it was from its end, and its share of Wᵀ X and Wᵀ W."""
        own, w = W.dtype.type, W[piece.rows]
        l1, l2 = own(self.penalties.l1_W), own(self.penalties.l2_W)
        violation = sweep_rows(w, _XHt(piece.X, HT), HHt, l1, l2, turns, 1)
        return violation, w.T @ piece.X, w.T @ w

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
        HT, HHt = np.ascontiguousarray(H.T), H @ H.T

        def visit(piece: Piece) -> tuple[Array, Array]:
            w = W[piece.rows]
            _multiply(w, _XHt(piece.X, HT), w @ HHt, l1_W, l2_W)
            return (w.T @ piece.X, w.T @ w) if both else (w, w)

        told = self.each(visit)
        if both:
            WtX, WtW = _added(told)
            _multiply(H, WtX, WtW @ H, l1_H, l2_H)

    def _beta_pass(self, W: Array, H: Array, both: bool) -> None:
        beta, (_, _, l1_H, l2_H) = self.beta, self.penalties
        told = self.each(partial(self._beta_visit, W, H, H.sum(axis=1), both))
        # As scikit-learn: weights would go on falling for ever.
        least = np.finfo(np.float64).eps
        if beta < 1:
            np.putmask(W, least > W, 0.0)
        if both:
            above, below = _added(told)
            _multiply(H, above, below, l1_H, l2_H, _exponent(beta))
            if beta <= 1:
                np.putmask(H, least > H, 0.0)

    def _beta_visit(self, W: Array, H: Array, h_sums: Array, both: bool, piece: Piece) -> tuple[Array, Array]:
        """An update of a piece's W; its share of what multiplies H, above and below the line."""
        l1, l2 = self.penalties[:2]
        above, below = np.zeros_like(H), np.zeros_like(H)
        for X, w in _tiles(piece, W):
            numerators, powers = _beta_terms(X, w @ H, self.beta)
            sums = h_sums.copy() if powers is None else powers @ H.T
            _multiply(w, numerators @ H.T, sums, l1, l2, _exponent(self.beta))
            if both:
                numerators, powers = _beta_terms(X, w @ H, self.beta)
                above += w.T @ numerators
                below += w.sum(axis=0)[:, np.newaxis] if powers is None else w.T @ powers
        return above, below


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
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(some, parts)))


def _pieces(blocks: Sequence[Array]) -> Iterator[Piece]:
    """By sizes alone; as many of a block as a power of two, which any even number of threads shares evenly."""
    low = 0
    for block in blocks:
        most = max(1, min(block.size // PIECE_NUMBERS, len(block) // PIECE_ROWS))
        for X in np.array_split(block, 1 << most.bit_length() - 1):
            yield Piece(X, slice(low, low + len(X)))
            low += len(X)


def _added(told: list[Any]) -> Any:
    """What pieces gave, summed: of one piece what it gave."""
    return told[0] if len(told) == 1 else tuple(sum(one) for one in zip(*told, strict=True))


def _tiles(piece: Piece, W: Array) -> Iterator[tuple[Array, Array]]:
    """A piece in tiles of rows whose WH is small, each with its rows of W."""
    X, w = piece.X, W[piece.rows]
    height = max(1, TILE_NUMBERS // X.shape[1])
    for low in range(0, len(X), height):
        yield X[low : low + height], w[low : low + height]


def _XHt(X: Array, HT: Array) -> Array:
    """X Hᵀ (n, k), C-contiguous."""
    if X.dtype == np.float64 and X.shape[1] >= LONG_ROW:
        return np.ascontiguousarray((HT.T @ X.T).T)
    return X @ HT


def _exponent(beta: float) -> float:
    return 1 / (2 - beta) if beta < 1 else 1 / (beta - 1) if beta > 2 else 1.0


def _multiply(A: Array, above: Array, below: Array, l1: float, l2: float, gamma: float = 1.0) -> None:
    """A ← A ∘ (above / (below + l1 + l2 A))^gamma, in place; `above` is used up, and zeros of `below` go."""
    if l1:
        below = below + A.dtype.type(l1)
    if l2:
        below = below + A.dtype.type(l2) * A
    below[below == 0] = EPSILON
    above /= below
    if gamma != 1:
        above **= gamma
    A *= above


def _beta_terms(X: Array, WH: Array, beta: float) -> tuple[Array, Array | None]:
    """X ∘ WH^(β-2) and WH^(β-1) (None: ones); WH is overwritten."""
    if beta < 2:
        np.maximum(WH, EPSILON, out=WH)
    if beta == 1:
        return np.divide(X, WH, out=WH), None
    if beta > 2:  # WH may be zero
        numerators = WH ** (beta - 2)
        powers = numerators * WH
    else:  # a reciprocal or a root where beta is 0 or 1.5, and not the general power
        powers = WH ** (beta - 1)
        numerators = np.square(powers, out=WH) if beta == 0 else np.divide(powers, WH, out=WH)
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
    if beta < 0:
        np.maximum(WH, EPSILON, out=WH)
    powers = float((WH.astype(np.float64) ** beta).sum())
    cross = float(x @ wh ** (beta - 1))
    return (float((x**beta).sum()) - beta * cross + (beta - 1) * powers) / (beta * (beta - 1))
