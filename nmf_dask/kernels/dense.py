"""Rows of W from products that BLAS has made, in float32 or float64: for dense matrices.

Coordinate descent as in `nmf_dask.kernels.coordinate_descent`, and each row's problem solved to its end as in
`nmf_dask.kernels.folding`; both in the type of the arrays they are given.
"""

# numba ships no types.
# mypy: disable-error-code="untyped-decorator"

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.active_sets import WHOLE, new_room, solve
from nmf_dask.kernels.compiled import compiled
from nmf_dask.kernels.lanes import LANES

Doubles = NDArray[np.float64]

TILE = 64  # rows that are swept together, one in each lane
START_SWEEPS = 6  # before the exact method; they decide how long it takes, and nothing else


@compiled(allocates=True)
def sweep_rows(W: Any, C: Any, G: Any, l1: Any, l2: Any, order: NDArray[np.int64], sweeps: int) -> float:
    """Sweep over the coordinates of every row of W (n, k), in place and in `order` (k,); the rows' violation.

    C = X Hᵀ (n, k) and G = H Hᵀ (k, k). Coordinate t goes to max(w_t - (Σ_r w_r G'_rt - C_t + l1) / G'_tt, 0) with
    G' = G + l2 I, and stays where G'_tt is zero. The violation is the sum of the projected gradient's absolute values
    as the first sweep meets them (scikit-learn's `_update_cdnmf_fast`). All are of one type; C-contiguous, or compiled
    anew.
    """
    n, k = W.shape
    assert C.shape == W.shape  # else what lies behind it would be read
    assert G.shape == (k, k)
    assert order.size == k
    tile, linear, g = np.zeros((k, TILE), W.dtype), np.zeros((k, TILE), W.dtype), np.zeros(TILE, W.dtype)
    # A sum a lane, and the smaller of two by comparison: this is what the compiler makes vectors of.
    violated, zero, violation = np.zeros(TILE, W.dtype), l1 - l1, 0.0
    for first in range(0, n, TILE):
        height = min(TILE, n - first)
        tile[:, :height] = W[first : first + height].T
        linear[:, :height] = C[first : first + height].T
        for sweep in range(sweeps):
            for s in range(k):
                t = order[s]
                _gradient(tile, linear, G, l1, l2, t, g)
                if sweep == 0:
                    for i in range(TILE):
                        violated[i] += abs(g[i]) if tile[t, i] > zero or g[i] < zero else zero
                diagonal = G[t, t] + l2
                if diagonal > 0:
                    for i in range(TILE):
                        w = tile[t, i] - g[i] / diagonal
                        tile[t, i] = zero if w < zero else w
        W[first : first + height] = tile[:, :height].T
        for i in range(height):
            violation += violated[i]
        violated[:] = zero
    return violation


@compiled
def _gradient(tile: Any, linear: Any, G: Any, l1: Any, l2: Any, t: int, g: Any) -> None:
    k = G.shape[0]
    for i in range(TILE):
        g[i] = (l1 - linear[t, i]) + l2 * tile[t, i]
    r = 0
    # Four at a time: g is loaded and stored once for four rows of the tile.
    while r + 4 <= k:
        a, b, c, d = G[t, r], G[t, r + 1], G[t, r + 2], G[t, r + 3]
        for i in range(TILE):
            g[i] += (a * tile[r, i] + b * tile[r + 1, i]) + (c * tile[r + 2, i] + d * tile[r + 3, i])
        r += 4
    while r < k:
        a = G[t, r]
        for i in range(TILE):
            g[i] += a * tile[r, i]
        r += 1


@compiled(allocates=True)
def exact_rows(C: Doubles, G: Doubles, W: Doubles) -> None:
    """Set W (n, k) to what minimizes ½ wGw - cw for each row, w ≥ 0; C (n, k), G (k, k) positive semidefinite.

    Each row is solved by itself. What penalties add is in C (less l1) and on G's diagonal (l2) already.
    """
    n, k = W.shape
    assert C.shape == W.shape  # else memory of others would be read
    assert G.shape == (k, k)
    W[:] = 0.0
    sweep_rows(W, C, G, 0.0, 0.0, np.arange(k), START_SWEEPS)
    padded, diagonal = np.zeros((k, (k & WHOLE) + LANES)), np.empty(k)
    padded[:, :k] = G
    for t in range(k):
        diagonal[t] = G[t, t]
    w, room = np.empty(k), new_room(k)
    for i in range(n):
        w[:] = W[i]
        solve(padded, diagonal, C[i], w, room)
        W[i] = w
