"""A fit in progress: what both ways to fit have in common, its checkpoints above all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from nmf_dask.factorization import FitState
from nmf_dask.observer import Pass
from nmf_dask.pipeline.fitting.files import check_past, load_outcome, load_weights, outcome_file, strip_file
from nmf_dask.pipeline.fitting.problem import Problem
from nmf_dask.store import Folder
from nmf_dask.tasks import Batch, Tasks

_KEPT = ("iteration", "momentum", "reseeded", "stop_reason")  # of a FitState, beside its rows and its outcome


class Fitting(ABC):
    """A fit in progress on tasks: passes, checkpoints, and W and H at its end."""

    state: FitState  # without its outcome and its past, where those are on workers
    spreads: bool  # whether strips are on many workers

    def __init__(self, tasks: Tasks, problem: Problem) -> None:
        self.tasks = tasks
        self.problem = problem

    @abstractmethod
    def begin(self) -> None:
        """Start W and H."""

    @abstractmethod
    def advance(self) -> None:
        """One pass, or some."""

    @abstractmethod
    def finish(self, solved: bool) -> float:
        """Make the last row's loss exact, and gather what is kept; the loss of the rows alone.

        With `solved`, W becomes what a transform of the same rows gives.
        """

    @abstractmethod
    def kept(self) -> Any:
        """Handle of the sums that a later fit may go on from, once this one is finished."""

    @abstractmethod
    def weights(self) -> list[Any]:
        """Handles of the W of each strip."""

    @abstractmethod
    def outcome(self) -> Any:
        """Handle of the last outcome."""

    @abstractmethod
    def resume(self, W: list[Any], state: FitState) -> None:
        """Go on from a checkpoint."""

    @abstractmethod
    def saving(self, folder: Folder) -> list[tuple[Any, ...]]:
        """Calls (function, file or folder, handle) that write W and H of one and the same pass."""

    def save(self, folder: Folder) -> None:
        """A checkpoint: W and H as files by tasks, then the state, which says that it is whole; go on from it."""
        batch = Batch()
        saved = [batch.call("save", *call) for call in self.saving(folder)]
        for handle in self.tasks.submit(batch, saved):
            self.tasks.fetch(handle)
        self._sign(folder)
        self.load(folder)

    def leave(self, folder: Folder, seconds: float) -> None:
        """A checkpoint within some seconds, to end with: it waits for no task that is under way."""
        self.tasks.beside(self.saving(folder), seconds)
        self._sign(folder)

    def _sign(self, folder: Folder) -> None:
        told: dict[str, Any] = {name: getattr(self.state, name) for name in _KEPT}
        told["rows"] = [list(row) for row in self.state.rows]
        (folder / "state.json").write_json(told)

    def load(self, folder: Folder) -> None:
        """Go on from a checkpoint: the files are the new roots, and lineage begins with them.

        Raises InputDataError where a file of it is missing or damaged.
        """
        told = (folder / "state.json").read_json()
        rows = tuple(Pass(*row) for row in told.pop("rows"))
        batch = Batch()
        n_strips = len(self.problem.strips)
        refs = [batch.call("load", load_weights, strip_file(folder, i)) for i in range(n_strips)]
        for i, ref in enumerate(refs):
            if self.spreads:
                batch.place(ref, i / n_strips)
        refs.append(batch.call("load", load_outcome, outcome_file(folder)))
        handles = self.tasks.submit(batch, refs)
        for position in self.tasks.completed(handles):
            self.tasks.check(handles[position])
        *W, outcome = handles
        if self.problem.earlier is not None:
            self.tasks.fetch(self.tasks.call("load", check_past, self.problem.earlier.past))
        self.resume(W, FitState(outcome, rows=rows, **told))
