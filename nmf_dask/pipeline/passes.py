"""The passes of a fit one after the other, with checkpoints between them, until it stops or its deadline comes."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from nmf_dask.observer import Observer
from nmf_dask.pipeline.checkpoints import Checkpoints
from nmf_dask.pipeline.deadline import CHECKPOINTS_A_RESULT, Deadline, DeadlineReached
from nmf_dask.pipeline.deaths import Patience
from nmf_dask.pipeline.fitting import Fitting

# How many times as long as a pass the end takes, in which W is solved: three for Frobenius, four for Kullback-Leibler.
SOLVING_PASSES = 6


@dataclass
class Passes:
    """How the passes of one job are made."""

    checkpoints: Checkpoints
    every: int  # passes between checkpoints
    deadline: Deadline
    patience: Patience
    observer: Observer
    _turns: deque[float] = field(default_factory=lambda: deque(maxlen=3))  # seconds of the last tasks

    def until_it_stops(self, fitting: Fitting) -> str:
        """Make passes; why they stopped: as the fit says, or "deadline" where the model is to be written as it stands.

        Raises DeadlineReached where it is not.
        """
        seen = len(fitting.state.rows)
        while fitting.state.stop_reason is None:
            self.patience.reached("fit", seen)
            if not self._advanced(fitting):
                # Before the last row's loss becomes exact: a run that goes on from here judges by what it was.
                self.checkpoints.save(fitting)
                self.observer.warn(
                    f"the deadline came after pass {seen}: the model is written as it stands, and not converged"
                )
                return "deadline"
            for row in fitting.state.rows[seen:]:
                self.observer.passed(row)
                self.observer.advance(row.iteration)
            seen = len(fitting.state.rows)
            if fitting.state.stop_reason is None:
                self.checkpoints.save(fitting, self.every)
        return fitting.state.stop_reason

    def _advanced(self, fitting: Fitting) -> bool:
        """A pass, or some, if they end in time; False where the model is to be written without them."""
        rows = fitting.state.rows
        expected = max(self._turns, default=rows[-1].seconds if rows else 0.0)
        margin = self._margin(fitting, expected)
        started = time.perf_counter()
        try:
            if self.deadline.left(margin) < expected:
                raise self.deadline.error()
            with self.deadline.alarm(margin):
                fitting.advance()
        except DeadlineReached:
            if self.deadline.commits and rows:
                return False
            raise
        self._turns.append(time.perf_counter() - started)
        return True

    def _margin(self, fitting: Fitting, expected: float) -> float:
        """Seconds that what comes after the last pass may take, but for the end of the process."""
        checkpoint = self.checkpoints.seconds(fitting)
        if not self.deadline.commits:
            return checkpoint
        return checkpoint + SOLVING_PASSES * expected + CHECKPOINTS_A_RESULT * checkpoint
