"""Counts that are given: rows of names, each with how much of it, hashed as terms are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.config import VectorizerSettings
from nmf_dask.errors import InputDataError
from nmf_dask.text.counts import Counts, bucket_of
from nmf_dask.text.terms import PADDING, murmur_terms


def are_given(documents: Any) -> bool:
    """Whether documents are counts and no texts: an Arrow array of maps."""
    return isinstance(documents, pa.Array | pa.ChunkedArray) and pa.types.is_map(documents.type)


def count_given(rows: Any, settings: VectorizerSettings) -> Counts:
    """Counts of rows that are maps of names (strings) to numbers that are finite and not negative.

    A name that a row has several times has the sum, a zero is no entry, a null is an empty row. Counts are float32.
    Raises InputDataError for values under 1 where `sublinear_tf` takes their logarithm.
    """
    chunks = rows.chunks if isinstance(rows, pa.ChunkedArray) else [rows]
    lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(_offsets(chunk)) for chunk in chunks)])
    values = np.concatenate([np.empty(0), *(_entries(chunk, chunk.items).to_numpy() for chunk in chunks)])
    names = pa.chunked_array([_entries(chunk, chunk.keys) for chunk in chunks], pa.string())
    encoded = names.combine_chunks().dictionary_encode()
    encoded = pa.concat_arrays(encoded.chunks) if isinstance(encoded, pa.ChunkedArray) else encoded
    terms = encoded.dictionary
    row = np.repeat(np.arange(len(lengths)), lengths)
    row, term, values = _summed(row, encoded.indices.to_numpy(), values, max(1, len(terms)))
    if settings.sublinear_tf and len(values) and values.min() < 1:
        raise InputDataError(
            f"there is a value of {values.min():g}, and sublinear_tf takes 1 + ln of it, for counts from 1 on: leave "
            "vectorizer.sublinear_tf out"
        )
    bucket = bucket_of(_hashes(terms), settings.n_features)
    frequency = np.bincount(term, minlength=len(terms))
    buckets, position = np.unique(bucket, return_inverse=True)
    if len(buckets) < len(terms):
        row, place, values = _summed(row, position[term], values, max(1, len(buckets)))
    else:
        place = position[term]
    held = np.flatnonzero(frequency)  # a name whose values are all zero is in no row
    table = pa.table(
        {"bucket": bucket[held], "term": terms.take(pa.array(held)), "document_frequency": frequency[held]}
    )
    used, place = np.unique(place, return_inverse=True)
    indptr = np.append(0, np.cumsum(np.bincount(row, minlength=len(lengths))))
    return Counts(
        indptr.astype(np.int64),
        place.astype(np.int32),
        values.astype(np.float32),
        buckets[used],
        table,
        n_invalid=0,
    )


def _offsets(chunk: pa.MapArray) -> NDArray[np.int64]:
    """Where rows begin among a chunk's entries, (n + 1,): a null row has none."""
    if not len(chunk):
        return np.zeros(1, np.int64)
    offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return offsets.astype(np.int64)


def _entries(chunk: pa.MapArray, values: pa.Array) -> pa.Array:
    low, high = _offsets(chunk)[[0, -1]].tolist()
    return values.slice(low, high - low)


def _summed(
    row: NDArray[Any], column: NDArray[Any], values: NDArray[np.float64], n_columns: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Entries by row and column, each once: those of one place are added up in their order, and zeros left out."""
    keys = row.astype(np.int64) * n_columns + column
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    sums = np.add.reduceat(values[order], first) if len(first) else np.empty(0)
    keys, sums = keys[first][sums > 0], sums[sums > 0]
    return keys // n_columns, keys % n_columns, sums


def _hashes(terms: pa.StringArray) -> NDArray[np.int64]:
    """Murmur hashes of terms, as unsigned numbers."""
    large = terms.cast(pa.large_string())
    _, offsets, arena = large.buffers()
    places = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1].copy()
    hashes = np.empty(len(terms), np.int64)
    murmur_terms(
        hashes, places, np.append(np.frombuffer(arena or b"", np.uint8), np.zeros(PADDING, np.uint8))
    )
    return hashes
