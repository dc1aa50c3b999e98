"""Quadratic problems with w ≥ 0, one small one after the other, each solved to its end.

min ½ wᵀGw − cᵀw, w ≥ 0, by active sets: Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23, on
the Gram matrix as in Bro and de Jong (Journal of Chemometrics 11, 1997), with a Cholesky factor that grows by a row
for each weight that leaves zero. It ends after finitely many steps at the exact minimum: there are no sweeps to count.
All is float64, and nothing is kept from one problem to the next: a solution is the same bits in any company.
"""

# numba ships no types.
# mypy: disable-error-code="untyped-decorator"

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# A gradient this small beside its terms is zero: float64 knows the difference to about 1e-14.
ZERO = 1e-11
# The least pivot, of its diagonal element: two topics that are the same leave none, and must not divide by it.
LEAST_PIVOT = 1e-14
MOST_STEPS = 10  # times the number of weights; a problem takes about one for each weight that is not zero


class Room(NamedTuple):
    """Scratch for problems of kp weights, and which weights are free (not held at zero): `free[:n_free[0]]`."""

    free: NDArray[np.int64]
    n_free: NDArray[np.int64]
    state: NDArray[np.uint8]  # of each weight: HELD, FREE, or BARRED
    L: Doubles  # Cholesky factor of G[free, free], by rows
    y: Doubles  # L⁻¹ c[free]
    z: Doubles  # (G[free, free])⁻¹ c[free]
    gradient: Doubles
    size: Doubles  # of the terms of the gradient


HELD, FREE, BARRED = 0, 1, 2


@compiled
def new_room(kp: int) -> Room:
    """Room for problems of kp weights."""
    return Room(
        np.zeros(kp, np.int64), np.zeros(1, np.int64), np.zeros(kp, np.uint8), np.zeros((kp, kp)),
        np.zeros(kp), np.zeros(kp), np.zeros(kp), np.zeros(kp),
    )  # fmt: skip


class Weighted(NamedTuple):
    """Where rows of G come from when they are not there yet: G = Σ q_p h_p h_pᵀ + diag(l2), h_p a row of HT.

    `rows` (n,) are the rows of HT, `q` (n,) their weights; none: G is whole already. `filled` (kp,) says which rows
    of G are.
    """

    rows: NDArray[np.int32]
    q: Doubles
    HT: Floats
    filled: NDArray[np.uint8]
    l2: float


@compiled
def solve(G: Doubles, diagonal: Doubles, c: Doubles, w: Doubles, source: Weighted, room: Room) -> None:
    """Take w (kp,), which is feasible, to the minimum; those of its weights that are not zero begin free.

    G (kp, kp) is symmetric and positive semidefinite; `diagonal` is its own. A weight whose diagonal element is zero
    stays as it is.
    """
    n = 0
    for t in range(w.size):
        room.state[t] = HELD
        if w[t] > 0.0 and diagonal[t] > 0.0:
            room.state[t] = FREE
            room.free[n] = t
            n += 1
    room.n_free[0] = n
    _factor(G, diagonal, c, source, room, 0)
    _descend(G, diagonal, c, w, source, room)
    for _ in range(MOST_STEPS * w.size):
        t = _steepest(G, diagonal, c, w, room)
        if t < 0:
            return
        n = room.n_free[0]
        room.free[n] = t
        room.n_free[0] = n + 1
        room.state[t] = FREE
        _factor(G, diagonal, c, source, room, n)
        _descend(G, diagonal, c, w, source, room)
        if w[t] == 0.0:
            room.state[t] = BARRED  # it came back at once: what pulled at it was rounding
        else:
            _unbar(room)


@compiled
def _unbar(room: Room) -> None:
    """The free weights are others: what was rounding may not be so now."""
    for t in range(room.state.size):
        if room.state[t] == BARRED:
            room.state[t] = HELD


@compiled
def _steepest(G: Doubles, diagonal: Doubles, c: Doubles, w: Doubles, room: Room) -> int:
    """The weight that is held at zero and gains most when it leaves; -1 where none gains."""
    gradient, size = room.gradient, room.size
    for t in range(w.size):
        gradient[t] = 0.0
    for a in range(room.n_free[0]):
        p = room.free[a]
        weight, row = w[p], G[p]
        for t in range(w.size):
            gradient[t] += weight * row[t]
    best, chosen = 0.0, -1
    for t in range(w.size):
        size[t] = abs(c[t]) + gradient[t]
        gradient[t] = c[t] - gradient[t]
        if room.state[t] == HELD and gradient[t] > ZERO * size[t] and diagonal[t] > 0.0:
            gain = gradient[t] * gradient[t] / diagonal[t]
            if gain > best:
                best, chosen = gain, t
    return chosen


@compiled
def _factor(G: Doubles, diagonal: Doubles, c: Doubles, source: Weighted, room: Room, first: int) -> None:
    """Rows of the Cholesky factor, and of y, from the free weight number `first` on."""
    L, y, free = room.L, room.y, room.free
    for a in range(first, room.n_free[0]):
        t = free[a]
        if source.q.size and not source.filled[t]:
            _fill(G, diagonal, source, t)
        pivot, right = diagonal[t], c[t]
        for b in range(a):
            value = G[free[b], t]
            for d in range(b):
                value -= L[a, d] * L[b, d]
            value /= L[b, b]
            L[a, b] = value
            pivot -= value * value
            right -= value * y[b]
        L[a, a] = np.sqrt(max(pivot, LEAST_PIVOT * diagonal[t]))
        y[a] = right / L[a, a]


@compiled
def _fill(G: Doubles, diagonal: Doubles, source: Weighted, t: int) -> None:
    row, HT = G[t], source.HT
    for r in range(row.size):
        row[r] = 0.0
    for p in range(source.q.size):
        h = HT[source.rows[p]]
        weight = source.q[p] * np.float64(h[t])
        if weight != 0.0:
            for r in range(row.size):
                row[r] += weight * np.float64(h[r])
    row[t] = diagonal[t]
    source.filled[t] = 1


@compiled
def _descend(G: Doubles, diagonal: Doubles, c: Doubles, w: Doubles, source: Weighted, room: Room) -> None:
    """To the minimum over the free weights, as far as they stay above zero; those that do not are held there."""
    free, z = room.free, room.z
    while room.n_free[0] > 0:
        n = room.n_free[0]
        _substitute(room)
        step, stopper = 1.0, -1
        for a in range(n):
            if z[a] <= 0.0:
                share = w[free[a]] / (w[free[a]] - z[a]) if z[a] < w[free[a]] else 0.0
                if stopper < 0 or share < step:
                    step, stopper = share, a
        first, left = -1, 0
        for a in range(n):
            t = free[a]
            moved = w[t] + step * (z[a] - w[t]) if stopper >= 0 else z[a]
            # The one that stops the step is at zero, whatever rounding says.
            if a == stopper or moved <= 0.0:
                w[t] = 0.0
                room.state[t] = HELD
                first = a if first < 0 else first
            else:
                w[t] = moved
                free[left] = t
                left += 1
        room.n_free[0] = left
        if first < 0:
            return
        _factor(G, diagonal, c, source, room, first)


@compiled
def _substitute(room: Room) -> None:
    """Solve Lᵀ z = y."""
    L, z = room.L, room.z
    n = room.n_free[0]
    for a in range(n):
        z[a] = room.y[a]
    for a in range(n - 1, -1, -1):
        z[a] /= L[a, a]
        for b in range(a):
            z[b] -= L[a, b] * z[a]
