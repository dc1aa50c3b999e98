"""What a running job tells whoever watches it. This one watches nothing; a display overrides what it shows."""

from typing import Any, NamedTuple


class Pass(NamedTuple):
    """One pass over the data, as convergence.parquet keeps it."""

    iteration: int
    reconstruction_err: float
    seconds: float
    rounds: int


class Observer:
    """Receives the progress of one job, in order, from one thread."""

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
