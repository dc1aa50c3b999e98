"""The corpus: Parquet files found, checked by their footers, cut into partitions, read by columns."""

from nmf_dask.corpus.dataset import Corpus, difference, open_corpus
from nmf_dask.corpus.partitions import Partition, Piece, SourceFile
from nmf_dask.corpus.reading import read_ids, read_texts

__all__ = [
    "Corpus",
    "Partition",
    "Piece",
    "SourceFile",
    "difference",
    "open_corpus",
    "read_ids",
    "read_texts",
]
