"""Merging sorted runs of terms whose bytes lie in one arena, without making strings of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled


@compiled
def compare_terms(
    i: int, j: int, bucket: NDArray[np.int32], offsets: NDArray[np.int64], arena: NDArray[np.uint8]
) -> Any:
    """Negative, zero or positive, as row i is before, equal to or after row j: by bucket, then by bytes."""
    if bucket[i] != bucket[j]:
        return np.int64(bucket[i]) - np.int64(bucket[j])
    length_i, length_j = offsets[i + 1] - offsets[i], offsets[j + 1] - offsets[j]
    for b in range(min(length_i, length_j)):
        one, other = np.int64(arena[offsets[i] + b]), np.int64(arena[offsets[j] + b])
        if one != other:
            return one - other
    return length_i - length_j


@compiled
def ascending_terms(bucket: NDArray[np.int32], offsets: NDArray[np.int64], arena: NDArray[np.uint8]) -> Any:
    """Whether each row is before the next, by bucket, then by bytes."""
    for i in range(bucket.size - 1):
        if bucket[i] >= bucket[i + 1] and compare_terms(i, i + 1, bucket, offsets, arena) >= 0:
            return False
    return True


@compiled
def merge_pair(
    one: NDArray[np.int64],
    two: NDArray[np.int64],
    bucket: NDArray[np.int32],
    offsets: NDArray[np.int64],
    arena: NDArray[np.uint8],
    frequency: NDArray[np.int64],
    merged: NDArray[np.int64],
) -> Any:
    """Set `merged` to the rows of both runs in order, equal terms added up in `one`; give their number."""
    i, j, at = 0, 0, 0
    while i < one.size or j < two.size:
        if i < one.size and j < two.size:
            side = compare_terms(one[i], two[j], bucket, offsets, arena)
        else:
            side = np.int64(-1 if i < one.size else 1)
        merged[at] = one[i] if side <= 0 else two[j]
        if side == 0:
            frequency[one[i]] += frequency[two[j]]
        i += side <= 0
        j += side >= 0
        at += 1
    return at


@compiled(allocates=True)  # type: ignore[untyped-decorator]
def merge_runs(
    ends: NDArray[np.int64],
    bucket: NDArray[np.int32],
    offsets: NDArray[np.int64],
    arena: NDArray[np.uint8],
    frequency: NDArray[np.int64],
) -> Any:
    """Merge r runs of terms, each ascending by bucket and bytes without repetition, into one.

    Run q is the rows `ends[q]` to `ends[q + 1]` of bucket (n,), frequency (n,) and the terms
    `arena[offsets[i]:offsets[i + 1]]`; `ends` is (r + 1,). Returns the rows to keep, int64, in order;
    `frequency` of a kept row becomes, in place, the sum over all rows of its term; `ends` is overwritten.
    """
    rows, merged = np.empty(bucket.size, np.int64), np.empty(bucket.size, np.int64)
    for i in range(bucket.size):
        rows[i] = i
    while ends.size > 2:
        at = 0
        n_pairs = ends.size // 2
        for q in range(n_pairs):
            start, middle = ends[2 * q], ends[2 * q + 1]
            # The last of an odd number of runs is merged with nothing.
            end = ends[min(2 * q + 2, ends.size - 1)]
            ends[q] = at
            at += merge_pair(
                rows[start:middle], rows[middle:end], bucket, offsets, arena, frequency, merged[at:]
            )
        ends[n_pairs] = at
        ends = ends[: n_pairs + 1]
        rows, merged = merged, rows
    return rows[: ends[-1]]
