"""The pipeline's tasks on the threads of one process, without Dask: what Dask's own time is measured against."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nmf_dask.observer import Observer
from nmf_dask.residence import peak_rss
from nmf_dask.tasks import Batch, Ref, Tasks


class PoolTasks(Tasks):
    """Starts a call when all that it needs is there; a handle is a future of the pool."""

    def __init__(self, size: int) -> None:
        self.threads = 1
        self._pool = ThreadPoolExecutor(size)

    def submit(self, batch: Batch, keep: Sequence[Ref]) -> list[Any]:
        results: dict[Ref, Future[Any]] = {ref: Future() for ref in batch.calls}
        for ref, (function, *arguments) in batch.calls.items():
            _Call(self._pool, results, results[ref], function, arguments).start()
        return [results[ref] for ref in keep]

    def fetch(self, handle: Any) -> Any:
        return handle.result() if isinstance(handle, Future) else handle

    def completed(self, handles: Sequence[Any]) -> Iterator[int]:
        positions = {id(handle): i for i, handle in enumerate(handles)}
        for handle in as_completed(handles):
            handle.result()
            yield positions[id(handle)]


class _Call:
    """One call, which waits for the futures among its arguments without holding a thread."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        results: dict[Ref, Future[Any]],
        result: Future[Any],
        function: Any,
        arguments: list[Any],
    ) -> None:
        self._pool, self._result, self._function = pool, result, function
        self._arguments = [_futures_for(argument, results) for argument in arguments]
        self._missing = list(_futures_in(self._arguments))
        self._count = len(self._missing)
        self._lock = threading.Lock()

    def start(self) -> None:
        for future in self._missing:
            future.add_done_callback(self._arrived)
        if not self._missing:
            self._pool.submit(self._run)
        self._missing = []

    def _arrived(self, _: Future[Any]) -> None:
        with self._lock:
            self._count -= 1
            ready = self._count == 0
        if ready:
            self._pool.submit(self._run)

    def _run(self) -> None:
        try:
            self._result.set_result(self._function(*map(_values_of, self._arguments)))
        except BaseException as error:
            self._result.set_exception(error)
        self._arguments = []


def _futures_for(argument: Any, results: dict[Ref, Future[Any]]) -> Any:
    if isinstance(argument, Ref):
        return results[argument]
    return [_futures_for(item, results) for item in argument] if isinstance(argument, list) else argument


def _futures_in(argument: Any) -> Iterator[Future[Any]]:
    if isinstance(argument, Future):
        yield argument
    elif isinstance(argument, list):
        for item in argument:
            yield from _futures_in(item)


def _values_of(argument: Any) -> Any:
    if isinstance(argument, Future):
        return argument.result()
    return [_values_of(item) for item in argument] if isinstance(argument, list) else argument


@dataclass(frozen=True)
class PoolCluster:
    """What the pipeline asks of a connected cluster, of a pool of threads."""

    tasks: PoolTasks
    memory_limit: int
    size: int

    def introduce(self, observer: Observer) -> None:
        observer.connected(1, self.size, None)

    def lost(self) -> int:
        return 0

    def peak_memory(self) -> dict[str, int]:
        return {"driver": peak_rss(), "largest_worker": peak_rss()}


@contextmanager
def pool_cluster(size: int, memory_limit: int) -> Iterator[PoolCluster]:
    """Stands in for `nmf_dask.cluster.connected`."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")
    yield PoolCluster(PoolTasks(size), memory_limit, size)
