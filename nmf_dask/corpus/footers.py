"""Footers of Parquet files: read once, checked before any row is read."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from nmf_dask.corpus.columns import find_field, nested_names
from nmf_dask.corpus.locations import Location, explain
from nmf_dask.corpus.pages import Seekable
from nmf_dask.corpus.thrift import read_struct
from nmf_dask.errors import InputDataError
from nmf_dask.object_stores import patiently

MAGIC = b"PAR1"
# Most footers fit, so that one request to an object store is enough.
TAIL_BYTES = 64 * 1024
# Where one file ends, with the length of its footer, and another begins.
_JOINT = re.compile(rb"(....)PAR1PAR1", re.DOTALL)
# The key under which Arrow's writers keep the types of the table, and another that its reader does not know.
_ARROW_SCHEMA, _NO_SCHEMA = b"ARROW:schema", b"arrow:schema"
# A column of type null is one without any text: pandas writes it for a file whose texts are all missing.
_STRINGS = (pa.string(), pa.large_string(), pa.string_view(), pa.null())
_NAMES_SHOWN = 20
# Bytes of a value of these types; of others they differ, or writers shorten what the statistics say of them.
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
# Fields of FileMetaData, RowGroup, ColumnChunk, ColumnMetaData and Statistics in parquet-format's parquet.thrift.
_ROW_GROUPS, _COLUMNS, _META_DATA, _ENCODINGS, _PATH, _STATISTICS, _NULL_COUNT = 4, 1, 3, 2, 3, 12, 3
_VALUES = (1, 2, 5, 6)  # of Statistics: the largest and the smallest, in the old way and in the new


class Footer(NamedTuple):
    """What the end of a Parquet file says of it; `start` is the byte at which the footer begins.

    `plain` is the metadata without Arrow's own schema: read by it, nothing comes as a dictionary, of which Arrow
    cannot make one from every encoding. It is `metadata` where no column is one. `content` is the footer itself.
    """

    metadata: pq.FileMetaData
    schema: pa.Schema
    size: int
    start: int
    digest: str
    plain: pq.FileMetaData
    content: bytes


class Column(NamedTuple):
    """A column: Arrow type (without dictionary), number among the file's leaves, structs that lead to it and it."""

    name: str
    type: pa.DataType
    leaf: int
    path: tuple[str, ...]
    is_dictionary: bool = False


def read_footer(location: Location) -> Footer:
    """Footer of a Parquet file.

    Raises InputDataError where the file is not Parquet, is not whole or may not be read, and RetryableError
    where it cannot be reached.
    """
    source, footer = open_file(location)
    source.close()
    return footer


def open_file(location: Location) -> tuple[pa.NativeFile, Footer]:
    """A Parquet file to read from, which the caller closes, and its footer; raises what `read_footer` raises.

    A small object has come whole with its footer: to read of it costs no further request.
    """
    try:
        if location.is_local:
            _check_regular(location)
        source = location.handler.open_input_file(location.path)
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise explain(error, location, "read") from None
    try:
        size, tail, length = _tail(source, location)
        footer = _decoded(location, size, tail[-length:])
    except BaseException:
        source.close()
        raise
    if len(tail) < size or location.is_local:
        return source, footer
    source.close()
    return pa.BufferReader(tail), footer


def _tail(source: pa.NativeFile, location: Location) -> tuple[int, bytes, int]:
    """Bytes of a file, its last ones, and how many of these are its footer."""
    try:
        size = source.size()
        tail = patiently(lambda: source.read_at(min(size, TAIL_BYTES), max(0, size - TAIL_BYTES)))
        if tail[-4:] != MAGIC or size < 12:
            raise _not_parquet(location, size, source.read_at(min(size, 8), 0), tail)
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length + len(MAGIC) > size:
            raise damaged(location, size, f"its footer should have {length:,} bytes, more than the file")
        if length > len(tail):
            tail = source.read_at(length, size - length)
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise explain(error, location, "read") from None
    return size, tail, length


def _decoded(location: Location, size: int, footer: bytes) -> Footer:
    try:
        # The reader wants a whole file; one without data serves for the footer, and costs no second request.
        parquet = pq.ParquetFile(pa.BufferReader(MAGIC + footer))
        plain = parquet.metadata
        if any(_has_dictionary(field.type) for field in parquet.schema_arrow):
            plain = pq.read_metadata(pa.BufferReader(MAGIC + footer.replace(_ARROW_SCHEMA, _NO_SCHEMA)))
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise damaged(location, size, f"its footer cannot be decoded ({brief(error)})") from None
    digest = hashlib.sha256(footer).hexdigest()[:32]
    return Footer(parquet.metadata, parquet.schema_arrow, size, size - len(footer), digest, plain, footer)


def _check_regular(location: Location) -> None:
    """Refuse what is no file but has its name: a named pipe would be waited for without an end."""
    mode = os.stat(location.path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
        raise InputDataError(
            f"{location} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a Parquet file. Remove it from the input."
        )


def damaged(location: Location, size: int, what: str) -> InputDataError:
    """The error for a file whose bytes are not what they should be."""
    return InputDataError(
        f"{location} ({size:,} bytes) is damaged: {what}. Write or copy it again, or leave it out."
    )


def brief(error: BaseException) -> str:
    """First line of a decoder's error, without the names of its source files."""
    return str(error).splitlines()[0].strip().rstrip(".")[:200] if str(error) else type(error).__name__


def text_column(footer: Footer, location: Location, name: str) -> Column:
    """The column of documents; InputDataError where it is missing, or not of strings."""
    column = find_column(footer, location, name, "--text-column")
    if column.type in _STRINGS:
        return column
    strings = [field.name for field in footer.schema if plain_type(field.type) in _STRINGS]
    raise InputDataError(
        f"{location}: column {name!r} has type {column.type}, not of strings. {_remedy(column.type)} "
        + (
            f"Columns of strings in this file: {_listed(strings)}."
            if strings
            else "No column here has strings."
        )
        + " Choose one by --text-column (corpus.text_column)."
    )


def id_column(footer: Footer, location: Location, name: str) -> Column:
    """The column of ids; InputDataError where it is missing or nested."""
    column = find_column(footer, location, name, "--id-column")
    if not _is_nested(column.type):
        return column
    raise InputDataError(
        f"{location}: column {name!r} has type {column.type}; an id must be a single value, such as a "
        "string or an integer. Choose another column by --id-column (corpus.id_column), or leave that out: "
        "then W carries row numbers."
    )


def single_column(footer: Footer, location: Location, name: str, flag: str) -> Column:
    """A column of single values, which `flag` names; InputDataError where it is missing or nested."""
    column = find_column(footer, location, name, flag)
    if not _is_nested(column.type):
        return column
    inner = [one for one in nested_names(footer.schema) if one.startswith(f"{name}.")]
    raise InputDataError(
        f"{location}: column {name!r} has type {column.type}; {flag} (corpus.{flag[2:]}) takes columns of "
        "single values. " + (f"Name one within it: {_listed(inner)}." if inner else "Leave it out.")
    )


def label_column(footer: Footer, location: Location, name: str) -> Column:
    """The column of labels; InputDataError where it is missing or holds no names, numbers or times."""
    column = find_column(footer, location, name, "--label-column", "evaluate")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    if not (pa.types.is_nested(kind) or binary or isinstance(kind, pa.BaseExtensionType)):
        return column
    raise InputDataError(
        f"{location}: column {name!r} has type {column.type}; a label must be a single value, such as a string or an "
        "integer. Choose another column by --label-column (evaluate.label_column), or leave that out"
    )


def check_alone(footer: Footer, location: Location) -> None:
    """Raise InputDataError for files that were put together as one (`cat a b`): the last footer knows its own rows.

    Where both are laid out alike it would even find rows in the places that it names, but those of the first.
    """
    n_groups = footer.metadata.num_row_groups
    if n_groups == 0 or _undecodable(footer, range(n_groups - 1, n_groups)):
        return
    last = footer.metadata.row_group(n_groups - 1)
    shift = footer.start - max(_end(last.column(leaf)) for leaf in range(last.num_columns))
    # Behind a file's data there may be indexes of pages, which are as much smaller than the shift of its beginning.
    low = max(len(MAGIC), shift - TAIL_BYTES)
    if shift < low:
        return
    try:
        with location.handler.open_input_file(location.path) as file:
            data = file.read_at(shift + len(MAGIC) - low, low)
    except OSError as error:
        raise explain(error, location, "read") from None
    for match in _JOINT.finditer(data):
        place = low + match.end() - len(MAGIC)
        if int.from_bytes(match[1], "little") < place - len(
            MAGIC
        ):  # a footer as long as that has room before it
            raise InputDataError(
                f"{location} ({footer.size:,} bytes) is several Parquet files in one: one ends at byte {place:,}, and "
                "only the last would count. Write them as files of their own."
            )


def check_column(footer: Footer, location: Location, column: Column) -> None:
    """Raise InputDataError where what the footer says of a column cannot be so, or bytes of it are missing."""
    metadata = footer.metadata
    if error := _undecodable(footer, range(metadata.num_row_groups), ".".join(column.path)):
        said = f"what its footer says of column {column.name!r} cannot be decoded ({error})"
        raise damaged(location, footer.size, said)
    leaves = range(column.leaf, column.leaf + leaves_of(column.type))
    nested = _is_nested(column.type)
    n_rows = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        n_rows += group.num_rows
        for leaf in leaves:
            chunk, physical_type = group.column(leaf), metadata.schema.column(leaf).physical_type
            fault = _fault(group, chunk, physical_type, nested) or _missing(chunk, footer.start)
            if fault:
                raise damaged(location, footer.size, f"row group {index} of column {column.name!r} {fault}")
    if n_rows != metadata.num_rows:
        said = f"its footer counts {metadata.num_rows:,} rows, and its row groups {n_rows:,}"
        raise damaged(location, footer.size, said)


def null_counts(footer: Footer, location: Location, column: Column) -> list[int | None]:
    """How many nulls a column of single values has in each row group; None where its statistics do not say.

    Raises InputDataError for statistics that are damaged.
    """
    n_groups = footer.metadata.num_row_groups
    if footer.metadata.schema.column(column.leaf).max_definition_level == 0:
        return [0] * n_groups
    statistics = checked_statistics(footer, location, column)
    return [None] * n_groups if statistics is None else [one.get(_NULL_COUNT) for one in statistics]


def checked_statistics(footer: Footer, location: Location, column: Column) -> list[dict[int, Any]] | None:
    """Statistics of a column in each row group, by Thrift's numbers of fields; None where they cannot be read.

    Asked for statistics, Arrow decodes the smallest and the largest value as well, and ends the process where one is
    too short. So they are read here first. Raises InputDataError for a value that is not as long as its type.
    """
    width = _WIDTHS.get(footer.metadata.schema.column(column.leaf).physical_type)
    found: list[dict[int, Any]] = []
    try:
        for chunk in _chunks(footer, column):
            statistics = chunk.get(_STATISTICS, {})
            lengths = [len(statistics[field]) for field in _VALUES if field in statistics]
            if width and any(length not in (0, width) for length in lengths):
                said = (
                    f"row group {len(found)} of column {column.name!r} has a smallest or largest value in its "
                    f"statistics that is not of {width} bytes"
                )
                raise damaged(location, footer.size, said)
            found.append(statistics)
    except (IndexError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return None
    return found if len(found) == footer.metadata.num_row_groups else None


def _chunks(footer: Footer, column: Column) -> list[dict[int, Any]]:
    """ColumnMetaData of a column in each row group, or what of it follows the column's path.

    To read all of a footer takes 20 µs a chunk, so the chunks are looked for by the path, a list of names; where
    there is not one in each row group, such bytes stand elsewhere too, or the path is written in another way.
    """
    parts = [name.encode() for name in column.path]
    path = bytes([16 * (_PATH - _ENCODINGS) + 9, 16 * min(len(parts), 15) + 8])
    path += b"".join(bytes([min(len(part), 127)]) + part for part in parts)
    places = [match.end() for match in re.finditer(re.escape(path), footer.content)]
    if len(places) == footer.metadata.num_row_groups:
        return [read_struct(footer.content, place, _PATH)[0] for place in places]
    groups = read_struct(footer.content, 0)[0].get(_ROW_GROUPS, [])
    return [group[_COLUMNS][column.leaf][_META_DATA] for group in groups]


def _undecodable(footer: Footer, row_groups: range, column: str | None = None) -> str:
    """What is wrong with the metadata of a column (None: of any) for Arrow; empty where nothing is.

    Where Python asks for them one by one, an error of Arrow's ends the process. So the data are asked for, which
    it looks at all metadata before: an error that comes before any read is one of them.
    """
    nothing = _Nothing()
    try:
        parquet = pq.ParquetFile(pa.PythonFile(nothing, "r"), metadata=footer.metadata, pre_buffer=True)
        columns = None if column is None else [column]
        next(parquet.iter_batches(1, row_groups=row_groups, columns=columns, use_threads=False), None)
    except (pa.ArrowException, OSError) as error:
        return "" if nothing.was_read else brief(error)
    return ""


class _Nothing(Seekable):
    """A file so large that every place is in it, of which nothing can be read.

    It gives no byte and raises nothing: Arrow never frees a reader, and the metadata with it, whose file raised.
    """

    def __init__(self) -> None:
        super().__init__(2**62)
        self.was_read = False

    def read(self, n_bytes: int = -1) -> bytes:
        self.was_read = True
        return b""


def _fault(
    group: pq.RowGroupMetaData, chunk: pq.ColumnChunkMetaData, physical_type: str, nested: bool
) -> str:
    """What contradicts itself in the metadata of a column; empty where nothing does. A nested row has some values."""
    if chunk.physical_type != physical_type:
        return f"is of type {chunk.physical_type}, and the column of {physical_type}"
    n_rows, n_values = group.num_rows, chunk.num_values
    if not (0 <= n_rows <= n_values if nested else 0 <= n_rows == n_values):
        return f"should have {group.num_rows:,} rows, but has {chunk.num_values:,} values"
    if min(chunk.total_compressed_size, chunk.total_uncompressed_size, chunk.data_page_offset) < 0:
        return "has a size or a place below zero"
    return ""


def _missing(chunk: pq.ColumnChunkMetaData, data_end: int) -> str:
    end = _end(chunk)
    return f"should end at byte {end:,}, but the data end at byte {data_end:,}" if end > data_end else ""


def _end(chunk: pq.ColumnChunkMetaData) -> int:
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    end: int = min(start, chunk.data_page_offset) + chunk.total_compressed_size
    return end


def column_of(footer: Footer, name: str) -> Column:
    """A column that `text_column` or its like has found before."""
    type_, leaf, path = find_field(footer.schema, name, leaves_of)
    return Column(name, plain_type(type_), leaf, path, pa.types.is_dictionary(type_))


def find_column(footer: Footer, location: Location, name: str, flag: str, section: str = "corpus") -> Column:
    """The column of a name that `flag` gave; InputDataError where there is none, or several."""
    names = footer.schema.names
    if names.count(name) > 1:
        raise InputDataError(
            f"{location}: {names.count(name)} columns are named {name!r}. Rename all but one."
        )
    if find_field(footer.schema, name, leaves_of) is not None:
        return column_of(footer, name)
    raise InputDataError(
        f"{location}: no column {name!r}. "
        + (f"Its columns: {_listed(names)}." if names else "It has no columns.")
        + did_you_mean(name, nested_names(footer.schema))
        + f" Name the column by {flag} ({section}.{flag[2:].replace('-', '_')})."
    )


def did_you_mean(name: str, names: list[str]) -> str:
    """A hint at the name that is nearest, where one is near."""
    by_lower = {other.lower(): other for other in reversed(names)}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""


def _not_parquet(location: Location, size: int, head: bytes, tail: bytes) -> InputDataError:
    if size == 0:
        return InputDataError(f"{location} is empty (0 bytes), not Parquet. Write it again, or remove it.")
    if tail[-4:] == b"PARE":
        return InputDataError(f"{location} ({size:,} bytes) is encrypted. Write it without encryption.")
    if head[:4] == MAGIC:
        return damaged(
            location, size, "it begins as Parquet, but its end is missing (a copy that broke off?)"
        )
    return InputDataError(
        f"{location} ({size:,} bytes) is not a Parquet file: it begins with {head.decode('latin-1')!r}. "
        "Convert it, or leave it out of the input."
    )


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Type of the values, dictionary-encoded or not."""
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _has_dictionary(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        return any(_has_dictionary(field.type) for field in type_)
    return bool(pa.types.is_dictionary(type_))


def _is_nested(type_: pa.DataType) -> bool:
    stored = type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_
    return bool(pa.types.is_nested(stored))


def is_list(type_: pa.DataType) -> bool:
    """Whether values are lists, of any kind."""
    return any(
        check(type_)
        for check in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
            pa.types.is_fixed_size_list,
        )
    )


def leaves_of(type_: pa.DataType) -> int:
    """Number of Parquet columns that a column of this type is stored in."""
    if isinstance(type_, pa.BaseExtensionType):
        return leaves_of(type_.storage_type)
    if pa.types.is_map(type_):
        return leaves_of(type_.key_type) + leaves_of(type_.item_type)
    if is_list(type_):
        return leaves_of(type_.value_type)
    if pa.types.is_struct(type_):
        return sum(leaves_of(field.type) for field in type_)
    return 1


def _remedy(type_: pa.DataType) -> str:
    if is_list(type_) and plain_type(type_.value_type) in _STRINGS:
        return "Join each list into one string, or count what the lists hold (--feature-column)."
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        return "If the bytes are UTF-8, write the column as strings (in SQL: CAST(... AS VARCHAR))."
    return "Write it as strings, or choose another column."


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(map(_shown, names[:_NAMES_SHOWN])) + more


def _shown(name: str) -> str:
    """A name as it is, unless that could not be seen or would break the line."""
    return name if name.isprintable() and name.strip() == name != "" else repr(name)
