"""What the pipeline asks of whoever runs its tasks, and the runner that does them here, one after the other."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nmf_dask.errors import RetryableError
from nmf_dask.observer import Observer

BARE_WORKER_BYTES = 320 * 2**20
"""Resident memory of a worker of one thread that has met all kernels and holds nothing: 318 MiB measured."""

SHRINKABLE_BYTES = 80 * 2**20
"""Of that, pages of libraries that leave where memory is short (60 to 100 MiB measured): a worker's tasks and their
results may use what is beyond the rest."""

COMPILER_BYTES = 120 * 2**20
"""What a worker takes beyond that while it compiles kernels, in the first job of an installation (80 to 115 seen)."""


def beyond_itself(limit: int) -> int:
    """Bytes that a worker of this limit has for tasks and their results; a twentieth of it at least."""
    return max(limit - (BARE_WORKER_BYTES - SHRINKABLE_BYTES), limit // 20)


# Of what a worker may use beyond itself, for results that it keeps: tasks need more of little than of much.
HELD_SHARE, HELD_SHARE_OF_MUCH, MUCH = 0.3, 0.5, 4 * 2**30


def held_bytes(limit: int) -> float:
    """Bytes of results that a worker of this limit keeps in memory; those beyond it wait on disk."""
    return (HELD_SHARE_OF_MUCH if limit >= MUCH else HELD_SHARE) * beyond_itself(limit)


class ClusterLost(RetryableError):  # noqa: N818 - what became of the cluster first, an error second
    """Whoever ran the tasks is gone: nothing more can be asked of it."""


class TaskKilledWorkers(RetryableError):  # noqa: N818 - as above
    """A task that was given up, because so many workers died while they had it: by its doing, or by chance."""

    def __init__(self, task: str, deaths: int, last_worker: str) -> None:
        workers = "worker" if deaths == 1 else "workers"
        super().__init__(f"{deaths} {workers} died under task {task}, the last {last_worker}")
        self.task = task
        self.deaths = deaths
        self.last_worker = last_worker

    def under(self, label: str, what: object) -> TaskKilledWorkers:
        """The same error, which says what the task was about if the task has this label."""
        about = f" ({what})" if self.task.startswith(f"{label}-") else ""
        return TaskKilledWorkers(f"{self.task}{about}", self.deaths, self.last_worker)


def let_go(error: BaseException) -> None:
    """Drop what the frames of an error hold, and those of its causes: handles above all.

    Whoever runs the tasks keeps, and computes again for lost workers, what some handle stands for. A handle of Dask's
    holds the error that it raised, and so, by way of the frames that called, all handles that were beside it.
    """
    traceback.clear_frames(error.__traceback__)
    cause = error.__cause__ or error.__context__
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__


class Ref(str):
    """Name of a call in a batch, standing for its result among the arguments of later calls."""

    __slots__ = ()


class Batch:
    """Calls that are handed over together; an argument may be the result of an earlier one, or a list of such."""

    def __init__(self) -> None:
        self.calls: dict[Ref, tuple[Any, ...]] = {}
        self.places: dict[Ref, float] = {}

    def call(self, label: str, function: Callable[..., Any], *arguments: Any) -> Ref:
        """Add a call; `label` is what a dashboard shows for it."""
        ref = Ref(f"{label}-{len(self.calls)}")
        self.calls[ref] = (function, *arguments)
        return ref

    def place(self, ref: Ref, position: float) -> None:
        """Wish for a call to run on the worker at `position` of the line of all workers, from 0 to under 1.

        Neighbours run together, then, and what they return is added up without a transfer. It is no more than a
        wish: a worker that is gone, or busy, keeps nothing waiting.
        """
        self.places[ref] = position


class Tasks(ABC):
    """Runs functions and keeps what they return; a handle stands for a result that has not been fetched."""

    threads: int
    """Threads that one task may use while no other runs."""

    @abstractmethod
    def submit(self, batch: Batch, keep: Sequence[Ref]) -> list[Any]:
        """Start all calls of a batch; handles of the results in `keep`, in order."""

    @abstractmethod
    def fetch(self, handle: Any) -> Any:
        """The value of a handle; raises what its call raised."""

    def check(self, handle: Any) -> None:
        """Raise what the call of a completed handle raised; its value may stay where it is."""
        self.fetch(handle)

    @abstractmethod
    def completed(self, handles: Sequence[Any]) -> Iterator[int]:
        """Positions of handles as they complete, in any order; to fetch one raises what its call raised."""

    def beside(self, calls: Sequence[tuple[Any, ...]], seconds: float) -> None:
        """Do calls (function, arguments…, handle) where the results of the handles lie, within some seconds.

        For a job that is being stopped: they run beside the tasks that hold every thread, however long those take.
        Raises RetryableError where a result is not there, or the time is up. Whoever runs tasks in this process fetches
        the results.
        """
        for function, *arguments, handle in calls:
            function(*arguments, self.fetch(handle))

    def drop(self, handles: Sequence[Any], seconds: float) -> bool:
        """Have no call of these handles begin any more, and wait for those that have, some seconds at most.

        Whether none is under way. Their results are lost.
        """
        return True

    def call(self, label: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Start one call."""
        batch = Batch()
        return self.submit(batch, [batch.call(label, function, *arguments)])[0]

    def map(self, label: str, function: Callable[..., Any], items: Sequence[Any], *shared: Any) -> list[Any]:
        """Start one call an item, `function(item, *shared)`."""
        batch = Batch()
        return self.submit(batch, [batch.call(label, function, item, *shared) for item in items])


class Cluster(ABC):
    """Whoever runs the tasks of a job, and what is known of its workers."""

    tasks: Tasks
    memory_limit: int
    """Bytes that the smallest worker may use."""

    @abstractmethod
    def introduce(self, observer: Observer) -> None:
        """Tell who runs the job, and from now on of workers that come and go."""

    @abstractmethod
    def lost(self) -> int:
        """Workers that went while the job ran, without having been told to."""

    @abstractmethod
    def peak_memory(self) -> dict[str, int]:
        """Peaks of resident bytes: of this process, and of the largest worker (0: not all of them answer)."""


class SerialTasks(Tasks):
    """The twin of a cluster: every call is done at once, in this thread; a handle is the value."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def submit(self, batch: Batch, keep: Sequence[Ref]) -> list[Any]:
        results: dict[Ref, Any] = {}

        def resolved(argument: Any) -> Any:
            if isinstance(argument, Ref):
                return results[argument]
            return [resolved(item) for item in argument] if isinstance(argument, list) else argument

        for ref, (function, *arguments) in batch.calls.items():
            results[ref] = function(*map(resolved, arguments))
        return [results[ref] for ref in keep]

    def fetch(self, handle: Any) -> Any:
        return handle

    def completed(self, handles: Sequence[Any]) -> Iterator[int]:
        return iter(range(len(handles)))
