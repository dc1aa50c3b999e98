"""How row groups become partitions: a pure plan over frozen types, no file is touched here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nmf_dask.corpus.columns import Keys
from nmf_dask.corpus.locations import Location

MIB = 2**20
# A small corpus still becomes this many partitions, so that there is something to do in parallel. The number
# depends on the corpus alone: the result must not depend on the number of workers.
FEWEST_PARTITIONS = 16
# Below this a partition's tasks cost about as much as its work.
SMALLEST_TARGET = 4 * MIB
# A row group of more than this many targets is cut. Less is not worth it: a cut costs a second read of the
# footer and of the dictionary, and from an object store of all bytes before it in the row group.
LARGEST_UNCUT = 1.5
# W of a partition takes rows x k floats, however short the texts are.
MAX_ROWS = 2**20
# Below this a task costs more than a tenth of its work; and above it no more is to be gained from fewer.
GROUP_BYTES = 16 * MIB
GROUP_ROWS = 2**17
# Few enough that smaller partitions make smaller tasks, where memory is short.
MOST_GROUPED = 16
# Whoever asks for small partitions may have many workers: tasks are never made fewer than this by grouping.
FEWEST_GROUPS = 64


@dataclass(frozen=True)
class SourceFile:
    """One Parquet file of the corpus, as it was when the corpus was opened.

    `name` is its path below the input it was found in, `size` its bytes, `digest` that of its footer, `keys` what its
    folders say of it (`day=2026-11-01/`).
    """

    location: Location
    name: str
    size: int
    n_rows: int
    digest: str
    keys: Keys = ()

    def __str__(self) -> str:
        return str(self.location)


class RowGroup(NamedTuple):
    """What a footer says of one row group: its number in the file, rows, and uncompressed bytes of text."""

    file: SourceFile
    number: int
    n_rows: int
    text_bytes: int


class Piece(NamedTuple):
    """Rows `start` to `stop` (exclusive) of one row group."""

    file: SourceFile
    row_group: int
    start: int
    stop: int


@dataclass(frozen=True)
class Partition:
    """A run of the corpus's rows that is read, counted and factorized as one.

    `first_row` is the number of its first row in the corpus; `text_bytes` is the footers' estimate.
    """

    index: int
    pieces: tuple[Piece, ...]
    n_rows: int
    first_row: int
    text_bytes: int

    def __str__(self) -> str:
        first, last = self.pieces[0], self.pieces[-1]
        where = f"{first.file}, row group {first.row_group}"
        if (first.file, first.row_group) != (last.file, last.row_group):
            where += f", to {last.file}, row group {last.row_group}"
        size = f"{self.n_rows:,} rows, {self.text_bytes / MIB:,.1f} MiB of text"
        return f"{self.title} ({where}; {size})"

    @property
    def title(self) -> str:
        """What a message calls it."""
        return f"partition {self.index}"


@dataclass(frozen=True)
class Group(Partition):
    """Partitions that are neighbours, and are counted, weighed and factorized as one: their rows are one block.

    `index` counts groups. Each partition has its own files of W all the same.
    """

    partitions: tuple[Partition, ...]

    @classmethod
    def of(cls, index: int, partitions: Sequence[Partition]) -> Group:
        """The group of partitions (one at least); of a row group that was cut the pieces are one again."""
        whole = joined(partitions)
        return cls(index, whole.pieces, whole.n_rows, whole.first_row, whole.text_bytes, tuple(partitions))

    @property
    def name(self) -> str:
        """What its intermediate files are called: another group has another name, however partitions are grouped."""
        first, last = self.partitions[0].index, self.partitions[-1].index
        return f"{first:05d}" if first == last else f"{first:05d}-{last:05d}"

    @property
    def title(self) -> str:
        """That of its partition, or from which one to which."""
        first, last = self.partitions[0], self.partitions[-1]
        return first.title if first == last else f"partitions {first.index} to {last.index}"


def joined(partitions: Sequence[Partition]) -> Partition:
    """Partitions that are neighbours as one, with the first's index; of a row group that was cut the pieces are one."""
    first = partitions[0]
    pieces: list[Piece] = []
    for piece in (piece for one in partitions for piece in one.pieces):
        goes_on = pieces and pieces[-1][:2] == piece[:2] and pieces[-1].stop == piece.start
        start = pieces.pop().start if goes_on else piece.start
        pieces.append(piece._replace(start=start))
    n_rows, text_bytes = sum(one.n_rows for one in partitions), sum(one.text_bytes for one in partitions)
    return Partition(first.index, tuple(pieces), n_rows, first.first_row, text_bytes)


def small_together(
    partitions: Sequence[Partition], most_bytes: int, most_rows: int, most: int
) -> list[slice]:
    """Where to cut partitions, in their order, into groups of up to `most`; several have no more bytes and rows."""
    starts: list[int] = []
    n_bytes = n_rows = 0
    for i, one in enumerate(partitions):
        n_bytes, n_rows = n_bytes + one.text_bytes, n_rows + one.n_rows
        if not starts or n_bytes > most_bytes or n_rows > most_rows or i - starts[-1] == most:
            starts.append(i)
            n_bytes, n_rows = one.text_bytes, one.n_rows
    return [slice(low, high) for low, high in itertools.pairwise([*starts, len(partitions)])]


def plan_groups(partitions: Sequence[Partition], most_bytes: int = GROUP_BYTES) -> tuple[Group, ...]:
    """Put small partitions together, in their order: a task costs tens of milliseconds, however small it is.

    A group of several has no more than `most_bytes` of text, a `FEWEST_GROUPS`th of all of it, `GROUP_ROWS` rows and
    `MOST_GROUPED` partitions. It follows from sizes alone: which rows are a block decides the numbers that come out.
    """
    most_bytes = min(most_bytes, sum(one.text_bytes for one in partitions) // FEWEST_GROUPS)
    cuts = small_together(partitions, most_bytes, GROUP_ROWS, MOST_GROUPED)
    return tuple(Group.of(index, partitions[cut]) for index, cut in enumerate(cuts))


def target_bytes(total_text_bytes: int, partition_bytes: int) -> int:
    """Text bytes that a partition of a corpus of this size aims at."""
    return min(partition_bytes, max(SMALLEST_TARGET, -(-total_text_bytes // FEWEST_PARTITIONS)))


def plan_partitions(
    row_groups: Sequence[RowGroup], partition_bytes: int, max_rows: int = MAX_ROWS
) -> tuple[Partition, ...]:
    """Pack consecutive row groups into partitions of about the target; every row once, order kept.

    A partition never has more than `max_rows` rows, and never more text than `LARGEST_UNCUT` targets,
    save where a single document has (by the footers, which take rows of a row group to
    be of equal length).
    """
    left = sum(group.text_bytes for group in row_groups)
    target = target_bytes(left, partition_bytes)
    limit = LARGEST_UNCUT * target
    planned = max(1, -(-left // target))
    share = left / planned
    partitions: list[Partition] = []
    pieces: list[Piece] = []
    n_bytes = n_rows = first_row = 0

    def close() -> None:
        partitions.append(Partition(len(partitions), tuple(pieces), n_rows, first_row, n_bytes))

    for piece, piece_bytes in _cut(row_groups, target, max_rows):
        piece_rows = piece.stop - piece.start
        # Half of the piece: the cut falls on whichever side of it is nearer to the share.
        full = n_bytes + piece_bytes / 2 > share or n_bytes + piece_bytes > limit
        if pieces and (full or n_rows + piece_rows > max_rows):
            close()
            # What is left is shared out anew, so that the last partition is about as large as the others.
            left -= n_bytes
            share = min(1.25 * target, left / max(1, planned - len(partitions)))
            pieces, first_row, n_bytes, n_rows = [], first_row + n_rows, 0, 0
        pieces.append(piece)
        n_bytes += piece_bytes
        n_rows += piece_rows
    if pieces:
        close()
    return tuple(partitions)


def _cut(row_groups: Sequence[RowGroup], target: int, max_rows: int) -> Iterator[tuple[Piece, int]]:
    """Row groups in order, those too large in equal ranges of rows, each with its text bytes."""
    for group in row_groups:
        parts = -(-group.n_rows // max_rows)
        if group.text_bytes > LARGEST_UNCUT * target:
            parts = max(parts, round(group.text_bytes / target))
        parts = min(parts, group.n_rows)
        for part in range(parts):
            start, stop = (group.n_rows * edge // parts for edge in (part, part + 1))
            low, high = (group.text_bytes * edge // parts for edge in (part, part + 1))
            yield Piece(group.file, group.number, start, stop), high - low
