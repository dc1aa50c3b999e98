"""What one partition's documents hold: counts of hashed terms, and the terms themselves."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled

# A `string` array holds no more bytes than this; where terms need more, they are in several chunks.
STRING_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Counts:
    """Documents as hashed counts: CSR over the buckets that this partition's terms fall into.

    Row d is `indices[indptr[d]:indptr[d + 1]]`, positions in `buckets`, each at most once, in the order of
    their first appearance in the document. `terms` has one row a distinct term: `bucket` int32, `term` string
    and `document_frequency` int64, the number of this partition's documents that hold the term.
    """

    indptr: NDArray[np.int64]  # (n_documents + 1,)
    indices: NDArray[np.int32]  # (nnz,)
    counts: NDArray[np.int32]  # (nnz,)
    buckets: NDArray[np.int32]  # (b,) ascending, 0 <= bucket < n_features
    terms: pa.Table
    n_invalid: int  # documents of invalid UTF-8, whose bad bytes were counted as U+FFFD

    @property
    def n_documents(self) -> int:
        """Number of rows, the empty ones too."""
        return len(self.indptr) - 1

    @property
    def document_frequency(self) -> NDArray[np.int64]:
        """Documents of this partition that hold a term of the bucket, (b,)."""
        return np.bincount(self.indices, minlength=len(self.buckets)).astype(np.int64, copy=False)

    @property
    def total_count(self) -> NDArray[np.int64]:
        """Occurrences of the bucket's terms in this partition, (b,)."""
        # float64 weights are exact: a partition has far fewer than 2**53 words.
        return np.bincount(self.indices, self.counts, minlength=len(self.buckets)).astype(np.int64)


def counts_by_bucket(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    counts: NDArray[np.int32],
    hashes: NDArray[np.int64],
    terms: pa.ChunkedArray,
    n_features: int,
    n_invalid: int,
) -> Counts:
    """Turn rows of counts by term into rows by bucket, where terms may meet.

    `hashes` are the terms' murmur hashes as unsigned numbers. The first three arrays are overwritten.
    """
    bucket = bucket_of(hashes, n_features)
    buckets, position = np.unique(bucket, return_inverse=True)
    document_frequency = np.zeros(len(hashes), np.int64)
    last = np.full(len(buckets), -1, np.int64)
    nnz = merge_buckets(indptr, indices, counts, position, last, document_frequency)
    table = pa.table({"bucket": bucket, "term": terms, "document_frequency": document_frequency})
    return Counts(indptr, indices[:nnz], counts[:nnz], buckets, table, n_invalid)


def bucket_of(hashes: NDArray[np.int64], n_features: int) -> NDArray[np.int32]:
    """The column that scikit-learn's FeatureHasher gives each unsigned 32-bit hash."""
    signed = hashes.astype(np.uint32).view(np.int32).astype(np.int64)
    return (np.abs(signed) % n_features).astype(np.int32)


@compiled
def merge_buckets(
    indptr: Any, indices: Any, counts: Any, position: Any, last: Any, document_frequency: Any
) -> Any:
    """Replace terms by positions of buckets, in place, and add up those that meet.

    `last` (b,) starts at -1, `document_frequency` (terms,) at 0. Returns the number of counts that are left.
    """
    nnz = np.int64(0)
    begin = indptr[0]
    for d in range(len(indptr) - 1):
        row = nnz
        end = indptr[d + 1]
        for i in range(begin, end):
            term = indices[i]
            document_frequency[term] += 1
            b = position[term]
            if last[b] >= row:
                counts[last[b]] += counts[i]
            else:
                last[b] = nnz
                indices[nnz] = b
                counts[nnz] = counts[i]
                nnz += 1
        indptr[d + 1] = nnz
        begin = end
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
