"""Rows that stand in a Parquet file as several: (row, column, value), those of a row one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nmf_dask.corpus.columns import without_views
from nmf_dask.corpus.features import ENTRY_BYTES
from nmf_dask.corpus.partitions import Partition, Piece, SourceFile
from nmf_dask.corpus.reading import read_ids, row_groups_of
from nmf_dask.errors import InputDataError

Read = Callable[[Partition], Iterator[pa.Table]]


def whole_rows(file: SourceFile, pieces: Sequence[Piece], id_column: str, read: Read) -> Iterator[pa.Table]:
    """Triples of pieces of a file in tables of whole rows: those that begin in the pieces, to their ends.

    So every row is read by one task, and whole, wherever the file is cut. `read` gives the columns of a partition. The
    first piece of a file also sees to it that the triples of a row stand together.

    Raises InputDataError for a null id, for a row in several places, and what reading raises.
    """
    sizes = row_groups_of(file)
    begin, stop = (
        sum(sizes[: piece.row_group]) + row
        for piece, row in ((pieces[0], pieces[0].start), (pieces[-1], pieces[-1].stop))
    )
    if begin == 0:
        _check_together(file, sizes, id_column)
    begin, stop = (_next_run(file, sizes, row, id_column) for row in (begin, stop))
    held: list[pa.Table] = []
    for table in read(_span(file, sizes, begin, stop)) if begin < stop else ():
        table = pa.concat_tables([*held, table])
        cut = int(run_starts(table[id_column].combine_chunks())[-1])
        held = [table.slice(cut)]
        if cut:
            yield table.slice(0, cut)
    yield from held


def run_starts(ids: pa.Array) -> NDArray[np.int64]:
    """Where another id begins than stood before, (runs,)."""
    if not len(ids):
        return np.empty(0, np.int64)
    ids = _comparable(ids)
    changes = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return np.append(0, np.flatnonzero(changes) + 1)


def _comparable(ids: Any) -> Any:
    """Ids as Arrow compares them: those of a type of their own, such as UUIDs, as they are stored."""
    type_ = ids.type.storage_type if isinstance(ids.type, pa.BaseExtensionType) else ids.type
    return ids.cast(pa.float32() if pa.types.is_float16(type_) else without_views(type_))


def _next_run(file: SourceFile, sizes: Sequence[int], row: int, column: str) -> int:
    """The first row of a file, from one on, with another id than the row before; the file's end where none has."""
    if row in (0, sum(sizes)):
        return row
    [before] = _comparable(_ids(file, sizes, row - 1, row, column))
    for start, stop in _groups(sizes, row):
        ids = _comparable(_ids(file, sizes, start, stop, column))
        other = pc.index(pc.not_equal(ids, before), True).as_py()
        if other >= 0:
            return start + int(other)
    return sum(sizes)


def _groups(sizes: Sequence[int], start: int) -> Iterator[tuple[int, int]]:
    """What follows a row of a file, a row group at a time: from, to under."""
    low = 0
    for size in sizes:
        if low + size > start:
            yield max(low, start), low + size
        low += size


def _span(file: SourceFile, sizes: Sequence[int], start: int, stop: int) -> Partition:
    """Rows `start` to `stop` of a file."""
    pieces, low = [], 0
    for number, size in enumerate(sizes):
        one = Piece(file, number, max(0, start - low), min(size, stop - low))
        if one.start < one.stop:
            pieces.append(one)
        low += size
    return Partition(0, tuple(pieces), stop - start, 0, (stop - start) * ENTRY_BYTES)


def _ids(file: SourceFile, sizes: Sequence[int], start: int, stop: int, column: str) -> pa.ChunkedArray:
    ids = read_ids(_span(file, sizes, start, stop), column)
    return ids.cast(without_views(ids.type))


def _check_together(file: SourceFile, sizes: Sequence[int], column: str) -> None:
    """Raise InputDataError where triples of one row stand in several places of a file.

    Of a file that is sorted by its rows nothing is kept meanwhile; of another, an id of each row.
    """
    if _ascend(_firsts(file, sizes, column)):
        return
    firsts = pa.chunked_array(list(_firsts(file, sizes, column)))
    counted = pc.value_counts(_comparable(firsts))
    if len(counted) < len(firsts):
        twice = counted.filter(pc.greater(counted.field(1), 1)).field(0).cast(firsts.type)[0].as_py()
        raise InputDataError(
            f"{file}: triples with {column} = {twice!r} stand in several places, and those of a row have to stand "
            f"together. Write the file sorted by {column}."
        )


def _firsts(file: SourceFile, sizes: Sequence[int], column: str) -> Iterator[pa.Array]:
    """The id of each run of a file, a row group at a time."""
    last: list[pa.Array] = []
    for low, high in _groups(sizes, 0):
        ids = pa.concat_arrays([*last, *_ids(file, sizes, low, high, column).chunks])
        yield ids.take(pa.array(run_starts(ids)[len(last) :]))
        last = [ids[-1:]]


def _ascend(runs: Iterator[pa.Array]) -> bool:
    """Whether each is more than the one before; not, where their type has no order."""
    last: list[pa.Array] = []
    try:
        for firsts in runs:
            ids = pa.concat_arrays([*last, _comparable(firsts)])
            if not pc.all(pc.less(ids[:-1], ids[1:]), min_count=0).as_py():
                return False
            last = [ids[-1:]]
    except pa.ArrowNotImplementedError:
        return False
    return True
