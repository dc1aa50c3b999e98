"""The time by which a command is to have ended, and how its job is stopped before that.

A job stops as it does for a signal: what is under way is interrupted, a fit leaves a checkpoint of its last whole pass,
whatever is staged stays. The same command goes on from there.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nmf_dask.config import RunSettings

END_SECONDS = 10.0
"""Of the time until the deadline, for what comes after the last file of a fit or part of a transform: the cluster
closes, run.json is written, the disk is synced, the process ends. Whoever sends a signal gives as much."""

WRITTEN_BYTES = 20e6
"""Bytes a second that are expected to go into files, until a checkpoint has shown better."""

CHECKPOINTS_A_RESULT = 4
"""How many times as long as a checkpoint the results may take: W is compressed, joined with its ids, and synced."""

_AGAIN_SECONDS = 0.05
_LATE_SECONDS = 0.01  # an alarm that comes a moment early would find that it is not time yet


class DeadlineReached(KeyboardInterrupt):
    """No more time is left than it takes to end in order: an interruption, which no clean-up bears with."""


class Deadline:
    """When a command has to have ended; `started` is the `time.perf_counter` that `run.deadline` counts from."""

    def __init__(self, run: RunSettings, started: float) -> None:
        self.commits = run.deadline_action == "commit"
        self._seconds = run.deadline
        self._at = math.inf if run.deadline is None else started + run.deadline
        self._met = False

    def left(self, margin: float = 0.0) -> float:
        """Seconds until the job has to begin with what takes `margin` seconds, to end in time."""
        return self._at - END_SECONDS - margin - time.perf_counter()

    def met(self) -> None:
        """All that takes long is done: no alarm rings any more."""
        self._met = True

    def error(self) -> DeadlineReached:
        """What stops the job."""
        return DeadlineReached(
            f"stopped in time for the deadline of {self._seconds} s (--deadline); run the same command again to go on"
        )

    @contextmanager
    def alarm(self, margin: float = 0.0) -> Iterator[None]:
        """While the block runs, raise DeadlineReached in it where `margin` seconds are left to end in order.

        At once, where that is so already; outside of the main thread, which alone can be interrupted, only then. In a
        block within the block, another margin holds. What is raised where Python drops it is raised again, as in
        `nmf_dask.cli.termination`, whose own alarms pass through.
        """
        if self.left(margin) <= 0 and not self._met:
            raise self.error()
        if self._at == math.inf or threading.current_thread() is not threading.main_thread():
            yield
            return
        error, hook = self.error(), sys.unraisablehook
        began, others = time.perf_counter(), signal.setitimer(signal.ITIMER_REAL, 0)[0]

        def others_left() -> float:
            return max(0.001, others - (time.perf_counter() - began)) if others else math.inf

        def ring(signum: int, frame: Any) -> None:
            if self._met:
                return
            if self.left(margin) <= 0:
                raise error
            if callable(handler):
                handler(signum, frame)
            _set(self.left(margin) + _LATE_SECONDS)

        def dropped(told: Any) -> None:
            if told.exc_value is error:
                _set(_AGAIN_SECONDS)
            else:
                hook(told)

        handler = signal.signal(signal.SIGALRM, ring)
        sys.unraisablehook = dropped
        try:
            _set(min(others_left(), self.left(margin) + _LATE_SECONDS))
            yield
        finally:
            pending = signal.setitimer(signal.ITIMER_REAL, 0)[0]
            sys.unraisablehook = hook
            signal.signal(signal.SIGALRM, handler)
            foreign = pending if 0 < pending < self.left(margin) else math.inf
            if (first := min(foreign, others_left())) < math.inf:
                _set(first)


def _set(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
