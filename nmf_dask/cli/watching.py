"""All that watches a job for its user: what is shown, what is served, and its deadline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nmf_dask.cli.display import display
from nmf_dask.cli.errors import Console
from nmf_dask.cli.termination import ended_by
from nmf_dask.config import RunSettings
from nmf_dask.observer import Observer, Observers


@contextmanager
def watched(run: RunSettings, console: Console) -> Iterator[Observer]:
    """The observer of a job, for its length: a display, metrics where they are asked for; ends it by its deadline.

    Raises ConfigurationError where metrics cannot be served.
    """
    with ExitStack() as stack:
        stack.enter_context(ended_by(run.deadline, console))
        shown = stack.enter_context(display(run.log_format, console.verbosity))
        observers: list[Observer] = [_Remembered(console), shown]
        if run.metrics_port is not None:
            from nmf_dask.cli.metrics import metrics

            observers.append(stack.enter_context(metrics(run.metrics_port, shown)))
        yield Observers(*observers)


class _Remembered(Observer):
    """Keeps what a message of an error says of the job."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def named(self, run_id: str, n_documents: int) -> None:
        self._console.run_id = run_id

    def stage(self, name: str, total: int | None = None) -> None:
        self._console.stage = name

    def workers(self, there: int, lost: int) -> None:
        self._console.workers = there
