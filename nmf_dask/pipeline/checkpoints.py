"""Checkpoints of a fit: where they lie, when one counts, and which of them a run goes on from."""

from __future__ import annotations

from contextlib import suppress

from nmf_dask.errors import InputDataError, RetryableError
from nmf_dask.pipeline.fitting import Fitting
from nmf_dask.staging import Stage
from nmf_dask.store import ModelLock


class Checkpoints:
    """The checkpoints of one run, written under the lock of its model folder."""

    def __init__(self, stage: Stage, lock: ModelLock) -> None:
        self.stage = stage
        self.lock = lock

    def save(self, fitting: Fitting) -> None:
        """Write a checkpoint; the ones before it go once it is whole.

        Raises RetryableError where another process has taken over the lock: the files are now its own.
        """
        self.lock.check()
        number = len(fitting.state.rows)
        fitting.save(self.stage.checkpoint(number))
        for name in self.stage.checkpoints.list():
            if name != self.stage.checkpoint(number).name:
                with suppress(InputDataError, RetryableError):  # it is in nobody's way
                    (self.stage.checkpoints / name).delete()

    def resume(self, fitting: Fitting) -> str | None:
        """Take the fit to the last checkpoint that is whole; its name, or None where there is none."""
        for name in reversed(self.stage.checkpoints.list()):
            folder = self.stage.checkpoints / name
            try:
                fitting.load(folder)
            except InputDataError:
                folder.delete()
            else:
                return name
        return None
