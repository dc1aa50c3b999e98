"""The factorization of staged blocks: in one task where that is enough, over all workers where it is not."""

from __future__ import annotations

import itertools
import math
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nmf_dask.beginning import begin, fit_of
from nmf_dask.blocks import LocalBlocks, Run, Sizes, cut_strips
from nmf_dask.config import ModelSettings
from nmf_dask.continuation import Earlier, arrays_of, go_on, going_on, sums_of
from nmf_dask.factorization import Fit, FitState, FoldIn, Outcome, factor_of
from nmf_dask.initialization import start
from nmf_dask.kernels.matrices import Csr, aligned, frozen, read_only, rows_between
from nmf_dask.kernels.objective import Factor, Sums
from nmf_dask.observer import Pass
from nmf_dask.schedule import (
    SAMPLE_NONZEROS,
    SAMPLE_PASSES,
    START_SWEEPS,
    fits_one_task,
    is_plain,
    strip_count,
)
from nmf_dask.store import Folder, StageDamaged, read_arrays, write_arrays
from nmf_dask.tasks import Batch, Tasks, let_go

if TYPE_CHECKING:
    from nmf_dask.distributed import TaskBlocks

Weights = NDArray[np.float32]

TURN_SECONDS = 1.0  # of a task that does several passes, so that someone who waits hears of them

_KEPT = ("iteration", "momentum", "reseeded", "stop_reason")  # of a FitState, beside its rows and its outcome


@dataclass(frozen=True)
class EarlierFit:
    """What a fit goes on from: the file of an `Earlier`, and one for the past, which is made in the beginning."""

    start: Folder
    past: Folder


@dataclass(frozen=True)
class Problem:
    """Staged blocks with what a fit of them depends on. Picklable."""

    blocks: Callable[[int], Csr]
    block_rows: tuple[int, ...]
    sizes: Sizes
    total: float  # the sum of X
    model: ModelSettings
    n_strips: int = 0  # as the sizes ask for, counted by the driver
    earlier: EarlierFit | None = None

    def __post_init__(self) -> None:
        if not self.n_strips:
            object.__setattr__(self, "n_strips", strip_count(self.sizes, self.model.beta_loss))

    @property
    def strips(self) -> list[tuple[Run, ...]]:
        """The rows of all blocks in strips."""
        return cut_strips(self.block_rows, self.n_strips)

    @property
    def mean(self) -> float:
        """The mean of X, zeros too."""
        return self.total / (self.sizes.n_rows * self.sizes.n_features)

    @property
    def fit(self) -> Fit:
        """The fit that the settings ask for."""
        scale = self.total / max(self.sizes.nnz, 1)
        if self.earlier is not None:
            return going_on(Fit.of(self.sizes, self.model, scale))
        return fit_of(self.sizes, self.model, scale)

    def local(self, threads: int, W: list[Weights] | None = None) -> LocalBlocks:
        """The blocks in the process that asks, read as they are visited; W is copied."""
        blocks = LocalBlocks.of(self.blocks, self.sizes, self.strips, threads)
        for own, given in zip(blocks.W, W or [], strict=False):
            own[:] = given
        return blocks

    def sample(self) -> Problem:
        """The first rows of every block, a random sample, as a problem of its own."""
        of = max(1, math.ceil(self.sizes.nnz / SAMPLE_NONZEROS))
        rows = tuple(max(1, n // of) if n else 0 for n in self.block_rows)
        share = sum(rows) / self.sizes.n_rows
        sizes = self.sizes._replace(n_rows=sum(rows), nnz=max(1, round(self.sizes.nnz * share)))
        return replace(self, block_rows=rows, sizes=sizes, total=self.total * share, n_strips=0)


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
        refs = [batch.call("load", load_weights, _strip_file(folder, i)) for i in range(n_strips)]
        for i, ref in enumerate(refs):
            if self.spreads:
                batch.place(ref, i / n_strips)
        refs.append(batch.call("load", load_outcome, _outcome_file(folder)))
        handles = self.tasks.submit(batch, refs)
        for position in self.tasks.completed(handles):
            self.tasks.check(handles[position])
        *W, outcome = handles
        if self.problem.earlier is not None:
            self.tasks.fetch(self.tasks.call("load", check_past, self.problem.earlier.past))
        self.resume(W, FitState(outcome, rows=rows, **told))


def _strip_file(folder: Folder, strip: int) -> Folder:
    return folder / f"W-{strip:05d}.arrow"


def _outcome_file(folder: Folder) -> Folder:
    return folder / "H.arrow"


def save_weights(file: Folder, W: Weights) -> None:
    """A task: one strip's W into a file."""
    write_arrays(file, {"W": W})


def load_weights(file: Folder) -> Weights:
    """A task: one strip's W from a file, in memory of its own."""
    W: Weights = read_arrays(file)["W"]
    return W.copy()


def save_outcome(file: Folder, outcome: Outcome) -> None:
    """A task: H into a file, with what the next pass meets rows with."""
    factor = outcome.factor
    arrays: dict[str, NDArray[Any]] = {"HT": outcome.HT, "carried": factor.HT, "gram": factor.gram}
    if factor.reset is not None:
        arrays["reset"] = factor.reset
    write_arrays(file, arrays)


def load_outcome(file: Folder) -> Outcome:
    """A task: the outcome that `save_outcome` saved; its divergence is in the state's rows."""
    arrays = read_arrays(file)
    if "gram" not in arrays:
        raise StageDamaged(f"{file} was written by an earlier version")
    carried = read_only(aligned(arrays.pop("carried")), np.float32)
    arrays = {name: array.copy() for name, array in arrays.items()}
    return Outcome(arrays["HT"], Factor(carried, arrays["gram"], arrays.get("reset")), math.inf, ())


def load_earlier(file: Folder) -> Earlier:
    """A task: what an update goes on from."""
    return Earlier.from_arrays(read_arrays(file))


def save_past(file: Folder, past: Sums | None) -> None:
    """A task: what earlier documents say of H into a file; an empty one where they say nothing."""
    write_arrays(file, {} if past is None else arrays_of(past))


def load_past(file: Folder) -> Sums | None:
    """A task: what `save_past` saved."""
    arrays = read_arrays(file)
    return sums_of(arrays) if arrays else None


def check_past(file: Folder) -> None:
    """A task: InputDataError where the past of a checkpoint is missing or damaged."""
    load_past(file)


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
        save_weights(_strip_file(folder, strip), W)
    save_outcome(_outcome_file(folder), held.state.outcome)


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
        files = [(save_weights, _strip_file(folder, i), W) for i, W in enumerate(self._blocks.W)]
        return [*files, (save_outcome, _outcome_file(folder), self.state.outcome)]

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


def fitting_of(tasks: Tasks, problem: Problem, passes: Folder) -> Fitting:
    """The way to fit that the sizes ask for; files that it needs until the next checkpoint are in `passes`."""
    return OneTask(tasks, problem) if fits_one_task(problem.sizes) else ManyTasks(tasks, problem, passes)
