"""W of documents under topics that are given: each row's own convex problem, solved to its end.

Frobenius: one quadratic problem a row. Kullback-Leibler: Newton's method, whose every step is one (proximal Newton:
Lee, Sun and Saunders, SIAM Journal on Optimization 24, 2014), after some multiplicative updates. No number of another
row is looked at: a row gets the same bits alone and in any company. Arithmetic is float64.
"""

# numba ships no types, and its float32 values are not what mypy takes them for.
# mypy: disable-error-code="untyped-decorator,assignment"

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.active_sets import Room, Weighted, new_room, solve
from nmf_dask.kernels.compiled import compiled
from nmf_dask.kernels.coordinate_descent import update_rows as descend
from nmf_dask.kernels.kullback_leibler import update_rows

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int32]
Offsets = NDArray[np.int64]

# scikit-learn's floor under WH where it divides X (EPSILON of sklearn.decomposition._nmf). A constant, and so the same
# for every document.
FLOOR = float(np.finfo(np.float32).eps)
# What the exact methods begin from; it decides how long they take, and nothing else.
CD_SWEEPS = 6
KL_SWEEPS = 25
SMALL = 1e-3  # of the largest part of a row: a part that Newton's method first takes for zero
MOST_NEWTON = 100  # five or six as a rule
DONE = 1e-9  # of a step, beside the weights: the one after it would be about the square of that
PROXIMAL = 1e-10  # of a diagonal element, added to it: topics that are the same share what is theirs
MOST_HALVINGS = 60
ENOUGH = 1e-4  # of the fall that the slope promises (Armijo)
ROUNDING = 1e-13  # of a row's sum: the divergence is not known better
TILE = 64  # rows, of which X Hᵀ is held


@compiled
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


@compiled
def fit_rows_frobenius(
    indptr: Offsets, indices: Indices, data: Floats, HT: Floats, G: Doubles, l1: float, l2: float, W: Floats
) -> None:
    """Set W (n, kp) to what minimizes ½‖X − WH‖² + l1 ΣW + ½ l2 ‖W‖², W ≥ 0, for the CSR matrix X (n, m).

    `HT` is H transposed (m, kp), `G` is `gram(HT)`. A row without terms gets zeros.
    """
    kp = HT.shape[1]
    assert G.shape == (kp, kp)  # else memory of others would be read
    assert W.shape[1] == kp
    assert W.shape[0] == indptr.size - 1
    G = G.copy()
    diagonal = np.empty(kp)
    for t in range(kp):
        G[t, t] += l2
        diagonal[t] = G[t, t]
    whole = Weighted(indices[:0], np.empty(0), HT, np.ones(kp, np.uint8), l2)
    w, room = np.empty(kp), new_room(kp)
    C, C32, G32 = np.empty((TILE, kp)), np.empty((TILE, kp), np.float32), G.astype(np.float32)
    for low in range(0, W.shape[0], TILE):
        high = min(low + TILE, W.shape[0])
        for i in range(low, high):
            _multiply_HT(
                indices[indptr[i] : indptr[i + 1]], data[indptr[i] : indptr[i + 1]], HT, l1, C[i - low]
            )
            for t in range(kp):
                C32[i - low, t] = C[i - low, t]
                W[i, t] = 0.0
        # Near to the minimum, in float32: most of the weights that are zero there are zero then.
        descend(W[low:high], C32[: high - low], G32, 0.0, 0.0, CD_SWEEPS)
        for i in range(low, high):
            for t in range(kp):
                w[t] = W[i, t]
            solve(G, diagonal, C[i - low], w, whole, room)
            for t in range(kp):
                W[i, t] = w[t]


@compiled
def _multiply_HT(rows: Indices, x: Floats, HT: Floats, l1: float, c: Doubles) -> None:
    """A row of X Hᵀ - l1."""
    for t in range(c.size):
        c[t] = -l1
    for p in range(rows.size):
        value, h = np.float64(x[p]), HT[rows[p]]
        for t in range(c.size):
            c[t] += value * np.float64(h[t])


@compiled
def fit_rows_kullback_leibler(
    indptr: Offsets, indices: Indices, data: Floats, HT: Floats, h_sums: Doubles, l1: float, l2: float, W: Floats,
) -> None:  # fmt: skip
    """Set W (n, kp) to what minimizes D(X, WH) + l1 ΣW + ½ l2 ‖W‖², W ≥ 0, for the CSR matrix X (n, m).

    D is the generalized Kullback-Leibler divergence, with its logarithm carried on as a straight line below FLOOR: then
    its slope is X / max(WH, FLOOR), as in scikit-learn's updates. `h_sums` (kp,) are the sums of H over the features.
    """
    kp = HT.shape[1]
    assert h_sums.size == kp  # else memory of others would be read
    assert W.shape[1] == kp
    assert W.shape[0] == indptr.size - 1
    longest = 0
    for i in range(W.shape[0]):
        longest = max(longest, indptr[i + 1] - indptr[i])
        _start(data[indptr[i] : indptr[i + 1]], h_sums, W[i])
    sums, nothing = h_sums.astype(np.float32), np.empty((0, kp), np.float32)
    update_rows(indptr, indices, data, 0, W.shape[0], W, HT, sums, KL_SWEEPS, l1, l2, FLOOR, nothing)
    row = Row(np.empty(longest), np.empty(longest), np.empty(longest), np.empty(longest))
    w, v, c, costs = np.empty(kp), np.empty(kp), np.empty(kp), np.empty(kp)
    for t in range(kp):
        costs[t] = h_sums[t] + l1
    G, diagonal, room = np.empty((kp, kp)), np.empty(kp), new_room(kp)
    filled = np.zeros(kp, np.uint8)
    for i in range(W.shape[0]):
        rows = indices[indptr[i] : indptr[i + 1]]
        for p in range(rows.size):
            row.x[p] = data[indptr[i] + p]
        _without_small(W[i], costs, w)
        for _ in range(MOST_NEWTON):
            _linearize(rows, row, HT, costs, l2, w, c, diagonal, room)
            filled[:] = 0
            v[:] = w
            solve(G, diagonal, c, v, Weighted(rows, row.q[: rows.size], HT, filled, l2), room)
            if _step(rows, row, HT, costs, l2, w, v, room) <= DONE:
                break
        for t in range(kp):
            W[i, t] = w[t]


class Row(NamedTuple):
    """Numbers at the terms of a document."""

    x: Doubles
    u: Doubles  # WH
    v: Doubles  # VH, of where the step leads
    q: Doubles  # curvature: x / max(u, FLOOR)²


@compiled
def _start(x: Floats, h_sums: Doubles, w: Floats) -> None:
    """Each topic that has any weights explains an equal part of the row."""
    total, alive = 0.0, 0
    for p in range(x.size):
        total += x[p]
    for t in range(w.size):
        alive += h_sums[t] > 0.0
    for t in range(w.size):
        w[t] = total / (alive * h_sums[t]) if h_sums[t] > 0.0 else 0.0


@compiled
def _without_small(found: Floats, costs: Doubles, w: Doubles) -> None:
    largest = 0.0
    for t in range(w.size):
        largest = max(largest, found[t] * costs[t])
    for t in range(w.size):
        w[t] = found[t] if found[t] * costs[t] >= SMALL * largest else 0.0


@compiled
def _products(rows: Indices, HT: Floats, w: Doubles, room: Room, out: Doubles) -> None:
    """WH at the row's terms; `room.free` is overwritten."""
    n = 0
    for t in range(w.size):
        if w[t] != 0.0:
            room.free[n] = t
            n += 1
    for p in range(rows.size):
        h, total = HT[rows[p]], 0.0
        for a in range(n):
            total += w[room.free[a]] * np.float64(h[room.free[a]])
        out[p] = total


@compiled
def _linearize(
    rows: Indices, row: Row, HT: Floats, costs: Doubles, l2: float, w: Doubles, c: Doubles, diagonal: Doubles,
    room: Room,
) -> None:  # fmt: skip
    """The quadratic problem that is like the row's at w: its c, the diagonal of its G, the curvatures q."""
    _products(rows, HT, w, room, row.u)
    for t in range(w.size):
        c[t] = -costs[t]
        diagonal[t] = 0.0
    for p in range(rows.size):
        slope = row.x[p] / max(row.u[p], FLOOR)
        q = slope / max(row.u[p], FLOOR)
        row.q[p] = q
        y, h = slope + q * row.u[p], HT[rows[p]]
        for t in range(w.size):
            value = np.float64(h[t])
            c[t] += y * value
            diagonal[t] += q * value * value
    for t in range(w.size):
        c[t] += PROXIMAL * diagonal[t] * w[t]
        diagonal[t] = (1.0 + PROXIMAL) * diagonal[t] + l2


@compiled
def _step(
    rows: Indices, row: Row, HT: Floats, costs: Doubles, l2: float, w: Doubles, v: Doubles, room: Room
) -> float:
    """Take w towards v, all the way if the divergence falls enough; how far it was to v, beside the weights."""
    _products(rows, HT, v, room, row.v)
    linear = square = slope = far = largest = total = 0.0
    for t in range(w.size):
        d = v[t] - w[t]
        linear += (costs[t] + l2 * w[t]) * d
        square += 0.5 * l2 * d * d
        far, largest = max(far, abs(d)), max(largest, abs(v[t]))
    for p in range(rows.size):
        slope -= row.x[p] / max(row.u[p], FLOOR) * (row.v[p] - row.u[p])
        total += row.x[p]
    slope += linear
    length = 1.0
    for _ in range(MOST_HALVINGS):
        change = length * linear + length * length * square
        for p in range(rows.size):
            change -= row.x[p] * _log_ratio(row.u[p], row.u[p] + length * (row.v[p] - row.u[p]))
        if change <= ENOUGH * length * slope + ROUNDING * total:
            break
        length *= 0.5
    for t in range(w.size):
        w[t] = v[t] if length == 1.0 else w[t] + length * (v[t] - w[t])
    return far / largest if largest > 0.0 else 0.0


@compiled
def _log_ratio(before: float, after: float) -> float:
    """log(after / before), where the logarithm goes on as a straight line below FLOOR."""
    value: float = np.log(max(after, FLOOR) / max(before, FLOOR))
    return value + (min(after, FLOOR) - min(before, FLOOR)) / FLOOR
