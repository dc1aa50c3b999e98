"""What one partition's documents hold: counts of hashed terms, and the terms themselves."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled
from nmf_dask.kernels.ordering import stable_order
from nmf_dask.text.loads import load64, store64

# A `string` array holds no more bytes than this; where terms need more, they are in several chunks.
STRING_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Counts:
    """Documents as hashed counts: CSR over the buckets that this partition's terms fall into.

    Row d is `indices[indptr[d]:indptr[d + 1]]`, positions in `buckets`, each at most once, in the order of
    their first appearance in the document. `terms` has one row a distinct term: `bucket` int32, `term` string
    and `document_frequency` int64, the number of this partition's documents that hold the term. What
    `count_texts` returns has them in ascending order, by bucket, then by the term's bytes.
    """

    indptr: NDArray[np.int64]  # (n_documents + 1,)
    indices: NDArray[np.int32]  # (nnz,)
    # (nnz,): as few bytes as the largest needs, in nearly all partitions one; those that are given are float32.
    counts: NDArray[np.uint8] | NDArray[np.int32] | NDArray[np.float32]
    buckets: NDArray[np.int32]  # (b,) ascending, 0 <= bucket < n_features
    terms: pa.Table
    n_invalid: int  # documents of invalid UTF-8, whose bad bytes were counted as U+FFFD
    # (2, b) document_frequency and total_count, where counting found them by the way.
    statistics: NDArray[np.int64] | None = None

    @property
    def n_documents(self) -> int:
        """Number of rows, the empty ones too."""
        return len(self.indptr) - 1

    @property
    def document_frequency(self) -> NDArray[np.int64]:
        """Documents of this partition that hold a term of the bucket, (b,)."""
        if self.statistics is not None:
            found: NDArray[np.int64] = self.statistics[0]
            return found
        return np.bincount(self.indices, minlength=len(self.buckets)).astype(np.int64, copy=False)

    @property
    def total_count(self) -> NDArray[np.int64] | NDArray[np.float64]:
        """Occurrences of the bucket's terms in this partition, (b,); float64 where counts are float32."""
        if self.statistics is not None:
            found: NDArray[np.int64] = self.statistics[1]
            return found
        # float64 weights are exact: a partition has far fewer than 2**53 words.
        total = np.bincount(self.indices, self.counts, minlength=len(self.buckets))
        return total.astype(np.float64) if self.counts.dtype == np.float32 else total.astype(np.int64)


def counts_by_bucket(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    counts: NDArray[np.int32],
    hashes: NDArray[np.int64],
    places: NDArray[np.int64],
    arena: NDArray[np.uint8],
    n_features: int,
    n_invalid: int,
) -> Counts:
    """Turn rows of counts by term into rows by bucket, where terms may meet.

    `hashes` are the terms' murmur hashes as unsigned numbers; term t is arena[places[t]:places[t + 1]], and the
    arena is longer than all terms by eight bytes at least. The first three arrays are overwritten.
    """
    bucket = bucket_of(hashes, n_features)
    order = _by_bucket_and_term(bucket, places, arena)
    ascending = bucket[order]
    is_first = np.diff(ascending, prepend=-1) != 0
    buckets = ascending[is_first]
    shared = np.append(~is_first[1:], False) | ~is_first
    place = np.cumsum(is_first) - 1
    position = np.empty(len(order), np.int32)
    position[order] = np.where(shared, -1 - place, place)
    last = np.full(len(buckets), -1, np.int64)
    of_terms, statistics = np.zeros(2 * len(order), np.int64), np.zeros((2, len(buckets)), np.int64)
    nnz = merge_buckets(indptr, indices, counts, position, last, of_terms, statistics)
    terms = term_strings(*gathered(order, places, arena))
    frequency = of_terms[::2][order]
    table = pa.table({"bucket": ascending, "term": terms, "document_frequency": frequency})
    return Counts(indptr, indices[:nnz], narrowed(counts[:nnz]), buckets, table, n_invalid, statistics)


def narrowed(counts: NDArray[np.int32]) -> NDArray[np.uint8] | NDArray[np.int32]:
    """The counts in a byte each, where all of them fit."""
    return counts.astype(np.uint8) if counts.max(initial=0) < 2**8 else counts


def bucket_of(hashes: NDArray[np.int64], n_features: int) -> NDArray[np.int32]:
    """The column that scikit-learn's FeatureHasher gives each unsigned 32-bit hash."""
    signed = hashes.astype(np.uint32).view(np.int32).astype(np.int64)
    return (np.abs(signed) % n_features).astype(np.int32)


def _by_bucket_and_term(
    bucket: NDArray[np.int32], places: NDArray[np.int64], arena: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """The terms in ascending order, by bucket, then by bytes."""
    order = stable_order(bucket)
    equal = np.diff(bucket[order]) == 0
    tied = np.flatnonzero(np.append(equal, False) | np.insert(equal, 0, False))
    rows = order[tied]
    names = ["bucket", "term"]
    ties = pa.table([bucket[rows], term_strings(*gathered(rows, places, arena))], names=names)
    by_term = pc.sort_indices(ties, [(name, "ascending") for name in names])
    order[tied] = rows[by_term.to_numpy()]
    return order


def gathered(
    rows: NDArray[np.int64], places: NDArray[np.int64], arena: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The terms `rows` side by side: where each begins, (rows + 1,), and their bytes, eight more than they are."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.diff(places)[rows], out=offsets[1:])
    content = np.empty(offsets[-1] + 8, np.uint8)
    copy_terms(content, offsets, rows, places, arena)
    return offsets, content


@compiled
def copy_terms(content: Any, offsets: Any, rows: Any, places: Any, arena: Any) -> None:
    """Copy term `rows[i]` to content[offsets[i]:offsets[i + 1]], and up to seven bytes too many."""
    for i in range(len(rows)):
        shift = places[rows[i]] - offsets[i]
        for j in range(offsets[i], offsets[i + 1], 8):
            store64(content, j, load64(arena, j + shift))


@compiled
def merge_buckets(
    indptr: Any, indices: Any, counts: Any, position: Any, last: Any, of_terms: Any, statistics: Any
) -> Any:
    """Replace terms by positions of buckets, in place, and add up those that meet; returns how many are left.

    `position` is -1 minus itself where several terms have one bucket; `last` (b,) is -1. Adds the documents and the
    occurrences of each term to `of_terms` (2 * terms,), those of each bucket to `statistics` (2, b).
    """
    nnz = np.int64(0)
    begin = indptr[0]
    for d in range(len(indptr) - 1):
        row = nnz
        end = indptr[d + 1]
        for i in range(begin, end):
            term, count = np.uint64(indices[np.uint64(i)]), counts[np.uint64(i)]
            of_terms[np.uint64(2) * term] += 1
            of_terms[np.uint64(2) * term + np.uint64(1)] += count
            b = position[term]
            if b < 0:
                b = -1 - b
                if last[b] >= row:
                    counts[last[b]] += count
                    statistics[0, b] -= 1
                    continue
                last[b] = nnz
            indices[np.uint64(nnz)] = b
            counts[np.uint64(nnz)] = count
            nnz += 1
        indptr[d + 1] = nnz
        begin = end
    for t in range(len(position)):
        b = position[t]
        b = -1 - b if b < 0 else b
        statistics[0, b] += of_terms[2 * t]
        statistics[1, b] += of_terms[2 * t + 1]
    return nnz


def term_strings(offsets: NDArray[np.int64], arena: NDArray[np.uint8]) -> pa.ChunkedArray:
    """Terms, term t being arena[offsets[t]:offsets[t + 1]], as Arrow strings over the same bytes."""
    chunks = []
    first, n_terms = 0, len(offsets) - 1
    while first < n_terms:
        last = int(np.searchsorted(offsets, offsets[first] + STRING_BYTES, side="right")) - 1
        places = (offsets[first : last + 1] - offsets[first]).astype(np.int32)
        content = pa.py_buffer(arena[offsets[first] : offsets[last]])
        chunks.append(pa.StringArray.from_buffers(last - first, pa.py_buffer(places), content))
        first = last
    return pa.chunked_array(chunks, pa.string())
