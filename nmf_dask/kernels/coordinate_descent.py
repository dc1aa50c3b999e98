"""Coordinate descent on the rows of W (HALS) for the Frobenius loss, from small matrices of products.

Cichocki and Phan, "Fast local algorithms for large scale nonnegative matrix and tensor factorizations"
(2009), as in scikit-learn's `solver="cd"` without shuffling. Rows do not depend on one another, and a row's
coordinates must be taken in turn: so a tile of rows is transposed, and the eight lanes hold eight rows.
"""

# numba ships no types.
# mypy: disable-error-code="untyped-decorator"

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled
from nmf_dask.kernels.lanes import broadcast, load, maximum, multiply_add, store, transposed

# Rows a tile: their sums take eight of the sixteen registers, and 64 rows of 56 weights are 14 KB, which stay
# in first-level cache.
TILE = 64
TINY = np.finfo(np.float32).tiny

Floats = NDArray[np.float32]


@compiled(allocates=True)
def update_rows(W: Floats, C: Floats, G: Floats, l1: float, l2: float, sweeps: int) -> None:
    """Sweep cyclically over the coordinates of every row of W, (n, kp), in place.

    C = X Hᵀ, (n, kp), and G = H Hᵀ, (kp, kp). The same updates H transposed, (m, kp), from C = (Wᵀ X)ᵀ and
    G = Wᵀ W. Coordinate t goes to max(w_t - (sum_r w_r G'_rt - C_t + l1) / G'_tt, 0) with G' = G + l2 I, and
    stays where G'_tt is zero, or so small that its inverse may not be finite. All are float32 and C-contiguous,
    G is symmetric, the padding is zero and stays zero.
    """
    n, kp = W.shape
    assert C.shape == W.shape  # else what lies behind it would be read
    assert G.shape == (kp, kp)
    tile = np.zeros((kp, TILE), np.float32)
    constants = np.zeros((kp, TILE), np.float32)
    minus, l1s = broadcast(np.float32(-1.0)), broadcast(np.float32(l1))
    for first in range(0, n, TILE):
        height = min(TILE, n - first)
        _transpose(W, first, height, tile)
        _transpose(C, first, height, constants)
        for p in range(0, kp * TILE, 8):
            store(constants, p, multiply_add(load(constants, p), minus, l1s))
        for _ in range(sweeps):
            _sweep(tile, constants, G, l2)
        _transpose_back(tile, W, first, height)


@compiled
def _transpose(rows: Floats, first: int, height: int, tile: Floats) -> None:
    """Rows `first` to `first + height` into the columns of a tile (kp, TILE), eight by eight as far as that goes."""
    kp, eights = rows.shape[1], height // 8 * 8
    for i in range(0, eights, 8):
        for t in range(0, kp, 8):
            _transpose_eight(rows, (first + i) * kp + t, kp, tile, t * TILE + i, TILE)
    for i in range(eights, height):
        for t in range(kp):
            tile[t, i] = rows[first + i, t]


@compiled
def _transpose_back(tile: Floats, rows: Floats, first: int, height: int) -> None:
    kp, eights = rows.shape[1], height // 8 * 8
    for i in range(0, eights, 8):
        for t in range(0, kp, 8):
            _transpose_eight(tile, t * TILE + i, TILE, rows, (first + i) * kp + t, kp)
    for i in range(eights, height):
        for t in range(kp):
            rows[first + i, t] = tile[t, i]


@compiled(inline=True)
def _transpose_eight(given: Floats, here: int, width: int, out: Floats, there: int, out_width: int) -> None:
    """Eight rows of eight numbers, `width` apart from `here` on in `given`, into columns of `out`."""
    c0, c1, c2, c3, c4, c5, c6, c7 = transposed(
        load(given, here), load(given, here + width), load(given, here + 2 * width), load(given, here + 3 * width),
        load(given, here + 4 * width), load(given, here + 5 * width), load(given, here + 6 * width),
        load(given, here + 7 * width),
    )  # fmt: skip
    store(out, there, c0)
    store(out, there + out_width, c1)
    store(out, there + 2 * out_width, c2)
    store(out, there + 3 * out_width, c3)
    store(out, there + 4 * out_width, c4)
    store(out, there + 5 * out_width, c5)
    store(out, there + 6 * out_width, c6)
    store(out, there + 7 * out_width, c7)


@compiled
def _sweep(tile: Floats, constants: Floats, G: Floats, l2: float) -> None:
    kp = G.shape[0]
    zero = broadcast(np.float32(0.0))
    for t in range(kp):
        diagonal = np.float32(G[t, t] + l2)
        if diagonal < TINY:
            continue
        step = broadcast(np.float32(-1.0) / diagonal)
        l2s = broadcast(np.float32(l2))
        here = t * TILE
        g0 = multiply_add(l2s, load(tile, here), load(constants, here))
        g1 = multiply_add(l2s, load(tile, here + 8), load(constants, here + 8))
        g2 = multiply_add(l2s, load(tile, here + 16), load(constants, here + 16))
        g3 = multiply_add(l2s, load(tile, here + 24), load(constants, here + 24))
        g4 = multiply_add(l2s, load(tile, here + 32), load(constants, here + 32))
        g5 = multiply_add(l2s, load(tile, here + 40), load(constants, here + 40))
        g6 = multiply_add(l2s, load(tile, here + 48), load(constants, here + 48))
        g7 = multiply_add(l2s, load(tile, here + 56), load(constants, here + 56))
        for r in range(kp):
            g = broadcast(G[t, r])
            there = r * TILE
            g0 = multiply_add(g, load(tile, there), g0)
            g1 = multiply_add(g, load(tile, there + 8), g1)
            g2 = multiply_add(g, load(tile, there + 16), g2)
            g3 = multiply_add(g, load(tile, there + 24), g3)
            g4 = multiply_add(g, load(tile, there + 32), g4)
            g5 = multiply_add(g, load(tile, there + 40), g5)
            g6 = multiply_add(g, load(tile, there + 48), g6)
            g7 = multiply_add(g, load(tile, there + 56), g7)
        store(tile, here, maximum(multiply_add(g0, step, load(tile, here)), zero))
        store(tile, here + 8, maximum(multiply_add(g1, step, load(tile, here + 8)), zero))
        store(tile, here + 16, maximum(multiply_add(g2, step, load(tile, here + 16)), zero))
        store(tile, here + 24, maximum(multiply_add(g3, step, load(tile, here + 24)), zero))
        store(tile, here + 32, maximum(multiply_add(g4, step, load(tile, here + 32)), zero))
        store(tile, here + 40, maximum(multiply_add(g5, step, load(tile, here + 40)), zero))
        store(tile, here + 48, maximum(multiply_add(g6, step, load(tile, here + 48)), zero))
        store(tile, here + 56, maximum(multiply_add(g7, step, load(tile, here + 56)), zero))
