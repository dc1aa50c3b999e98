"""A connected cluster: which of its workers are there, and what is done when none is."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from distributed import Client
from distributed.client import ClosedClientError

from nmf_dask.distributed import DaskTasks
from nmf_dask.observer import Observer
from nmf_dask.residence import peak_rss
from nmf_dask.tasks import Cluster

NURSED_SECONDS = 10.0  # for nannies to start workers again: nobody need hear of that
ASK_SECONDS = 10  # for an answer of all workers that the job can do without: one of them may hang


@dataclass
class DaskCluster(Cluster):
    """A connected cluster of Dask's."""

    client: Client
    tasks: DaskTasks
    memory_limit: int
    dashboard: str | None
    workers_timeout: float = 300.0  # seconds to go on without any worker
    _lost: set[str] = field(default_factory=set)
    _there: set[str] = field(default_factory=set)
    _back: threading.Event | None = None  # where no worker is there: set when one is
    _observer: Observer = field(default_factory=Observer)

    def __post_init__(self) -> None:
        # In this order: of a worker that goes between the two nobody would tell.
        self.client.subscribe_topic("all", self._heard)
        self._there.update(self.workers())

    def _heard(self, event: tuple[float, dict[str, Any]]) -> None:
        """Keep the address of a worker that went without saying so; a nanny's next one has another."""
        _, told = event
        action = told.get("action")
        if action == "add-worker":
            self._there.add(told["worker"])
        elif action == "remove-worker":
            self._there.discard(told["worker"])
            if not told.get("expected"):
                self._lost.add(told["worker"])
        if action in ("add-worker", "remove-worker"):
            self._observer.workers(len(self._there), len(self._lost))
        if self._there and self._back is not None:
            self._back.set()
            self._back = None
        elif not self._there and self._back is None:
            self._back = threading.Event()
            threading.Thread(target=self._wait, args=[self._back], name="nmf-dask-wait", daemon=True).start()

    def _wait(self, back: threading.Event) -> None:
        """A thread: say that no worker is there, where that lasts, and give up in the end.

        What waits for results is told so by way of a client that is closed.
        """
        first = min(NURSED_SECONDS, self.workers_timeout)
        if back.wait(first):
            return
        if left := self.workers_timeout - first:
            self._observer.warn(
                f"no worker is there any more; waiting for another {left:.0f} s at most (--workers-timeout)"
            )
            if back.wait(left):
                if self._there:  # it is not the end of the job
                    self._observer.inform("a worker is there again; going on")
                return
        self.tasks.why_lost = (
            f"the last worker went, and no other came within {self.workers_timeout:.0f} s (--workers-timeout)"
        )
        with suppress(TimeoutError, OSError, RuntimeError):
            self.client.close(timeout=1)

    def close(self) -> None:
        """Hear of no worker any more."""
        if self._back is not None:
            self._back.set()
        # It is closed already where no worker came back.
        with suppress(OSError, ValueError, ClosedClientError):
            self.client.unsubscribe_topic("all")

    def workers(self) -> dict[str, Any]:
        """What the scheduler says of the workers that are there now."""
        workers: dict[str, Any] = self.client.scheduler_info(n_workers=-1)["workers"]
        return workers

    def introduce(self, observer: Observer) -> None:
        workers = self.workers()
        self._observer = observer
        threads = sum(int(worker["nthreads"]) for worker in workers.values())
        observer.connected(len(workers), threads, self.dashboard)
        observer.workers(len(workers), len(self._lost))

    def lost(self) -> int:
        return len(self._lost)

    def peak_memory(self) -> dict[str, int]:
        try:
            asked = self.client.sync(self.client.run, peak_rss, callback_timeout=ASK_SECONDS)
            largest = max(asked.values(), default=0)
        except (OSError, TimeoutError, ValueError):
            largest = 0
        return {"driver": peak_rss(), "largest_worker": largest}
