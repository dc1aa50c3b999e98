"""The corpus: Parquet files found, checked by their footers, cut into partitions, read by columns."""

from nmf_dask.corpus.columns import Columns, as_labels, in_known_zone, python_value
from nmf_dask.corpus.dataset import (
    Corpus,
    NoDocumentError,
    check_labels,
    find_corpus,
    no_document,
    open_corpus,
    staged,
)
from nmf_dask.corpus.differences import difference
from nmf_dask.corpus.partitions import (
    GROUP_BYTES,
    LARGEST_UNCUT,
    Group,
    Partition,
    Piece,
    SourceFile,
    joined,
    plan_groups,
    small_together,
)
from nmf_dask.corpus.raw import Raw
from nmf_dask.corpus.reading import read_ids, read_kept, read_labels, read_texts, read_texts_by_slices
from nmf_dask.corpus.seen import Seen, look_at

__all__ = [
    "GROUP_BYTES",
    "LARGEST_UNCUT",
    "Columns",
    "Corpus",
    "Group",
    "NoDocumentError",
    "Partition",
    "Piece",
    "Raw",
    "Seen",
    "SourceFile",
    "as_labels",
    "check_labels",
    "difference",
    "find_corpus",
    "in_known_zone",
    "joined",
    "look_at",
    "no_document",
    "open_corpus",
    "plan_groups",
    "python_value",
    "read_ids",
    "read_kept",
    "read_labels",
    "read_texts",
    "read_texts_by_slices",
    "small_together",
    "staged",
]
