"""W of documents under topics that are given, for the Kullback-Leibler divergence: Newton's method, a row at a time.

Each step is the minimum of a quadratic problem with w ≥ 0 (proximal Newton: Lee, Sun and Saunders, SIAM Journal on
Optimization 24, 2014), after some multiplicative updates. Topics that have no weight and would gain none are left out
of a step: of fifty it has some ten, and the others cost their part of the gradient. A row gets the same bits alone
and in any company, as in `nmf_dask.kernels.folding`. Arithmetic is float64.
"""

# numba ships no types, and its float32 values are not what mypy takes them for.
# mypy: disable-error-code="untyped-decorator,assignment"

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.active_sets import WHOLE, ZERO, Room, new_room, solve
from nmf_dask.kernels.compiled import compiled
from nmf_dask.kernels.folding import multiply_HT
from nmf_dask.kernels.kullback_leibler import update_rows
from nmf_dask.kernels.lanes import (
    LANES,
    at,
    broadcast,
    divide,
    load,
    maximum,
    multiply,
    multiply_add,
    store,
    total,
    widened,
)

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int32]
Offsets = NDArray[np.int64]

# scikit-learn's floor under WH where it divides X (EPSILON of sklearn.decomposition._nmf). A constant, and so the same
# for every document that sums to 1 or more. It would leave nothing of a row of millionths (shares, abundances): what
# sums to less is solved as if it summed to 1, since divergence and weights go with the size of the row.
FLOOR = float(np.finfo(np.float32).eps)
# What Newton's method begins from; it decides how long that takes, and nothing else.
SWEEPS = 20
SMALL = 1e-3  # of the largest part of a row: a part that Newton's method first takes for zero
MOST_STEPS = 100  # three or four as a rule
# Of a step, beside the weights and beside WH at each term: what is left after it is about the square of that. Beside WH
# too, because a weight may be tiny and all that a term has: it doubles from step to step.
DONE = 1e-6
PROXIMAL = 1e-10  # of a diagonal element, added to it: topics that are the same share what is theirs
MOST_HALVINGS = 60
ENOUGH = 1e-4  # of the fall that the slope promises (Armijo)
ROUNDING = 1e-13  # of a row's sum: the divergence is not known better
# Of WH at each term: a step that changes it no more lowers the divergence enough. -log(1 + d) is no more than
# -d + d²/2 (1 + 2/3 |d| / (1 - |d|)), and the quadratic problem's minimum promises that the slope is as steep as
# twice the middle part.
SURE = 0.3


class Row(NamedTuple):
    """Numbers at the terms of a document, filled up with zeros to whole lanes."""

    x: Doubles
    u: Doubles  # WH
    v: Doubles  # VH, of where the step leads
    slope: Doubles  # x / max(u, FLOOR)
    q: Doubles  # curvature: x / max(u, FLOOR)²
    qh: Doubles  # q times a topic's part of H


class Chosen(NamedTuple):
    """The topics that a step may change, n[0] of them, and the quadratic problem of their weights."""

    n: NDArray[np.int64]
    topic: NDArray[np.int64]
    is_chosen: NDArray[np.uint8]  # (kp,)
    H: Floats  # at the document's terms: one topic after the other
    w: Doubles
    v: Doubles  # where the step leads
    G: Doubles
    diagonal: Doubles
    c: Doubles


@compiled(allocates=True)
def fit_rows(
    indptr: Offsets, indices: Indices, data: Floats, HT: Floats, h_sums: Doubles, l1: float, l2: float, W: Floats,
) -> None:  # fmt: skip
    """Set W (n, kp) to what minimizes D(X, WH) + l1 ΣW + ½ l2 ‖W‖², W ≥ 0, for the CSR matrix X (n, m).

    D is the generalized Kullback-Leibler divergence, with its logarithm carried on as a straight line below FLOOR: then
    its slope is X / max(WH, FLOOR), as in scikit-learn's updates. In a row that sums to less than 1 FLOOR is that share
    of itself. `h_sums` (kp,) are the sums of H over the features.
    """
    kp = HT.shape[1]
    assert kp % LANES == 0  # else memory of others would be read
    assert h_sums.size == kp
    assert W.shape[1] == kp
    assert W.shape[0] == indptr.size - 1
    longest, sizes = 0, np.ones(W.shape[0])
    sums, nothing = h_sums.astype(np.float32), np.empty((0, kp), np.float32)
    for i in range(W.shape[0]):
        longest = max(longest, indptr[i + 1] - indptr[i])
        whole = _start(data[indptr[i] : indptr[i + 1]], h_sums, W[i])
        if 0.0 < whole < 1.0:
            sizes[i] = whole
        floor = FLOOR * sizes[i]
        update_rows(indptr, indices, data, i, i + 1, W[i : i + 1], HT, sums, SWEEPS, l1, l2, floor, nothing)
    row, chosen, room = _new_row(longest), _new_chosen(longest, kp), new_room(kp)
    costs, gradient = h_sums + l1, np.empty(kp)
    for i in range(W.shape[0]):
        rows = indices[indptr[i] : indptr[i + 1]]
        width = _take(data[indptr[i] : indptr[i + 1]], sizes[i], row)
        chosen.n[0] = 0
        _choose_large(W[i], sizes[i], costs, rows, HT, width, chosen)
        _products(chosen, chosen.w, width, row.u)
        for _ in range(MOST_STEPS):
            _slopes(row, width)
            multiply_HT(rows, 0, row.slope, 0, rows.size, HT, 0.0, gradient, 0)
            _choose_gaining(gradient, costs, rows, HT, width, chosen)
            if _step(gradient, row, costs, l2 * sizes[i], width, chosen, room):
                break
        W[i] = 0.0
        for a in range(chosen.n[0]):
            W[i, chosen.topic[a]] = chosen.w[a] * sizes[i]


@compiled(allocates=True)
def _new_row(longest: int) -> Row:
    width = (longest & WHOLE) + LANES
    return Row(
        np.empty(width), np.empty(width), np.empty(width), np.empty(width), np.empty(width), np.empty(width)
    )


@compiled(allocates=True)
def _new_chosen(longest: int, kp: int) -> Chosen:
    # Room that stays unused costs addresses, not memory.
    H = np.empty(kp * ((longest & WHOLE) + LANES), np.float32)
    return Chosen(
        np.zeros(1, np.int64), np.zeros(kp, np.int64), np.zeros(kp, np.uint8), H, np.zeros(kp), np.zeros(kp),
        np.zeros((kp, kp)), np.zeros(kp), np.zeros(kp),
    )  # fmt: skip


@compiled
def _start(x: Floats, h_sums: Doubles, w: Floats) -> float:
    """Each topic that has any weights explains an equal part of the row; the sum of the row."""
    whole, alive = 0.0, 0
    for p in range(x.size):
        whole += x[p]
    for t in range(w.size):
        alive += h_sums[t] > 0.0
    for t in range(w.size):
        w[t] = whole / (alive * h_sums[t]) if h_sums[t] > 0.0 else 0.0
    return whole


@compiled
def _take(x: Floats, size: float, row: Row) -> int:
    """Copy a row's numbers, of which `size` is one; how many they are with the zeros that fill them up."""
    width = (x.size + LANES - 1) & WHOLE
    for p in range(x.size):
        row.x[p] = x[p] / size
    for p in range(x.size, width):
        row.x[p] = 0.0
    return width


@compiled
def _choose(t: int, weight: float, rows: Indices, HT: Floats, width: int, chosen: Chosen) -> None:
    a = chosen.n[0]
    chosen.n[0] = a + 1
    chosen.topic[a], chosen.w[a] = t, weight
    chosen.is_chosen[t] = 1
    place, kp, flat = a * width, HT.shape[1], HT.reshape(-1)
    for p in range(rows.size):
        chosen.H[np.uint64(place + p)] = at(flat, np.int64(at(rows, p)) * kp + t)
    for p in range(rows.size, width):
        chosen.H[np.uint64(place + p)] = 0.0


@compiled
def _choose_large(
    found: Floats, size: float, costs: Doubles, rows: Indices, HT: Floats, width: int, chosen: Chosen
) -> None:
    """Begin with what the updates found, of which `size` is one, without its small parts."""
    largest = 0.0
    for t in range(found.size):
        chosen.is_chosen[t] = 0
        largest = max(largest, found[t] * costs[t])
    for t in range(found.size):
        if found[t] > 0.0 and found[t] * costs[t] >= SMALL * largest:
            _choose(t, found[t] / size, rows, HT, width, chosen)


@compiled
def _choose_gaining(
    gradient: Doubles, costs: Doubles, rows: Indices, HT: Floats, width: int, chosen: Chosen
) -> None:
    """Topics without weight that lower the divergence once they have some; `gradient` is without costs."""
    for t in range(costs.size):
        up, down = at(gradient, t), at(costs, t)
        if up - down > ZERO * (up + down) and chosen.is_chosen[t] == 0:
            _choose(t, 0.0, rows, HT, width, chosen)


@compiled
def _products(chosen: Chosen, w: Doubles, width: int, out: Doubles) -> None:
    """WH at the row's terms."""
    for p in range(0, width, LANES):
        values = broadcast(0.0)
        for a in range(chosen.n[0]):
            values = multiply_add(broadcast(at(w, a)), widened(load(chosen.H, a * width + p)), values)
        store(out, p, values)


@compiled
def _slopes(row: Row, width: int) -> None:
    floor = broadcast(FLOOR)
    for p in range(0, width, LANES):
        u = maximum(load(row.u, p), floor)
        slope = divide(load(row.x, p), u)
        store(row.slope, p, slope)
        store(row.q, p, divide(slope, u))


@compiled
def _curvature(row: Row, l2: float, width: int, chosen: Chosen) -> None:
    """The quadratic problem's G = H diag(q) Hᵀ + l2 I, of the chosen topics."""
    G, n = chosen.G, chosen.n[0]
    for a in range(n):
        for p in range(0, width, LANES):
            store(row.qh, p, multiply(load(row.q, p), widened(load(chosen.H, a * width + p))))
        for b in range(a, n):
            values = broadcast(0.0)
            for p in range(0, width, LANES):
                values = multiply_add(load(row.qh, p), widened(load(chosen.H, b * width + p)), values)
            G[a, b] = G[b, a] = total(values)
        G[a, a] = (1.0 + PROXIMAL) * G[a, a] + l2
        chosen.diagonal[a] = G[a, a]


@compiled
def _step(
    gradient: Doubles, row: Row, costs: Doubles, l2: float, width: int, chosen: Chosen, room: Room
) -> bool:
    """Take w to the quadratic problem's minimum, or part of the way; whether that was the last step."""
    n, w, v, c = chosen.n[0], chosen.w, chosen.v, chosen.c
    _curvature(row, l2, width, chosen)
    for a in range(0, n, LANES):
        values = broadcast(0.0)
        for b in range(n):
            values = multiply_add(broadcast(at(w, b)), load(chosen.G, b * costs.size + a), values)
        store(c, a, values)
    for a in range(n):
        t = chosen.topic[a]
        v[a] = w[a]
        c[a] += gradient[t] - costs[t] - l2 * w[a]
    solve(chosen.G, chosen.diagonal, c[:n], v[:n], room)
    _products(chosen, v, width, row.v)
    is_short = _is_shorter(DONE, row, width, chosen)
    length = 1.0 if _is_shorter(SURE, row, width, chosen) else _length(row, costs, l2, width, chosen)
    for a in range(n):
        w[a] = v[a] if length == 1.0 else w[a] + length * (v[a] - w[a])
    for p in range(width):
        row.u[p] = row.v[p] if length == 1.0 else row.u[p] + length * (row.v[p] - row.u[p])
    return bool(is_short)


@compiled
def _is_shorter(share: float, row: Row, width: int, chosen: Chosen) -> bool:
    """Whether the whole step changes no weight by more than that share of the largest, and WH at no term."""
    far = largest = 0.0
    for a in range(chosen.n[0]):
        far, largest = max(far, abs(chosen.v[a] - chosen.w[a])), max(largest, chosen.v[a])
    is_short = far <= share * largest
    for p in range(width):
        is_short &= (abs(row.v[p] - row.u[p]) <= share * max(row.u[p], FLOOR)) | (row.x[p] <= 0.0)
    return bool(is_short)


@compiled
def _length(row: Row, costs: Doubles, l2: float, width: int, chosen: Chosen) -> float:
    """The part of the way to v on which the divergence falls enough."""
    linear = square = slope = whole = 0.0
    for a in range(chosen.n[0]):
        d = chosen.v[a] - chosen.w[a]
        linear += (costs[chosen.topic[a]] + l2 * chosen.w[a]) * d
        square += 0.5 * l2 * d * d
    for p in range(width):
        slope -= row.slope[p] * (row.v[p] - row.u[p])
        whole += row.x[p]
    slope += linear
    length = 1.0
    for _ in range(MOST_HALVINGS):
        change = length * linear + length * length * square
        for p in range(width):
            change -= row.x[p] * _log_ratio(row.u[p], row.u[p] + length * (row.v[p] - row.u[p]))
        if change <= ENOUGH * length * slope + ROUNDING * whole:
            break
        length *= 0.5
    return length


@compiled
def _log_ratio(before: float, after: float) -> float:
    """log(after / before), where the logarithm goes on as a straight line below FLOOR."""
    value: float = np.log(max(after, FLOOR) / max(before, FLOOR))
    return value + (min(after, FLOOR) - min(before, FLOOR)) / FLOOR
