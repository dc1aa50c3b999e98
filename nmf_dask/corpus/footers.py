"""Footers of Parquet files: read once, checked before any row is read."""

from __future__ import annotations

import difflib
import hashlib
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from nmf_dask.corpus.locations import Location, explain
from nmf_dask.errors import InputDataError

MAGIC = b"PAR1"
# Most footers fit, so that one request to an object store is enough.
TAIL_BYTES = 64 * 1024
# A column of type null is one without any text: pandas writes it for a file whose texts are all missing.
_STRINGS = (pa.string(), pa.large_string(), pa.string_view(), pa.null())
_NAMES_SHOWN = 20


class Footer(NamedTuple):
    """What the end of a Parquet file says of it; `start` is the byte at which the footer begins."""

    metadata: pq.FileMetaData
    schema: pa.Schema
    size: int
    start: int
    digest: str


class Column(NamedTuple):
    """A top-level column: its Arrow type (without dictionary) and its number among the file's leaves."""

    name: str
    type: pa.DataType
    leaf: int


def read_footer(location: Location) -> Footer:
    """Footer of a Parquet file.

    Raises InputDataError where the file is not Parquet, is not whole or may not be read, and RetryableError
    where it cannot be reached.
    """
    try:
        with location.handler.open_input_file(location.path) as file:
            size = file.size()
            tail = file.read_at(min(size, TAIL_BYTES), max(0, size - TAIL_BYTES))
            if tail[-4:] != MAGIC or size < 12:
                raise _not_parquet(location, size, file.read_at(min(size, 8), 0), tail)
            length = int.from_bytes(tail[-8:-4], "little") + 8
            if length + len(MAGIC) > size:
                raise damaged(location, size, f"its footer should have {length:,} bytes, more than the file")
            if length > len(tail):
                tail = file.read_at(length, size - length)
    except (OSError, UnicodeError) as error:
        raise explain(error, location, "read") from None
    footer = tail[-length:]
    try:
        # The reader wants a whole file; one without data serves for the footer, and costs no second request.
        parquet = pq.ParquetFile(pa.BufferReader(MAGIC + footer))
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise damaged(location, size, f"its footer cannot be decoded ({brief(error)})") from None
    digest = hashlib.sha256(footer).hexdigest()[:32]
    return Footer(parquet.metadata, parquet.schema_arrow, size, size - length, digest)


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
    column = _find(footer, location, name, "--text-column")
    if column.type in _STRINGS:
        return column
    strings = [field.name for field in footer.schema if _plain(field.type) in _STRINGS]
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
    column = _find(footer, location, name, "--id-column")
    if _leaves(column.type) == 1 and not _is_list(column.type) and not pa.types.is_struct(column.type):
        return column
    raise InputDataError(
        f"{location}: column {name!r} has type {column.type}; an id must be a single value, such as a "
        "string or an integer. Choose another column by --id-column (corpus.id_column), or leave that out: "
        "then W carries row numbers."
    )


def check_extent(footer: Footer, location: Location, column: Column) -> None:
    """Raise InputDataError where the column should end beyond the data of the file: bytes are missing."""
    for index in range(footer.metadata.num_row_groups):
        chunk = footer.metadata.row_group(index).column(column.leaf)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        end = min(start, chunk.data_page_offset) + chunk.total_compressed_size
        if end > footer.start:
            raise damaged(
                location,
                footer.size,
                f"row group {index} of column {column.name!r} should end at byte {end:,}, but the data "
                f"end at byte {footer.start:,}",
            )


def leaf_of(footer: Footer, name: str) -> int:
    """Number of a top-level column among the columns that are stored: a nested one is stored in several."""
    return sum(_leaves(footer.schema.field(before).type) for before in range(footer.schema.names.index(name)))


def _find(footer: Footer, location: Location, name: str, flag: str) -> Column:
    names = footer.schema.names
    if names.count(name) == 1:
        return Column(name, _plain(footer.schema.field(name).type), leaf_of(footer, name))
    if name in names:
        raise InputDataError(
            f"{location}: {names.count(name)} columns are named {name!r}. Rename all but one."
        )
    by_lower = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    raise InputDataError(
        f"{location}: no column {name!r}. Its columns: {_listed(names)}."
        + (f" Did you mean {by_lower[near[0]]!r}?" if near else "")
        + f" Name the column by {flag} (corpus.{flag[2:].replace('-', '_')})."
    )


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


def _plain(type_: pa.DataType) -> pa.DataType:
    """Type of the values, dictionary-encoded or not."""
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_list(type_: pa.DataType) -> bool:
    return any(
        check(type_)
        for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_map)
    )


def _leaves(type_: pa.DataType) -> int:
    """Number of Parquet columns that a column of this type is stored in."""
    if isinstance(type_, pa.BaseExtensionType):
        return _leaves(type_.storage_type)
    if pa.types.is_map(type_):
        return _leaves(type_.key_type) + _leaves(type_.item_type)
    if _is_list(type_):
        return _leaves(type_.value_type)
    if pa.types.is_struct(type_):
        return sum(_leaves(field.type) for field in type_)
    return 1


def _remedy(type_: pa.DataType) -> str:
    if _is_list(type_) and _plain(type_.value_type) in _STRINGS:
        return "Join each list into one string."
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        return "If the bytes are UTF-8, write the column as strings (in SQL: CAST(... AS VARCHAR))."
    return "Write it as strings, or choose another column."


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
