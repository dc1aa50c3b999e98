"""Rows of a partition, one column at a time, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nmf_dask.corpus.footers import Footer, brief, damaged, leaf_of, read_footer
from nmf_dask.corpus.locations import explain
from nmf_dask.corpus.pages import WithoutPages, pages_before
from nmf_dask.corpus.partitions import MIB, Partition, Piece, SourceFile
from nmf_dask.errors import InputDataError

# What is decoded at once: small enough to be thrown away cheaply before a piece's first row.
BATCH_BYTES = 4 * MIB
MAX_BATCH_ROWS = 2**16
# Without a buffer the reader loads a row group's whole column, of which a piece may need a small part.
BUFFER_BYTES = 8 * MIB
# On a local disk, the next page is looked for by a read of one block.
SEEK_BYTES = 4096
# Arrow raises OSError for a page that does not decode as for a request that fails; these are requests.
_REQUEST = re.compile(r"AWS Error|google::cloud|Azure|HDFS|curlCode|[Tt]imed? ?out")


def read_texts(partition: Partition, text_column: str) -> pa.ChunkedArray:
    """Documents of a partition as strings, n_rows of them; a null is a document without text.

    Raises InputDataError where a file is damaged (naming file, column and row group), gone, or another than
    it was when the corpus was opened, and RetryableError where it cannot be reached.
    """
    return pa.chunked_array(list(_texts(partition, text_column)), pa.string())


def read_texts_by_slices(
    partition: Partition, text_column: str, slice_bytes: int, slice_rows: int
) -> Iterator[pa.ChunkedArray]:
    """What `read_texts` gives, in slices of about so many bytes, and of so many rows at most: one is in memory."""
    chunks: list[pa.Array] = []
    n_bytes = n_rows = 0
    for chunk in _texts(partition, text_column):
        if chunks and (n_bytes + chunk.nbytes > slice_bytes or n_rows + len(chunk) > slice_rows):
            yield pa.chunked_array(chunks, pa.string())
            chunks, n_bytes, n_rows = [], 0, 0
        chunks.append(chunk)
        n_bytes += chunk.nbytes
        n_rows += len(chunk)
    if chunks:
        yield pa.chunked_array(chunks, pa.string())


def _texts(partition: Partition, text_column: str) -> Iterator[pa.Array]:
    row_bytes = max(1, partition.text_bytes // partition.n_rows)
    batch_rows = min(MAX_BATCH_ROWS, max(1, BATCH_BYTES // row_bytes))
    for _, chunk in _read(partition, text_column, batch_rows):
        yield chunk.cast(pa.string())


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
    for file, pieces in groupby(partition.pieces, key=lambda piece: piece.file):
        with _opened(file) as (source, footer):
            for piece in pieces:
                for chunk in _rows(source, footer, piece, column, batch_rows):
                    yield piece, chunk


@contextmanager
def _opened(file: SourceFile) -> Iterator[tuple[pa.NativeFile, Footer]]:
    """The file, where it still is the one that the plan was made for."""
    footer = read_footer(file.location)
    if (footer.size, footer.digest) != (file.size, file.digest):
        raise InputDataError(
            f"{file} changed since the job began: it had {file.size:,} bytes and {file.n_rows:,} rows, and "
            f"has {footer.size:,} bytes and {footer.metadata.num_rows:,} rows. Run the job again once "
            "nothing writes to the input."
        )
    try:
        source = file.location.handler.open_input_file(file.location.path)
    except OSError as error:
        raise explain(error, file.location, "read") from None
    with source:
        yield source, footer


def _rows(
    source: pa.NativeFile, footer: Footer, piece: Piece, column: str, batch_rows: int
) -> Iterator[pa.Array]:
    position = 0
    type_ = footer.schema.field(column).type
    is_dictionary = pa.types.is_dictionary(type_)
    try:
        if piece.start:
            chunk = footer.metadata.row_group(piece.row_group).column(leaf_of(footer, column))
            block = SEEK_BYTES if piece.file.location.is_local else BUFFER_BYTES
            gap = pages_before(source, chunk, piece.start, block)
            source, position = pa.PythonFile(WithoutPages(source, gap), "r"), gap.n_rows
        parquet = pq.ParquetFile(
            source,
            metadata=footer.plain if is_dictionary else footer.metadata,
            pre_buffer=False,
            buffer_size=BUFFER_BYTES,
            page_checksum_verification=True,
        )
        for batch in parquet.iter_batches(
            batch_rows, row_groups=[piece.row_group], columns=[column], use_threads=False
        ):
            start = max(piece.start - position, 0)
            stop = min(piece.stop - position, batch.num_rows)
            if start < stop:
                values = batch.column(column)[start:stop]
                yield values.cast(type_.value_type) if is_dictionary else values
            position += batch.num_rows
            if position >= piece.stop:
                return
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(error, piece, column) from None
    raise _unreadable(EOFError(f"it ends after {position:,} of {piece.stop:,} rows"), piece, column)


def _unreadable(error: Exception, piece: Piece, column: str) -> Exception:
    place = f"row group {piece.row_group} of column {column!r}"
    is_request = getattr(error, "errno", None) is not None or _REQUEST.search(str(error))
    if isinstance(error, OSError) and is_request:
        return explain(error, piece.file.location, f"read {place} of")
    return damaged(piece.file.location, piece.file.size, f"{place} cannot be decoded ({brief(error)})")
