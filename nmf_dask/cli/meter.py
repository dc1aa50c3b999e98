"""How far a stage is, how fast it goes, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable

from nmf_dask.observer import Pass

_UNITS = {
    "fit": "passes",
    "init": "passes",
    "ingest": "partitions",
    "count": "partitions",
    "weigh": "partitions",
    "write": "partitions",
    "transform": "partitions",
}
_ONE = {"passes": "pass", "partitions": "partition", "steps": "step"}


class Meter:
    """The counts of the current stage. Times are in seconds, by `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.name = ""
        self.begin("")

    def begin(self, name: str, total: int | None = None) -> None:
        """Forget the last stage."""
        self.total = total
        self.done = 0
        self.n_bytes = 0
        self._done_before = 0
        self.last: Pass | None = None
        self.before_last: Pass | None = None
        self._began = self._clock()
        self.name = name

    def advance(self, done: int, n_bytes: int = 0) -> None:
        """`done` of the total are done; `n_bytes` went through since the last call."""
        self.done = done
        self.n_bytes += n_bytes

    def passed(self, row: Pass) -> None:
        """A pass is over."""
        if self.last is None:  # a resumed fit goes on at the pass after its checkpoint
            self._done_before = row.iteration - 1
        self.before_last, self.last = self.last, row
        self.done = max(self.done, row.iteration)

    @property
    def counts(self) -> dict[str, int | None]:
        """The same for machines: {"partition": 12, "total": 64}; nothing where nothing is counted."""
        if not self.done and self.total is None:
            return {}
        return {_ONE[self.unit]: self.done, "total": self.total}

    @property
    def unit(self) -> str:
        """What the stage counts in."""
        return _UNITS.get(self.name, "steps")

    def seconds(self) -> float:
        """Since the stage began."""
        return self._clock() - self._began

    def seconds_left(self) -> float | None:
        """At the pace so far; None where the total or the pace is unknown."""
        here = self.done - self._done_before
        if self.total is None or here < 1:
            return None
        return max(0.0, (self.total - self.done) * self.seconds() / here)

    def size_told(self) -> str:
        """Such as: , 64 partitions. A fit mostly stops before its last pass."""
        if self.total is None:
            return ""
        return f", {'at most ' if self.name == 'fit' else ''}{self._of_unit(self.total)}"

    def counted(self) -> str:
        """Such as: 12/64 partitions."""
        if self.total is None:
            return self._of_unit(self.done) if self.done else ""
        return f"{self.done}/{self._of_unit(self.total)}"

    def _of_unit(self, number: int) -> str:
        return f"{number} {_ONE[self.unit] if number == 1 else self.unit}"

    def loss(self) -> str:
        """Such as: loss 1428.03 (-0.12 %)."""
        if self.last is None:
            return ""
        text = f"loss {self.last.reconstruction_err:.6g}"
        if self.before_last is not None and self.before_last.reconstruction_err > 0:
            change = self.last.reconstruction_err / self.before_last.reconstruction_err - 1
            text += f" ({100 * change:+.3f} %)"
        return text

    def rate(self) -> str:
        """MB of text or passes a second, where there is one to tell."""
        seconds = self.seconds()
        if seconds <= 0:
            return ""
        if self.n_bytes:
            return f"{self.n_bytes / 1e6 / seconds:.1f} MB/s"
        here = self.done - self._done_before
        if self.unit == "passes" and here > 0:
            pace = here / seconds
            return f"{pace:.1f} passes/s" if pace >= 1 else f"{1 / pace:.1f} s a pass"
        return ""

    def left(self) -> str:
        """Such as: 0:21 left. A fit may stop before its last pass, so its time is an upper bound."""
        seconds = self.seconds_left()
        if seconds is None:
            return ""
        return f"{'at most ' if self.name == 'fit' else ''}{duration(seconds)} left"

    def progress(self) -> str:
        """All of it in one line."""
        return ", ".join(filter(None, [self.counted(), self.loss(), self.rate(), self.left()]))

    def summary(self) -> str:
        """What a finished stage did."""
        done = self.counted() if self.name == "fit" else self._of_unit(self.done)
        parts = [done if self.done else "", self.loss().partition(" (")[0], self.rate()]
        return ", ".join(filter(None, [f"done in {duration(self.seconds())}", *parts]))


def duration(seconds: float) -> str:
    """Such as: 0.4 s, 59 s, 3:07, 1:02:03."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
