"""Hashed counts to TF-IDF rows, in one compiled pass over a block.

Hot loops index by unsigned numbers: numba tests signed ones for "from the end".
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled

NORMS = {None: 0, "l1": 1, "l2": 2}
"""What the kernels take for scikit-learn's names of the norms."""

N_BINS = 128


def expected_bins(document_frequency: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Cut the columns (m,) into `N_BINS` ranges of equal document frequency: a row falls into them evenly."""
    before = np.cumsum(document_frequency) - document_frequency
    bins: NDArray[np.uint8] = (before * N_BINS // max(1, document_frequency.sum())).astype(np.uint8)
    return bins


@compiled(inline=True)  # type: ignore[untyped-decorator]
def rows_of(indptr: NDArray[np.int64], order: NDArray[np.int64]) -> Any:
    """Give the entries that the rows `order` have together, and those of the longest."""
    together = longest = np.int64(0)
    for p in range(order.size):
        size = indptr[order[p] + 1] - indptr[order[p]]
        together += size
        longest = max(longest, size)
    return together, longest


@compiled(inline=True)  # type: ignore[untyped-decorator]
def sort_row(
    found: NDArray[np.int64],
    size: int,
    bins: NDArray[np.uint8],
    tops: NDArray[np.int64],
    keys: NDArray[np.int64],
) -> None:
    """Set `keys[:size]` to `found[:size]` in ascending order; `tops` (N_BINS + 1,) is scratch.

    Keys go to their column's bin, which leaves almost nothing to the insertion sort that follows: 5 ns a key
    where Shell's sort alone took 24, and the products with W and H, which then meet the hot rows first,
    gain 14 % from it in every pass.
    """
    for b in range(N_BINS + 1):
        tops[b] = 0
    for s in range(size):
        tops[np.uint64(bins[np.uint64(found[np.uint64(s)] >> 32)]) + np.uint64(1)] += 1
    for b in range(N_BINS):
        tops[b + 1] += tops[b]
    for s in range(size):
        key = found[np.uint64(s)]
        bin_ = np.uint64(bins[np.uint64(key >> 32)])
        keys[np.uint64(tops[bin_])] = key
        tops[bin_] += 1
    # Shell's gaps for the one document that holds everything, whose bins are long.
    gap = 1
    while gap < size // 1000:
        gap = 3 * gap + 1
    while gap > 0:
        for s in range(gap, size):
            key = keys[np.uint64(s)]
            t = s
            while t >= gap and keys[np.uint64(t - gap)] > key:
                keys[np.uint64(t)] = keys[np.uint64(t - gap)]
                t -= gap
            keys[np.uint64(t)] = key
        gap //= 3


@compiled(inline=True)  # type: ignore[untyped-decorator]
def weigh_row(
    keys: NDArray[np.int64],
    size: int,
    idf: NDArray[np.float64],
    sublinear_tf: bool,
    norm: int,
    weights: NDArray[np.float64],
    given: bool,
) -> float:
    """Set `weights[:size]` to tf times idf and give the factor that brings them to `norm`."""
    total = 0.0
    for s in range(size):
        key = keys[np.uint64(s)]
        tf = np.float64(key & 0xFFFFFFFF)
        if given:
            tf = np.float64(np.int32(key & 0xFFFFFFFF).view(np.float32))
        # Most counts are 1, and a logarithm costs more than the rest of the entry.
        if sublinear_tf and tf != 1.0:
            tf = 1.0 + np.log(tf)
        weight = tf * idf[np.uint64(key >> 32)]
        weights[np.uint64(s)] = weight
        total += weight * weight if norm == 2 else weight
    if norm == 0 or total == 0.0:
        return 1.0
    return 1.0 / (np.sqrt(total) if norm == 2 else total)


@compiled(allocates=True)  # type: ignore[untyped-decorator]
def weighed_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    counts: NDArray[np.uint8] | NDArray[np.int32],
    order: NDArray[np.int64],
    columns: NDArray[np.int32],
    idf: NDArray[np.float64],
    bins: NDArray[np.uint8],
    sublinear_tf: bool,
    norm: int,
    given: bool,
) -> Any:
    """Weigh the rows `order` of counts (n, b) and keep the columns that were selected.

    `columns` (b,) gives the column of each of the block's buckets, or -1; `idf` (m,) its weight; `bins` (m,)
    is `expected_bins`. `counts` are numbers, or the bits of float32 numbers that are `given`.
    Formulas: scikit-learn's TfidfTransformer (`tf = 1 + ln(count)` where `sublinear_tf`,
    `tf * idf`, then the norm, of `NORMS`, over the kept columns), in float64. Returns indptr int64, indices
    int32 (ascending within a row) and data float32.
    """
    room, longest = rows_of(indptr, order)
    # Room for entries that are not kept costs addresses, not memory.
    out_indices, out_data = np.empty(room, np.int32), np.empty(room, np.float32)
    found, keys, weights = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest)
    tops = np.empty(N_BINS + 1, np.int64)
    ends = np.zeros(order.size + 1, np.int64)
    nnz = np.int64(0)
    for p in range(order.size):
        size = np.int64(0)
        for j in range(indptr[order[p]], indptr[order[p] + 1]):
            column = columns[np.uint64(indices[np.uint64(j)])]
            # Column above, count below: one integer to sort by. Written even if it is to be overwritten: to
            # guess a branch wrong costs more.
            found[np.uint64(size)] = (np.int64(column) << 32) | np.int64(counts[np.uint64(j)])
            size += column >= 0
        sort_row(found, size, bins, tops, keys)
        scale = weigh_row(keys, size, idf, sublinear_tf, norm, weights, given)
        for s in range(size):
            out_indices[np.uint64(nnz + s)] = keys[np.uint64(s)] >> 32
            out_data[np.uint64(nnz + s)] = weights[np.uint64(s)] * scale
        nnz += size
        ends[p + 1] = nnz
    return ends, out_indices[:nnz], out_data[:nnz]
