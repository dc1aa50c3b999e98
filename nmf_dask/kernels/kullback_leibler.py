"""One block under the generalized Kullback-Leibler divergence: W sweeps, the statistics of H, the loss.

The updates are those of Lee and Seung, "Algorithms for non-negative matrix factorization" (2001), eq. 5,
with scikit-learn's penalties in the denominators. WH is computed at the nonzeros of X only. A row of X has
some tens of nonzeros; their rows of HT stay in first-level cache, where all sweeps of that row find them.

kp is n_components rounded up to a multiple of 8; the padding columns of W and HT are zero and stay zero.
Arrays must be C-contiguous and of the types named here.
"""

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled
from nmf_dask.kernels.lanes import (
    add,
    at,
    broadcast,
    divide,
    load,
    log,
    maximum,
    multiply,
    multiply_add,
    store,
    total,
    totals,
    zero_below,
)
from nmf_dask.kernels.subnormals import flush_subnormals, restore

# Weights under this are set to zero. They no longer change any sum that float32 can hold, and left alone
# they would become denormal numbers, which some processors handle a hundred times slower. Also the smallest
# denominator: where h_sums is zero the numerator is too, and scikit-learn's guard gives the same 0.
TINY = np.float32(1e-30)

Floats = NDArray[np.float32]
Offsets = NDArray[np.int64]


@compiled(allocates=True)  # type: ignore[untyped-decorator]
def update_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: Floats,
    start: int,
    stop: int,
    W: Floats,
    HT: Floats,
    h_sums: Floats,
    sweeps: int,
    l1: float,
    l2: float,
    floor: float,
    numerators: Floats,
) -> float:
    """Update W by `sweeps` sweeps and add the statistics of H; rows `start` to `stop` of the CSR matrix X.

    W, (stop - start, kp), changes in place. Wᵀ(X/WH) of the W that results is added to `numerators`, (m, kp)
    like HT; with `numerators` of shape (0, kp) it is not computed. `h_sums`, (kp,), are the sums of H over
    the features. WH is taken as at least `floor`. X must not be negative; stored zeros count for nothing.

    Returns the sum over the nonzeros of x log(x / WH) - x, for the W that `numerators` are of; with the sum of
    all WH, that is W's column sums times `h_sums`, it is the divergence.
    """
    kp = W.shape[1]
    assert kp % 8 == 0  # else memory of others would be changed
    assert HT.shape[1] == numerators.shape[1] == h_sums.size == kp
    assert W.shape[0] == stop - start
    longest = 0
    for i in range(start, stop):
        longest = max(longest, indptr[i + 1] - indptr[i])
    offsets = np.empty(longest + 8, np.int64)
    x = np.empty(longest + 8, np.float32)
    ratios = np.empty(longest + 8, np.float32)
    sums = np.empty(kp, np.float32)
    wanted = numerators.shape[0] > 0
    loss = 0.0
    # Products of weights and entries of H that both go towards zero: after some passes most of the time without this.
    before = flush_subnormals()
    for i in range(start, stop):
        row = (i - start) * kp
        n = indptr[i + 1] - indptr[i]
        _take_row(indices, data, indptr[i], n, kp, offsets, x)
        last = max(sweeps + wanted, 1) - 1
        for sweep in range(last + 1):
            _divide_by_WH(x, offsets, n, W, row, HT, kp, floor, ratios)
            if sweep == last:
                loss += _x_log_ratio_less_x(x, ratios, n)
            if sweep < sweeps:
                _multiply_by_HT(ratios, offsets, n, HT, kp, sums)
                _update_row(W, row, sums, h_sums, l1, l2)
            elif wanted:
                _add_numerators(ratios, offsets, n, W, row, kp, numerators)
    restore(before)
    return loss


@compiled
def _take_row(
    indices: NDArray[np.int32], data: Floats, first: int, n: int, kp: int, offsets: Offsets, x: Floats
) -> None:
    """Copy a row, filled up to a multiple of eight with zeros (which add nothing) at its first feature."""
    for p in range(n):
        there = np.int64(at(indices, first + p)) * kp
        offsets[p] = there
        x[p] = at(data, first + p)
    for p in range(n, (n + 7) // 8 * 8):
        offsets[p] = offsets[0]
        x[p] = 0.0


@compiled
def _divide_by_WH(
    x: Floats,
    offsets: Offsets,
    n: int,
    W: Floats,
    row: int,
    HT: Floats,
    kp: int,
    floor: float,
    ratios: Floats,
) -> None:
    """Eight nonzeros at a time, so that eight sums are under way and are folded together."""
    floors = broadcast(np.float32(floor))
    for p in range(0, n, 8):
        o0, o1, o2, o3 = at(offsets, p), at(offsets, p + 1), at(offsets, p + 2), at(offsets, p + 3)
        o4, o5, o6, o7 = at(offsets, p + 4), at(offsets, p + 5), at(offsets, p + 6), at(offsets, p + 7)
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = broadcast(np.float32(0.0))
        for t in range(0, kp, 8):
            w = load(W, row + t)
            s0 = multiply_add(w, load(HT, o0 + t), s0)
            s1 = multiply_add(w, load(HT, o1 + t), s1)
            s2 = multiply_add(w, load(HT, o2 + t), s2)
            s3 = multiply_add(w, load(HT, o3 + t), s3)
            s4 = multiply_add(w, load(HT, o4 + t), s4)
            s5 = multiply_add(w, load(HT, o5 + t), s5)
            s6 = multiply_add(w, load(HT, o6 + t), s6)
            s7 = multiply_add(w, load(HT, o7 + t), s7)
        WH = maximum(totals(s0, s1, s2, s3, s4, s5, s6, s7), floors)
        store(ratios, p, divide(load(x, p), WH))


@compiled
def _multiply_by_HT(ratios: Floats, offsets: Offsets, n: int, HT: Floats, kp: int, sums: Floats) -> None:
    """(X/WH) Hᵀ of one row: eight ratios stay in registers while a group's rows of HT stream past."""
    for t in range(0, kp, 8):
        store(sums, t, broadcast(np.float32(0.0)))
    for p in range(0, n, 8):
        o0, o1, o2, o3 = at(offsets, p), at(offsets, p + 1), at(offsets, p + 2), at(offsets, p + 3)
        o4, o5, o6, o7 = at(offsets, p + 4), at(offsets, p + 5), at(offsets, p + 6), at(offsets, p + 7)
        r0, r1 = broadcast(at(ratios, p)), broadcast(at(ratios, p + 1))
        r2, r3 = broadcast(at(ratios, p + 2)), broadcast(at(ratios, p + 3))
        r4, r5 = broadcast(at(ratios, p + 4)), broadcast(at(ratios, p + 5))
        r6, r7 = broadcast(at(ratios, p + 6)), broadcast(at(ratios, p + 7))
        for t in range(0, kp, 8):
            a = multiply_add(r0, load(HT, o0 + t), load(sums, t))
            b = multiply(r1, load(HT, o1 + t))
            a = multiply_add(r2, load(HT, o2 + t), a)
            b = multiply_add(r3, load(HT, o3 + t), b)
            a = multiply_add(r4, load(HT, o4 + t), a)
            b = multiply_add(r5, load(HT, o5 + t), b)
            a = multiply_add(r6, load(HT, o6 + t), a)
            b = multiply_add(r7, load(HT, o7 + t), b)
            store(sums, t, add(a, b))


@compiled
def _update_row(W: Floats, row: int, sums: Floats, h_sums: Floats, l1: float, l2: float) -> None:
    """W <- W * sums / (h_sums + l1 + l2 W), for one row."""
    tiny = broadcast(TINY)
    l1s = broadcast(np.float32(l1))
    l2s = broadcast(np.float32(l2))
    for t in range(0, h_sums.size, 8):
        w = load(W, row + t)
        denominator = maximum(multiply_add(l2s, w, add(load(h_sums, t), l1s)), tiny)
        store(W, row + t, zero_below(divide(multiply(w, load(sums, t)), denominator), tiny))


@compiled
def _add_numerators(
    ratios: Floats, offsets: Offsets, n: int, W: Floats, row: int, kp: int, numerators: Floats
) -> None:
    for p in range(n):
        ratio = broadcast(at(ratios, p))
        there = at(offsets, p)
        for t in range(0, kp, 8):
            store(numerators, there + t, multiply_add(ratio, load(W, row + t), load(numerators, there + t)))


@compiled
def _x_log_ratio_less_x(x: Floats, ratios: Floats, n: int) -> float:
    minus_one = broadcast(np.float32(-1.0))
    result = 0.0
    for p in range(0, n, 8):
        result += total(multiply(load(x, p), add(log(load(ratios, p)), minus_one)))
    return result
