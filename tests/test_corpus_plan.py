"""The plan of partitions: a pure function, so tables and properties say all of it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmf_dask.corpus import GROUP_BYTES, Partition, Piece, SourceFile, plan_groups
from nmf_dask.corpus.locations import Location
from nmf_dask.corpus.partitions import (
    FEWEST_GROUPS,
    GROUP_ROWS,
    LARGEST_UNCUT,
    MIB,
    MOST_GROUPED,
    RowGroup,
    plan_partitions,
    target_bytes,
)


def groups(*shapes: tuple[int, int], rows_in_file: int = 1) -> list[RowGroup]:
    """Row groups of (rows, text bytes), `rows_in_file` of them a file."""
    made = []
    for number, (n_rows, text_bytes) in enumerate(shapes):
        path = f"/c/{number // rows_in_file:05}.parquet"
        file = SourceFile(Location("", path), path, 1, n_rows, "")
        made.append(RowGroup(file, number % rows_in_file, n_rows, text_bytes))
    return made


def rows_of(partitions: Sequence[Partition]) -> list[tuple[str, int, int]]:
    return [
        (str(piece.file), piece.row_group, row)
        for partition in partitions
        for piece in partition.pieces
        for row in range(piece.start, piece.stop)
    ]


@pytest.mark.parametrize(
    ("total", "partition_bytes", "target"),
    [
        (0, 64 * MIB, 4 * MIB),
        (10 * MIB, 64 * MIB, 4 * MIB),
        (160 * MIB, 64 * MIB, 10 * MIB),
        (1000 * MIB, 64 * MIB, 62.5 * MIB),
        (10**12, 64 * MIB, 64 * MIB),
        (10 * MIB, MIB, MIB),
        (17, 1, 1),
    ],
)
def test_target_is_a_sixteenth_of_a_small_corpus_between_4_mib_and_the_setting(
    total, partition_bytes, target
):
    assert target_bytes(total, partition_bytes) == target


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        ([(10, MIB)], [10]),
        ([(10, 5 * MIB)], [10]),
        # One row group of 64 MiB, where the target is 4 MiB.
        ([(160, 64 * MIB)], [10] * 16),
        # 2 GiB in one row group.
        ([(320, 2048 * MIB)], [10] * 32),
        # A document is never cut.
        ([(2, 1024 * MIB)], [1, 1]),
        ([(1, 1024 * MIB)], [1]),
        # Many row groups of 1 MiB in small corpora: 4 MiB each.
        ([(7, MIB)] * 10, [21, 28, 21]),
        # Whichever is nearer: 2 MiB or 11.
        ([(1, 2 * MIB), (1, 9 * MIB), (1, 2 * MIB)], [1, 1, 1]),
        # No text at all still makes one partition.
        ([(5, 0), (6, 0)], [11]),
        ([], []),
    ],
)
def test_row_groups_are_packed_and_cut(shapes, sizes):
    assert [partition.n_rows for partition in plan_partitions(groups(*shapes), 64 * MIB)] == sizes


def test_a_thousand_files_of_a_megabyte_become_sixteen_partitions():
    partitions = plan_partitions(groups(*[(1000, MIB)] * 1000), 64 * MIB)
    assert len(partitions) == 16
    assert max(partition.text_bytes for partition in partitions) <= 64 * MIB


def test_tiny_texts_do_not_make_partitions_of_too_many_rows():
    partitions = plan_partitions(groups((5_000_000, 40 * MIB)), 64 * MIB)
    assert max(partition.n_rows for partition in partitions) <= 2**20


def test_a_partition_says_where_it_is():
    (partition,) = plan_partitions(groups((10, MIB), (5, MIB)), 64 * MIB)
    assert str(partition) == (
        "partition 0 (/c/00000.parquet, row group 0, to /c/00001.parquet, row group 0; "
        "15 rows, 2.0 MiB of text)"
    )
    (partition,) = plan_partitions(groups((10, MIB)), 64 * MIB)
    assert str(partition) == "partition 0 (/c/00000.parquet, row group 0; 10 rows, 1.0 MiB of text)"


shapes = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 200 * MIB)), max_size=40)


@given(shapes, st.integers(1, 128 * MIB), st.integers(1, 100), st.integers(1, 4))
def test_every_row_is_in_one_partition_in_order_and_sizes_are_bounded(
    made, partition_bytes, max_rows, in_file
):
    row_groups = groups(*made, rows_in_file=in_file)
    partitions = plan_partitions(row_groups, partition_bytes, max_rows)
    assert rows_of(partitions) == [
        (str(group.file), group.number, row) for group in row_groups for row in range(group.n_rows)
    ]
    assert [partition.index for partition in partitions] == list(range(len(partitions)))
    target = target_bytes(sum(group.text_bytes for group in row_groups), partition_bytes)
    bound = LARGEST_UNCUT * target + 1
    first_row = 0
    for partition in partitions:
        assert partition.first_row == first_row
        assert partition.n_rows == sum(piece.stop - piece.start for piece in partition.pieces)
        first_row += partition.n_rows
        assert partition.n_rows <= max_rows
        assert partition.text_bytes <= bound or any(
            piece.stop - piece.start == 1 for piece in partition.pieces
        )
    assert sum(partition.text_bytes for partition in partitions) == sum(
        group.text_bytes for group in row_groups
    )


@given(st.integers(1, 3000), st.integers(1, 4 * MIB))
def test_equal_row_groups_make_about_as_many_partitions_as_their_bytes_ask_for(number, size):
    partitions = plan_partitions(groups(*[(1, size)] * number), 64 * MIB)
    wanted = -(-number * size // target_bytes(number * size, 64 * MIB))
    sizes = [partition.n_rows for partition in partitions]
    assert len(partitions) == min(wanted, number)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("number", "size", "grouped"),
    [
        # As many as whoever has many workers may want: none are put together.
        (64, MIB, [1] * 64),
        (16, 64 * MIB, [1] * 16),
        # A share of all of it.
        (128, MIB, [2] * 64),
        (640, MIB, [10] * 64),
        # 16 MiB, and so many that fit in them.
        (2048, MIB, [16] * 128),
        (1024, 5 * MIB, [3] * 341 + [1]),
        (100, 17 * MIB, [1] * 100),
        # So many that smaller partitions are less to hold.
        (3200, 1000, [16] * 200),
        # Of nothing there is no share.
        (100, 0, [16] * 6 + [4]),
    ],
)
def test_small_partitions_are_put_together(number, size, grouped):
    partitions = [Partition(i, (), 1, i, size) for i in range(number)]
    assert [len(group.partitions) for group in plan_groups(partitions)] == grouped


def test_a_group_has_no_more_bytes_and_rows_than_it_may():
    partitions = [Partition(i, (), GROUP_ROWS // 3, i, MIB) for i in range(2000)]
    assert {len(group.partitions) for group in plan_groups(partitions)} == {2, 3}
    partitions = [Partition(i, (), 1, i, MIB) for i in range(2000)]
    assert {len(group.partitions) for group in plan_groups(partitions, 4 * MIB)} == {4}


def test_a_group_says_which_partitions_it_is_of():
    [row_group] = groups((256, 256 * MIB))
    partitions = plan_partitions([row_group], MIB)
    assert len(partitions) == 256
    _, group, *_ = plan_groups(partitions)
    assert (group.index, group.first_row, group.name) == (1, 4, "00004-00007")
    assert group.pieces == (Piece(row_group.file, 0, 4, 8),)
    assert str(group) == "partitions 4 to 7 (/c/00000.parquet, row group 0; 4 rows, 4.0 MiB of text)"
    alone = plan_groups(partitions[:64])[3]
    assert (alone.name, str(alone)) == ("00003", str(partitions[3]))


@given(shapes, st.integers(1, 4 * MIB), st.integers(1, 100), st.integers(1, 4))
def test_groups_hold_every_row_in_order(made, partition_bytes, max_rows, in_file):
    partitions = plan_partitions(groups(*made, rows_in_file=in_file), partition_bytes, max_rows)
    found = plan_groups(partitions)
    assert rows_of(found) == rows_of(partitions)
    assert [one for group in found for one in group.partitions] == list(partitions)
    assert [group.index for group in found] == list(range(len(found)))
    most = min(GROUP_BYTES, sum(one.text_bytes for one in partitions) // FEWEST_GROUPS)
    for group in found:
        first, *more = group.partitions
        assert group.first_row == first.first_row
        assert group.n_rows == sum(one.n_rows for one in group.partitions)
        assert not more or (group.text_bytes <= most and len(more) < MOST_GROUPED)
