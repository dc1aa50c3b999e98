"""A small fit: each task does passes over everything, with the threads of the worker it is on."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

from nmf_dask.beginning import begin
from nmf_dask.continuation import go_on
from nmf_dask.factorization import FitState, Outcome
from nmf_dask.kernels.objective import Sums
from nmf_dask.pipeline.fitting.files import (
    load_earlier,
    load_past,
    outcome_file,
    save_outcome,
    save_past,
    save_weights,
    strip_file,
)
from nmf_dask.pipeline.fitting.problem import Problem, Weights
from nmf_dask.pipeline.fitting.progress import Fitting
from nmf_dask.store import Folder
from nmf_dask.tasks import Batch

TURN_SECONDS = 1.0  # of a task that does several passes, so that someone who waits hears of them


@dataclass
class Held:
    """What a task of `OneTask` returns: everything but the past, which is in a file."""

    W: list[Weights]
    state: FitState
    kept: Sums | None = None
    reconstruction_err: float = math.nan

    def __sizeof__(self) -> int:
        """With what it holds: a worker goes by it when it decides what to keep in memory."""
        return sum(strip.nbytes for strip in self.W)


class OneTask(Fitting):
    """A small fit: each task does passes over everything, with the threads of the worker it is on."""

    spreads = False

    def begin(self) -> None:
        self._take(self.tasks.call("init", begin_held, self.problem, self.tasks.threads))

    def advance(self) -> None:
        self._take(self.tasks.call("fit", advance_held, self.problem, self._held, self.tasks.threads))

    def finish(self, solved: bool) -> float:
        self._take(self.tasks.call("fit", finish_held, self.problem, self._held, self.tasks.threads, solved))
        err: float = self.tasks.fetch(self.tasks.call("state", _err_of, self._held))
        return err

    def kept(self) -> Any:
        return self.tasks.call("kept", _kept_of, self._held)

    def weights(self) -> list[Any]:
        batch = Batch()
        refs = [batch.call("weights", _strip_of, self._held, i) for i in range(len(self.problem.strips))]
        return self.tasks.submit(batch, refs)

    def outcome(self) -> Any:
        return self.tasks.call("weights", _outcome_of, self._held)

    def saving(self, folder: Folder) -> list[tuple[Any, ...]]:
        return [(save_held, folder, self._held)]

    def resume(self, W: list[Any], state: FitState) -> None:
        told = replace(state, outcome=None)
        self._take(self.tasks.call("load", held, W, state.outcome, told))

    def _take(self, handle: Any) -> None:
        # Together, and when it is done: a job that is stopped meanwhile saves what it had before.
        state = self.tasks.fetch(self.tasks.call("state", _told, handle))
        self._held, self.state = handle, state


def begin_held(problem: Problem, threads: int) -> Held:
    """A task: the start of W and H."""
    with problem.local(threads) as blocks:
        if problem.earlier is None:
            return Held(blocks.W, begin(blocks, problem.model, problem.total))
        state = go_on(blocks, problem.fit, load_earlier(problem.earlier.start))
        save_past(problem.earlier.past, state.past)
        return Held(blocks.W, replace(state, past=None))


def _state_with_past(problem: Problem, before: Held) -> FitState:
    past = load_past(problem.earlier.past) if problem.earlier is not None else None
    return replace(before.state, past=past)


def advance_held(problem: Problem, before: Held, threads: int) -> Held:
    """A task: passes for about a second; where they are cut makes no difference to the result."""
    fit, state = problem.fit, _state_with_past(problem, before)
    deadline = time.monotonic() + TURN_SECONDS
    with problem.local(threads, before.W) as blocks:
        while state.stop_reason is None:
            state = fit.advance(blocks, state)
            if time.monotonic() > deadline:
                break
    return Held(blocks.W, replace(state, past=None))


def finish_held(problem: Problem, before: Held, threads: int, solved: bool) -> Held:
    """A task: the exact loss, and what is kept."""
    with problem.local(threads, before.W) as blocks:
        ended = problem.fit.ended(blocks, _state_with_past(problem, before), solved)
    return Held(blocks.W, replace(ended.state, past=None), ended.kept, ended.reconstruction_err)


def save_held(folder: Folder, held: Held) -> None:
    """A task: W and H as the files of a checkpoint."""
    for strip, W in enumerate(held.W):
        save_weights(strip_file(folder, strip), W)
    save_outcome(outcome_file(folder), held.state.outcome)


def held(W: list[Weights], outcome: Outcome, state: FitState) -> Held:
    """A task: put together what a checkpoint keeps apart."""
    return Held(W, replace(state, outcome=outcome))


def _strip_of(held: Held, strip: int) -> Weights:
    return held.W[strip]


def _outcome_of(held: Held) -> Outcome:
    outcome: Outcome = held.state.outcome
    return outcome


def _kept_of(held: Held) -> Sums | None:
    return held.kept


def _err_of(held: Held) -> float:
    return held.reconstruction_err


def _told(held: Held) -> FitState:
    return replace(held.state, outcome=None)
