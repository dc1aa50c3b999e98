"""From settings to a checked, planned corpus; nothing is read here but footers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pyarrow as pa

from nmf_dask.config import CorpusSettings
from nmf_dask.corpus.checking import are_triples, check_file, common_id_type, common_kept
from nmf_dask.corpus.columns import NO_COLUMNS, Columns, key_fields, keys_of
from nmf_dask.corpus.features import Features
from nmf_dask.corpus.footers import check_column, label_column, read_footer
from nmf_dask.corpus.formats import check_one_format
from nmf_dask.corpus.locations import Found, Location, find_files
from nmf_dask.corpus.locations import parse as location_of
from nmf_dask.corpus.partitions import MAX_ROWS, Partition, Piece, RowGroup, SourceFile, plan_partitions
from nmf_dask.corpus.raw import Raw, default_id, head_sources, heads_of, needed, plan_files, source_file
from nmf_dask.corpus.reading import read_ids
from nmf_dask.corpus.seen import look_at
from nmf_dask.corpus.where import columns_of, parse
from nmf_dask.errors import ConfigurationError, InputDataError

# Enough to hide an object store's latency; on a local disk no more than the decoding of footers can use.
REMOTE_REQUESTS = 32
LOCAL_READERS = 8
MOST_TRIPLES = 2**31
"""Of a partition: a limit of its documents would be one of them."""


@dataclass(frozen=True)
class Corpus:
    """A checked corpus and its plan. Small when pickled; a task needs one partition and a column's name only.

    `text_bytes` is what the footers say of the text column, uncompressed: dictionaries make it smaller than
    the text. `fingerprint` stays when files are copied or touched, and changes with their content.
    `id_type` is that of the ids in W; `kept` are the columns that W carries beside them.

    With `raw`, the documents are still to be read out of the files, which `staged` does with what that gave: numbers
    of rows and bytes are estimates until then (at most, of Parquet files). `origin` is the corpus as it was before.
    """

    settings: CorpusSettings
    files: tuple[SourceFile, ...]
    partitions: tuple[Partition, ...]
    n_rows: int
    text_bytes: int
    fingerprint: str
    id_type: pa.DataType
    kept: pa.Schema = NO_COLUMNS
    found: tuple[Found, ...] = ()
    """The files as they were found, with what a store's listing said of them."""
    raw: Raw | None = None
    origin: Corpus | None = None
    features: Features | None = None
    """Of counts."""
    sources: tuple[SourceFile, ...] = ()
    """Of staged files: for each, the one that its documents are of (the first, where they are of several)."""

    @property
    def columns(self) -> Columns:
        """What tasks read of it."""
        keys = frozenset(name for file in self.files for name, _ in file.keys)
        settings = self.settings
        return Columns(settings.text_columns, settings.id_column, self.kept, keys, self.features)

    def describe(self) -> dict[str, Any]:
        """The `input` of run.json, for `difference` to compare."""
        if self.origin is not None:
            numbers = {
                "n_rows": self.n_rows,
                "text_bytes": self.text_bytes,
                "n_partitions": len(self.partitions),
            }
            return self.origin.describe() | numbers
        files = [
            {
                "uri": str(file),
                "name": file.name,
                "size": file.size,
                "n_rows": file.n_rows if self.raw is None or self.raw.format == "parquet" else None,
                "digest": file.digest,
            }
            for file in self.files
        ]
        return {
            "files": files,
            "fingerprint": self.fingerprint,
            "n_rows": self.n_rows,
            "text_bytes": self.text_bytes,
            "n_partitions": len(self.partitions),
        }


def open_corpus(
    settings: CorpusSettings, found: Sequence[Found] | None = None, *, by_file: bool = False
) -> Corpus:
    """Find the corpus's files (or take those `found`), check them by their footers, and plan the partitions.

    With `by_file`, no partition has rows of two files: a file's partitions do not depend on those beside it, and files
    without rows are no error.

    Raises ConfigurationError for an input that cannot be one, InputDataError for files that are missing,
    damaged or without the columns asked for, for null ids that the statistics tell of, and for a corpus
    without rows; RetryableError for an object store that cannot be reached.
    """
    found = find_corpus(settings.input, settings.format) if found is None else found
    format_ = check_one_format(", ".join(settings.input), found, settings.format)
    features = Features.of(settings)
    if features is not None and format_ != "parquet":
        raise InputDataError(
            f"{found[0].location} is of format {format_}, and counts (corpus.feature_column) are read from Parquet: "
            "write them as such"
        )
    condition = parse(settings.where) if settings.where is not None else None
    keys = _keys(found, settings)
    workers = LOCAL_READERS if all(file.location.is_local for file in found) else REMOTE_REQUESTS
    with ThreadPoolExecutor(min(workers, len(found))) as pool:
        if format_ != "parquet":
            named = columns_of(condition) if condition is not None else []
            names = [*settings.text_columns, settings.id_column or "", *settings.keep, *named]
            heads = heads_of(found, format_, names, pool)
            return _open_raw(settings, found, format_, heads, keys, by_file)
        checked = list(pool.map(lambda file: check_file(file, settings, condition, keys), found))
    id_type = common_id_type(checked, settings.id_column)
    kept = common_kept(checked, settings)
    files = tuple(one.file for one in checked)
    row_groups = [group for one in checked for group in one.row_groups]
    n_rows = sum(group.n_rows for group in row_groups)
    is_triples = are_triples(checked)
    if n_rows == 0 and not by_file:
        raise no_document(settings, files)
    for one in checked:
        if one.null_id is not None:
            _tell_null_id(one.null_id, settings.id_column)
    corpus = Corpus(
        settings=settings,
        files=files,
        partitions=(_partitions_by_file if by_file else plan_partitions)(
            row_groups, settings.partition_bytes, MOST_TRIPLES if is_triples else MAX_ROWS
        ),
        n_rows=n_rows,
        text_bytes=sum(group.text_bytes for group in row_groups),
        fingerprint=_fingerprint(files, features),
        id_type=id_type,
        kept=kept,
        found=tuple(found),
        features=features,
    )
    if condition is None and not is_triples:
        return corpus
    raw = Raw("parquet", corpus.columns, id_type, keys, where=settings.where, triples=is_triples)
    return replace(corpus, raw=raw)


def _open_raw(
    settings: CorpusSettings,
    found: Sequence[Found],
    format_: str,
    heads: Mapping[Location, pa.Schema],
    keys: pa.Schema,
    by_file: bool,
) -> Corpus:
    """A corpus of files that are not Parquet."""
    settings = settings.model_copy(update={"id_column": default_id(settings, format_)})
    seen = look_at(found)
    files = tuple(source_file(one, format_, keys_of(one.found.location.path)) for one in seen)
    # For the names alone: the types are found in the files.
    names = [*settings.keep, *(name for name in keys.names if name not in settings.keep)]
    columns = Columns(
        settings.text_columns,
        settings.id_column,
        pa.schema([(name, pa.null()) for name in names]),
        frozenset(keys.names),
    )
    if not any(map(len, heads.values())):  # JSON lines of nothing: of what types, nobody can tell
        if not by_file:
            raise no_document(settings, files)
        return _without_rows(settings, files, found, columns)
    sources = head_sources(heads, format_, columns, needed(columns, settings.where, keys.names))
    types = {one.name: one.type for one in (*sources, *keys)}
    kept = pa.schema([(name, types[name]) for name in names])
    id_type = pa.int64() if settings.id_column is None else types[settings.id_column]
    raw = Raw(format_, replace(columns, kept=kept), id_type, keys, tuple(sources), settings.where)
    raw.check(files[0])
    partitions = plan_files(files, format_, settings.partition_bytes, by_file)
    return Corpus(
        settings=settings,
        files=files,
        partitions=partitions,
        n_rows=sum(file.n_rows for file in files),
        text_bytes=sum(one.text_bytes for one in partitions),
        fingerprint=_fingerprint(files),
        id_type=id_type,
        kept=kept,
        found=tuple(found),
        raw=raw,
    )


def _without_rows(
    settings: CorpusSettings, files: tuple[SourceFile, ...], found: Sequence[Found], columns: Columns
) -> Corpus:
    files = tuple(replace(file, n_rows=0) for file in files)
    id_type = pa.int64() if settings.id_column is None else pa.string()
    return Corpus(settings, files, (), 0, 0, _fingerprint(files), id_type, columns.kept, tuple(found))


def staged(corpus: Corpus, files: Sequence[str], n_rows: int, *, by_file: bool = False) -> Corpus:
    """The corpus of the `n_rows` documents that were read out of a raw one: a file a partition of that.

    Raises InputDataError where there are none, unless `by_file`.
    """
    if corpus.raw is None or (n_rows == 0 and not by_file):
        raise no_document(corpus.settings, corpus.files)
    columns = corpus.raw.columns
    update: dict[str, Any] = {
        "input": tuple(files), "format": "parquet", "where": None, "keep": tuple(columns.kept.names)
    }  # fmt: skip
    if columns.features is None:
        update["text_column"] = corpus.raw.text_name
    else:
        update |= {"feature_column": corpus.raw.text_name, "value_column": None, "feature_names": None}
    locations = map(location_of, files)
    found = [Found(location, location.path.rpartition("/")[2]) for location in locations]
    opened = open_corpus(corpus.settings.model_copy(update=update), found, by_file=by_file)
    sources = tuple(partition.pieces[0].file for partition in corpus.partitions)
    return replace(opened, fingerprint=corpus.fingerprint, origin=corpus, sources=sources)


class NoDocumentError(InputDataError):
    """No file of a corpus has a row, or none that the filter takes."""


def no_document(settings: CorpusSettings, files: Sequence[SourceFile]) -> NoDocumentError:
    """The error for a corpus without any."""
    if settings.where is not None:
        return NoDocumentError(
            f"no document of {len(files)} files (the first: {files[0]}) is one where {settings.where}: change the "
            "filter (--where, corpus.where)"
        )
    return NoDocumentError(f"no document: none of the {len(files)} files has a row (the first: {files[0]})")


def _keys(found: Sequence[Found], settings: CorpusSettings) -> pa.Schema:
    """Keys of all files' folders; one of the id's name is left to the files."""
    fields = key_fields(keys_of(one.location.path) for one in found)
    return pa.schema([one for one in fields if one.name != settings.id_column])


def check_labels(corpus: Corpus, column: str) -> None:
    """Raise InputDataError, naming the file, where one has no such column that labels can be read from."""

    def check(file: SourceFile) -> None:
        footer = read_footer(file.location)
        check_column(footer, file.location, label_column(footer, file.location, column))

    local = all(file.location.is_local for file in corpus.files)
    with ThreadPoolExecutor(min(LOCAL_READERS if local else REMOTE_REQUESTS, len(corpus.files))) as pool:
        list(pool.map(check, corpus.files))


def _partitions_by_file(
    row_groups: Sequence[RowGroup], partition_bytes: int, max_rows: int
) -> tuple[Partition, ...]:
    """The partitions of each file as if it were alone, numbered on."""
    partitions: list[Partition] = []
    n_rows = 0
    for _, groups in groupby(row_groups, key=lambda group: group.file):
        for one in plan_partitions(list(groups), partition_bytes, max_rows):
            partitions.append(replace(one, index=len(partitions), first_row=n_rows))
            n_rows += one.n_rows
    return tuple(partitions)


def find_corpus(inputs: Iterable[str], wanted: str = "auto") -> list[Found]:
    """Files of all inputs, each once: inputs that overlap, and links, do not make more documents.

    `wanted` is the format that those of folders are of.
    """
    once: dict[Location, Found] = {}
    for text in inputs:
        for file in find_files(text, wanted):
            location = file.location
            if location.is_local:
                location = Location("", os.path.realpath(location.path))
            once.setdefault(location, file)
    if not once:
        raise ConfigurationError("no input: name the corpus's files by --input (corpus.input)")
    return list(once.values())


def _tell_null_id(piece: Piece, column: str | None) -> None:
    """Raise the error that reading the ids raises, which knows the row; one row group's ids are few."""
    read_ids(Partition(0, (piece,), piece.stop, 0, 0), column)


def _fingerprint(files: Iterable[SourceFile], features: Features | None = None) -> str:
    """SHA-256 of names, sizes and footers in order, of keys and names. No times: a copy is the same corpus."""
    digest = hashlib.sha256()
    if features is not None and features.digest is not None:
        digest.update(f"names {features.digest}\n".encode())
    for file in files:
        keys = f"\0{file.keys}" if file.keys else ""
        digest.update(f"{file.name}\0{file.size}\0{file.digest}{keys}\n".encode())
    return digest.hexdigest()
