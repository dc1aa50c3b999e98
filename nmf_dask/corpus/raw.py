"""Corpora that are read once and staged as plain Parquet files: other formats than Parquet, and those with a filter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa

from nmf_dask.config import CorpusSettings
from nmf_dask.corpus.columns import NO_COLUMNS, Columns, find_field, key_value, nested_names, without_views
from nmf_dask.corpus.features import MAPS, BadRow
from nmf_dask.corpus.footers import Column, Footer, checked_statistics, did_you_mean, null_counts
from nmf_dask.corpus.formats import compression_of
from nmf_dask.corpus.locations import Found, Location
from nmf_dask.corpus.partitions import LARGEST_UNCUT, Partition, Piece, SourceFile, target_bytes
from nmf_dask.corpus.reading import joined, read_together
from nmf_dask.corpus.records import Source, head_schema, read_records
from nmf_dask.corpus.seen import Seen, look_at
from nmf_dask.corpus.triples import run_starts, whole_rows
from nmf_dask.corpus.where import Condition, Facts, Unfit, columns_of, may_be_true, parse
from nmf_dask.errors import InputDataError

# What text becomes by compression, about; only a plan hangs on it.
COMPRESSION = 4
ROW_BYTES = 200
# Of an object store, each file costs a request or two, one after the other.
FILES_A_TASK = 1000
_SIMPLE = (
    pa.types.is_integer,
    pa.types.is_float32,
    pa.types.is_float64,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_boolean,
)


@dataclass(frozen=True)
class Raw:
    """How the documents of a corpus are read out of its files. Picklable.

    `sources` are the columns to read of files that are not Parquet; `keys` the types of those that are in folders'
    names; `where` is the filter, as it was given.
    """

    format: str
    columns: Columns
    id_type: pa.DataType
    keys: pa.Schema = field(default_factory=lambda: NO_COLUMNS)
    sources: tuple[Source, ...] = ()
    where: str | None = None
    triples: bool = False
    """Whether a row of counts stands in a file as several."""

    @property
    def text_name(self) -> str:
        """The column of documents where they are staged: a name that no other has."""
        name = "text" if self.columns.features is None else "features"
        while name in (self.columns.id, *self.columns.kept.names):
            name += "_"
        return name

    @property
    def schema(self) -> pa.Schema:
        """Of the staged documents."""
        ids = [] if self.columns.id is None else [pa.field(self.columns.id, self.id_type)]
        kind = pa.string() if self.columns.features is None else MAPS
        return pa.schema([pa.field(self.text_name, kind), *ids, *self.columns.kept])

    def check(self, file: SourceFile) -> None:
        """Raise InputDataError where the filter does not go with the columns' types; `file` is to be named."""
        if self.where is not None:
            types = {one.name: one.type for one in (*self.sources, *self.keys)}
            bound(parse(self.where), types.__getitem__, file.location)

    def documents(self, partition: Partition) -> Iterator[pa.Table]:
        """The documents of a partition, those that the filter leaves, as tables of `schema`, in order.

        Raises InputDataError for damage and for a null id, naming the file, and RetryableError for a store that does
        not answer.
        """
        for file, pieces in groupby(partition.pieces, key=lambda piece: piece.file):
            of_file = replace(partition, pieces=tuple(pieces))
            row, expression = 0, None
            tables = self._rows(file, of_file)
            if self.triples:
                assert self.columns.id is not None
                tables = whole_rows(file, of_file.pieces, self.columns.id, partial(self._rows, file))
            for table in tables:
                if self.where is not None:
                    types = {one.name: one.type for one in table.schema}
                    expression = bound(parse(self.where), types.__getitem__, file.location)
                found = table if expression is None else table.filter(expression)
                yield self._documents(file, found, row, row + len(table))
                row += len(table)

    def _rows(self, file: SourceFile, partition: Partition) -> Iterator[pa.Table]:
        """All columns that are needed of one file's rows: as they are stored, and the keys of its folders."""
        keys = dict(file.keys)
        for table in self._stored(file, partition):
            table = table.rename_columns([self._beside_keys(name) for name in table.column_names])
            for one in self.keys:
                value = pa.scalar(key_value(keys.get(one.name), one.type), one.type)
                table = table.append_column(one, pa.repeat(value, len(table)))
            yield table

    def _beside_keys(self, name: str) -> str:
        """What a stored column is called where the keys of folders are, of which one may have its name."""
        return f"{name}\0" if name in self.keys.names else name

    def _stored(self, file: SourceFile, partition: Partition) -> Iterator[pa.Table]:
        if self.format != "parquet":
            span = partition.pieces[0].start, partition.pieces[-1].stop
            _check_unchanged(file)
            yield from read_records(file.location, file.name, self.format, self.sources, span)
            _check_unchanged(file)
            return
        names = needed(self.columns, self.where, self.keys.names)
        for arrays in read_together(partition, names):
            arrays = [array.cast(without_views(array.type)) for array in arrays]
            yield pa.Table.from_arrays(arrays, names=list(names))

    def _documents(self, file: SourceFile, rows: pa.Table, start: int, stop: int) -> pa.Table:
        starts = run_starts(rows[self.columns.id].combine_chunks()) if self.triples else None
        arrays: list[Any] = [self._contents(file, rows, starts, f"{start:,} to {stop - 1:,}")]
        if starts is not None:
            rows = rows.take(pa.array(starts))
        if self.columns.id is not None:
            ids = rows[self.columns.id]
            if ids.null_count:
                raise InputDataError(
                    f"{file}: column {self.columns.id!r} has no id in one of the rows {start:,} to {stop - 1:,} "
                    "(counted from 0 as they are read). Fill it in, drop the row, or leave --id-column out: then W "
                    "carries row numbers."
                )
            arrays.append(ids.cast(self.id_type))
        arrays += [rows[one.name].cast(one.type) for one in self.columns.kept]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _contents(self, file: SourceFile, rows: pa.Table, starts: Any, place: str) -> Any:
        """Texts or counts of rows of a file; of triples, those that begin at the `starts`."""
        texts = [rows[self._beside_keys(name)] for name in self.columns.text]
        if self.columns.features is None:
            return joined([one.cast(pa.string()) for one in texts])
        arrays = [one.combine_chunks() for one in texts]
        try:
            if starts is None:
                return self.columns.features.maps(arrays)
            return self.columns.features.maps_of_runs(arrays, starts)
        except BadRow as bad:
            what = f"one of the rows {place} (counted from 0 as they are read)"
            if starts is not None:
                what = f"the row with {self.columns.id} = {rows[self.columns.id][int(starts[bad.row])].as_py()!r}"
            raise InputDataError(
                f"{file}: {what} {bad.what}. Mend it, or leave it out by a filter (--where)."
            ) from None


def needed(columns: Columns, where: str | None, keys: Sequence[str]) -> tuple[str, ...]:
    """The columns that files have to have, each once; those of `keys` are in folders' names."""
    ids = () if columns.id is None else (columns.id,)
    named = columns_of(parse(where)) if where is not None else []
    more = [name for name in (*columns.kept.names, *named) if name not in keys]
    return tuple(dict.fromkeys((*columns.text, *ids, *more)))


def bound(condition: Condition, types: Callable[[str], pa.DataType], location: Location) -> Any:
    """A filter as Arrow has it; InputDataError where a column's type does not go with it."""
    try:
        return condition.expression(types)
    except Unfit as error:
        raise InputDataError(f"{location}: {error}. Mend the filter (--where, corpus.where).") from None


def may_match(
    condition: Condition, found: Sequence[Column], footer: Footer, file: SourceFile, keys: pa.Schema
) -> list[bool]:
    """For each row group of a Parquet file, whether the filter may be true for a row of it, by its statistics.

    Raises InputDataError for statistics that are damaged, and for a filter that does not go with a column's type.
    """
    values = dict(file.keys)
    types = {one.name: without_views(one.type) for one in found} | {one.name: one.type for one in keys}
    bound(condition, types.__getitem__, file.location)
    constant = {}
    for one in keys:
        value = key_value(values.get(one.name), one.type)
        constant[one.name] = Facts(value, value, value is None, value is None)
    readable = [one for one in found if checked_statistics(footer, file.location, one) is not None]
    nulls = {one.name: null_counts(footer, file.location, one) for one in readable}
    unknown = {one.name: Facts() for one in found}
    matching = []
    for number in range(footer.metadata.num_row_groups):
        told = {one.name: _facts(footer, one, number, nulls[one.name][number]) for one in readable}
        known = unknown | told | constant
        matching.append(may_be_true(condition, types.__getitem__, known.__getitem__))
    return matching


def _facts(footer: Footer, column: Column, number: int, n_nulls: int | None) -> Facts:
    """What the statistics of a row group say of a column. Their lengths are checked: Arrow may be asked for them."""
    group = footer.metadata.row_group(number)
    nulls = None if n_nulls is None else n_nulls > 0
    only_nulls = n_nulls is not None and n_nulls == group.num_rows
    simple = any(check(column.type) for check in _SIMPLE) or pa.types.is_date32(column.type)
    with suppress(pa.ArrowException, UnicodeDecodeError, ValueError, OverflowError):
        if simple and not only_nulls:
            statistics = group.column(column.leaf).statistics
            if statistics is not None and statistics.has_min_max:
                return Facts(statistics.min, statistics.max, nulls)
    return Facts(nulls=nulls, only_nulls=only_nulls)


def head_sources(
    heads: Mapping[Location, pa.Schema], format_: str, columns: Columns, names: Sequence[str]
) -> list[Source]:
    """The columns `names` of files that are not Parquet, by the first MiB of each.

    Documents are strings, and so are the ids of CSV; other columns have the type that they seem to have in all files.
    Raises InputDataError for a column that a file (JSON lines: every file) lacks, or of a type that cannot be taken.
    """
    return [_source(heads, format_, columns, name) for name in names]


def _source(heads: Mapping[Location, pa.Schema], format_: str, columns: Columns, name: str) -> Source:
    whole: tuple[pa.DataType, tuple[str, ...], Location] | None = None
    lacking: Location | None = None
    for location, schema in heads.items():
        found = find_field(schema, name, lambda _: 0)
        if found is None:
            lacking = lacking or location
            continue
        type_, path = _taken_as(found[0], format_), found[2]
        if whole is None or pa.types.is_null(whole[0]):
            whole = type_, path, location
        elif type_ != whole[0] and not pa.types.is_null(type_):
            whole = _common(whole[0], type_, format_, name, whole[2], location), whole[1], whole[2]
    if whole is None or (lacking is not None and format_ != "jsonl"):
        raise _lacks(lacking, heads, name, columns)
    type_ = pa.string() if pa.types.is_null(whole[0]) else whole[0]
    if name in columns.text and not pa.types.is_string(type_):
        if format_ == "jsonl":
            raise InputDataError(
                f"{whole[2]}: column {name!r} has type {type_}, not of strings. Write it as strings, or choose another "
                "by --text-column (corpus.text_column)."
            )
        type_ = pa.string()
    if name == columns.id and format_ != "jsonl" and name not in ("line",):
        type_ = pa.string()
    if pa.types.is_nested(type_):
        raise InputDataError(
            f"{whole[2]}: column {name!r} has type {type_}; single values are needed. Name a column within it by a "
            "dot, or leave it out."
        )
    return Source(name, whole[1], type_)


def _taken_as(type_: pa.DataType, format_: str) -> pa.DataType:
    """JSON has no times: what looks like one is a string."""
    return pa.string() if format_ == "jsonl" and pa.types.is_timestamp(type_) else type_


def _common(
    one: pa.DataType, other: pa.DataType, format_: str, name: str, first: Location, second: Location
) -> pa.DataType:
    numbers = {pa.int64(), pa.float64()}
    if {one, other} == numbers:
        return pa.float64()
    if format_ != "jsonl":
        return pa.string()
    raise InputDataError(
        f"column {name!r} has type {one} in {first}, but {other} in {second}. Write the files of one of the two again."
    )


def _lacks(
    lacking: Location | None, heads: Mapping[Location, pa.Schema], name: str, columns: Columns
) -> InputDataError:
    names = nested_names(heads[lacking]) if lacking is not None else []
    flag = "--text-column" if name in columns.text else "--id-column" if name == columns.id else "--keep"
    flag = flag if name in (*columns.text, columns.id, *columns.kept.names) else "--where"
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return InputDataError(
        f"{lacking}: no column {name!r}. "
        + (f"Its columns: {shown}." if names else "It has no columns.")
        + did_you_mean(name, names)
        + f" Name the column by {flag} (corpus.{flag[2:].replace('-', '_')})."
    )


def expected_bytes(piece: Piece) -> int:
    """The text of a piece of a file, about, by its bytes."""
    factor = COMPRESSION if compression_of(piece.file.location.path) else 1
    return max(1, (piece.stop - piece.start) * factor)


def expected_rows(piece: Piece, format_: str) -> int:
    """The documents of a piece of a file, about."""
    return 1 if format_ == "text" else 1 + expected_bytes(piece) // ROW_BYTES


def plan_files(
    files: Sequence[SourceFile], format_: str, partition_bytes: int, by_file: bool
) -> tuple[Partition, ...]:
    """Files in order, in partitions of about the target: what one task reads. Rows are estimates.

    The pieces of a partition are bytes here: all of a file, or (of JSON lines that are not compressed) a part of one.
    With `by_file`, no partition has pieces of two files, nor depends on other files.
    """
    whole = [Piece(file, 0, 0, file.size) for file in files]
    target = target_bytes(sum(map(expected_bytes, whole)), partition_bytes)
    partitions: list[Partition] = []
    held: list[Piece] = []
    first_row = n_held = 0

    def close() -> None:
        nonlocal first_row, n_held
        n_rows = sum(expected_rows(piece, format_) for piece in held)
        partitions.append(Partition(len(partitions), tuple(held), n_rows, first_row, n_held))
        first_row, n_held = first_row + n_rows, 0
        held.clear()

    for one in whole:
        of_file = target_bytes(expected_bytes(one), partition_bytes) if by_file else target
        for piece in _cut(one, format_, of_file):
            full = n_held + expected_bytes(piece) > of_file or len(held) == FILES_A_TASK
            if held and (by_file or full):
                close()
            held.append(piece)
            n_held += expected_bytes(piece)
    if held:
        close()
    return tuple(partitions)


def _cut(whole: Piece, format_: str, target: int) -> Iterator[Piece]:
    """A file in equal parts of about the target, where it can be read from the middle."""
    size = whole.stop
    is_cut = format_ == "jsonl" and compression_of(whole.file.location.path) is None
    parts = round(size / target) if is_cut and size > LARGEST_UNCUT * target else 1
    for part in range(parts):
        yield whole._replace(start=size * part // parts, stop=size * (part + 1) // parts)


def source_file(seen: Seen, format_: str, keys: Any) -> SourceFile:
    """A file that is not Parquet: known by its size and the time of its last change; its rows are an estimate."""
    file = SourceFile(seen.found.location, seen.found.name, seen.version.size, 0, _version(seen), keys)
    return replace(file, n_rows=expected_rows(Piece(file, 0, 0, file.size), format_))


def _version(seen: Seen) -> str:
    return f"{seen.version.modified:x}"


def _check_unchanged(file: SourceFile) -> None:
    """Raise InputDataError where a file is not what it was when the corpus was opened."""
    [seen] = look_at([Found(file.location, file.name)])
    if (seen.version.size, _version(seen)) != (file.size, file.digest):
        raise InputDataError(
            f"{file} changed since the job began: it had {file.size:,} bytes, and has {seen.version.size:,}. "
            "Run the job again once nothing writes to the input."
        )


def heads_of(
    found: Sequence[Found], format_: str, names: Sequence[str], pool: Any
) -> dict[Location, pa.Schema]:
    """Names and types of the columns of files, by their first MiB; `names` are those that are to be read."""
    schemas = pool.map(lambda one: head_schema(one.location, format_, names), found)
    return {one.location: schema for one, schema in zip(found, schemas, strict=True)}


def default_id(settings: CorpusSettings, format_: str) -> str | None:
    """The id column: of text files that are a document each, their paths where nothing else is asked for."""
    return settings.id_column or ("path" if format_ == "text" else None)
