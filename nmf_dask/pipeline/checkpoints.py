"""Checkpoints of a fit: where they lie, when one counts, and which of them a run goes on from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nmf_dask.errors import InputDataError, NmfDaskError, RetryableError
from nmf_dask.pipeline.deadline import WRITTEN_BYTES, DeadlineReached
from nmf_dask.pipeline.fitting import Fitting
from nmf_dask.staging import Stage
from nmf_dask.store import ModelLock, StageDamaged
from nmf_dask.tasks import ClusterLost

# For the last checkpoint of a job that is stopped: whoever stops it waits ten seconds, and kills it then.
LEAVE_SECONDS = 5.0


class Checkpoints:
    """The checkpoints of one run, written under the lock of its model folder."""

    def __init__(self, stage: Stage, lock: ModelLock) -> None:
        self.stage = stage
        self.lock = lock
        self._saved = 0  # passes that a checkpoint holds
        self._longest = 0.0  # seconds that one took

    def save(self, fitting: Fitting, every: int = 1) -> None:
        """Write a checkpoint where `every` passes are not in one yet; what passes left before it goes once it is whole.

        Raises RetryableError where another process has taken over the lock: the files are now its own.
        """
        number = len(fitting.state.rows)
        if number - self._saved < every:
            return
        self.lock.check()
        started = time.perf_counter()
        fitting.save(self.stage.checkpoint(number))
        self._longest = max(self._longest, time.perf_counter() - started)
        self._saved = number
        before = [self.stage.checkpoints / name for name in self.stage.checkpoints.list()]
        for folder in (self.stage.passes, *before):
            if folder.name != self.stage.checkpoint(number).name:
                with suppress(InputDataError, RetryableError):  # it is in nobody's way
                    folder.delete()

    def seconds(self, fitting: Fitting) -> float:
        """How long a checkpoint may take: twice the longest so far, or what the bytes of W and H say."""
        sizes = fitting.problem.sizes
        n_bytes = 4 * sizes.kp * (sizes.n_rows + 3 * sizes.n_features)
        return 2 * self._longest or n_bytes / WRITTEN_BYTES

    def seconds_due(self, fitting: Fitting) -> float:
        """The same for the checkpoint that the fit would leave now; 0 where there is nothing new to leave."""
        return self.seconds(fitting) if len(fitting.state.rows) > self._saved else 0.0

    @contextmanager
    def kept(self, fitting: Fitting) -> Iterator[None]:
        """Where the block is stopped or fails, leave a checkpoint of the passes that would be lost."""
        try:
            yield
        except ClusterLost:
            raise
        except (KeyboardInterrupt, NmfDaskError) as error:
            # A deadline keeps the time that it takes.
            needed = self.seconds(fitting) if isinstance(error, DeadlineReached) else 0.0
            with suppress(NmfDaskError):  # why it stopped matters more
                self._leave(fitting, max(LEAVE_SECONDS, needed))
            raise

    def _leave(self, fitting: Fitting, seconds: float) -> None:
        number = len(fitting.state.rows)
        if number > self._saved:
            self.lock.check()
            fitting.leave(self.stage.checkpoint(number), seconds)

    def resume(self, fitting: Fitting) -> str | None:
        """Take the fit to the last checkpoint that is whole; its name, or None where there is none."""
        for name in reversed(self.stage.checkpoints.list()):
            folder = self.stage.checkpoints / name
            try:
                fitting.load(folder)
            except (InputDataError, StageDamaged):
                folder.delete()
            else:
                self._saved = len(fitting.state.rows)
                return name
        return None
