"""A Dask cluster for one job: its own, or one that runs already."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import active_children
from typing import Any

import dask
import pyarrow as pa
from distributed import Client, LocalCluster, Nanny, Security, Worker, WorkerPlugin, performance_report
from distributed.client import ClosedClientError
from distributed.spans import SpansSchedulerExtension
from threadpoolctl import threadpool_limits
from tornado.ioloop import PeriodicCallback

import nmf_dask
from nmf_dask.config import ClusterSettings, parse_bytes, redact
from nmf_dask.distributed import DaskTasks, forget_names
from nmf_dask.errors import ConfigurationError, RetryableError
from nmf_dask.observer import Observer
from nmf_dask.residence import peak_rss, return_large, shrink
from nmf_dask.tasks import Cluster, held_bytes

CONNECT_SECONDS = 30
LARGE_SHARE = 0.7  # of the limit: a worker that is larger lets go of pages that it can read again
SHRINK_MILLISECONDS = 100
FORGET_MILLISECONDS = 10_000
LOOK_SECONDS = 0.1  # between two looks at a cluster that is being started
# For tasks that are under way when a cluster of one's own closes: nobody wants them any more.
CLOSE_SECONDS = 2.0
REPORT_SECONDS = 20
REPORT_SECONDS_OF_STOPPED = 5  # a job that is told to stop has little more time
# Of what Dask writes down for its dashboard: a job's memory is not to grow with its passes, nor with its hours. The
# first is the length of some twenty logs, of which one keeps whole graphs as they were sent, and others profiles.
# And a worker looks at what each thread does a hundred times a second, while they all wait.
SHORT_LOGS = {
    "distributed.admin.low-level-log-length": 100,
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.system-monitor.log-length": 60,  # two minutes
    "distributed.diagnostics.computations.max-history": 1,
    "distributed.worker.profile.enabled": False,
}
READY_SECONDS = 30  # for workers to be ready: they import what the job needs, and one may hang
# After which a nanny starts another: Dask looks as often, so that it takes twice as long at most. Its own is 5 minutes.
OWN_WORKER_SILENT = "2 minutes"
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


@contextmanager
def connected(
    settings: ClusterSettings, report: str | None = None, spill: str | None = None
) -> Iterator[DaskCluster]:
    """The cluster that settings name, with at least one worker, for the length of a `with`.

    `report` is the path of a file for Dask's performance report of that time, written however it ends. `spill` is a
    local folder in which own workers put results that are not to stay in memory (None: Dask's own). Raises
    RetryableError where the cluster cannot be reached or no worker comes, ConfigurationError for an address that cannot
    be one, and for a report that cannot be made.
    """
    if report is not None:
        _check_report(report)
    quiet: dict[str, Any] = {
        "distributed.admin.tick.limit": "20s",
        "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
    }
    worker_log = logging.getLogger("distributed.worker")
    worker_log.addFilter(_is_news)
    if report is None:  # which is made of what the logs hold
        quiet.update(SHORT_LOGS)
    own = settings.scheduler is None
    in_process = settings.in_process
    # Workers in processes of their own have it from `Ready`; here the caller gets its threads back afterwards.
    blas = threadpool_limits(1, user_api="blas") if in_process else nullcontext()
    if own:
        # After that a cluster of the job's own ends the nanny of a worker that is not back, for good: one that dies
        # twice within 15 s, or is slow to start, would be nobody's. Others replace it then: dask-jobqueue does, and
        # its cluster may be of this process.
        quiet["distributed.deploy.lost-worker-timeout"] = "365 days"
    if own and not in_process:
        quiet["distributed.scheduler.worker-ttl"] = OWN_WORKER_SILENT
    with dask.config.set(quiet), dask.config.set(_memory(settings) if own else {}), blas:
        client = _embedded(settings, spill) if own else _existing(settings)
        try:
            cluster = _described(client, own, in_process, settings.workers_timeout)
            try:
                with _reported(client, report) if report is not None else nullcontext():
                    yield cluster
            finally:
                cluster.close()
        finally:
            _close(client, own)
            worker_log.removeFilter(_is_news)


def _check_report(file: str) -> None:
    """Raise ConfigurationError where the report would be lost at the end of the job."""
    if not _has_dashboard():
        raise ConfigurationError(
            "--performance-report needs bokeh, which is not installed: pip install 'nmf-dask[dashboard]'"
        )
    folder = os.path.dirname(os.path.abspath(file))
    if "://" in file or os.path.isdir(file) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"--performance-report {redact(file)} cannot be written: give the path of a file in a local folder that is "
            "there"
        )


@contextmanager
def _reported(client: Client, file: str) -> Iterator[None]:
    """Dask's own report of what happens in the block; what keeps it from being written does not end the job."""
    if not client.run_on_scheduler(_has_dashboard):
        raise ConfigurationError(
            "--performance-report needs bokeh where the scheduler runs, too: pip install 'nmf-dask[dashboard]' there"
        )
    report = performance_report(filename=file)
    report.__enter__()
    seconds = REPORT_SECONDS
    try:
        yield
    except KeyboardInterrupt:
        seconds = REPORT_SECONDS_OF_STOPPED
        raise
    finally:
        try:
            told = {"code": "nmf-dask", "callback_timeout": seconds}
            client.sync(report.__aexit__, None, None, None, **told)
        except (OSError, TimeoutError, CancelledError, RuntimeError) as error:
            logging.getLogger(__name__).warning("%s was not written: %r", file, error)


def _memory(settings: ClusterSettings) -> dict[str, Any]:
    """When own workers move results to disk: by what they hold, not by what the process is.

    Dask goes by the share of the limit that the process takes as well, and pauses a worker at 80 %. The process alone
    is that large where little was given, and a worker that is paused for good waits for ever. Its nanny ends one that
    goes beyond the limit.
    """
    limit = settings.worker_bytes()
    fractions = {
        "target": held_bytes(limit) / limit,
        "spill": False,
        "pause": False,
        "terminate": 1.0,
    }
    return {f"distributed.worker.memory.{key}": value for key, value in fractions.items()}


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to show a record: what a task raised is told by the job, without a traceback."""
    return not str(record.msg).startswith("Compute Failed")


def _embedded(settings: ClusterSettings, spill: str | None) -> Client:
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
    cluster.scheduler.extensions["spans"] = NoSpans(cluster.scheduler)
    try:
        client = Client(cluster)
        _wait_for_workers(client, n_workers, settings.workers_timeout, "on this machine")
    except BaseException:
        _quietly(cluster.close)
        raise
    return client


def _whole(make: Callable[..., LocalCluster], **options: Any) -> LocalCluster:
    """A cluster that is started in a thread of its own: one that a signal left half started could not be ended.

    Who is interrupted meanwhile kills the processes that are being started, and ends what comes of it.
    """
    starter, others = ThreadPoolExecutor(1, "nmf-dask-start"), set(active_children())
    started = starter.submit(make, **options)
    try:
        while (
            not started.done()
        ):  # a thread that forks may take the signal, and would not wake who waits for ever
            wait([started], timeout=LOOK_SECONDS)
        return started.result()
    except KeyboardInterrupt:
        while not started.done():
            for process in set(active_children()) - others:
                process.kill()
            wait([started], timeout=LOOK_SECONDS)
        with suppress(Exception):  # that it did not start
            _quietly(lambda: started.result().close())
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


class OwnThreads(Worker):  # type: ignore[misc]
    """A worker in this process that ends soon, whatever its threads are at; Dask's waits half a minute for them."""

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


def _has_dashboard() -> bool:
    from importlib.util import find_spec

    return find_spec("bokeh") is not None


def _existing(settings: ClusterSettings) -> Client:
    """A client of a cluster that runs already, once as many of its workers as are asked for (or one) are there."""
    scheduler = settings.scheduler or ""
    given: dict[str, Any] = {"address": scheduler}
    if "://" not in scheduler and ":" not in scheduler:
        if not os.path.exists(scheduler):
            _wait_for_file(scheduler)
        given = {"scheduler_file": scheduler}
    try:
        client = Client(**given, **_security(settings), timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError) as error:
        raise RetryableError(
            f"no Dask scheduler answers at {scheduler} ({type(error).__name__} after {CONNECT_SECONDS} s): check the "
            "address, and that it runs; one with TLS answers tls:// addresses and known certificates alone (--tls-ca, "
            "--tls-cert, --tls-key)"
        ) from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(
            f"{scheduler!r} is no address of a Dask scheduler, nor its file, or TLS is not set up for it: {error}"
        ) from error
    try:
        _wait_for_workers(client, settings.workers or 1, settings.workers_timeout, f"at {scheduler}")
    except RetryableError:
        client.close()
        raise
    return client


def _security(settings: ClusterSettings) -> dict[str, Any]:
    """What the client needs to know of TLS, where the settings say it; Dask's own configuration holds otherwise."""
    if settings.tls_ca is None or settings.tls_cert is None or settings.tls_key is None:
        return {}
    security = Security(
        require_encryption=True,
        tls_ca_file=settings.tls_ca,
        tls_client_cert=settings.tls_cert,
        tls_client_key=settings.tls_key,
    )
    try:
        security.get_connection_args("client")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join((settings.tls_ca, settings.tls_cert, settings.tls_key))
        raise ConfigurationError(
            f"the TLS files cannot be used ({error}): give PEM files that this process can read, found: {files}"
        ) from error
    return {"security": security}


def _wait_for_workers(client: Client, n_workers: int, seconds: float, where: str) -> None:
    try:
        client.wait_for_workers(n_workers, timeout=seconds)
    except TimeoutError as error:
        there = len(client.scheduler_info(n_workers=-1)["workers"])
        raise RetryableError(
            f"{there} of {n_workers} workers are {where} after {seconds:.0f} s: start them, ask for fewer (--workers), "
            "or wait longer (--workers-timeout)"
        ) from error
    except OSError as error:
        raise RetryableError(
            f"the scheduler went away while the job waited for workers {where} ({error}); run the same command again "
            "when it is back, or on another one"
        ) from error


def _wait_for_file(path: str) -> None:
    """A scheduler started at the same time as the job writes its file when it is up."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise RetryableError(
                f"the scheduler file {path} does not exist after {CONNECT_SECONDS} s: "
                "is the scheduler started with --scheduler-file, on a disk that is shared?"
            )
        time.sleep(0.2)


class Ready(WorkerPlugin):  # type: ignore[misc]
    """Makes a worker ready, also one that comes later or that a nanny starts again."""

    name = "nmf-dask"

    def __init__(self, own: bool) -> None:
        self.own = own

    def setup(self, worker: Any) -> None:
        threadpool_limits(1, user_api="blas")
        # What comes over the network begins anywhere in a buffer: Arrow would print a line each time it sees that.
        os.environ.setdefault("ACERO_ALIGNMENT_HANDLING", "ignore")
        # Arrow's own pool keeps what it once had: 60 MB more after some partitions, of a limit that may be 400.
        pa.set_memory_pool(pa.system_memory_pool())
        if self.own and threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches the whole process group, and a service manager's SIGTERM every process of the job; the
            # job ends its workers itself, once they have saved what they hold.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.own:
            return_large()
            logging.captureWarnings(True)  # the driver shows them: stderr is the log's, line by line


def _described(client: Client, own: bool, in_process: bool, workers_timeout: float) -> DaskCluster:
    if not in_process:
        _make_ready(client, own)
    info = client.scheduler_info(n_workers=-1)["workers"]
    threads = min((int(worker["nthreads"]) for worker in info.values()), default=1)
    limits = [int(worker["memory_limit"]) for worker in info.values() if worker["memory_limit"]]
    dashboard = client.dashboard_link if _has_dashboard() else None
    return DaskCluster(client, DaskTasks(client, threads), min(limits, default=0), dashboard, workers_timeout)


def _make_ready(client: Client, own: bool) -> None:
    def told(method: Callable[..., Any], *arguments: Any) -> None:
        # The scheduler keeps it for workers that come. One that hangs, or is given up meanwhile, is no end of the job.
        with suppress(OSError, TimeoutError):
            client.sync(method, *arguments, callback_timeout=READY_SECONDS)

    try:
        told(client.register_plugin, Ready(own))
        if own:
            told(client.forward_logging, "py.warnings", logging.WARNING)
    except ImportError as error:
        raise ConfigurationError(
            f"a worker cannot import what the job needs ({error}): install nmf-dask {nmf_dask.__version__} in the "
            "environment of the workers"
        ) from error


def _close(client: Client, own: bool) -> None:
    """End the job's part."""
    cluster = client.cluster
    _quietly(client.close)
    if own and cluster is not None:
        _quietly(cluster.close)


def _quietly(close: Callable[[], Any]) -> None:
    """Close something; a connection that breaks meanwhile is nobody's concern any more."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    close()
    logger.setLevel(level)
