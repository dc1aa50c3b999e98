"""Which buckets become columns, what they are called and what they weigh: decided on global numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.kernels.matrices import Csr, read_only
from nmf_dask.kernels.merging import ascending_terms, merge_runs
from nmf_dask.kernels.ordering import stable_order
from nmf_dask.kernels.weighting import NORMS, expected_bins, weighed_rows
from nmf_dask.text.counts import term_strings

if TYPE_CHECKING:
    from nmf_dask.config import VectorizerSettings
    from nmf_dask.text import Counts

MAX_TERMS = 4 * 2**20
"""Rows of a merged `TermTable.terms`, of all ranges of buckets together, beyond which each bucket keeps its most
frequent terms alone."""

MOST_DIRECT = 2**22  # buckets that are looked up in an array of all: ten times as fast as a search
_BUCKETS = pa.schema(
    [("bucket", pa.int32()), ("document_frequency", pa.int64()), ("total_count", pa.int64())]
)
_GIVEN = _BUCKETS.set(2, pa.field("total_count", pa.float64()))  # of counts that are no numbers of words
_TERMS = pa.schema([("bucket", pa.int32()), ("term", pa.string()), ("document_frequency", pa.int64())])


@dataclass(frozen=True)
class TermTable:
    """What one partition or many say of their buckets and of the terms in them."""

    buckets: pa.Table
    """bucket int32, document_frequency int64, total_count int64 (of given counts: float64); ascending by bucket; whole
    numbers are exact, however many merged."""
    terms: pa.Table
    """bucket int32, term string, document_frequency int64; ascending by bucket, then by the term's bytes."""
    n_documents: int
    """Documents counted, empty ones too."""

    def __sizeof__(self) -> int:
        """With what it holds: a worker goes by it when it decides what to keep in memory."""
        return int(self.buckets.nbytes + self.terms.nbytes)

    @classmethod
    def of(cls, counts: Counts) -> TermTable:
        """Give the table of one partition."""
        buckets = _bucket_table([counts.buckets, counts.document_frequency, counts.total_count])
        terms = counts.terms.select(_TERMS.names).cast(_TERMS)
        offsets, arena = _bytes_of(terms["term"])
        bucket = read_only(terms["bucket"].to_numpy(), np.int32)
        if not ascending_terms(bucket, read_only(offsets, np.int64), read_only(arena, np.uint8)):
            terms = terms.sort_by([("bucket", "ascending"), ("term", "ascending")])
        return cls(buckets, _bounded(terms, MAX_TERMS), counts.n_documents)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The table as plain arrays, for a file: the terms are offsets (t + 1,) into their bytes."""
        offsets, arena = _bytes_of(self.terms["term"])
        columns = {name: self.buckets[name].to_numpy() for name in _BUCKETS.names}
        return columns | {
            "term_bucket": self.terms["bucket"].to_numpy(),
            "term_frequency": self.terms["document_frequency"].to_numpy(),
            "term_offsets": offsets,
            "term_bytes": arena,
            "n_documents": np.array([self.n_documents]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TermTable:
        """Read what `to_arrays` gave."""
        terms = term_strings(arrays["term_offsets"], arrays["term_bytes"])
        columns = [arrays["term_bucket"], terms, arrays["term_frequency"]]
        buckets = _bucket_table([arrays[name] for name in _BUCKETS.names])
        return cls(buckets, pa.table(columns, schema=_TERMS), int(arrays["n_documents"][0]))

    def within(self, low: int, high: int) -> TermTable:
        """The rows of buckets from `low` to under `high`, of the same documents; nothing is copied."""

        def cut(table: pa.Table) -> pa.Table:
            start, stop = np.searchsorted(table["bucket"].to_numpy(), (low, high)).tolist()
            return table.slice(start, stop - start)

        return TermTable(cut(self.buckets), cut(self.terms), self.n_documents)

    def named(self) -> TermTable:
        """With one term a bucket, the one that names it: all that `select` asks for when nothing more is added."""
        rows = _named_rows(self, np.arange(self.buckets.num_rows))
        return TermTable(self.buckets, self.terms.take(pa.array(rows)).combine_chunks(), self.n_documents)


def _bucket_table(columns: Sequence[NDArray[Any]]) -> pa.Table:
    return pa.table(columns, schema=_GIVEN if columns[2].dtype.kind == "f" else _BUCKETS)


def merge_within(tables: Sequence[TermTable], low: int, high: int, parts: int) -> TermTable:
    """`merge` of the rows of buckets from `low` to under `high`: one of so many ranges of all buckets."""
    return merge([table.within(low, high) for table in tables], MAX_TERMS // parts)


def side_by_side(tables: Sequence[TermTable]) -> TermTable:
    """One table of those of ranges of buckets that follow each other, all of the same documents."""
    buckets = pa.concat_tables(table.buckets for table in tables).combine_chunks()
    terms = pa.concat_tables(table.terms for table in tables).combine_chunks()
    return TermTable(buckets, terms, tables[0].n_documents)


def merge(tables: Sequence[TermTable], max_terms: int | None = None) -> TermTable:
    """Sum tables of disjoint sets of documents; the result is the same whatever tree it is merged in.

    That holds while no table passes `max_terms` terms (None: `MAX_TERMS`). Beyond it `buckets` stays exact, while a
    term that was dropped from some subtree counts for less than it should in `terms`, and the numbers depend on
    the shape of the tree: merge in the same tree every time.
    """
    most = MAX_TERMS if max_terms is None else max_terms
    buckets = pa.concat_tables(table.buckets for table in tables) if tables else _BUCKETS.empty_table()
    pending = [_TERMS.empty_table()]
    for table in tables:
        pending.append(table.terms)
        # Not all at once: tables that are at the limit would otherwise need memory for all of them together.
        if sum(terms.num_rows for terms in pending) > 2 * most:
            pending = [_bounded(_merged_terms(pending), most)]
    return TermTable(
        _summed_buckets(buckets),
        _bounded(_merged_terms(pending), most),
        sum(table.n_documents for table in tables),
    )


def _summed_buckets(buckets: pa.Table) -> pa.Table:
    bucket, *numbers = (column.to_numpy() for column in buckets.columns)
    if len(bucket) == 0:
        return buckets
    # A few ascending runs, which a stable sort merges: five times as fast as Arrow's groups.
    order = np.argsort(bucket, kind="stable")
    ascending = bucket[order]
    starts = _group_starts(ascending)
    return _bucket_table([ascending[starts], *(np.add.reduceat(column[order], starts) for column in numbers)])


def _merged_terms(tables: list[pa.Table]) -> pa.Table:
    """Merge tables that are each in the order of `TermTable.terms`, adding up equal terms."""
    ends = np.cumsum([0, *(table.num_rows for table in tables)])
    terms = pa.concat_tables(tables)
    offsets, arena = _bytes_of(terms["term"])
    frequency = terms["document_frequency"].to_numpy().copy()
    bucket = read_only(terms["bucket"].to_numpy(), np.int32)
    rows = merge_runs(ends, bucket, read_only(offsets, np.int64), read_only(arena, np.uint8), frequency)
    merged = terms.take(pa.array(rows))
    return merged.set_column(2, _TERMS.field(2), pa.array(frequency[rows])).combine_chunks()


def _bytes_of(terms: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Give the arena of bytes and the offsets in it of all terms, without making Python strings."""
    # Large: offsets of 32 bits end at 2 GiB, which many long terms pass together.
    array = pa.concat_arrays([pa.array([], pa.large_string()), *terms.cast(pa.large_string()).chunks])
    _, offsets, arena = array.buffers()
    starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return starts, np.frombuffer(arena or b"", np.uint8)


def _bounded(terms: pa.Table, most: int) -> pa.Table:
    """Drop the rare terms of each bucket if there are more than `most` in all; at least one stays.

    With the default 2^20 buckets the four most frequent terms of each stay. Names stay right in practice: a
    bucket that is selected owes its document frequency to one term, which is among the four of every
    subtree that it matters in (frequencies fall like Zipf's law, and terms meet in a bucket at random). A
    wrong name would need a term that is fifth or worse here and there and still first of all.
    """
    if terms.num_rows <= most:
        return terms
    bucket = terms["bucket"].to_numpy()
    starts = _group_starts(bucket)
    sizes = np.diff(np.append(starts, len(bucket)))
    # A stable sort: equal frequencies stay in the order of the terms.
    by_frequency = np.lexsort((-terms["document_frequency"].to_numpy(), bucket))
    rank = np.arange(len(bucket)) - np.repeat(starts, sizes)
    kept = by_frequency[rank < max(1, most // len(starts))]
    return terms.take(pa.array(np.sort(kept)))


def _group_starts(ascending: NDArray[np.int32]) -> NDArray[np.int64]:
    # Of truths: NumPy takes four times as long to find numbers that are not zero.
    return np.flatnonzero(np.diff(ascending, prepend=-1) != 0)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The m buckets that became columns, numbered by descending document frequency."""

    bucket: NDArray[np.int64]
    term: pa.StringArray
    """The most frequent term of each bucket."""
    document_frequency: NDArray[np.int64]
    """Documents of the corpus that hold any term of the bucket."""
    idf: NDArray[np.float64]
    term_share: NDArray[np.float32]
    """The named term's document frequency over the bucket's: 1 where no other term fell into it."""
    n_documents: int

    def __len__(self) -> int:
        return len(self.bucket)

    def columns_of(self, buckets: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
        """The column of each bucket, -1 for those that were not chosen."""
        direct = self._column_of_bucket
        if len(direct):
            found: NDArray[np.int32] = direct[np.minimum(buckets, len(direct) - 1)]
            return found
        by_bucket = self._by_bucket
        ascending = self.bucket[by_bucket]
        place = np.minimum(np.searchsorted(ascending, buckets), len(ascending) - 1)
        return np.where(ascending[place] == buckets, by_bucket[place], -1)

    @cached_property
    def _column_of_bucket(self) -> NDArray[np.int32]:
        """The column of each bucket up to the largest chosen, and -1 for all beyond; empty where those are too many."""
        n = int(self.bucket.max(initial=0)) + 1
        if n > MOST_DIRECT:
            return np.empty(0, np.int32)
        columns = np.full(n + 1, -1, np.int32)
        columns[self.bucket] = np.arange(len(self), dtype=np.int32)
        return columns

    @cached_property
    def _by_bucket(self) -> NDArray[np.int64]:
        return np.argsort(self.bucket)

    @property
    def collision_rate(self) -> float:
        """Share of the features' document frequency that is not the named term's."""
        named = self.term_share.astype(np.float64) @ self.document_frequency
        return float(1.0 - named / self.document_frequency.sum())

    def to_table(self) -> pa.Table:
        """Give H without its weights: feature, bucket, term, document_frequency, idf, term_share."""
        return pa.table(
            {
                "feature": pa.array(np.arange(len(self), dtype=np.int32)),
                "bucket": pa.array(self.bucket),
                "term": self.term,
                "document_frequency": pa.array(self.document_frequency),
                "idf": pa.array(self.idf),
                "term_share": pa.array(self.term_share),
            }
        )

    @classmethod
    def from_table(cls, table: pa.Table, n_documents: int) -> Vocabulary:
        """Read what `to_table` gave, whatever the order of its rows; further columns are ignored."""
        table = table.select(_FEATURES).sort_by("feature").combine_chunks()
        return cls(
            bucket=table["bucket"].to_numpy(),
            term=pa.concat_arrays([pa.array([], pa.string()), *table["term"].cast(pa.string()).chunks]),
            document_frequency=table["document_frequency"].to_numpy(),
            idf=table["idf"].to_numpy(),
            term_share=table["term_share"].to_numpy(),
            n_documents=n_documents,
        )


_FEATURES = ["feature", "bucket", "term", "document_frequency", "idf", "term_share"]


def select(table: TermTable, settings: VectorizerSettings) -> Vocabulary:
    """Choose the buckets that become columns, by scikit-learn's rules on the numbers of the whole corpus.

    `min_df` and `max_df` are inclusive; an int counts documents, a float is a share of all documents, empty
    ones too. Of what they leave, `max_features` keeps the largest total counts; equal ones by higher
    document frequency, then by the name's bytes (scikit-learn leaves that to its sort). Columns are numbered
    by descending document frequency, then total count, then ascending bucket. The name of a column is its
    most frequent term, of equals the first by bytes.

    Raises InputDataError where no bucket is left, or where `max_df` allows fewer documents than `min_df`
    asks for in a corpus of this size; ConfigurationError where it would in any corpus.
    """
    bucket, document_frequency, total_count = (column.to_numpy() for column in table.buckets.columns)
    lowest, highest = _document_range(table.n_documents, settings)
    chosen = np.flatnonzero((document_frequency >= lowest) & (document_frequency <= highest))
    if len(chosen) == 0:
        raise InputDataError(_nothing_left(document_frequency, table.n_documents, settings))
    named = _named_rows(table, chosen)
    if settings.max_features is not None and len(chosen) > settings.max_features:
        numbers = (total_count[chosen], document_frequency[chosen])
        largest = _largest(settings.max_features, numbers, table.terms["term"], named)
        chosen, named = chosen[largest], named[largest]
    by_total = _descending(total_count[chosen])  # and, as `chosen` is, by bucket
    by_frequency = by_total[_descending(document_frequency[chosen[by_total]])]
    chosen, named = chosen[by_frequency], named[by_frequency]
    df = document_frequency[chosen]
    names = table.terms.take(pa.array(named)).combine_chunks()
    return Vocabulary(
        bucket=bucket[chosen].astype(np.int64),
        term=pa.concat_arrays(names["term"].chunks),
        document_frequency=df,
        idf=_idf(df, table.n_documents, settings),
        term_share=(names["document_frequency"].to_numpy() / df).astype(np.float32),
        n_documents=table.n_documents,
    )


def _largest(
    n: int,
    numbers: Sequence[NDArray[np.int64] | NDArray[np.float64]],
    terms: pa.ChunkedArray,
    named: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Positions, ascending, of the n largest: by the first numbers, equals by the second, then by the terms `named`.

    Only what is equal to the n-th is looked at again: to sort all of them took a fifth of counting them.
    """
    left, surely = np.arange(len(named)), []
    for number in numbers:
        own = number[left]
        least = np.partition(own, len(own) - n)[len(own) - n]
        surely.append(left[own > least])
        n -= len(surely[-1])
        left = left[own == least]
    if n < len(left):
        left = left[pc.sort_indices(terms.take(pa.array(named[left]))).to_numpy()[:n]]
    return np.sort(np.concatenate([*surely, left]))


def _descending(numbers: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.int64]:
    """The order of numbers from the largest on; equal ones stay in theirs."""
    if numbers.dtype == np.float64:
        return np.argsort(-numbers, kind="stable")
    return stable_order(numbers.max() - numbers)


def _document_range(n_documents: int, settings: VectorizerSettings) -> tuple[float, float]:
    """Give the least and the greatest document frequency of a column."""
    lowest, highest = (
        setting * n_documents if isinstance(setting, float) else setting
        for setting in (settings.min_df, settings.max_df)
    )
    if highest < lowest:
        alike = isinstance(settings.min_df, float) == isinstance(settings.max_df, float)
        raise (ConfigurationError if alike else InputDataError)(
            f"of {n_documents:,} documents, max_df={settings.max_df} allows a term in {highest:,g} at most, "
            f"but min_df={settings.min_df} asks for {lowest:,g} at least; lower min_df or raise max_df"
        )
    return lowest, highest


def _nothing_left(
    document_frequency: NDArray[np.int64], n_documents: int, settings: VectorizerSettings
) -> str:
    if len(document_frequency) == 0:
        return (
            f"none of the {n_documents:,} documents holds a term; check that text_column (of counts: "
            "feature_column) is the right one, and token_pattern and stop_words"
        )
    lowest, highest = _document_range(n_documents, settings)
    rare, common = int((document_frequency < lowest).sum()), int((document_frequency > highest).sum())
    return (
        f"no term is left: of {len(document_frequency):,} buckets in {n_documents:,} documents, "
        f"min_df={settings.min_df} dropped {rare:,} and max_df={settings.max_df} dropped {common:,}; "
        "lower min_df or raise max_df"
    )


def _named_rows(table: TermTable, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give, for the rows `chosen` of `table.buckets`, the rows of `table.terms` that name them."""
    starts = _group_starts(table.terms["bucket"].to_numpy())
    sizes = np.diff(starts, append=table.terms.num_rows)[chosen]
    named = starts[chosen]
    several = np.flatnonzero(sizes > 1)
    if len(several):
        sizes = sizes[several]
        begins = np.cumsum(sizes) - sizes
        rows = np.arange(sizes.sum()) + np.repeat(named[several] - begins, sizes)
        frequency = table.terms["document_frequency"].to_numpy()[rows]
        best = np.flatnonzero(frequency == np.repeat(np.maximum.reduceat(frequency, begins), sizes))
        # Terms ascend within a bucket, so that the first of its best is the first by bytes.
        named[several] = rows[best[np.searchsorted(best, begins)]]
    return named


def _idf(
    document_frequency: NDArray[np.int64], n_documents: int, settings: VectorizerSettings
) -> NDArray[np.float64]:
    """scikit-learn's: ln((n + 1) / (df + 1)) + 1, without the two ones where not smooth, 1 where not used."""
    if not settings.use_idf:
        return np.ones(len(document_frequency))
    smooth = int(settings.smooth_idf)
    return np.log((n_documents + smooth) / (document_frequency + float(smooth))) + 1.0


def _numbers_of(counts: NDArray[Any]) -> NDArray[Any]:
    """Counts as the kernel takes them: bytes, or four of them, which are those of a float32 where it was given."""
    kind = np.uint8 if counts.dtype == np.uint8 else np.int32
    return read_only(counts.view(kind), kind)


def weigh(
    counts: Counts,
    vocabulary: Vocabulary,
    settings: VectorizerSettings,
    order: NDArray[np.int64] | None = None,
) -> Csr:
    """Give the TF-IDF matrix (n, m), float32, of a partition's documents in the columns of `vocabulary`.

    Row p is document `order[p]` (int64, default: as they came). Formulas: scikit-learn's TfidfTransformer,
    the norm over the chosen columns, computed in float64. A document with no chosen term is a zero row. Rows
    are sorted by column, so that SciPy and scikit-learn may take them as they are.
    """
    columns = vocabulary.columns_of(counts.buckets)
    rows = np.arange(counts.n_documents) if order is None else order
    indptr, indices, data = weighed_rows(
        read_only(counts.indptr, np.int64),
        read_only(counts.indices, np.int32),
        _numbers_of(counts.counts),
        read_only(rows, np.int64),
        read_only(columns, np.int32),
        read_only(vocabulary.idf, np.float64),
        read_only(expected_bins(vocabulary.document_frequency), np.uint8),
        settings.sublinear_tf,
        NORMS[settings.norm],
        counts.counts.dtype == np.float32,
    )
    return Csr(indptr, indices, data, len(vocabulary))
