"""The corpus: Parquet files found, checked by their footers, cut into partitions, read by columns."""

from nmf_dask.corpus.columns import Columns
from nmf_dask.corpus.dataset import Corpus, difference, find_corpus, open_corpus
from nmf_dask.corpus.partitions import Partition, Piece, SourceFile
from nmf_dask.corpus.reading import read_ids, read_kept, read_texts, read_texts_by_slices
from nmf_dask.corpus.seen import Seen, look_at

__all__ = [
    "Columns",
    "Corpus",
    "Partition",
    "Piece",
    "Seen",
    "SourceFile",
    "difference",
    "find_corpus",
    "look_at",
    "open_corpus",
    "read_ids",
    "read_kept",
    "read_texts",
    "read_texts_by_slices",
]
