"""A Dask cluster for one job: its own, or one that runs already."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import dask
from distributed import Client
from threadpoolctl import threadpool_limits

from nmf_dask.cluster import existing, own, performance_report
from nmf_dask.cluster.followed import DaskCluster
from nmf_dask.cluster.ready import make_ready
from nmf_dask.config import ClusterSettings
from nmf_dask.distributed import DaskTasks
from nmf_dask.errors import RetryableError

__all__ = ["DaskCluster", "connected"]

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
        performance_report.check(report)
    quiet: dict[str, Any] = {
        # How late the event loop is. Dask looks fifty times a second, in the scheduler and in each worker: half of what
        # its thread takes from those that compute.
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.tick.limit": "20s",
        "distributed.comm.timeouts.connect": f"{existing.CONNECT_SECONDS}s",
    }
    worker_log = logging.getLogger("distributed.worker")
    worker_log.addFilter(_is_news)
    if report is None:  # which is made of what the logs hold
        quiet.update(SHORT_LOGS)
    if settings.is_own:
        quiet.update(own.configuration(settings))
    # Workers in processes of their own have it from `Ready`; here the caller gets its threads back afterwards.
    blas = threadpool_limits(1, user_api="blas") if settings.in_process else nullcontext()
    with dask.config.set(quiet), blas:
        client = own.start(settings, spill) if settings.is_own else existing.connect(settings)
        try:
            _wait_for_workers(client, settings)
            cluster = _described(client, settings)
            try:
                with performance_report.written(client, report) if report is not None else nullcontext():
                    yield cluster
            finally:
                cluster.close()
        finally:
            _close(client, settings.is_own)
            worker_log.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to show a record: what a task raised is told by the job, without a traceback."""
    return not str(record.msg).startswith("Compute Failed")


def _wait_for_workers(client: Client, settings: ClusterSettings) -> None:
    """Until as many as are asked for are there, one where nobody says."""
    if settings.is_own:
        n_workers, where = settings.shape()[0], "on this machine"
    else:
        n_workers, where = settings.workers or 1, f"at {settings.scheduler}"
    seconds = settings.workers_timeout
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


def _described(client: Client, settings: ClusterSettings) -> DaskCluster:
    if not settings.in_process:
        make_ready(client, own=settings.is_own)
    info = client.scheduler_info(n_workers=-1)["workers"]
    threads = min((int(worker["nthreads"]) for worker in info.values()), default=1)
    limits = [int(worker["memory_limit"]) for worker in info.values() if worker["memory_limit"]]
    dashboard = client.dashboard_link if performance_report.has_dashboard() else None
    tasks = DaskTasks(client, threads)
    return DaskCluster(client, tasks, min(limits, default=0), dashboard, settings.workers_timeout)


def _close(client: Client, is_own: bool) -> None:
    """End the job's part."""
    cluster = client.cluster
    own.quietly(client.close)
    if is_own and cluster is not None:
        own.quietly(cluster.close)
