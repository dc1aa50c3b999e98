"""Checkpoints of a fit: where they lie, when one counts, and which of them a run goes on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nmf_dask.errors import InputDataError, NmfDaskError, RetryableError
from nmf_dask.pipeline.fitting import Fitting
from nmf_dask.staging import Stage
from nmf_dask.store import ModelLock
from nmf_dask.tasks import ClusterLost

# For the last checkpoint of a job that is stopped: whoever stops it waits ten seconds, and kills it then.
LEAVE_SECONDS = 5.0


class Checkpoints:
    """The checkpoints of one run, written under the lock of its model folder."""

    def __init__(self, stage: Stage, lock: ModelLock) -> None:
        self.stage = stage
        self.lock = lock
        self._saved = 0  # passes that a checkpoint holds

    def save(self, fitting: Fitting, every: int = 1) -> None:
        """Write a checkpoint where `every` passes are not in one yet; what passes left before it goes once it is whole.

        Raises RetryableError where another process has taken over the lock: the files are now its own.
        """
        number = len(fitting.state.rows)
        if number - self._saved < every:
            return
        self.lock.check()
        fitting.save(self.stage.checkpoint(number))
        self._saved = number
        before = [self.stage.checkpoints / name for name in self.stage.checkpoints.list()]
        for folder in (self.stage.passes, *before):
            if folder.name != self.stage.checkpoint(number).name:
                with suppress(InputDataError, RetryableError):  # it is in nobody's way
                    folder.delete()

    @contextmanager
    def kept(self, fitting: Fitting) -> Iterator[None]:
        """Where the block is stopped or fails, leave a checkpoint of the passes that would be lost."""
        try:
            yield
        except ClusterLost:
            raise
        except (KeyboardInterrupt, NmfDaskError):
            with suppress(NmfDaskError):  # why it stopped matters more
                self._leave(fitting)
            raise

    def _leave(self, fitting: Fitting) -> None:
        number = len(fitting.state.rows)
        if number > self._saved:
            self.lock.check()
            fitting.leave(self.stage.checkpoint(number), LEAVE_SECONDS)

    def resume(self, fitting: Fitting) -> str | None:
        """Take the fit to the last checkpoint that is whole; its name, or None where there is none."""
        for name in reversed(self.stage.checkpoints.list()):
            folder = self.stage.checkpoints / name
            try:
                fitting.load(folder)
            except InputDataError:
                folder.delete()
            else:
                self._saved = len(fitting.state.rows)
                return name
        return None
