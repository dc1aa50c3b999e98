"""A large fit: a sample is fitted first, in one task, then all rows are, a task a strip."""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nmf_dask.continuation import go_on
from nmf_dask.factorization import FitState, FoldIn, Outcome, factor_of
from nmf_dask.initialization import start
from nmf_dask.kernels.matrices import Csr, frozen, rows_between
from nmf_dask.pipeline.fitting.files import (
    load_earlier,
    load_outcome,
    load_past,
    outcome_file,
    save_outcome,
    save_past,
    save_weights,
    strip_file,
)
from nmf_dask.pipeline.fitting.one_task import advance_held, begin_held
from nmf_dask.pipeline.fitting.problem import EarlierFit, Problem
from nmf_dask.pipeline.fitting.progress import Fitting
from nmf_dask.schedule import SAMPLE_PASSES, START_SWEEPS, is_plain
from nmf_dask.store import Folder
from nmf_dask.tasks import Tasks, let_go

if TYPE_CHECKING:
    from nmf_dask.distributed import TaskBlocks

NOT_SAVING: tuple[Any, Any, Any] = (None, None, None)  # an outcome, its file, the handle of the writing


class ManyTasks(Fitting):
    """A large fit: a sample is fitted first, in one task, then all rows are, a task a strip."""

    spreads = True

    def __init__(self, tasks: Tasks, problem: Problem, passes: Folder) -> None:
        from nmf_dask.distributed import TaskBlocks  # it brings Dask, which bad input need not wait for

        super().__init__(tasks, problem)
        self._files = (
            passes / f"H-{uuid.uuid4().hex[:12]}-{number:05d}.arrow" for number in itertools.count()
        )
        self._fit = replace(problem.fit, first=()) if not is_plain(problem.model) else problem.fit
        self._saving = NOT_SAVING
        self._blocks = TaskBlocks(
            tasks, problem.blocks, problem.sizes, problem.strips, [], self._begin_saving
        )

    def begin(self) -> None:
        self._blocks.W = [None] * len(self._blocks.strips)
        model = self.problem.model
        if self.problem.earlier is not None:
            self._go_on(self.problem.earlier)
            return
        if is_plain(model):
            HT = start(self._blocks, model.init, model.random_state, self.problem.mean)
            self.state = self._fit.begin(HT)
            return
        outcome = self._rooted(
            self.tasks.call("sample", fit_sample, self.problem.sample(), self.tasks.threads)
        )
        fold = FoldIn(self._fit.objective, model.n_components, START_SWEEPS[model.method])
        started = self._blocks.visit(fold, self.tasks.call("factor", factor_of, outcome))
        self.tasks.fetch(started)
        self.state = replace(self._fit.begin(np.empty((0, 0), np.float32)), outcome=outcome)

    def _go_on(self, earlier: EarlierFit) -> None:
        state = go_on(self._blocks, self._fit, self.tasks.call("start", load_earlier, earlier.start))
        self.tasks.fetch(self.tasks.call("keep", save_past, earlier.past, state.past))
        self.state = replace(state, outcome=self._rooted(state.outcome), past=self._past())

    def _past(self) -> Any:
        """The past as its file gives it, like the outcome (`_rooted`)."""
        earlier = self.problem.earlier
        return None if earlier is None else self.tasks.call("kept", load_past, earlier.past)

    def advance(self) -> None:
        self._step(self._fit.advance)

    def finish(self, solved: bool) -> float:
        def ended(blocks: TaskBlocks, state: FitState) -> FitState:
            self._ended = self._fit.ended(blocks, state, solved)
            return self._ended.state

        self._step(ended)
        return self._ended.reconstruction_err

    def kept(self) -> Any:
        return self._ended.kept

    def _step(self, step: Callable[[TaskBlocks, FitState], FitState]) -> None:
        """W and the state change together, or neither: what a job that is stopped meanwhile saves belongs together."""
        before = list(self._blocks.W)
        try:
            state = step(self._blocks, self.state)
            if state.outcome is not self.state.outcome:
                state = replace(state, outcome=self._rooted(state.outcome))
            self.state = state
        except BaseException as error:
            # What a job that is stopped in a pass saves is what it had before. Nobody wants what is being computed any
            # more, and saving need not wait for it.
            self._blocks.W, self._saving = before, NOT_SAVING
            let_go(error)
            raise

    def _rooted(self, outcome: Any) -> Any:
        """The outcome as a file gives it: what is computed from it can be computed again without what it came from.

        H comes from all strips. Were it not for the file, a worker that dies with it would have all of them visited
        again, in every pass since the last checkpoint; so those are that had their W on that worker.
        """
        if self._saving[0] is not outcome:
            self._begin_saving(outcome)
        (_, file, saved), self._saving = self._saving, NOT_SAVING
        self.tasks.fetch(saved)
        return self.tasks.call("kept", load_outcome, file)

    def _begin_saving(self, outcome: Any) -> None:
        """Write the file of `_rooted`: for a pass's outcome, while the driver looks at its loss."""
        file = next(self._files)
        self._saving = outcome, file, self.tasks.call("keep", save_outcome, file, outcome)

    def saving(self, folder: Folder) -> list[tuple[Any, ...]]:
        files = [(save_weights, strip_file(folder, i), W) for i, W in enumerate(self._blocks.W)]
        return [*files, (save_outcome, outcome_file(folder), self.state.outcome)]

    def weights(self) -> list[Any]:
        return list(self._blocks.W)

    def outcome(self) -> Any:
        return self.state.outcome

    def resume(self, W: list[Any], state: FitState) -> None:
        self._blocks.W = W
        self._blocks.forget()  # it hangs on files that go now
        self.state = replace(state, past=self._past())


def fit_sample(problem: Problem, threads: int) -> Outcome:
    """A task: H of a sample, started as the settings say."""
    model = problem.model.model_copy(update={"max_iter": SAMPLE_PASSES, "tol": 0.0})
    # Copied once: each of many rounds would else look up every block for a few of its rows.
    rows = [_first_rows(problem.blocks(block), n) for block, n in enumerate(problem.block_rows)]
    problem = replace(problem, model=model, blocks=rows.__getitem__)
    state = begin_held(problem, threads)
    while state.state.stop_reason is None:
        state = advance_held(problem, state, threads)
    HT = state.state.outcome.HT
    return Outcome(HT, problem.fit.objective.factor(HT), math.inf, ())


def _first_rows(X: Csr, n_rows: int) -> Csr:
    """In memory of their own: what is read from a store would else be held whole."""
    head = rows_between(X, 0, n_rows)
    return frozen(head._replace(indices=head.indices.copy(), data=head.data.copy()))
