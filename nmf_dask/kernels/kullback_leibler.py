"""One block under the generalized Kullback-Leibler divergence: W sweeps, the statistics of H, the loss.

The updates are those of Lee and Seung, "Algorithms for non-negative matrix factorization" (2001), eq. 5, with
scikit-learn's penalties in the denominators. WH is computed at the nonzeros of X only. A row of X has some tens of
nonzeros, and their rows of H transposed stay in first-level cache, so that all sweeps of the row read them there.

kp is n_components rounded up to a multiple of 8; the padding columns of W and HT are zero and stay zero.
"""

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled
from nmf_dask.kernels.lanes import (
    add,
    broadcast,
    divide,
    load,
    maximum,
    minimum,
    multiply,
    multiply_add,
    store,
    totals,
    zero_below,
)

# Weights under this are set to zero. They no longer change any sum that float32 can hold, and left alone they
# would become denormal numbers, which some processors handle a hundred times slower. Also the smallest denominator:
# where h_sums is zero the numerator is zero too, and scikit-learn's guard gives the same 0.
TINY = np.float32(1e-30)

Floats = NDArray[np.float32]


@compiled
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
    like HT; with `numerators` of shape (0, kp) it is not computed. `h_sums`, (kp,), are the sums of H over the
    features. WH is taken as at least `floor`. Values of X must not be negative; stored zeros count for nothing.

    Returns the sum over the nonzeros of x log(x / WH) - x, for the W at entry; with the sum of all WH, that is
    W's column sums times `h_sums`, it is the divergence.
    """
    kp = W.shape[1]
    longest = 0
    for i in range(start, stop):
        longest = max(longest, indptr[i + 1] - indptr[i])
    offsets = np.empty(longest + 8, np.int64)
    x = np.empty(longest + 8, np.float32)
    ratios = np.empty(longest + 8, np.float32)
    loss = 0.0
    for i in range(start, stop):
        row = (i - start) * kp
        n = indptr[i + 1] - indptr[i]
        _take_row(indices, data, indptr[i], n, kp, offsets, x)
        _divide_by_WH(x, offsets, n, W, row, HT, kp, floor, ratios)
        loss += _x_log_ratio_less_x(x, ratios, n)
        for sweep in range(sweeps):
            if sweep > 0:
                _divide_by_WH(x, offsets, n, W, row, HT, kp, floor, ratios)
            _sweep(ratios, offsets, n, W, row, HT, kp, h_sums, l1, l2)
        if numerators.shape[0] > 0:
            if sweeps > 0:
                _divide_by_WH(x, offsets, n, W, row, HT, kp, floor, ratios)
            _add_numerators(ratios, offsets, n, W, row, kp, numerators)
    return loss


@compiled
def _take_row(
    indices: NDArray[np.int32],
    data: Floats,
    first: int,
    n: int,
    kp: int,
    offsets: NDArray[np.int64],
    x: Floats,
) -> None:
    """Copy a row, filled up to a multiple of eight with zeros (which add nothing) at its first feature."""
    for p in range(n):
        offsets[p] = np.int64(indices[first + p]) * kp
        x[p] = data[first + p]
    for p in range(n, (n + 7) // 8 * 8):
        offsets[p] = offsets[0]
        x[p] = 0.0


@compiled
def _divide_by_WH(
    x: Floats,
    offsets: NDArray[np.int64],
    n: int,
    W: Floats,
    row: int,
    HT: Floats,
    kp: int,
    floor: float,
    ratios: Floats,
) -> None:
    zero = broadcast(np.float32(0.0))
    floors = broadcast(np.float32(floor))
    for p in range(0, n, 8):
        o0, o1, o2, o3 = offsets[p], offsets[p + 1], offsets[p + 2], offsets[p + 3]
        o4, o5, o6, o7 = offsets[p + 4], offsets[p + 5], offsets[p + 6], offsets[p + 7]
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
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
def _sweep(
    ratios: Floats,
    offsets: NDArray[np.int64],
    n: int,
    W: Floats,
    row: int,
    HT: Floats,
    kp: int,
    h_sums: Floats,
    l1: float,
    l2: float,
) -> None:
    """W <- W * ((X/WH) Hᵀ) / (h_sums + l1 + l2 W), for one row."""
    tiny = broadcast(TINY)
    l1s = broadcast(np.float32(l1))
    l2s = broadcast(np.float32(l2))
    for t in range(0, kp, 8):
        a0 = a1 = a2 = a3 = broadcast(np.float32(0.0))
        for p in range(0, n, 4):
            a0 = multiply_add(broadcast(ratios[p]), load(HT, offsets[p] + t), a0)
            a1 = multiply_add(broadcast(ratios[p + 1]), load(HT, offsets[p + 1] + t), a1)
            a2 = multiply_add(broadcast(ratios[p + 2]), load(HT, offsets[p + 2] + t), a2)
            a3 = multiply_add(broadcast(ratios[p + 3]), load(HT, offsets[p + 3] + t), a3)
        w = load(W, row + t)
        numerator = multiply(w, add(add(a0, a1), add(a2, a3)))
        denominator = maximum(multiply_add(l2s, w, add(load(h_sums, t), l1s)), tiny)
        store(W, row + t, zero_below(divide(numerator, denominator), tiny))


@compiled
def _add_numerators(
    ratios: Floats, offsets: NDArray[np.int64], n: int, W: Floats, row: int, kp: int, numerators: Floats
) -> None:
    for p in range(n):
        ratio = broadcast(ratios[p])
        for t in range(0, kp, 8):
            there = offsets[p] + t
            store(numerators, there, multiply_add(ratio, load(W, row + t), load(numerators, there)))


@compiled
def _x_log_ratio_less_x(x: Floats, ratios: Floats, n: int) -> float:
    result = 0.0
    for p in range(n):
        if x[p] > 0:
            result += x[p] * (np.log(ratios[p]) - np.float32(1.0))
    return result


@compiled
def update_h(HT: Floats, numerators: Floats, w_sums: Floats, l1: float, l2: float, floor: float) -> None:
    """H <- H * numerators / (w_sums + l1 + l2 H), transposed (m, kp), in place.

    `w_sums`, (kp,), float32, are the column sums of W. A weight does not fall under `floor`, so that nothing is
    locked at zero for good; what is less already (the padding is zero) does not fall at all.
    """
    kp = HT.shape[1]
    tiny = broadcast(TINY)
    floors = broadcast(np.float32(floor))
    l1s = broadcast(np.float32(l1))
    l2s = broadcast(np.float32(l2))
    for row in range(0, HT.size, kp):
        for t in range(0, kp, 8):
            h = load(HT, row + t)
            denominator = multiply_add(l2s, h, add(load(w_sums, t), l1s))
            updated = divide(multiply(h, load(numerators, row + t)), maximum(denominator, tiny))
            store(HT, row + t, maximum(updated, minimum(h, floors)))
