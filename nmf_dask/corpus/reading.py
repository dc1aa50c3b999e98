"""Rows of a partition, one column at a time, in bounded memory."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby, islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nmf_dask.corpus.columns import Columns, as_labels, key_value
from nmf_dask.corpus.features import MAPS, BadRow, Features
from nmf_dask.corpus.footers import Column, Footer, brief, column_of, damaged, open_file
from nmf_dask.corpus.locations import explain
from nmf_dask.corpus.pages import WithoutPages, pages_before
from nmf_dask.corpus.partitions import MIB, Partition, Piece, SourceFile
from nmf_dask.errors import InputDataError

# What is decoded at once: small enough to be thrown away cheaply before a piece's first row.
BATCH_BYTES = 4 * MIB
MAX_BATCH_ROWS = 2**16
# Without a buffer the reader loads a row group's whole column, of which a piece may need a small part.
BUFFER_BYTES = 8 * MIB
# Of a local file, whose next bytes are as near: larger ones take longer to get and to clear than to fill.
LOCAL_BUFFER_BYTES = MIB // 4
# Files of a store that are asked for while an earlier one is decoded.
AHEAD = 8
# On a local disk, the next page is looked for by a read of one block.
SEEK_BYTES = 4096
# Arrow raises OSError for a page that does not decode as for a request that fails; these are requests.
_REQUEST = re.compile(r"AWS Error|google::cloud|Azure|HDFS|curlCode|[Tt]imed? ?out")


Documents = str | Sequence[str] | Features
"""What documents are read from: a column of texts, several, or those of counts."""


def read_texts(partition: Partition, column: Documents) -> pa.ChunkedArray:
    """Documents of a partition as strings, n_rows of them; a null is a document without text. Counts come as MAPS.

    Several columns are joined by newlines, those that are null left out; where all are null, the document is.

    Raises InputDataError where a file is damaged (naming file, column and row group), gone, or another than
    it was when the corpus was opened, and RetryableError where it cannot be reached.
    """
    return pa.chunked_array(list(_texts(partition, column)), _type_of(column))


def read_texts_by_slices(
    partition: Partition, column: Documents, slice_bytes: int, slice_rows: int
) -> Iterator[pa.ChunkedArray]:
    """What `read_texts` gives, in slices of about so many bytes, and of so many rows at most: one is in memory."""
    chunks: list[pa.Array] = []
    n_bytes = n_rows = 0
    for chunk in _texts(partition, column):
        if chunks and (n_bytes + chunk.nbytes > slice_bytes or n_rows + len(chunk) > slice_rows):
            yield pa.chunked_array(chunks, _type_of(column))
            chunks, n_bytes, n_rows = [], 0, 0
        chunks.append(chunk)
        n_bytes += chunk.nbytes
        n_rows += len(chunk)
    if chunks:
        yield pa.chunked_array(chunks, _type_of(column))


def _type_of(column: Documents) -> pa.DataType:
    return MAPS if isinstance(column, Features) else pa.string()


def _texts(partition: Partition, column: Documents) -> Iterator[pa.Array]:
    if isinstance(column, Features):
        yield from _maps(partition, column)
        return
    columns = (column,) if isinstance(column, str) else column
    for chunks in read_together(partition, columns):
        yield joined([chunk.cast(pa.string()) for chunk in chunks])


def _maps(partition: Partition, features: Features) -> Iterator[pa.Array]:
    row = 0
    for arrays in read_together(partition, features.columns):
        try:
            yield features.maps(arrays)
        except BadRow as bad:
            piece, there = _place(partition, row + bad.row)
            raise InputDataError(
                f"{piece.file}: row {there:,} of row group {piece.row_group} (both counted from 0) {bad.what}. Mend "
                "it, or drop the row."
            ) from None
        row += len(arrays[0])


def _place(partition: Partition, row: int) -> tuple[Piece, int]:
    """Where a partition's row is: in which piece, and its number in the row group."""
    for piece in partition.pieces:
        if row < piece.stop - piece.start:
            break
        row -= piece.stop - piece.start
    return piece, piece.start + row


def read_together(partition: Partition, columns: Sequence[str]) -> Iterator[list[pa.Array]]:
    """Columns of a partition's rows side by side, some MiB at a time; raises what `read_texts` raises."""
    row_bytes = max(1, partition.text_bytes // partition.n_rows)
    batch_rows = min(MAX_BATCH_ROWS, max(1, BATCH_BYTES // row_bytes))
    return _side_by_side([_read(partition, column, batch_rows) for column in columns])


def joined(texts: Sequence[pa.Array]) -> pa.Array:
    """Strings of several columns as one: by newlines, without those that are null."""
    whole = texts[0]
    for text in texts[1:]:
        whole = pc.coalesce(pc.binary_join_element_wise(whole, text, "\n"), whole, text)
    return whole


def _side_by_side(readers: Sequence[Iterator[tuple[Piece, pa.Array]]]) -> Iterator[list[pa.Array]]:
    """Chunks of equal length from readers of the same rows, which each cut them in their own way."""
    held: list[pa.Array] = [None for _ in readers]
    while True:
        for number, reader in enumerate(readers):
            if not held[number]:
                _, held[number] = next(reader, (None, None))
        if held[0] is None:
            return
        n_rows = min(len(chunk) for chunk in held)
        yield [chunk[:n_rows] for chunk in held]
        held = [chunk[n_rows:] for chunk in held]


def read_ids(partition: Partition, id_column: str | None) -> pa.ChunkedArray:
    """Ids of a partition's documents in their own type; without a column, int64 row numbers in the corpus.

    Raises InputDataError for a null id, and what `read_texts` raises.
    """
    if id_column is None:
        first = partition.first_row
        return pa.chunked_array([pa.array(np.arange(first, first + partition.n_rows, dtype=np.int64))])
    chunks = []
    row = 0
    for piece, chunk in _read(partition, id_column, MAX_BATCH_ROWS):
        if chunk.null_count:
            raise _null_id(partition, piece, id_column, row + chunk.is_null().index(True).as_py())
        row += len(chunk)
        chunks.append(chunk)
    return pa.chunked_array(chunks)


def read_kept(partition: Partition, columns: Columns) -> pa.Table:
    """What W carries of a partition's documents beside their ids: n_rows rows of `columns.kept`.

    Raises what `read_texts` raises.
    """
    arrays = []
    for one in columns.kept:
        if one.name in columns.keys:
            arrays.append(pa.chunked_array([_key(piece, one) for piece in partition.pieces], one.type))
        else:
            chunks = [chunk.cast(one.type) for _, chunk in _read(partition, one.name, MAX_BATCH_ROWS)]
            arrays.append(pa.chunked_array(chunks, one.type))
    return pa.Table.from_arrays(arrays, schema=columns.kept)


def _key(piece: Piece, one: pa.Field) -> pa.Array:
    value = key_value(dict(piece.file.keys).get(one.name), one.type)
    return pa.repeat(pa.scalar(value, one.type), piece.stop - piece.start)


def read_labels(partition: Partition, label_column: str) -> pa.ChunkedArray:
    """Labels of a partition's documents as strings, in chunks of one dictionary; a null or NaN is a document without.

    Raises what `read_texts` raises.
    """
    chunks = _read(partition, label_column, MAX_BATCH_ROWS)
    encoded = [as_labels(chunk).dictionary_encode() for _, chunk in chunks]
    return pa.chunked_array(encoded, pa.dictionary(pa.int32(), pa.string())).unify_dictionaries()


def _null_id(partition: Partition, piece: Piece, column: str, row: int) -> InputDataError:
    before = 0
    for other in partition.pieces:
        if other == piece:
            break
        before += other.stop - other.start
    return InputDataError(
        f"{piece.file}: column {column!r} has no id in row {row - before + piece.start:,} of row group "
        f"{piece.row_group} (both counted from 0). Fill it in, drop the row, or leave --id-column out: "
        "then W carries row numbers."
    )


def _read(partition: Partition, column: str, batch_rows: int) -> Iterator[tuple[Piece, pa.Array]]:
    by_file = [
        (file, list(pieces)) for file, pieces in groupby(partition.pieces, key=lambda piece: piece.file)
    ]
    with closing(_opened_in_turn([file for file, _ in by_file])) as opened:
        for (source, footer), (_, pieces) in zip(opened, by_file, strict=True):
            for piece in pieces:
                for chunk in _rows(source, footer, piece, column, batch_rows):
                    yield piece, chunk


def _opened_in_turn(files: Sequence[SourceFile]) -> Generator[tuple[pa.NativeFile, Footer], None, None]:
    """The files, one open at a time. Those of a store are asked for some ahead: a small one comes whole."""
    if len(files) == 1 or files[0].location.is_local:
        for file in files:
            source, footer = _opened(file)
            with source:
                yield source, footer
        return
    with ThreadPoolExecutor(min(AHEAD, len(files))) as pool:
        left = iter(files)
        coming = deque(pool.submit(_opened, file) for file in islice(left, AHEAD))
        try:
            while coming:
                source, footer = coming.popleft().result()
                with source:
                    coming.extend(pool.submit(_opened, file) for file in islice(left, 1))
                    yield source, footer
        finally:
            for one in coming:
                if not one.cancel() and one.exception() is None:
                    one.result()[0].close()


def _opened(file: SourceFile) -> tuple[pa.NativeFile, Footer]:
    """The file, where it still is the one that the plan was made for; the caller closes it."""
    source, footer = open_file(file.location)
    if (footer.size, footer.digest) == (file.size, file.digest):
        return source, footer
    source.close()
    raise InputDataError(
        f"{file} changed since the job began: it had {file.size:,} bytes and {file.n_rows:,} rows, and "
        f"has {footer.size:,} bytes and {footer.metadata.num_rows:,} rows. Run the job again once "
        "nothing writes to the input."
    )


def row_groups_of(file: SourceFile) -> list[int]:
    """Rows of each row group of a file; InputDataError where it is not what it was."""
    source, footer = _opened(file)
    source.close()
    return [footer.metadata.row_group(number).num_rows for number in range(footer.metadata.num_row_groups)]


def _rows(
    source: pa.NativeFile, footer: Footer, piece: Piece, column: str, batch_rows: int
) -> Iterator[pa.Array]:
    position, is_local = 0, piece.file.location.is_local
    found = column_of(footer, column)
    try:
        if piece.start and not pa.types.is_nested(found.type):
            chunk = footer.metadata.row_group(piece.row_group).column(found.leaf)
            block = SEEK_BYTES if is_local else BUFFER_BYTES
            gap = pages_before(source, chunk, piece.start, block)
            source, position = pa.PythonFile(WithoutPages(source, gap), "r"), gap.n_rows
        parquet = pq.ParquetFile(
            source,
            metadata=footer.plain if found.is_dictionary else footer.metadata,
            pre_buffer=False,
            buffer_size=LOCAL_BUFFER_BYTES if is_local else BUFFER_BYTES,
            page_checksum_verification=True,
        )
        # In equal batches: rows after the piece's last would be decoded in vain.
        n_rows = max(1, piece.stop - position)
        n_batches = math.ceil(n_rows / batch_rows)
        for batch in parquet.iter_batches(
            math.ceil(n_rows / n_batches),
            row_groups=[piece.row_group],
            columns=[".".join(found.path)],
            use_threads=False,
        ):
            start = max(piece.start - position, 0)
            stop = min(piece.stop - position, batch.num_rows)
            if start < stop:
                values = _values(batch, found)[start:stop]
                yield values.cast(found.type) if found.is_dictionary else values
            position += batch.num_rows
            if position >= piece.stop:
                return
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(error, piece, column) from None
    raise _unreadable(EOFError(f"it ends after {position:,} of {piece.stop:,} rows"), piece, column)


def _values(batch: pa.RecordBatch, column: Column) -> pa.Array:
    values = batch.column(column.path[0])
    return pc.struct_field(values, list(column.path[1:])) if len(column.path) > 1 else values


def _unreadable(error: Exception, piece: Piece, column: str) -> Exception:
    place = f"row group {piece.row_group} of column {column!r}"
    is_request = getattr(error, "errno", None) is not None or _REQUEST.search(str(error))
    if isinstance(error, OSError) and is_request:
        return explain(error, piece.file.location, f"read {place} of")
    return damaged(piece.file.location, piece.file.size, f"{place} cannot be decoded ({brief(error)})")
