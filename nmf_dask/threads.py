"""A small job's workers: threads of this process, without Dask, which would take longer to start than the job takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from threadpoolctl import threadpool_limits

from nmf_dask.config import ClusterSettings
from nmf_dask.errors import RetryableError
from nmf_dask.observer import Observer
from nmf_dask.residence import peak_rss
from nmf_dask.tasks import Batch, Cluster, Ref, Tasks

CLOSE_SECONDS = 0.5
LOOK_SECONDS = 0.2
"""A wait is no longer than this at once: a signal that comes just before it does not wake who waits for ever."""


class _OneBlasThread:
    """One thread of BLAS for each that has taken it, until the last of them gives it back.

    A job that was stopped may leave a thread at work. With more threads of BLAS from then on it would end at other
    bits, in a file that the next attempt goes on from.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0

    def take(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._limits = threadpool_limits(1, user_api="blas")
            self._holders += 1

    def give_back(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._limits.restore_original_limits()


_blas = _OneBlasThread()


class ThreadTasks(Tasks):
    """Starts a call when all that it needs is there; a handle is a future.

    The threads are daemons: what one is at when a job is stopped keeps neither the job nor the interpreter waiting.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._ready: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._workers = [
            threading.Thread(target=self._work, name=f"nmf-dask-{number}", daemon=True)
            for number in range(threads)
        ]
        for worker in self._workers:
            _blas.take()
            worker.start()

    def _work(self) -> None:
        try:
            while (call := self._ready.get()) is not None:
                call()
                del call  # its result belongs to whoever holds the handle
        finally:
            _blas.give_back()

    def close(self) -> None:
        """Start nothing more; threads end with what they are at, which is not waited for long."""
        try:
            while True:
                self._ready.get_nowait()
        except Empty:
            for _ in self._workers:
                self._ready.put(None)
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def submit(self, batch: Batch, keep: Sequence[Ref]) -> list[Any]:
        results: dict[Ref, Future[Any]] = {ref: Future() for ref in batch.calls}
        for ref, (function, *arguments) in batch.calls.items():
            given = [_with_futures(argument, results) for argument in arguments]
            _Call(self._ready.put, results[ref], function, given).start()
        return [results[ref] for ref in keep]

    def fetch(self, handle: Any) -> Any:
        if not isinstance(handle, Future):
            return handle
        while True:
            try:
                return handle.result(LOOK_SECONDS)
            except TimeoutError:
                if handle.done():  # it is the call's own
                    return handle.result()

    def completed(self, handles: Sequence[Any]) -> Iterator[int]:
        done: SimpleQueue[int] = SimpleQueue()
        for position, handle in enumerate(handles):
            handle.add_done_callback(lambda _, position=position: done.put(position))
        for _ in handles:
            while True:
                with suppress(Empty):
                    position = done.get(timeout=LOOK_SECONDS)
                    break
            yield position

    def beside(self, calls: Sequence[tuple[Any, ...]], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for function, *arguments, handle in calls:
            try:
                value = handle.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError as error:
                raise RetryableError(f"a result is not there within {seconds:.0f} s") from error
            function(*arguments, value)

    def drop(self, handles: Sequence[Any], seconds: float) -> bool:
        begun = [handle for handle in handles if not handle.cancel()]
        return not wait(begun, seconds).not_done


class _Call:
    """One call, which waits for the futures among its arguments without holding a thread."""

    def __init__(
        self,
        put: Callable[[Callable[[], None]], None],
        result: Future[Any],
        function: Callable[..., Any],
        arguments: list[Any],
    ) -> None:
        self._put, self._result, self._function, self._arguments = put, result, function, arguments
        self._lock = threading.Lock()
        self._count = 1  # of futures that are not done, and of `start`

    def start(self) -> None:
        """Run when the arguments are there."""
        missing = list(_futures_in(self._arguments))
        self._count += len(missing)
        for future in missing:
            future.add_done_callback(self._arrived)
        self._arrived()

    def _arrived(self, _: Future[Any] | None = None) -> None:
        with self._lock:
            self._count -= 1
            is_ready = self._count == 0
        if is_ready:
            self._put(self._run)

    def _run(self) -> None:
        if not self._result.set_running_or_notify_cancel():
            return
        try:
            self._result.set_result(self._called(*map(_values_of, self._arguments)))
        except BaseException as error:
            self._result.set_exception(error)
        self._arguments = []

    def _called(self, *arguments: Any) -> Any:
        try:
            return self._function(*arguments)
        except RetryableError:  # a store may have hiccupped
            return self._function(*arguments)


def _with_futures(argument: Any, results: dict[Ref, Future[Any]]) -> Any:
    if isinstance(argument, Ref):
        return results[argument]
    return [_with_futures(item, results) for item in argument] if isinstance(argument, list) else argument


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
class ThreadCluster(Cluster):
    """The threads as the pipeline sees them: one worker, which cannot be lost."""

    tasks: ThreadTasks
    memory_limit: int

    def introduce(self, observer: Observer) -> None:
        observer.connected(1, self.tasks.threads, None)
        observer.workers(1, 0)

    def lost(self) -> int:
        return 0

    def peak_memory(self) -> dict[str, int]:
        peak = peak_rss()
        return {"driver": peak, "largest_worker": peak}


@contextmanager
def own_threads(settings: ClusterSettings) -> Iterator[ThreadCluster]:
    """Threads as settings ask for them, for the length of a `with`; each with one thread of BLAS."""
    _, threads = settings.shape()
    tasks = ThreadTasks(threads)
    try:
        yield ThreadCluster(tasks, settings.worker_bytes())
    finally:
        tasks.close()
