"""The display on a terminal: finished stages as lines, the current one alive below them."""

from __future__ import annotations

import time
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nmf_dask.cli.display import Clock, LineDisplay, adopt_loggers, connection
from nmf_dask.cli.meter import duration
from nmf_dask.config import redact
from nmf_dask.observer import Pass


def is_capable(out: TextIO) -> bool:
    """Whether the terminal can move its cursor; one that cannot (TERM=dumb) gets lines."""
    console = Console(file=out)
    return console.is_terminal and not console.is_dumb_terminal


class LiveDisplay(LineDisplay):
    """Stage, count, loss, rate and time left, and the dashboard's address."""

    def __init__(self, out: TextIO, verbosity: int = 0, clock: Clock = time.monotonic) -> None:
        super().__init__(out, verbosity, clock)
        self._connection = ""
        # stdout is the result's: rich must not reroute it.
        self._live = Live(
            console=Console(file=out),
            get_renderable=self._render,
            transient=True,
            redirect_stdout=False,
            refresh_per_second=8,
        )

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        self._live.stop()

    def connected(self, workers: int, threads: int, dashboard: str | None) -> None:
        """Keep it in view below the bar."""
        adopt_loggers()
        self._connection = connection(workers, threads, dashboard)

    def advance(self, done: int, n_bytes: int = 0) -> None:
        """The bar shows it."""
        self.meter.advance(done, n_bytes)

    def passed(self, row: Pass) -> None:
        """The bar shows it; with -v a line stays, too."""
        self.meter.passed(row)
        if self.verbosity > 0:
            self._pass(row)

    def _begin_stage(self) -> None:
        self._live.refresh()

    def _line(self, level: str, message: str) -> None:
        style = "yellow" if level == "warning" else ""
        marker = "warning: " if level == "warning" else ""
        self._live.console.print(Text(f"{marker}{redact(message)}", style=style))

    def _render(self) -> RenderableType:
        meter = self.meter
        rows: list[RenderableType] = []
        if meter.name:
            first = Table.grid(padding=(0, 2))
            bar = ProgressBar(total=meter.total, completed=meter.done, width=24, pulse=meter.total is None)
            left = meter.left() or duration(meter.seconds())
            first.add_row(_cell(meter.name, "bold"), bar, *map(_cell, filter(None, [meter.counted(), left])))
            rows.append(first)
            pace = "  ".join(filter(None, [meter.loss(), meter.rate()]))
            rows += [_cell(pace)] if pace else []
        if self._connection:
            rows.append(_cell(self._connection, "dim"))
        return Group(*rows)


def _cell(text: str, style: str = "") -> Text:
    """A narrow terminal cuts it; a line that wraps would make the display jump."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
