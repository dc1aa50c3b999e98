"""Tasks and blocks on the workers of a Dask cluster.

A task is one strip's whole work for a round; its graph is handed over one round at a time, as one message.
What a task was given it does not change, no task is pinned, and no state lives in workers but caches: whatever
is lost with a worker is computed again, or read again from the staged files.
"""

from __future__ import annotations

import asyncio
import copy
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
from dask.highlevelgraph import HighLevelGraph
from dask.utils import key_split
from distributed import Client, Future, as_completed, wait
from distributed.client import ClosedClientError
from distributed.scheduler import KilledWorker, NoWorkerError
from numpy.typing import NDArray

from nmf_dask.blocks import ALL, Blocks, Run, Share, Sizes, Step, add_tree, strip_rows, visit_strip
from nmf_dask.errors import RetryableError
from nmf_dask.kernels.matrices import Csr, aligned, zeros
from nmf_dask.tasks import Batch, ClusterLost, Ref, TaskKilledWorkers, Tasks

Weights = NDArray[np.float32]
# Of a task that raised: a store may have hiccupped. Of one whose worker died, Dask has its own count.
MOST_RETRIES = 1
MOST_NAMES = 5_000
DROP_INTERVAL = 0.1
BESIDE_AT_ONCE = 4  # calls of one worker: a store is slow to answer, a disk is not made faster by more


class DaskTasks(Tasks):
    """Tasks on a Dask cluster; a handle is a future."""

    def __init__(self, client: Client, threads: int) -> None:
        self.client = client
        self.threads = threads
        self.why_lost: str | None = None  # where the job itself gave the cluster up

    def submit(self, batch: Batch, keep: Sequence[Ref]) -> list[Any]:
        forget_names()
        token = uuid.uuid4().hex[:12]

        def named(argument: Any) -> Any:
            if isinstance(argument, Ref):
                return _key(argument, token)
            return [named(item) for item in argument] if isinstance(argument, list) else argument

        graph = {
            _key(ref, token): (function, *map(named, arguments))
            for ref, (function, *arguments) in batch.calls.items()
        }
        # Of a plain dictionary Dask would hash every argument first, for a name that nobody asks for: half of the time
        # that handing it over took.
        layers = HighLevelGraph({token: graph}, {token: set()})
        places = self._places({_key(ref, token): place for ref, place in batch.places.items()})
        with self._translated(), dask.annotate(**places):
            futures: list[Any] = self.client.get(
                layers, [_key(ref, token) for ref in keep], sync=False, retries=MOST_RETRIES
            )
        return futures

    def _places(self, positions: dict[str, float]) -> dict[str, Any]:
        """Dask's annotations for calls that wish for a worker."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"] if positions else {}
        if len(workers) < 2:
            return {}
        line = [address for address in sorted(workers) for _ in range(int(workers[address]["nthreads"]))]
        chosen = {key: [line[int(position * len(line))]] for key, position in positions.items()}
        return {"workers": Places(chosen), "allow_other_workers": True}

    def fetch(self, handle: Any) -> Any:
        if not isinstance(handle, Future):
            return handle
        with self._translated():
            return handle.result()

    def check(self, handle: Any) -> None:
        if handle.status != "finished":
            self.fetch(handle)

    def completed(self, handles: Sequence[Any]) -> Iterator[int]:
        positions = {handle.key: i for i, handle in enumerate(handles)}
        with self._translated():
            for future in as_completed(handles):
                yield positions[future.key]

    def beside(self, calls: Sequence[tuple[Any, ...]], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        handles = [call[-1] for call in calls]
        try:
            with self._translated():
                wait(handles, timeout=seconds)
                held = self.client.who_has(handles)
                here = defaultdict(list)
                for *call, handle in calls:
                    here[next(iter(held[handle.key]))].append((*call, handle.key))

                async def everywhere() -> None:
                    runs = (self.client.run(call_beside, some, workers=[one]) for one, some in here.items())
                    await asyncio.gather(*runs)

                self.client.sync(everywhere, callback_timeout=max(0.1, deadline - time.monotonic()))
        except (StopIteration, KeyError, ValueError, TimeoutError) as error:
            raise RetryableError(
                f"what the workers hold cannot be had within {seconds:.0f} s ({error!r})"
            ) from error

    def drop(self, handles: Sequence[Any], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        keys = {handle.key for handle in handles}
        with suppress(RetryableError, OSError, TimeoutError), self._translated():
            self.client.cancel(handles)
            while time.monotonic() < deadline:
                if not any(self.client.run(has_begun, keys).values()):
                    return True
                time.sleep(DROP_INTERVAL)
        return False

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Dask's own failures as errors that say what to do; what a task raised passes as it is."""
        try:
            yield
        except KilledWorker as error:
            deaths = error.allowed_failures + 1
            raise TaskKilledWorkers(error.task, deaths, error.last_worker.address) from error
        except NoWorkerError as error:
            raise ClusterLost(
                f"no worker was there for {error.timeout:.0f} s (no-workers-timeout of the scheduler); run the same "
                "command again to go on"
            ) from error
        except (CancelledError, ClosedClientError) as error:
            reason = self.why_lost or getattr(error, "reason", "connection closed")
            raise ClusterLost(
                f"the cluster went away ({reason}); run the same command again to go on"
            ) from error
        except (OSError, TimeoutError) as error:
            if type(error).__module__.startswith("distributed"):
                raise ClusterLost(
                    f"the scheduler cannot be reached ({error}); run the same command again"
                ) from error
            raise


def forget_names() -> None:
    """Let go of what Dask remembers of keys, where it is much: of the last 100,000, in each process, 300 bytes each."""
    if key_split.cache_info().currsize > MOST_NAMES:
        key_split.cache_clear()


def has_begun(keys: set[str], dask_worker: Any) -> bool:
    """On a worker: whether it is at one of these tasks, or has one that it has not been told to forget yet."""
    over = ("memory", "error", "released", "forgotten")
    # A copy: the event loop goes on meanwhile.
    return any(key in keys and task.state not in over for key, task in dict(dask_worker.state.tasks).items())


async def call_beside(calls: Sequence[tuple[Any, ...]], dask_worker: Any) -> None:
    """On a worker: calls (function, arguments…, key of a result it holds), in threads that no task can hold."""
    places = asyncio.Semaphore(BESIDE_AT_ONCE)

    async def one(function: Callable[..., Any], *arguments: Any) -> None:
        async with places:
            await asyncio.to_thread(function, *arguments[:-1], dask_worker.data[arguments[-1]])

    await asyncio.gather(*(one(*call) for call in calls))


@dataclass(frozen=True)
class Places:
    """Where calls wish to run, by key; nowhere in particular for others."""

    workers: dict[str, list[str]]

    def __call__(self, key: str) -> list[str]:
        return self.workers.get(key, [])


def _key(ref: Ref, token: str) -> str:
    """Key of a task: what stands before its first hexadecimal part is its name on the dashboard."""
    label, _, number = ref.rpartition("-")
    return f"{label}-{token}-{number}"


class TaskBlocks(Blocks):
    """Blocks that workers read where they are needed, with their W as results of tasks.

    `blocks` gives a block by its number, in whatever process; it travels with the tasks. `on_outcome` is
    told the outcome of each pass as soon as that is asked for. The twin is `LocalBlocks`: the same strips, the same
    tree, the same bytes.
    """

    def __init__(
        self,
        tasks: Tasks,
        blocks: Callable[[int], Csr],
        sizes: Sizes,
        strips: list[tuple[Run, ...]],
        W: list[Any],
        on_outcome: Callable[[Any], None] | None = None,
    ) -> None:
        self.tasks = tasks
        self.blocks = blocks
        self.sizes = sizes
        self.strips = strips
        self.W = W
        self.on_outcome = on_outcome
        self._kept: list[Any] = []

    def visit(self, step: Step, shared: Any, share: Share = ALL) -> Any:
        batch = Batch()
        sums: list[Any] = []
        W: list[Ref] = []
        for i, (strip, w) in enumerate(zip(self.strips, self.W, strict=True)):
            visited = batch.call(
                "visit", visit_a_strip, step, self.blocks, strip, share, self.sizes, w, shared
            )
            # Every time: of tasks that are ready at once the scheduler gives some to whoever is free: W would travel.
            batch.place(visited, i / len(self.strips))
            W.append(batch.call("weights", _weights, visited))
            sums.append(batch.call("sums", _sums, visited))
        total = add_tree(sums, lambda level: batch.call("add", add_copies, list(level)))
        *self.W, handle = self.tasks.submit(batch, [*W, total])
        return handle

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.tasks.call("update", function, *arguments)

    def outcome(self, function: Callable[..., Any], *arguments: Any) -> Any:
        handle = self.apply(function, *arguments)
        if self.on_outcome is not None:
            self.on_outcome(handle)
        return handle

    def fetch(self, handle: Any) -> Any:
        return self.tasks.fetch(handle)

    def keep(self) -> None:
        self._kept = list(self.W)

    def restore(self) -> None:
        self.W = self._kept
        self.forget()

    def forget(self) -> None:
        self._kept = []


def visit_a_strip(
    step: Step, blocks: Callable[[int], Csr], strip: tuple[Run, ...], share: Share, sizes: Sizes,
    W: Weights | None, shared: Any,
) -> tuple[Weights, Any]:  # fmt: skip
    """A task: a strip's new W (None: not started, zeros) and the sums of the share that was visited."""
    W = zeros(strip_rows(strip), sizes.kp) if W is None else aligned(W)
    sums = step.empty(sizes.n_features, sizes.kp)
    visit_strip(step, blocks, strip, share, W, shared, sums)
    return W, sums


def add_copies(sums: Sequence[Any]) -> Any:
    """A task: the sum of sums, none of which is changed."""
    total = copy.deepcopy(sums[0])
    for other in sums[1:]:
        total.add(other)
    return total


def _weights(visited: tuple[Weights, Any]) -> Weights:
    return visited[0]


def _sums(visited: tuple[Weights, Any]) -> Any:
    return visited[1]
