"""What a running job shows on stderr: a live display on a terminal, lines elsewhere, JSON for machines."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from nmf_dask.cli.logs import json_line, text_line
from nmf_dask.cli.meter import Meter
from nmf_dask.config import redact
from nmf_dask.observer import Observer, Pass
from nmf_dask.residence import rss

# Seconds between two lines of progress; a log of a whole night stays short.
INTERVAL = 10.0
_WRITERS = frozenset({"bokeh", "dask", "distributed", "tornado"})

Clock = Callable[[], float]


@contextmanager
def display(
    log_format: str, verbosity: int, stream: TextIO | None = None, clock: Clock = time.monotonic
) -> Iterator[Observer]:
    """The observer that suits the stream (stderr) and the format; closed at the end, however it comes.

    `verbosity` below 0 shows warnings only; above 0, every pass and the log of the libraries.
    """
    out = stream or sys.stderr or io.StringIO()  # closed by whoever started the job (2>&-)
    shown = _choose(log_format, verbosity, out, clock)
    with shown, _library_logs(shown, verbosity):
        yield shown


def _choose(log_format: str, verbosity: int, out: TextIO, clock: Clock) -> LineDisplay:
    if log_format == "json":
        return JsonDisplay(out, verbosity, clock)
    if verbosity >= 0 and out.isatty():
        from nmf_dask.cli.live import LiveDisplay, is_capable

        if is_capable(out):
            return LiveDisplay(out, verbosity, clock)
    return LineDisplay(out, verbosity, clock)


class LineDisplay(Observer):
    """A line when a stage begins and ends, and now and then between."""

    def __init__(self, out: TextIO, verbosity: int = 0, clock: Clock = time.monotonic) -> None:
        self.out = out
        self.verbosity = verbosity
        self.meter = Meter(clock)
        self._clock = clock
        self._last_line = float("-inf")
        self.run_id: str | None = None
        self.n_workers: int | None = None

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._end_stage()

    def named(self, run_id: str, n_documents: int) -> None:
        """Keep the id, for lines that carry it."""
        self.run_id = run_id

    def connecting(self, scheduler: str | None) -> None:
        """Say whom the job may have to wait for."""
        adopt_loggers()
        if scheduler is not None:
            self.inform(f"looking for the workers of {scheduler}")

    def workers(self, there: int, lost: int) -> None:
        """Keep the number, for lines that carry it."""
        self.n_workers = there

    def connected(self, workers: int, threads: int, dashboard: str | None) -> None:
        """Say where the job runs."""
        adopt_loggers()
        self.inform(connection(workers, threads, dashboard))

    def stage(self, name: str, total: int | None = None) -> None:
        """Sum up the last stage and begin another."""
        self._end_stage()
        self.meter.begin(name, total)
        self._last_line = self._clock()
        self._begin_stage()

    def advance(self, done: int, n_bytes: int = 0) -> None:
        """Keep count, and show it when there was no line for a while."""
        self.meter.advance(done, n_bytes)
        if self._is_due():
            self._progress()

    def passed(self, row: Pass) -> None:
        """Keep the loss, and show it when there was no line for a while, or with -v at once."""
        self.meter.passed(row)
        if self.verbosity > 0 or self._is_due():
            self._pass(row)

    def warn(self, message: str, **fields: Any) -> None:
        """Always shown."""
        self._line("warning", message)

    def inform(self, message: str, **fields: Any) -> None:
        """Shown without -q."""
        if self.verbosity >= 0:
            self._line("info", message)

    def _begin_stage(self) -> None:
        if self.verbosity >= 0:
            self._line("info", f"{self.meter.name}: begins{self.meter.size_told()}")

    def _end_stage(self) -> None:
        name, summary = self.meter.name, self.meter.summary()
        self.meter.name = ""  # first, or a live display would show the stage below its own last line
        if name and self.verbosity >= 0:
            self._line("info", f"{name}: {summary}")

    def _progress(self) -> None:
        self._line("info", f"{self.meter.name}: {self.meter.progress()}")

    def _pass(self, row: Pass) -> None:
        self._progress()

    def _is_due(self) -> bool:
        now = self._clock()
        if self.verbosity < 0 or now - self._last_line < INTERVAL:
            return False
        self._last_line = now
        return True

    def _line(self, level: str, message: str) -> None:
        self._write(text_line(level, redact(message)))

    def _write(self, line: str) -> None:
        try:
            self.out.write(f"{line}\n")
            self.out.flush()
        except OSError:
            pass  # nobody reads the log any more, or its disk is full, which is no reason to end the job


class JsonDisplay(LineDisplay):
    """The same events, one JSON object a line, with their numbers as fields (docs/operating.md lists them)."""

    def connecting(self, scheduler: str | None) -> None:
        """Event "connecting"."""
        adopt_loggers()
        self._event("connecting", scheduler=scheduler)

    def connected(self, workers: int, threads: int, dashboard: str | None) -> None:
        """Event "connected"."""
        adopt_loggers()
        self.n_workers = workers
        self._event("connected", threads=threads, dashboard=dashboard)

    def warn(self, message: str, **fields: Any) -> None:
        """Event "warning"."""
        self._event("warning", "warning", message, **fields)

    def inform(self, message: str, **fields: Any) -> None:
        """Event "info"."""
        self._event("info", message=message, **fields)

    def passed(self, row: Pass) -> None:
        """Event "pass", every time: a machine can skip lines, but not ask for those that were left out."""
        self.meter.passed(row)
        told: dict[str, Any] = {"pass": row.iteration, "loss": row.reconstruction_err, "seconds": row.seconds}
        self._event("pass", **told, rounds=row.rounds)

    def _begin_stage(self) -> None:
        self._event("stage", total=self.meter.total)

    def _end_stage(self) -> None:
        if self.meter.name:
            self._event("stage_done", **self._numbers())
        self.meter.name = ""

    def _progress(self) -> None:
        self._event("progress", **self._numbers(), seconds_left=self.meter.seconds_left())

    def _numbers(self) -> dict[str, Any]:
        meter = self.meter
        loss = {} if meter.last is None else {"loss": meter.last.reconstruction_err}
        return {**meter.counts, **loss, "seconds": round(meter.seconds(), 3), "bytes": meter.n_bytes}

    def _event(self, event: str, level: str = "info", message: str | None = None, **fields: Any) -> None:
        if self.verbosity < 0 and level == "info":
            return
        where = {"run_id": self.run_id, "stage": self.meter.name or None}
        fields = {**where, **fields, "workers": self.n_workers, "memory": rss()}
        self._write(redact(json_line(level, event, message, **fields)))


def connection(workers: int, threads: int, dashboard: str | None) -> str:
    """Such as: 4 workers, 8 threads; dashboard http://127.0.0.1:8787/status."""
    who = "1 worker" if workers == 1 else f"{workers} workers"
    threads_told = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{who}, {threads_told}" + (f"; dashboard {dashboard}" if dashboard else "")


class _ToDisplay(logging.Handler):
    """Hands the log records of libraries to the display: they must not tear it, nor break JSON lines."""

    def __init__(self, shown: LineDisplay, level: int) -> None:
        super().__init__(level)
        self._shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        # A record is a line, and Python's warnings come with the source of whoever gave them in a second one.
        words = " ".join(record.getMessage().split())
        if not words:  # Dask's for an exception that has none; what becomes of it is told by the job
            return
        message = f"{record.name}: {words}"
        if record.levelno >= logging.WARNING:
            self._shown.warn(message)
        else:
            self._shown.inform(message)


def adopt_loggers() -> None:
    """Take the handlers from loggers that write to stderr on their own, as Dask's do once it is imported."""
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in _WRITERS:
            # Without any handler, Python would write what they say after the display's end to stderr again.
            logger.handlers = [logging.NullHandler()]
            logger.propagate = True


@contextmanager
def _library_logs(shown: LineDisplay, verbosity: int) -> Iterator[None]:
    root = logging.getLogger()
    handler = _ToDisplay(shown, logging.INFO if verbosity > 0 else logging.WARNING)
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
