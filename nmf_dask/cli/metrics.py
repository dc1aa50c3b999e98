"""A running job's numbers for Prometheus, at /metrics of a port of the driver."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import nmf_dask
from nmf_dask.errors import ConfigurationError
from nmf_dask.observer import Observer, Pass

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

STAGES = ("plan", "ingest", "count", "select", "weigh", "init", "fit", "write", "transform")


@contextmanager
def metrics(port: int, told: Observer) -> Iterator[Metrics]:
    """Serve the numbers of what the yielded observer hears, while the block runs; `told` hears where.

    Raises ConfigurationError where prometheus_client is not installed or the port is taken.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise ConfigurationError(
            "--metrics-port needs prometheus_client, which is not installed: pip install 'nmf-dask[metrics]'"
        ) from error
    registry = CollectorRegistry()
    observer = Metrics(registry)
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics cannot be served at port {port} ({error.strerror}): choose another --metrics-port, or 0 for any "
            "free one"
        ) from error
    logs = _Counting(observer)
    logging.getLogger().addHandler(logs)
    try:
        told.inform(f"metrics at port {server.server_port}, /metrics", metrics_port=server.server_port)
        yield observer
    except BaseException:
        observer.errors.inc()
        raise
    finally:
        logging.getLogger().removeHandler(logs)
        server.shutdown()
        server.server_close()
        thread.join()


class Metrics(Observer):
    """Keeps the numbers of one job as Prometheus wants them; their names begin with nmf_dask_."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Info, ProcessCollector

        own: dict[str, Any] = {"namespace": "nmf_dask", "registry": registry}
        ProcessCollector(registry=registry)
        self._run = Info("run", "Version of nmf-dask, and the run by its id", **own)
        self._stage = Gauge("stage", "1 for the stage that the job is in, 0 for others", ["stage"], **own)
        self._done = Gauge("stage_done", "Partitions or passes of the stage that are done", **own)
        self._total = Gauge("stage_total", "Partitions of the stage, or passes at most; 0: not known", **own)
        self._seconds = Gauge("stage_seconds", "Seconds since the stage began", **own)
        self._pass = Gauge("pass", "The last pass over the data that is done", **own)
        self._loss = Gauge("loss", "Reconstruction error after that pass", **own)
        self._documents = Gauge("documents", "Documents of the input", **own)
        self._bytes = Counter("bytes", "Bytes of text that went through a stage", ["stage"], **own)
        self._workers = Gauge("workers", "Workers that are there now", **own)
        self._lost = Gauge("workers_lost", "Workers that went without being told to", **own)
        self.warnings = Counter("warnings", "Warnings of the job, of Dask and of Python", **own)
        self.errors = Counter("errors", "Errors that ended the job", **own)
        self._loss.set(math.nan)  # 0 would be a loss
        self._name = ""
        for name in STAGES:
            self._stage.labels(name).set(0)
        self._run.info({"version": nmf_dask.__version__, "run_id": ""})
        began = time.monotonic()
        self._seconds.set_function(lambda: time.monotonic() - began)

    def named(self, run_id: str, n_documents: int) -> None:
        """Info and documents."""
        self._run.info({"version": nmf_dask.__version__, "run_id": run_id})
        self._documents.set(n_documents)

    def workers(self, there: int, lost: int) -> None:
        """Both gauges."""
        self._workers.set(there)
        self._lost.set(lost)

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins with nothing done."""
        if self._name:
            self._stage.labels(self._name).set(0)
        self._name = name
        self._stage.labels(name).set(1)
        self._done.set(0)
        self._total.set(total or 0)
        began = time.monotonic()
        self._seconds.set_function(lambda: time.monotonic() - began)

    def advance(self, done: int, n_bytes: int = 0) -> None:
        """Progress of the stage."""
        self._done.set(done)
        self._bytes.labels(self._name).inc(n_bytes)

    def passed(self, row: Pass) -> None:
        """Pass and loss."""
        self._pass.set(row.iteration)
        self._loss.set(row.reconstruction_err)

    def warn(self, message: str, **fields: Any) -> None:
        """One more."""
        self.warnings.inc()


class _Counting(logging.Handler):
    """Counts what libraries warn of."""

    def __init__(self, observer: Metrics) -> None:
        super().__init__(logging.WARNING)
        self._observer = observer

    def emit(self, record: logging.LogRecord) -> None:
        self._observer.warnings.inc()
