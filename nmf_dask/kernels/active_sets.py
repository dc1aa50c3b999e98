"""Quadratic problems with w ≥ 0, one small one after the other, each solved to its end.

min ½ wᵀGw − cᵀw, w ≥ 0, by active sets: Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23, on
the Gram matrix as in Bro and de Jong (Journal of Chemometrics 11, 1997). It ends after finitely many steps at the exact
minimum: there are no sweeps to count. Who begins where mostly the right weights are zero has one system of equations to
solve. All is float64, and nothing is kept from one problem to the next: a solution is the same bits in any company.
"""

# numba ships no types.
# mypy: disable-error-code="untyped-decorator"

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled
from nmf_dask.kernels.lanes import LANES, at, broadcast, load, multiply_add, store

Doubles = NDArray[np.float64]

# A gradient this small beside its terms is zero: float64 knows the difference to about 1e-14.
ZERO = 1e-11
# The least pivot, of its diagonal element: two topics that are the same leave none, and must not divide by it.
LEAST_PIVOT = 1e-14
MOST_STEPS = 10  # times the number of weights; a problem takes about one for each weight that is not zero
WHOLE = -LANES  # n & WHOLE: n rounded down to whole lanes


class Room(NamedTuple):
    """Scratch for problems of k weights, and which weights are free (not held at zero): `free[:n_free[0]]`."""

    free: NDArray[np.int64]
    n_free: NDArray[np.int64]
    state: NDArray[np.uint8]  # of each weight: HELD, FREE, or BARRED
    width: NDArray[np.int64]  # of the rows of U and L, of which there are k, one after the other
    U: Doubles  # G[free, free] = (I - L) U, U upper triangular, with (I - L)⁻¹ c[free] in its column n_free
    L: Doubles
    inverse: Doubles  # of the diagonal of U
    z: Doubles  # (G[free, free])⁻¹ c[free]
    gradient: Doubles  # (kp,) G w, then


HELD, FREE, BARRED = 0, 1, 2


@compiled(allocates=True)
def new_room(k: int) -> Room:
    """Room for problems of k weights."""
    width = (k & WHOLE) + LANES
    return Room(
        np.zeros(k, np.int64), np.zeros(1, np.int64), np.zeros(k, np.uint8), np.full(1, width),
        np.zeros(k * width), np.zeros(k * width), np.zeros(k), np.zeros(width), np.zeros(width),
    )  # fmt: skip


@compiled
def solve(G: Doubles, diagonal: Doubles, c: Doubles, w: Doubles, room: Room) -> None:
    """Take w (k,), which is feasible, to the minimum; those of its weights that are not zero begin free.

    G (k or more, kp) is symmetric and positive semidefinite in its first k columns, and kp is k rounded up to whole
    lanes, or more; `diagonal` is its own. A weight whose diagonal element is zero stays as it is.
    """
    n = 0
    for t in range(w.size):
        is_free = w[t] > 0.0 and diagonal[t] > 0.0
        room.state[t] = FREE if is_free else HELD
        room.free[n] = t
        n += is_free
    room.n_free[0] = n
    _descend(G, diagonal, c, w, room)
    for _ in range(MOST_STEPS * w.size):
        t = _steepest(G, diagonal, c, w, room)
        if t < 0:
            return
        n = room.n_free[0]
        room.free[n] = t
        room.n_free[0] = n + 1
        room.state[t] = FREE
        _descend(G, diagonal, c, w, room)
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
    free, kp, k = room.free, G.shape[1], w.size
    for t in range(0, k, LANES):
        down = broadcast(0.0)
        for a in range(room.n_free[0]):
            p = at(free, a)
            down = multiply_add(broadcast(at(w, p)), load(G, p * kp + t), down)
        store(room.gradient, t, down)
    best, chosen = 0.0, -1
    for t in range(k):
        down, up = at(room.gradient, t), at(c, t)
        if up - down > ZERO * (abs(up) + down) and room.state[t] == HELD and diagonal[t] > 0.0:
            gain = (up - down) * (up - down) / diagonal[t]
            if gain > best:
                best, chosen = gain, t
    return chosen


@compiled
def _descend(G: Doubles, diagonal: Doubles, c: Doubles, w: Doubles, room: Room) -> None:
    """To the minimum over the free weights, as far as they stay above zero; those that do not are held there."""
    free, z = room.free, room.z
    while room.n_free[0] > 0:
        n = room.n_free[0]
        _eliminate(G, diagonal, c, room)
        _substitute(room)
        step, stopper = 1.0, -1
        for a in range(n):
            if z[a] <= 0.0:
                share = w[free[a]] / (w[free[a]] - z[a]) if z[a] < w[free[a]] else 0.0
                if stopper < 0 or share < step:
                    step, stopper = share, a
        left = 0
        for a in range(n):
            t = free[a]
            moved = w[t] + step * (z[a] - w[t]) if stopper >= 0 else z[a]
            # The one that stops the step is at zero, whatever rounding says.
            if a == stopper or moved <= 0.0:
                w[t] = 0.0
                room.state[t] = HELD
            else:
                w[t] = moved
                free[left] = t
                left += 1
        room.n_free[0] = left
        if left == n:
            return


@compiled
def _eliminate(G: Doubles, diagonal: Doubles, c: Doubles, room: Room) -> None:
    """Gauss's elimination, a row at a time: Cholesky's, as L D Lᵀ. Row b of U is made from whole lanes before b on."""
    U, L, free, inverse, n, width = room.U, room.L, room.free, room.inverse, room.n_free[0], room.width[0]
    for b in range(n):
        t, row = at(free, b), b * width
        for d in range(b & WHOLE, n):
            U[np.uint64(row + d)] = G[np.uint64(t), np.uint64(at(free, d))]
        U[np.uint64(row + b)] = at(diagonal, t)
        U[np.uint64(row + n)] = at(c, t)
        for a in range(b):
            L[np.uint64(row + a)] = -at(inverse, a) * at(U, a * width + b)
        for a in range(b, (b & WHOLE) + LANES):
            L[np.uint64(row + a)] = 0.0
        for d in range(b & WHOLE, n + 1, LANES):
            values = load(U, row + d)
            for a in range(b):
                values = multiply_add(broadcast(at(L, row + a)), load(U, a * width + d), values)
            store(U, row + d, values)
        inverse[np.uint64(b)] = 1.0 / max(at(U, row + b), LEAST_PIVOT * at(diagonal, t))


@compiled
def _substitute(room: Room) -> None:
    """Solve U z = y; Lᵀ is U but for its diagonal and its sign, and its columns are rows."""
    U, L, z, n, width = room.U, room.L, room.z, room.n_free[0], room.width[0]
    for a in range(n):
        z[np.uint64(a)] = at(U, a * width + n) * at(room.inverse, a)
    for a in range(n - 1, 0, -1):
        value = broadcast(at(z, a))
        for d in range(0, a, LANES):
            store(z, d, multiply_add(value, load(L, a * width + d), load(z, d)))
