"""A cluster of the job's own: threads of its process, or worker processes with their nannies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from multiprocessing import active_children
from typing import Any

from distributed import Client, LocalCluster, Nanny, Scheduler, SchedulerPlugin, Worker
from distributed.spans import SpansSchedulerExtension
from tornado.ioloop import PeriodicCallback

from nmf_dask.config import ClusterSettings, parse_bytes
from nmf_dask.distributed import forget_names
from nmf_dask.errors import RetryableError
from nmf_dask.residence import shrink
from nmf_dask.tasks import held_bytes

LARGE_SHARE = 0.7  # of the limit: a worker that is larger lets go of pages that it can read again
SHRINK_MILLISECONDS = 100
FORGET_MILLISECONDS = 10_000
LOOK_SECONDS = 0.1  # between two looks at a cluster that is being started
# For tasks that are under way when the cluster closes: nobody wants them any more.
CLOSE_SECONDS = 2.0
# After which a nanny starts another: Dask looks as often, so that it takes twice as long at most. Its own is 5 minutes.
WORKER_SILENT = "2 minutes"
# That a stream of messages waits for more of them. Dask's wait 2 to 10 milliseconds: on one machine that is most of the
# time between a task and the one that follows it.
SEND_SECONDS = 0.0005


def start(settings: ClusterSettings, spill: str | None) -> Client:
    """Threads of this process, or, where workers are asked for, processes that a nanny starts again.

    Threads are the default: kernels and BLAS run without the GIL, nothing is copied between workers, and there is
    no process to start (tests/benchmarks/dask_overhead.py measures both).
    """
    in_process = settings.in_process
    n_workers, threads = settings.shape()
    try:
        cluster = _whole(
            LocalCluster,
            n_workers=n_workers,
            threads_per_worker=threads,
            worker_class=OwnThreads if in_process else OwnNanny,
            memory_limit=parse_bytes(settings.memory_limit) if settings.memory_limit else "auto",
            local_directory=spill,
            dashboard_address=":0",  # without bokeh too: Dask's web server would else want one port for every job
            # What failed is told once, by the job; tracebacks of tasks are in the log of no worker that it owns.
            silence_logs=logging.CRITICAL,
        )
    except (RuntimeError, OSError) as error:  # Dask's words for whatever keeps a worker from starting
        raise RetryableError(
            f"the job's own workers did not start ({error.__cause__ or error}): the machine may be busy, or short of "
            "memory, disk or processes. Run the same command again, or ask for fewer (--workers)"
        ) from error
    scheduler = cluster.scheduler
    scheduler.extensions["spans"] = NoSpans(scheduler)
    scheduler.add_plugin(SendSoon())
    try:
        client = Client(cluster)
    except BaseException:
        quietly(cluster.close)
        raise
    for stream in (client.scheduler_comm, *scheduler.client_comms.values(), *scheduler.stream_comms.values()):
        stream.interval = SEND_SECONDS
    return client


def configuration(settings: ClusterSettings) -> dict[str, Any]:
    """What Dask is told: when workers move results to disk, and how long a nanny has for another worker.

    They move results by what they hold, not by what the process is. Dask goes by the share of the limit that the
    process takes as well, and pauses a worker at 80 %. The process alone is that large where little was given, and a
    worker that is paused for good waits for ever. Its nanny ends one that goes beyond the limit.
    """
    limit = settings.worker_bytes()
    fractions = {
        "target": held_bytes(limit) / limit,
        "spill": False,
        "pause": False,
        "terminate": 1.0,
    }
    told: dict[str, Any] = {f"distributed.worker.memory.{key}": value for key, value in fractions.items()}
    # After that a cluster of the job's own ends the nanny of a worker that is not back, for good: one that dies twice
    # within 15 s, or is slow to start, would be nobody's. Others replace it then: dask-jobqueue does, and its cluster
    # may be of this process.
    told["distributed.deploy.lost-worker-timeout"] = "365 days"
    if not settings.in_process:
        told["distributed.scheduler.worker-ttl"] = WORKER_SILENT
    return told


def _whole(make: Callable[..., LocalCluster], **options: Any) -> LocalCluster:
    """A cluster that is started in a thread of its own: one that a signal left half started could not be ended.

    Who is interrupted meanwhile kills the processes that are being started, and ends what comes of it.
    """
    starter, others = ThreadPoolExecutor(1, "nmf-dask-start"), set(active_children())
    started = starter.submit(make, **options)
    try:
        while (
            not started.done()
        ):  # a thread that forks may take the signal, and would wake nobody who waits for ever
            wait([started], timeout=LOOK_SECONDS)
        return started.result()
    except KeyboardInterrupt:
        while not started.done():
            for process in set(active_children()) - others:
                process.kill()
            wait([started], timeout=LOOK_SECONDS)
        with suppress(Exception):  # that it did not start
            quietly(lambda: started.result().close())
        raise
    finally:
        starter.shutdown(wait=False)


class NoSpans(SpansSchedulerExtension):  # type: ignore[misc]
    """Puts tasks into no spans: Dask begins some in every pass, and keeps all of them, with their groups of tasks."""

    def observe_tasks(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Leave the tasks as they are."""
        return {}

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        """Leave what a worker measured for the totals, which the scheduler keeps elsewhere."""


class SendSoon(SchedulerPlugin):  # type: ignore[misc]
    """Has the scheduler send workers that come later their messages within `SEND_SECONDS`."""

    name = "nmf-dask-send-soon"

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Called when the stream is there, before the worker has its first task."""
        scheduler.stream_comms[worker].interval = SEND_SECONDS


class OwnThreads(Worker):  # type: ignore[misc]
    """A worker in this process that ends soon, whatever its threads are at; Dask's waits half a minute for them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batched_stream.interval = SEND_SECONDS

    async def close(self, *args: Any, **kwargs: Any) -> str | None:
        """End; what a thread is still at is dropped when it is done, and with the process otherwise."""
        status: str | None = await super().close(*args, **{**kwargs, "timeout": CLOSE_SECONDS})
        return status


class OwnWorker(Worker):  # type: ignore[misc]
    """A worker process that ends without a word: the job tells why it ends.

    One that a nanny started while the cluster closes is told twice to end, and the second time finds its connections
    closed. Dask raises that out of the process, traceback and all.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batched_stream.interval = SEND_SECONDS
        self.periodic_callbacks["nmf-dask-forget"] = PeriodicCallback(forget_names, FORGET_MILLISECONDS)
        if limit := self.memory_manager.memory_limit:
            shrinking = PeriodicCallback(partial(shrink, int(limit * LARGE_SHARE)), SHRINK_MILLISECONDS)
            self.periodic_callbacks["nmf-dask-shrink"] = shrinking

    async def close(self, *args: Any, **kwargs: Any) -> str | None:
        """End; what breaks while ending is nobody's concern any more."""
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        try:
            status: str | None = await super().close(*args, **kwargs)
        except (RuntimeError, OSError):
            return None
        return status


class OwnNanny(Nanny):  # type: ignore[misc]
    """Starts an `OwnWorker`, and another for one that died."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, worker_class=OwnWorker, **kwargs)

    async def close(self, timeout: float = CLOSE_SECONDS, reason: str = "nanny-close") -> str:
        """End the worker process, by force where a task holds it longer."""
        status: str = await super().close(timeout=timeout, reason=reason)
        return status

    async def kill(self, *args: Any, **kwargs: Any) -> None:
        """End the worker process; one that is killed and not gone in time goes by itself, and the job is over."""
        with suppress(TimeoutError):
            await super().kill(*args, **kwargs)


def quietly(close: Callable[[], Any]) -> None:
    """Close something; a connection that breaks meanwhile is nobody's concern any more."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    close()
    logger.setLevel(level)
