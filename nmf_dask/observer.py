"""What a running job tells whoever watches it. This one watches nothing; a display overrides what it shows."""

from typing import Any, NamedTuple


class Pass(NamedTuple):
    """One pass over the data, as convergence.parquet keeps it."""

    iteration: int
    reconstruction_err: float
    seconds: float
    rounds: int


class Observer:
    """Receives the progress of one job, in order, from one thread, but for `workers`."""

    def named(self, run_id: str, n_documents: int) -> None:
        """The run that all that follows is about, and the documents of its input."""

    def connecting(self, scheduler: str | None) -> None:
        """Dask is loaded and its workers are looked for: of a running cluster, or (None) of the job's own."""

    def workers(self, there: int, lost: int) -> None:
        """So many workers are there now, and so many went without being told to; comes from any thread."""

    def connected(self, workers: int, threads: int, dashboard: str | None) -> None:
        """Workers are there; `dashboard` is the address of Dask's own pages, where there are any."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage (plan, count, select, weigh, init, fit, write) begins; `total` tasks or passes, if known."""

    def advance(self, done: int, n_bytes: int = 0) -> None:
        """`done` of the stage's total are done; `n_bytes` of text went through it since the last call."""

    def passed(self, row: Pass) -> None:
        """A pass of the factorization is over."""

    def warn(self, message: str, **fields: Any) -> None:
        """Something was survived that the user should know: dirty rows, a lost worker, collisions."""

    def inform(self, message: str, **fields: Any) -> None:
        """A fact worth a line of the log."""


class Observers(Observer):
    """Several observers as one; each hears of everything, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def named(self, run_id: str, n_documents: int) -> None:
        for one in self._observers:
            one.named(run_id, n_documents)

    def connecting(self, scheduler: str | None) -> None:
        for one in self._observers:
            one.connecting(scheduler)

    def workers(self, there: int, lost: int) -> None:
        for one in self._observers:
            one.workers(there, lost)

    def connected(self, workers: int, threads: int, dashboard: str | None) -> None:
        for one in self._observers:
            one.connected(workers, threads, dashboard)

    def stage(self, name: str, total: int | None = None) -> None:
        for one in self._observers:
            one.stage(name, total)

    def advance(self, done: int, n_bytes: int = 0) -> None:
        for one in self._observers:
            one.advance(done, n_bytes)

    def passed(self, row: Pass) -> None:
        for one in self._observers:
            one.passed(row)

    def warn(self, message: str, **fields: Any) -> None:
        for one in self._observers:
            one.warn(message, **fields)

    def inform(self, message: str, **fields: Any) -> None:
        for one in self._observers:
            one.inform(message, **fields)
