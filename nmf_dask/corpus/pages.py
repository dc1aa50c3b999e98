"""A way into the middle of a row group: the pages before a row are found by their headers, and left out.

Arrow reads a column chunk from its first page on. Of a row group of a gigabyte, which pandas writes, sixteen
partitions would decode the half on average. So the pages before a partition's first row are hopped over by
their headers (the format: PageHeader in parquet-format's parquet.thrift, in Thrift's compact protocol), and
Arrow is given a file in which they are missing. For columns that are not nested: there a value is a row.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from nmf_dask.corpus.thrift import read_struct

_DICTIONARY_PAGE, _DATA_PAGE_V2 = 2, 3
# Fields of PageHeader; the number of values is field 1 of either kind of data page's own header.
_TYPE, _SIZE, _DATA_HEADER, _DATA_HEADER_V2 = 1, 3, 5, 8
# A header holds a page's smallest and largest value.
_HEADER_BYTES, _LONGEST_HEADER = 1024, 2**20


class Gap(NamedTuple):
    """Bytes `start` to `stop` of a file, which hold `n_rows` rows; the column chunk goes on to `end`."""

    start: int
    stop: int
    end: int
    n_rows: int


def pages_before(source: pa.NativeFile, chunk: pq.ColumnChunkMetaData, row: int, block_bytes: int) -> Gap:
    """The data pages of a column chunk that end by a row; none where the headers make no sense.

    `block_bytes` are read at once in search of the next header: few where seeking is cheap.
    """
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    end = start + chunk.total_compressed_size
    headers = _Headers(source, block_bytes)
    first = place = start
    n_rows = 0
    try:
        while place < end:
            page = headers.at(place)
            if n_rows + page.n_values > row:
                break
            n_rows += page.n_values
            place = page.stop
            if page.is_dictionary:
                first = place
    except (IndexError, KeyError, TypeError, ValueError, RecursionError):
        # Arrow will say what is wrong with the page, if anything is.
        return Gap(start, start, end, 0)
    return Gap(first, place, end, n_rows)


class Seekable(io.RawIOBase):
    """A file to read from that has a size and places; what is there says its `read`."""

    def __init__(self, size: int) -> None:
        self._size, self._place = size, 0

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it has places."""
        return True

    def tell(self) -> int:
        """Place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place


class WithoutPages(Seekable):
    """The file as if a column chunk ended early: the gap is missing, and nothing follows the chunk."""

    def __init__(self, source: pa.NativeFile, gap: Gap) -> None:
        super().__init__(source.size())
        self._source, self._gap = source, gap

    def read(self, n_bytes: int = -1) -> bytes:
        """Up to so many bytes; none once the chunk is over, which Arrow takes for the end of its pages."""
        gap = self._gap
        place = self._place if self._place < gap.start else self._place + gap.stop - gap.start
        limit = gap.start if self._place < gap.start else gap.end
        wanted = limit - place if n_bytes < 0 else min(n_bytes, limit - place)
        data: bytes = self._source.read_at(wanted, place) if wanted > 0 else b""
        self._place += len(data)
        if data and len(data) < n_bytes and limit == gap.start:
            data += self.read(n_bytes - len(data))
        return data


class _Page(NamedTuple):
    is_dictionary: bool
    n_values: int
    stop: int


class _Headers:
    """Headers of pages, read through a block that moves over the file."""

    def __init__(self, source: pa.NativeFile, block_bytes: int) -> None:
        self._source, self._block_bytes = source, block_bytes
        self._start, self._block = 0, b""

    def at(self, place: int) -> _Page:
        """The page whose header begins at a place."""
        length = _HEADER_BYTES
        while True:
            data = self._bytes(place, length)
            try:
                fields, size = read_struct(data, 0)
                break
            except IndexError:
                if len(data) < length or length > _LONGEST_HEADER:
                    raise
                length *= 8
        if fields[_SIZE] < 0:
            raise ValueError("a page of negative size leads nowhere")
        stop = place + size + fields[_SIZE]
        if fields[_TYPE] == _DICTIONARY_PAGE:
            return _Page(True, 0, stop)
        header = fields[_DATA_HEADER_V2 if fields[_TYPE] == _DATA_PAGE_V2 else _DATA_HEADER]
        if header[1] < 0:
            raise ValueError("a page has no fewer than no values")
        return _Page(False, header[1], stop)

    def _bytes(self, place: int, length: int) -> bytes:
        offset = place - self._start
        if not 0 <= offset <= len(self._block) - length:
            self._block = self._source.read_at(max(length, self._block_bytes), place)
            self._start, offset = place, 0
        return self._block[offset : offset + length]
