"""Where W and H start: random, or NNDSVD by passes over the blocks.

NNDSVD is Boutsidis and Gallopoulos (Pattern Recognition 41, 2008), in scikit-learn's form. The singular vectors
come from a randomized block Krylov method (Musco and Musco, NeurIPS 2015) whose passes are ordinary visits of a
random share of the rows: H's side needs no row that it does not look at, and W's side is one more product with every
row.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.blocks import Blocks, Share, Sizes
from nmf_dask.kernels import frobenius
from nmf_dask.kernels.matrices import Csr, aligned, padded_width, read_only, unset, zeros
from nmf_dask.kernels.objective import TALL, TILE, Map, cross, each_tile

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

OVERSAMPLING = 6  # the Krylov space is several times as wide; this is about the last vectors of a block
# On four corpora fits from 2 or 3 ended higher, and from 4 somewhat; plain power iterations needed 8 to 12.
KRYLOV_PASSES = 5
# Many topics: narrow blocks and more passes. On 48,000 abstracts, 80 topics of which 50 stay, fits from 88 by 5
# directions end at 210.338 in the median of nine seeds; from 24 by 12, 32 by 10 and 40 by 8, half the work, at 210.337,
# 210.339 and 210.334; from 240 to 280 directions at 210.345 and more.
KRYLOV_WIDTH = 32
DIRECTIONS = 4  # of the space, for each singular vector
# Rows enough for the subspace, of many: from half of 48,000 abstracts fits end at 210.377 in the median of six seeds,
# from all at 210.336.
SAMPLE_ROWS = 40_000
MOST_CLEARED = 3  # times that a block is cleared of all others again, at most
# Of a column's length, for it not to be cleared again. On 48,000 abstracts none is, and columns are orthogonal within
# 2e-4: fits end where they did when all were cleared twice, to the seventh digit of the loss (12 seeds).
LEAST_LEFT = 0.1
ZERO = 1e-6  # NNDSVD's: what is smaller counts as zero


@dataclass
class Total:
    """A sum of arrays over rows; None is the sum of no rows."""

    value: Any

    def __sizeof__(self) -> int:
        """With what it holds: a worker goes by it when it decides what to keep in memory."""
        return int(getattr(self.value, "nbytes", 0)) + 64

    def add(self, other: Total) -> None:
        """Add the sum of other rows, in place."""
        if self.value is None:
            self.value = other.value
        elif other.value is not None:
            self.value += other.value


class Project:
    """Sums XᵀXQ, for Q (m, l) with l a multiple of 8."""

    def empty(self, n_features: int, kp: int) -> Total:
        return Total(None)

    def __call__(self, X: Csr, start: int, stop: int, W: Floats, shared: Floats, sums: Total) -> None:
        if sums.value is None:
            sums.value = zeros(*shared.shape)
        Y = unset(TILE, shared.shape[1])
        for low in range(start, stop, TILE):
            high = min(stop, low + TILE)
            y = Y[: high - low]
            frobenius.multiply_HT(X.indptr, X.indices, X.data, low, high, shared, y)
            frobenius.add_XtW(X.indptr, X.indices, X.data, low, high, y, sums.value)


class SquaredSides:
    """Sums the squares of the positive and of the negative entries of U = X V', V' (m, kp): (2, kp)."""

    def empty(self, n_features: int, kp: int) -> Total:
        return Total(np.zeros((2, kp)))

    def __call__(self, X: Csr, start: int, stop: int, W: Floats, shared: Floats, sums: Total) -> None:
        frobenius.multiply_HT(X.indptr, X.indices, X.data, start, stop, shared, W)
        sums.value += _squares_of_sides(W[: stop - start])


def _squares_of_sides(U: Floats) -> Doubles:
    """Sums of the squares of the positive and of the negative entries of each column; float64 over tiles of rows."""
    sums = np.zeros((2, U.shape[1]))
    for low in range(0, len(U), TILE):
        u = U[low : low + TILE]
        sums += [np.einsum("it,it->t", side, side) for side in (np.maximum(u, 0), np.minimum(u, 0))]
    return sums


class Side(NamedTuple):
    """How one of NNDSVD's factors comes from singular vectors; those of the leading pair are taken without signs."""

    signed: Floats  # (k,) or, with zeros for the padding, (kp,): factors, negative where that side of a vector is kept
    fill: Floats  # of the same shape: what stands for zero

    def of(self, vectors: Floats, out: Floats) -> None:
        """Write the side of `vectors` (rows, k or kp) to `out`, which may be the same array."""
        for low in range(0, len(vectors), TILE):
            own = out[low : low + TILE]
            np.multiply(vectors[low : low + TILE], self.signed, out=own)
            own[:, 0] = np.abs(own[:, 0])
            np.copyto(own, self.fill, where=own < ZERO)


class KeepSide:
    """Turns W, which holds U, into NNDSVD's W."""

    def empty(self, n_features: int, kp: int) -> Total:
        return Total(0.0)

    def __call__(self, X: Csr, start: int, stop: int, W: Floats, shared: Side, sums: Total) -> None:
        shared.of(W, W)


@dataclass(frozen=True)
class RandomW:
    """Fills W with scale·|N(0, 1)|, from a stream of its own for every run of rows."""

    seed: int
    scale: float
    n_components: int

    def empty(self, n_features: int, kp: int) -> Total:
        return Total(0.0)

    def __call__(self, X: Csr, start: int, stop: int, W: Floats, shared: Any, sums: Total) -> None:
        # The rows' own values tell runs of equal position in different blocks apart.
        content = zlib.crc32(X.data[X.indptr[start] : X.indptr[stop]][:4096].tobytes())
        rng = np.random.default_rng([self.seed, start, stop, content])
        W[:, : self.n_components] = np.abs(rng.standard_normal((stop - start, self.n_components), np.float32))
        W *= np.float32(self.scale)


def pad_H(H: NDArray[Any]) -> Floats:
    """H (k, m) in the layout of the kernels: transposed, float32, its topic axis padded with zeros: (m, kp)."""
    k, m = H.shape
    HT = np.zeros((m, padded_width(k)), np.float32)
    HT[:, :k] = H.T
    return HT


def random_start(blocks: Blocks, seed: int, mean: float) -> Floats:
    """scikit-learn's `init="random"`: both factors are √(mean/k)·|N(0, 1)|. Starts W, returns H (m, kp)."""
    m, k = blocks.sizes.n_features, blocks.sizes.n_components
    scale = float(np.sqrt(mean / k))
    H = scale * np.abs(np.random.default_rng([seed, 1]).standard_normal((k, m), np.float32))
    blocks.fetch(blocks.visit(RandomW(seed, scale, k), None))
    return pad_H(H)


def nndsvd_start(blocks: Blocks, seed: int, mean: float, fill_zeros: bool) -> Floats:
    """NNDSVD, or NNDSVDa with `fill_zeros` (zeros become `mean`, the mean of X). Starts W, returns H (m, kp)."""
    k, kp = blocks.sizes.n_components, blocks.sizes.kp
    sigma, V = _singular_vectors(blocks, seed)
    U_map = zeros(len(V), kp)
    U_map[:, :k] = V / np.where(sigma > 0, sigma, np.inf)
    squares = blocks.fetch(blocks.visit(SquaredSides(), read_only(U_map, np.float32))).value[:, :k]
    fill = mean if fill_zeros else 0.0
    HT, side = _sides(sigma, V, squares, fill, kp)
    blocks.fetch(blocks.visit(KeepSide(), side))
    return HT


def _singular_vectors(blocks: Blocks, seed: int) -> tuple[Doubles, Floats]:
    """The k largest singular values of X and its right singular vectors (m, k), from a share of the rows."""
    sizes = blocks.sizes
    share = Share(0, max(1, round(sizes.n_rows / SAMPLE_ROWS)))
    width, passes = krylov_shape(sizes.n_components)
    if passes * width >= sizes.n_features:
        # The space of all features is no larger: its basis is the unit vectors, and one pass is enough.
        K = np.eye(sizes.n_features, padded_width(sizes.n_features), dtype=np.float32)
        projected = cross(K, _project(blocks, read_only(aligned(K), np.float32), share), blocks.parallel)
    else:
        Q = np.random.default_rng([seed, 2]).standard_normal((sizes.n_features, width), np.float32)
        K, projected = _krylov(blocks, Q, share, passes)
    values, vectors = np.linalg.eigh((projected + projected.T) / 2)
    largest = np.argsort(-values)[: sizes.n_components]
    # Values under a millionth of the largest, squared, are rounding; so is what they would be divided into.
    values = np.where(values > 1e-12 * values.max(), values, 0.0)
    sigma = np.sqrt(values[largest] * share.of)
    V = _times(K, vectors[:, largest].astype(np.float32), blocks.parallel)
    return _padded(sigma, V, sizes.n_components)


def krylov_shape(n_components: int) -> tuple[int, int]:
    """Columns of a block, and how many blocks: a pass over the rows makes each from the one before."""
    widest = padded_width(max(KRYLOV_WIDTH, n_components // 3))
    width = min(padded_width(n_components + OVERSAMPLING), widest)
    return width, max(KRYLOV_PASSES, math.ceil(DIRECTIONS * n_components / width))


def _krylov(blocks: Blocks, Q: Floats, share: Share, passes: int) -> tuple[Floats, Doubles]:
    """An orthonormal basis K of the space that Q, XᵀXQ, (XᵀX)²Q ... span, and Kᵀ XᵀX K."""
    m, width = Q.shape
    K, projected = zeros(m, passes * width), np.zeros((passes * width, passes * width))
    Q, _ = _cholesky_qr(Q, blocks.parallel)
    for low in range(0, passes * width, width):
        high = low + width
        K[:, low:high] = Q
        Q = aligned(_project(blocks, read_only(Q, np.float32), share))
        weights = _take_off(Q, K[:, :high], blocks.parallel)
        projected[:high, low:high] = weights
        projected[low:high, :high] = weights.T
        if high < passes * width:
            Q = _orthonormal(Q, weights, K[:, :high], blocks.parallel)
    return K, projected


def _project(blocks: Blocks, Q: Floats, share: Share) -> Floats:
    product: Floats | None = blocks.fetch(blocks.visit(Project(), Q, share)).value
    return zeros(*Q.shape) if product is None else product


def _orthonormal(Q: Floats, taken: Doubles, basis: Floats, parallel: Map) -> Floats:
    """Q's columns made orthonormal, and orthogonal to those of a basis that Q was cleared of: of `taken` of them.

    Cleared again where too little of a column is left, which may be rounding, until enough is (Kahan and Parlett).
    """
    Q, left = _cholesky_qr(Q, parallel)
    left = left / np.maximum(np.hypot(np.linalg.norm(taken, axis=0), left), np.finfo(np.float32).tiny)
    for _ in range(MOST_CLEARED):
        if left.min() > LEAST_LEFT:
            break
        _take_off(Q, basis, parallel)
        Q, left = _cholesky_qr(Q, parallel)
    return Q


def _take_off(Q: Floats, basis: Floats, parallel: Map) -> Doubles:
    """Take off Q, in place, what it shares with an orthonormal basis: basis times the weights that are returned."""
    weights = cross(basis, Q, parallel)
    single = weights.astype(np.float32)

    def one(low: int) -> None:
        Q[low : low + TALL] -= basis[low : low + TALL] @ single

    each_tile(parallel, one, len(Q), TALL)
    return weights


def _cholesky_qr(Q: Floats, parallel: Map) -> tuple[Floats, Doubles]:
    """Q with orthonormal columns, by products alone: ten times as fast as QR for so tall a matrix.

    And the lengths of the columns without what each shares with those before it. The error grows with the square of
    the condition number, which doing it twice mends (Yamamoto et al., 2015).
    """
    try:
        R = np.linalg.cholesky(cross(Q, Q, parallel, np.float64)).T
    except np.linalg.LinAlgError:
        own, R = np.linalg.qr(Q)
        return aligned(own), np.abs(np.diag(R))
    return _times(Q, np.linalg.inv(R).astype(np.float32), parallel), np.diag(R)


def _times(A: Floats, B: Floats, parallel: Map) -> Floats:
    """A B, for a tall A."""
    product = unset(len(A), B.shape[1])

    def one(low: int) -> None:
        np.matmul(A[low : low + TALL], B, out=product[low : low + TALL])

    each_tile(parallel, one, len(A), TALL)
    return product


def _padded(sigma: Doubles, V: Floats, k: int) -> tuple[Doubles, Floats]:
    """Zero components where the matrix has fewer singular vectors than k."""
    missing = k - len(sigma)
    return np.pad(sigma, (0, missing)), np.pad(V, ((0, 0), (0, missing)))


def _sides(sigma: Doubles, V: Floats, squares: Doubles, fill: float, kp: int) -> tuple[Floats, Side]:
    """H, and how W comes from U: of each pair of singular vectors the signs whose sides weigh more."""
    k = len(sigma)
    v_norms = np.sqrt(_squares_of_sides(V))
    u_norms = np.sqrt(squares)
    weights = u_norms * v_norms
    sign = np.where(weights[0] >= weights[1], 1, -1)
    chosen = (sign < 0).astype(int), np.arange(k)
    scale = np.sqrt(sigma * weights[chosen])
    with np.errstate(divide="ignore", invalid="ignore"):
        v_factor, factor = (np.nan_to_num(scale / norms[chosen]) for norms in (v_norms, u_norms))
    # The leading pair has one sign but for noise: absolute values, as in scikit-learn.
    sign[0], v_factor[0], factor[0] = 1, np.sqrt(sigma[0]), np.sqrt(sigma[0])
    filled, HT = np.full(k, fill, np.float32), np.zeros((len(V), kp), np.float32)
    Side((sign * v_factor).astype(np.float32), filled).of(V, HT[:, :k])
    pad = (0, kp - k)
    return HT, Side(np.pad((sign * factor).astype(np.float32), pad), np.pad(filled, pad))


def start(blocks: Blocks, init: str, seed: int, mean: float) -> Floats:
    """Start W by `init` ("random", "nndsvd" or "nndsvda") and return H (m, kp). `mean` is that of X, zeros too."""
    if init == "random":
        return random_start(blocks, seed, mean)
    return nndsvd_start(blocks, seed, fill_of(blocks.sizes, mean), fill_zeros=init == "nndsvda")


def fill_of(sizes: Sizes, mean: float) -> float:
    """What NNDSVDa has in place of zeros: the mean of X, as in scikit-learn, where rows have a norm of 1 or less.

    W and H grow with the root of X, and its mean with X: of counts in thousands it would drown what the vectors say,
    and Kullback-Leibler's updates hardly move from there. So it is that of X over the norm of a row (where all its
    nonzeros are alike), times the root of it.
    """
    n, m, nnz, _ = sizes
    norm = mean * n * m / max(nnz, 1) * math.sqrt(nnz / max(n, 1))
    return mean / math.sqrt(max(norm, 1.0))
