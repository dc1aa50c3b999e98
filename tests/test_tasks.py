"""One contract for whoever runs tasks: in this thread, on threads of this process, or on a Dask cluster."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmf_dask.blocks import ALL, cut_strips
from nmf_dask.distributed import DaskTasks, TaskBlocks, add_copies, visit_a_strip
from nmf_dask.factorization import Visit
from nmf_dask.initialization import Total
from nmf_dask.kernels.matrices import frozen
from nmf_dask.kernels.objective import Frobenius, KullbackLeibler
from nmf_dask.tasks import Batch, SerialTasks, Tasks
from nmf_dask.threads import ThreadTasks
from tests.matrices import BlockList, collection_of, split, text_like


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(params=["serial", "threads", "dask"])
def tasks(request: pytest.FixtureRequest) -> Iterator[Tasks]:
    if request.param == "serial":
        yield SerialTasks(threads=1)
    elif request.param == "threads":
        threads = ThreadTasks(threads=2)
        yield threads
        threads.close()
    else:
        yield DaskTasks(request.getfixturevalue("client"), threads=1)


def add(a: int, b: int) -> int:
    return a + b


def listed(*values: Any) -> list[Any]:
    return list(values)


def nested_sum(values: Any) -> int:
    return sum(map(nested_sum, values)) if isinstance(values, list) else values


def fail(message: str) -> None:
    raise ZeroDivisionError(message)


def test_a_call_gives_its_value(tasks: Tasks) -> None:
    assert tasks.fetch(tasks.call("add", add, 2, 3)) == 5


def test_calls_take_the_results_of_earlier_ones(tasks: Tasks) -> None:
    batch = Batch()
    five = batch.call("add", add, 2, 3)
    ten = batch.call("add", add, five, five)
    total = batch.call("sum", nested_sum, [five, [ten, [1, ten]], 100])
    assert [tasks.fetch(handle) for handle in tasks.submit(batch, [total, five, ten])] == [126, 5, 10]


def test_calls_take_handles_of_earlier_batches(tasks: Tasks) -> None:
    five = tasks.call("add", add, 2, 3)
    batch = Batch()
    seven = batch.call("add", add, five, 2)
    total = batch.call("sum", nested_sum, [five, [seven, five]])
    assert tasks.fetch(tasks.submit(batch, [total])[0]) == 17


def test_the_same_call_twice_is_two_calls(tasks: Tasks) -> None:
    """In one batch or in two: names that clash would give one the result of the other."""
    first, second = (tasks.call("add", add, 1, value) for value in (1, 2))
    assert [tasks.fetch(first), tasks.fetch(second)] == [2, 3]
    batch = Batch()
    handles = tasks.submit(batch, [batch.call("add-up", add, 1, value) for value in range(30)])
    assert [tasks.fetch(handle) for handle in handles] == list(range(1, 31))


@pytest.mark.parametrize("argument", ["add-0", "", None, (1, "add-0"), {"add-0": 1}, b"bytes"])
def test_ordinary_arguments_arrive_as_they_are(tasks: Tasks, argument: Any) -> None:
    """A string may read like the name of a call, and is none."""
    batch = Batch()
    batch.call("add", add, 1, 1)
    echoed = batch.call("list", listed, argument, [argument])
    assert tasks.fetch(tasks.submit(batch, [echoed])[0]) == [argument, [argument]]


def test_map_keeps_the_order(tasks: Tasks) -> None:
    handles = tasks.map("add", add, [5, 1, 3], 10)
    assert [tasks.fetch(handle) for handle in handles] == [15, 11, 13]


def test_each_handle_completes_once(tasks: Tasks) -> None:
    handles = tasks.map("add", add, list(range(9)), 1)
    assert sorted(tasks.completed(handles)) == list(range(9))


def test_what_a_call_raises_arrives(tasks: Tasks) -> None:
    """With its type and its words, whether it was the one that is fetched or one that this stands on."""
    with pytest.raises(ZeroDivisionError, match="row group 3 of part-7"):
        tasks.fetch(tasks.call("fail", fail, "row group 3 of part-7"))
    batch = Batch()
    failed = batch.call("fail", fail, "below")
    with pytest.raises(ZeroDivisionError, match="below"):
        tasks.fetch(tasks.submit(batch, [batch.call("list", listed, [failed])])[0])


def test_a_failed_call_is_not_passed_over(tasks: Tasks) -> None:
    def all_of(items: list[Any]) -> list[Any]:
        handles = tasks.map("divide", divide_by, items)
        return [tasks.fetch(handles[position]) for position in tasks.completed(handles)]

    assert sorted(all_of([1, 2])) == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        all_of([1, 0, 2])


def divide_by(divisor: float) -> float:
    return 1 / divisor


def note(folder: str, number: int) -> None:
    """Says that it begins, takes half a second, and says that it is done."""
    Path(folder, f"begun-{number}").touch()
    time.sleep(0.5)
    Path(folder, f"done-{number}").touch()


def test_what_is_dropped_does_nothing_any_more(tasks: Tasks, tmp_path: Path) -> None:
    """Catches a call that writes into a folder after its job has tidied it."""
    batch = Batch()
    calls = [batch.call("note", note, str(tmp_path), number) for number in range(8)]
    handles = tasks.submit(batch, calls)
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
    assert tasks.drop(handles, 30)
    names = {file.name for file in tmp_path.iterdir()}
    begun = [name for name in names if name.startswith("begun")]
    assert {name.replace("begun", "done") for name in begun} < names
    assert len(begun) < 8 or isinstance(tasks, SerialTasks)
    time.sleep(1)
    assert {file.name for file in tmp_path.iterdir()} == names


@pytest.mark.parametrize("objective", [Frobenius(), Frobenius(solver="cd"), KullbackLeibler()])
def test_a_visit_changes_nothing_that_it_was_given(objective: Any) -> None:
    """A worker may run it again, or hold the only copy of what another task needs."""
    X = text_like(40, 30, 4, 0)
    rng = np.random.default_rng(0)
    blocks = BlockList(tuple(split(X, (25, 15))))
    W = rng.random((40, 8)).astype(np.float32)
    factor = objective.factor(rng.random((30, 8)).astype(np.float32))._replace(reset=np.ones(8, np.float32))
    collection = collection_of("serial tasks", X, (25, 15), 1, W)
    given = (Visit(objective, 2), blocks, collection.strips[0], W, factor)
    before = copy.deepcopy(given)
    step, _, strip, *_ = given
    frozen_blocks = BlockList(tuple(frozen(one) for one in blocks.blocks))
    new, sums = visit_a_strip(step, frozen_blocks, strip, ALL, collection.sizes, W, factor)
    assert not np.array_equal(new, W)
    assert sums.n_rows == 40
    assert not np.shares_memory(new, W)
    for a, b in zip(arrays_of(given), arrays_of(before), strict=True):
        np.testing.assert_array_equal(a, b)


def arrays_of(given: Any) -> Iterator[np.ndarray]:
    if isinstance(given, np.ndarray):
        yield given
    elif isinstance(given, tuple):
        for item in given:
            yield from arrays_of(item)
    elif isinstance(given, BlockList):
        yield from arrays_of(given.blocks)


def test_sums_are_added_into_a_new_one() -> None:
    parts = [Total(np.full(3, value)) for value in (1.0, 2.0, 4.0)]
    assert add_copies(parts).value.tolist() == [7.0, 7.0, 7.0]
    assert [part.value.tolist() for part in parts] == [[1.0] * 3, [2.0] * 3, [4.0] * 3]


def test_blocks_on_tasks_keep_and_restore_W(tasks: Tasks) -> None:
    X = text_like(40, 30, 4, 0)
    W = np.random.default_rng(0).random((40, 8)).astype(np.float32)
    twin = collection_of("serial tasks", X, (25, 15), 3, W)
    blocks = TaskBlocks(tasks, twin.blocks, twin.sizes, cut_strips((25, 15), 3), list(twin.W))
    factor = Frobenius().factor(np.random.default_rng(1).random((30, 8)).astype(np.float32))
    blocks.keep()
    sums = blocks.fetch(blocks.visit(Visit(Frobenius(), 1), factor))
    assert sums.n_rows == 40
    changed = np.concatenate([blocks.fetch(handle) for handle in blocks.W])
    assert not np.array_equal(changed, W)
    blocks.restore()
    np.testing.assert_array_equal(np.concatenate([blocks.fetch(handle) for handle in blocks.W]), W)


def test_blocks_on_tasks_may_begin_without_W(tasks: Tasks) -> None:
    X = text_like(40, 30, 4, 0)
    twin = collection_of("serial tasks", X, (25, 15), 3, np.zeros((40, 8)))
    blocks = TaskBlocks(tasks, twin.blocks, twin.sizes, twin.strips, [None] * 3)
    factor = Frobenius().factor(np.ones((30, 8), np.float32))
    blocks.fetch(blocks.visit(Visit(Frobenius(), 0), factor))
    assert [blocks.fetch(handle).shape for handle in blocks.W] == [(13, 8), (13, 8), (14, 8)]
