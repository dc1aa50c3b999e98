"""How rows are cut into strips and shares, the tree of sums, and the blocks of this process."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmf_dask.blocks import (
    FAN_IN,
    LocalBlocks,
    Run,
    Share,
    Sizes,
    add_tree,
    cut_strips,
    strip_rows,
    visit_strip,
)
from nmf_dask.initialization import Total
from nmf_dask.kernels.matrices import Csr, from_scipy

block_rows = st.lists(st.integers(0, 30), min_size=1, max_size=9)


def rows_of(runs: Any) -> list[tuple[int, int]]:
    return [(run.block, row) for run in runs for row in range(run.start, run.stop)]


@given(block_rows, st.integers(1, 40))
def test_strips_hold_every_row_once_and_in_order(rows: list[int], n_strips: int) -> None:
    strips = cut_strips(rows, n_strips)
    every = [(block, row) for block, n in enumerate(rows) for row in range(n)]
    assert [place for strip in strips for place in rows_of(strip)] == every
    assert all(run.stop > run.start for strip in strips for run in strip)


@given(block_rows, st.integers(1, 40))
def test_strips_are_of_one_length(rows: list[int], n_strips: int) -> None:
    lengths = [strip_rows(strip) for strip in cut_strips(rows, n_strips)]
    assert len(lengths) == max(1, min(n_strips, sum(rows)))
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(0, 50), st.integers(0, 60), st.integers(1, 70))
def test_the_parts_of_a_share_hold_every_row_once(start: int, length: int, of: int) -> None:
    run = Run(3, start, start + length)
    parts = [Share(part, of).rows(run) for part in range(of)]
    assert [row for low, high in parts for row in range(low, high)] == list(range(start, start + length))
    lengths = [high - low for low, high in parts]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(1, 200))
def test_the_tree_follows_from_the_count_alone(count: int) -> None:
    def shape(names: list[Any]) -> Any:
        return add_tree(names, lambda group: ("+", *group))

    def leaves(node: Any) -> list[Any]:
        return [leaf for child in node[1:] for leaf in leaves(child)] if isinstance(node, tuple) else [node]

    def widths(node: Any) -> list[int]:
        if not isinstance(node, tuple):
            return []
        return [len(node) - 1, *(width for child in node[1:] for width in widths(child))]

    tree = shape(list(range(count)))
    assert leaves(tree) == list(range(count))
    assert max(widths(tree), default=0) <= FAN_IN
    assert shape([f"other {i}" for i in range(count)]) == relabelled(tree)


def relabelled(node: Any) -> Any:
    return ("+", *map(relabelled, node[1:])) if isinstance(node, tuple) else f"other {node}"


class Recorder:
    """A step that numbers the rows it meets in W, and sums them."""

    def empty(self, n_features: int, kp: int) -> Total:
        return Total(np.zeros(n_features))

    def __call__(self, X: Csr, start: int, stop: int, W: Any, shared: Any, sums: Total) -> None:
        assert len(W) == stop - start
        W[:, 0] += [X.data[X.indptr[row]] for row in range(start, stop)]
        sums.value += shared * sum(X.data[X.indptr[start] : X.indptr[stop]])


def numbered(rows: list[int]) -> list[Csr]:
    """Blocks of one column whose rows hold 1, 2, 3, ... through all blocks."""
    ends = np.cumsum(rows)
    return [
        from_scipy(np.arange(end - n + 1.0, end + 1)[:, np.newaxis])
        for end, n in zip(ends, rows, strict=True)
    ]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 8), st.integers(1, 9))
def test_each_row_meets_its_own_row_of_W(rows: list[int], n_strips: int, of: int) -> None:
    """In all parts of a share, over blocks that end within strips."""
    blocks = numbered(rows)
    strips = cut_strips(rows, n_strips)
    W = [np.zeros((strip_rows(strip), 8), np.float32) for strip in strips]
    total = Total(np.zeros(1))
    for part in range(of):
        for strip, w in zip(strips, W, strict=True):
            visit_strip(Recorder(), blocks.__getitem__, strip, Share(part, of), w, 2.0, total)
    assert np.concatenate(W)[:, 0].tolist() == list(range(1, sum(rows) + 1))
    assert total.value[0] == sum(rows) * (sum(rows) + 1)


def local(threads: int) -> LocalBlocks:
    rows = [5, 9, 3]
    return LocalBlocks.of(numbered(rows), Sizes(17, 1, 17, 3), cut_strips(rows, 4), threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_local_blocks_visit_every_strip(threads: int) -> None:
    blocks = local(threads)
    assert blocks.fetch(blocks.visit(Recorder(), 1.0)).value[0] == 17 * 18 / 2
    assert np.concatenate(blocks.W)[:, 0].tolist() == list(range(1, 18))
    assert blocks.W[0].shape[1] == blocks.sizes.kp == 8
    blocks.close()


def test_restore_takes_W_back_to_where_it_was_kept() -> None:
    blocks = local(1)
    blocks.visit(Recorder(), 1.0)
    kept = copy.deepcopy(blocks.W)
    blocks.keep()
    blocks.visit(Recorder(), 1.0)
    assert not np.array_equal(blocks.W[0], kept[0])
    blocks.restore()
    assert all(np.array_equal(a, b) for a, b in zip(blocks.W, kept, strict=True))


def test_what_a_step_raises_arrives_from_threads() -> None:
    class Fails(Recorder):
        def __call__(self, *arguments: Any) -> None:
            raise KeyError("row 7")

    blocks = local(2)
    with pytest.raises(KeyError, match="row 7"):
        blocks.visit(Fails(), 1.0)
    blocks.close()


@pytest.mark.parametrize(("k", "kp"), [(1, 8), (8, 8), (9, 16), (50, 56)])
def test_topics_are_rounded_up_to_whole_registers(k: int, kp: int) -> None:
    assert Sizes(1, 1, 1, k).kp == kp
