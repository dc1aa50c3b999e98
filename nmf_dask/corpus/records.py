"""Rows of CSV, JSON lines and plain text files, compressed or not, a few MiB at a time however large a file is."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson

from nmf_dask.corpus.footers import brief
from nmf_dask.corpus.formats import compression_of
from nmf_dask.corpus.locations import Location, explain
from nmf_dask.corpus.partitions import MIB
from nmf_dask.errors import InputDataError, NmfDaskError

BLOCK_BYTES = 4 * MIB
HEAD_BYTES = MIB
LARGEST_BLOCK = 2**31 - 1
TEXT_COLUMNS = pa.schema([("text", pa.string()), ("path", pa.string())])
LINE_COLUMNS = TEXT_COLUMNS.append(pa.field("line", pa.int64()))
_TORN = re.compile(
    r"Truncated compressed|inflate failed|decompress failed|inflateInit|unexpected end", re.IGNORECASE
)
_ROW = re.compile(r" in row (\d+)$")
_CHANGED = re.compile(r"Column\(/?(.*)\) changed from (\w+) to (\w+)")
_STRADDLES = "straddl"
_LINE_BREAK = re.compile(rb"[\r\n]")
_BOM = b"\xef\xbb\xbf"


class Source(NamedTuple):
    """A column to read: under which name, by which way through structs, as which type."""

    name: str
    path: tuple[str, ...]
    type: pa.DataType


Span = tuple[int, int]
"""Of a file's bytes: its start and its end."""


def read_records(
    location: Location, name: str, format_: str, sources: Sequence[Source], span: Span
) -> Iterator[pa.Table]:
    """Rows of a file as tables of the `sources`, in order. `name` is the path that a text file has as a column.

    Of JSON lines that are not compressed, those that begin in the `span`; of other files, all.

    Raises InputDataError for what is damaged, cut short, or not what its format asks for (file, row or line, remedy),
    and RetryableError for a store that does not answer.
    """
    readers: dict[str, Callable[[], Iterator[pa.Table]]] = {
        "csv": lambda: _csv_tables(location, ",", sources),
        "tsv": lambda: _csv_tables(location, "\t", sources),
        "jsonl": lambda: _json_tables(location, sources, span),
        "text": lambda: _text_table(location, name),
        "lines": lambda: _line_tables(location, name),
    }
    for table in readers[format_]():
        yield table.select([one.name for one in sources])


def head_schema(location: Location, format_: str, names: Sequence[str]) -> pa.Schema:
    """Names and types of a file's columns, by its first MiB; without columns where it is empty.

    Columns of JSON lines that are none of `names` may be of several types, and then have the type null, as those beside
    them have.
    """
    if format_ == "text":
        return TEXT_COLUMNS
    if format_ == "lines":
        return LINE_COLUMNS
    if format_ == "jsonl":
        with _lines_of(location, HEAD_BYTES) as blocks:
            _, block = next(blocks, (0, b""))
        return _json_head(_Place(location, 0, 0), block, names)
    schema = _csv_head(location, "\t" if format_ == "tsv" else ",")
    twice = sorted({one for one in schema.names if schema.names.count(one) > 1})
    if twice:
        raise InputDataError(
            f"{location}: several columns are named {twice[0]!r} in its first row. Rename all but one."
        )
    return schema


def _csv_head(location: Location, delimiter: str) -> pa.Schema:
    block_bytes = HEAD_BYTES
    while True:
        try:
            with _csv(location, delimiter, block_bytes, None) as reader:
                return reader.schema
        except _LargerRow:
            block_bytes = min(8 * block_bytes, LARGEST_BLOCK)


@contextmanager
def _opened(location: Location) -> Iterator[pa.NativeFile]:
    """The bytes of a file, decompressed where its name says so."""
    codec = compression_of(location.path)
    try:
        with location.handler.open_input_stream(location.path, compression=None) as stream:
            yield pa.CompressedInputStream(stream, codec) if codec else stream
    except OSError as error:
        if codec and _TORN.search(str(error)):
            raise InputDataError(
                f"{location} is damaged or cut short: it cannot be decompressed as {codec} to its end "
                f"({brief(error)}). Write or copy it again, or leave it out."
            ) from None
        raise explain(error, location, "read") from None


def _check_encoding(location: Location, head: bytes) -> None:
    """Refuse what is no UTF-8 at all."""
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    if wide or b"\0" in head[:4096]:
        what = "is UTF-16, not UTF-8" if wide else "holds zero bytes: it is no text, or not UTF-8"
        raise InputDataError(
            f"{location} {what}. Convert it (iconv -f UTF-16 -t UTF-8), name it as what it is (.gz, .zst, "
            ".parquet), or leave it out."
        )


def _whole_lines(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Bytes in blocks of whole lines, about a piece each, with the number of lines before each."""
    n_lines, held = 0, [b""]
    for data in pieces:
        cut = data.rfind(b"\n") + 1
        if not cut:
            held.append(data)
            continue
        block = b"".join([*held, data[:cut]])
        yield n_lines, block
        n_lines += block.count(b"\n")
        held = [data[cut:]]
    if any(held):
        yield n_lines, b"".join(held)


@contextmanager
def _lines_of(location: Location, block_bytes: int) -> Iterator[Iterator[tuple[int, bytes]]]:
    """Blocks of whole lines, of about so many bytes, each with the number of lines before it."""

    def pieces(stream: pa.NativeFile) -> Iterator[bytes]:
        first = stream.read(block_bytes)
        _check_encoding(location, first)
        yield first.removeprefix(_BOM)
        while data := stream.read(block_bytes):
            yield data

    with _opened(location) as stream:
        yield _whole_lines(pieces(stream))


@contextmanager
def _lines_within(location: Location, span: Span) -> Iterator[Iterator[tuple[int, bytes]]]:
    """As `_lines_of`, of the lines that begin in a span of a file that is not compressed, with those before within it.

    Each byte at which a line begins is in one span, so that each line is read once whatever the spans.
    """

    def pieces(file: pa.NativeFile) -> Iterator[bytes]:
        place, end = (_line_start(file, byte) for byte in span)
        while place < end:
            data = file.read_at(min(BLOCK_BYTES, end - place), place)
            if not data:
                raise OSError(f"it ends at byte {place:,}, before byte {end:,}")
            yield data if place else data.removeprefix(_BOM)
            place += len(data)

    try:
        with location.handler.open_input_file(location.path) as file:
            yield _whole_lines(pieces(file))
    except OSError as error:
        raise explain(error, location, "read") from None


def _line_start(file: pa.NativeFile, byte: int) -> int:
    """The first place from a byte on at which a line begins; where none does, the end of the file."""
    if byte == 0:
        return 0
    place = byte - 1
    while data := file.read_at(HEAD_BYTES, place):
        found: int = data.find(b"\n")
        if found >= 0:
            return place + found + 1
        place += len(data)
    return place


def _line_tables(location: Location, name: str) -> Iterator[pa.Table]:
    with _lines_of(location, BLOCK_BYTES) as blocks:
        for before, block in blocks:
            texts = _split(block)
            columns = [texts, pa.repeat(name, len(texts)), np.arange(before + 1, before + 1 + len(texts))]
            yield pa.Table.from_arrays(columns, schema=LINE_COLUMNS)


def _split(block: bytes) -> pa.Array:
    """The lines of a block, without what ends them; Arrow does not look whether they are UTF-8."""
    lines = pc.list_flatten(pc.split_pattern(pa.array([block.removesuffix(b"\n")], pa.binary()), b"\n"))
    return pc.ascii_rtrim(lines.view(pa.string()), "\r")


def _text_table(location: Location, name: str) -> Iterator[pa.Table]:
    with _opened(location) as stream:
        content = stream.read(LARGEST_BLOCK + 1)
    _check_encoding(location, content)
    text = content.removeprefix(_BOM)
    offsets = pa.py_buffer(np.array([0, len(text)], np.int64))
    array = pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(text)])
    if len(text) > LARGEST_BLOCK:
        raise InputDataError(
            f"{location} has {len(text):,} bytes of text, and a document has 2 GiB at most. Split it."
        )
    yield pa.Table.from_arrays([array.cast(pa.string()), pa.array([name])], schema=TEXT_COLUMNS)


class _Place(NamedTuple):
    """Where lines are: in the part of a file that begins at byte `start`, behind so many others of it."""

    location: Location
    start: int
    before: int

    def lines_before(self) -> int:
        """All in the file: those before the part are counted now."""
        n_lines = self.before
        if self.start:
            with self.location.handler.open_input_file(self.location.path) as file:
                end = _line_start(file, self.start)
                for place in range(0, end, BLOCK_BYTES):
                    n_lines += file.read_at(min(BLOCK_BYTES, end - place), place).count(b"\n")
        return n_lines


def _json_tables(location: Location, sources: Sequence[Source], span: Span) -> Iterator[pa.Table]:
    schema = _nested(sources)
    whole = compression_of(location.path) is not None
    start = 0 if whole else span[0]
    with _lines_of(location, BLOCK_BYTES) if whole else _lines_within(location, span) as blocks:
        for before, block in blocks:
            table = _json_table(_Place(location, start, before), block, schema)
            columns = [_inner(table, one.path) for one in sources]
            yield pa.Table.from_arrays(columns, schema=pa.schema([(one.name, one.type) for one in sources]))


def _inner(table: pa.Table, path: Sequence[str]) -> pa.ChunkedArray:
    column = table[path[0]]
    return pc.struct_field(column, list(path[1:])) if len(path) > 1 else column


def _nested(sources: Sequence[Source]) -> pa.Schema:
    """The schema whose structs hold the columns."""
    tree: dict[str, Any] = {}
    for one in sources:
        inner = tree
        for part in one.path[:-1]:
            inner = inner.setdefault(part, {})
        inner[one.path[-1]] = one.type

    def fields(tree: dict[str, Any]) -> list[pa.Field]:
        return [
            pa.field(name, pa.struct(fields(value)) if isinstance(value, dict) else value)
            for name, value in tree.items()
        ]

    return pa.schema(fields(tree))


def _json_table(place: _Place, block: bytes, schema: pa.Schema | None) -> pa.Table:
    """The objects of some whole lines; `schema` None: with the types that they seem to have."""
    options = pajson.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore"
    )
    if not block.strip():  # blank lines
        return pa.table({}) if schema is None else schema.empty_table()
    try:
        read = pajson.ReadOptions(use_threads=False, block_size=len(block) + 1)
        table = pajson.read_json(pa.BufferReader(block), read, options)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _bad_json(error, place, block) from None
    n_lines = sum(1 for line in block.split(b"\n") if line.strip())
    # Arrow does not mind objects of several lines, but those would be cut between blocks.
    if schema is not None and len(table) != n_lines:
        raise _bad_json(ValueError(f"{len(table):,} objects stand in {n_lines:,} lines"), place, block)
    return table


def _json_head(place: _Place, block: bytes, names: Sequence[str]) -> pa.Schema:
    """Columns of the objects of some whole lines; where one has values of several types, it must be none of `names`."""
    try:
        return _json_table(place, block, None).schema
    except InputDataError as error:
        try:
            objects = [json.loads(line) if line.strip() else {} for line in block.split(b"\n")]
            lines = [json.dumps(_only(one, names)) if one else "" for one in objects]
        except (ValueError, AttributeError, RecursionError):
            raise error from None
    schema = _json_table(place, "\n".join(lines).encode(), None).schema
    others = dict.fromkeys(name for one in objects for name in one if name not in schema.names)
    return pa.schema([*schema, *((name, pa.null()) for name in others)])


def _only(one: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """An object without what none of the columns `names` is in."""
    found = {}
    for key, value in one.items():
        inner = [name.removeprefix(f"{key}.") for name in names if name.startswith(f"{key}.")]
        if key in names or (inner and not isinstance(value, dict)):
            found[key] = value
        elif inner:
            found[key] = _only(value, inner)
    return found


def _bad_json(error: Exception, place: _Place, block: bytes) -> InputDataError:
    location, before = place.location, place.lines_before()
    message = brief(error).removeprefix("JSON parse error: ")
    lines = block.split(b"\n")
    row = _ROW.search(message)
    filled = [number for number, line in enumerate(lines) if line.strip()]
    first = lines[filled[0]].strip()
    if before == 0 and (first.startswith(b"[") or first == b"{"):
        return InputDataError(
            f"{location} is JSON, but not an object a line. Convert it: jq -c '.[]' {location} > lines.jsonl "
            "(jq -c . where it is one object after the other)."
        )
    if row is None:
        lines_told = f"lines {before + 1:,} to {before + filled[-1] + 1:,}"
        return InputDataError(
            f"{location}, {lines_told}: {message}. A line holds one JSON object: mend them."
        )
    number = filled[min(int(row[1]), len(filled) - 1)]
    message = _ROW.sub("", message).rstrip(".")
    changed = _CHANGED.search(message)
    if changed is not None:
        column, due, found = changed.groups()
        what = f"column {column.replace('/', '.')!r} is of type {found}, and was of {due}"
        message = what if column else f"a {found} stands where an {due} is expected"
    return InputDataError(
        f"{location}, line {before + number + 1:,}: {message}. A line holds one JSON object: mend it, or leave it out."
    )


def _csv_tables(location: Location, delimiter: str, sources: Sequence[Source]) -> Iterator[pa.Table]:
    """With larger blocks from where a row is found to be larger than one: rows before are read again and dropped."""
    block_bytes, done = BLOCK_BYTES, 0
    while True:
        position = 0
        try:
            with _csv(location, delimiter, block_bytes, sources) as reader:
                for batch in reader:
                    start, position = max(0, done - position), position + batch.num_rows
                    if start < batch.num_rows:
                        done = position
                        yield pa.Table.from_batches([batch[start:]])
            return
        except _LargerRow:
            block_bytes = min(8 * block_bytes, LARGEST_BLOCK)


class _LargerRow(Exception):  # noqa: N818  # a signal, not an error
    """A row is larger than a block."""


class _Source:
    """A stream for Arrow's reader of CSV, which reads ahead in a thread of its own, also when it has failed.

    A file of one line that nothing ends gets an end of line: without it, Arrow says that the file is empty.

    Once closed, it is at its end: the number of a file that is closed soon is that of another file, and a reader that
    was left would take bytes from it.
    """

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._at_start = True
        self.closed = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with self._lock:
            data: bytes = b"" if self.closed else self._stream.read(size)
            while self._at_start and 0 < len(data) < size and not _LINE_BREAK.search(data):
                data += self._stream.read(size - len(data)) or b"\n"
            self._at_start = False
            return data

    def close(self) -> None:
        with self._lock:
            self.closed = True


@contextmanager
def _csv(
    location: Location, delimiter: str, block_bytes: int, sources: Sequence[Source] | None
) -> Iterator[Any]:
    """A reader of batches; `sources` None: of all columns, with the types that they seem to have."""
    convert = pacsv.ConvertOptions()
    if sources is not None:
        convert.include_columns = [one.name for one in sources]
        convert.column_types = {one.name: one.type for one in sources}
    with _opened(location) as stream, closing(_Source(stream)) as source:
        try:
            yield pacsv.open_csv(
                pa.PythonFile(source, mode="r"),
                pacsv.ReadOptions(use_threads=False, block_size=block_bytes),
                pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert,
            )
        except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
            if _STRADDLES in str(error) and block_bytes < LARGEST_BLOCK:
                raise _LargerRow from None
            raise _bad_csv(error, location, delimiter, sources) from None


def _bad_csv(
    error: Exception, location: Location, delimiter: str, sources: Sequence[Source] | None
) -> NmfDaskError:
    with _opened(location) as stream:
        head = stream.read(4096)
    if not head:
        return InputDataError(
            f"{location} is empty (0 bytes): no row names its columns. Remove it from the input."
        )
    try:
        _check_encoding(location, head)
    except InputDataError as wide:
        return wide
    message = brief(error)
    if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in message:
        row = re.search(r"Row #(\d+)", message)
        where = f", row {int(row[1]):,}" if row else ""
        return InputDataError(
            f"{location}{where} is not UTF-8. Convert the file, such as by: iconv -f WINDOWS-1252 -t UTF-8"
        )
    ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", message)
    if ragged is not None:
        row_, due, found = ragged.groups()
        return InputDataError(
            f"{location}, row {int(row_):,} (that of the names is the first): {found} values where {due} columns are "
            f"named. Mend the row (values with a {'tab' if delimiter != ',' else 'comma'} or a line break stand in "
            '"double quotes"), or leave the file out.'
        )
    converted = re.search(
        r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to (\S+): (.*)", message
    )
    if converted is not None and sources is not None:
        number, row_, type_, what = converted.groups()
        where = f", row {int(row_):,}" if row_ else ""
        name = _csv_head(location, delimiter).names[
            int(number)
        ]  # all are counted, also those that are not read
        return InputDataError(
            f"{location}{where}: column {name!r} holds {type_} in the first MiB of the files, but here: {what}. "
            "Mend the row, or leave the column out."
        )
    return InputDataError(f"{location} cannot be read as CSV ({message}). Mend it, or leave it out.")
