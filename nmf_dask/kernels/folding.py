"""W of documents under topics that are given, for the Frobenius loss: each row's own quadratic problem.

It is solved to its end. No number of another row is looked at: a row gets the same bits alone and in any company.
Arithmetic is float64. `nmf_dask.kernels.newton` does the same for the Kullback-Leibler divergence.
"""

# numba ships no types, and its float32 values are not what mypy takes them for.
# mypy: disable-error-code="untyped-decorator,assignment"

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.active_sets import new_room, solve
from nmf_dask.kernels.compiled import compiled
from nmf_dask.kernels.coordinate_descent import update_rows as descend
from nmf_dask.kernels.lanes import LANES, add, at, broadcast, load, multiply, multiply_add, store, widened

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int32]
Offsets = NDArray[np.int64]

CD_SWEEPS = 5  # before the exact method; they decide how long it takes, and nothing else
TILE = 64  # rows, of which X Hᵀ is held


@compiled(allocates=True)
def gram(HT: Floats) -> Doubles:
    """H Hᵀ in float64, (kp, kp), from `HT` (m, kp): by one loop, so that no library's threads decide the last bits."""
    m, kp = HT.shape
    G = np.zeros((kp, kp))
    for j in range(m):
        for t in range(kp):
            h = np.float64(HT[j, t])
            if h != 0.0:
                for r in range(kp):
                    G[t, r] += h * np.float64(HT[j, r])
    return G


@compiled(allocates=True)
def fit_rows(
    indptr: Offsets, indices: Indices, data: Floats, HT: Floats, G: Doubles, l1: float, l2: float, W: Floats
) -> None:
    """Set W (n, kp) to what minimizes ½‖X − WH‖² + l1 ΣW + ½ l2 ‖W‖², W ≥ 0, for the CSR matrix X (n, m).

    `HT` is H transposed (m, kp), `G` is `gram(HT)`. A row without terms gets zeros.
    """
    kp = HT.shape[1]
    assert kp % LANES == 0  # else memory of others would be read
    assert G.shape == (kp, kp)
    assert W.shape[1] == kp
    assert W.shape[0] == indptr.size - 1
    G = G.copy()
    diagonal = np.empty(kp)
    for t in range(kp):
        G[t, t] += l2
        diagonal[t] = G[t, t]
    w, room = np.empty(kp), new_room(kp)
    C, C32, G32 = np.empty((TILE, kp)), np.empty((TILE, kp), np.float32), G.astype(np.float32)
    for low in range(0, W.shape[0], TILE):
        high = min(low + TILE, W.shape[0])
        for i in range(low, high):
            n = indptr[i + 1] - indptr[i]
            multiply_HT(indices, indptr[i], data, indptr[i], n, HT, -l1, C, (i - low) * kp)
            for t in range(kp):
                C32[i - low, t] = C[i - low, t]
                W[i, t] = 0.0
        # Near to the minimum, in float32: most of the weights that are zero there are zero then.
        descend(W[low:high], C32[: high - low], G32, 0.0, 0.0, CD_SWEEPS)
        for i in range(low, high):
            for t in range(kp):
                w[t] = W[i, t]
            solve(G, diagonal, C[i - low], w, room)
            for t in range(kp):
                W[i, t] = w[t]


@compiled
def multiply_HT(
    indices: Indices, first: int, x: Any, start: int, n: int, HT: Floats, constant: float, out: Doubles, place: int,
) -> None:  # fmt: skip
    """Set kp numbers of `out`, from `place` on, to `constant` + Σ x_p h_p over n numbers of x, from `start` on.

    h_p is the row of HT (m, kp) that `indices` names, from `first` on. In float64.
    """
    kp = HT.shape[1]
    for t in range(0, kp, LANES):
        store(out, place + t, broadcast(np.float64(constant)))
    p = 0
    # Four at a time: `out` is loaded and stored once for four rows of HT.
    while p + 4 <= n:
        h0, x0 = _term(indices, first + p, x, start + p, kp)
        h1, x1 = _term(indices, first + p + 1, x, start + p + 1, kp)
        h2, x2 = _term(indices, first + p + 2, x, start + p + 2, kp)
        h3, x3 = _term(indices, first + p + 3, x, start + p + 3, kp)
        for t in range(0, kp, LANES):
            a = multiply_add(x0, widened(load(HT, h0 + t)), load(out, place + t))
            b = multiply(x1, widened(load(HT, h1 + t)))
            a = multiply_add(x2, widened(load(HT, h2 + t)), a)
            b = multiply_add(x3, widened(load(HT, h3 + t)), b)
            store(out, place + t, add(a, b))
        p += 4
    while p < n:
        h0, x0 = _term(indices, first + p, x, start + p, kp)
        for t in range(0, kp, LANES):
            store(out, place + t, multiply_add(x0, widened(load(HT, h0 + t)), load(out, place + t)))
        p += 1


@compiled(inline=True)
def _term(indices: Indices, p: int, x: Any, q: int, kp: int) -> Any:
    """Where a term's row of HT begins, and the number at it in every lane."""
    return np.int64(at(indices, p)) * kp, broadcast(np.float64(at(x, q)))
