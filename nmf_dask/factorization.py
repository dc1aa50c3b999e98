"""The loop over passes: rounds with decaying sums first, then whole passes until the loss stands still.

A pass goes once over the data, a round over a share of it. The ideas are Yin, Gao and Zhang's frequent updates of
block-wise NMF, Lefèvre, Bach and Févotte's online NMF, and Mairal's surrogate statistics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.blocks import Blocks, Share, Sizes
from nmf_dask.config import ModelSettings
from nmf_dask.fixed import FixedH
from nmf_dask.initialization import Total
from nmf_dask.kernels.matrices import Csr, unset
from nmf_dask.kernels.objective import TALL, Factor, Frobenius, Objective, Sums, each_tile
from nmf_dask.observer import Pass
from nmf_dask.schedule import (
    FIRST_MOMENTUM,
    LEAST_MOMENTUM,
    MOMENTUM_GROWTH,
    MOST_MOMENTUM,
    PassPlan,
    is_plain,
    least_fall,
    objective_of,
    schedule,
)

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Visit:
    """The step of a round: W's sweeps and H's sums."""

    objective: Objective
    sweeps: int

    def empty(self, n_features: int, kp: int) -> Sums:
        return self.objective.empty(n_features, kp)

    def __call__(self, X: Csr, start: int, stop: int, W: Floats, shared: Factor, sums: Sums) -> None:
        self.objective.visit(X, start, stop, W, shared, self.sweeps, sums)


@dataclass(frozen=True)
class FoldIn:
    """The step that starts W under an H that is good already: equal weights, and sweeps of them."""

    objective: Objective
    n_components: int
    sweeps: int

    def empty(self, n_features: int, kp: int) -> Total:
        return Total(0.0)

    def __call__(self, X: Csr, start: int, stop: int, W: Floats, shared: Factor, sums: Total) -> None:
        # Of the size that W has where each topic explains its part; the first sweep scales what is off.
        largest = float(shared.gram.max()) if len(shared.gram) > 1 else float(shared.gram.max()) ** 2
        W[:, : self.n_components] = 1 / max(np.sqrt(largest), 1e-12)
        self.objective.fold_in(X, start, stop, W, shared, self.sweeps)


@dataclass(frozen=True)
class Solve:
    """The step that ends a fit: each row's W at the minimum of its own problem under the last H, and H's sums."""

    objective: Objective
    model: ModelSettings

    def empty(self, n_features: int, kp: int) -> Sums:
        return self.objective.empty(n_features, kp)

    def shared(self, factor: Factor) -> tuple[Factor, Doubles]:
        """What all rows need."""
        return factor, FixedH.of(factor.HT, self.model).gram

    def __call__(
        self, X: Csr, start: int, stop: int, W: Floats, shared: tuple[Factor, Doubles], sums: Sums
    ) -> None:
        factor, gram = shared
        fixed = FixedH(factor.HT, gram, self.model.beta_loss, self.objective.penalties)
        fixed.solve(X, start, stop, W)
        self.objective.visit(X, start, stop, W, factor, 0, sums)


class Outcome(NamedTuple):
    """What a pass leaves: H, the factor that the next pass meets rows with, the divergence, topics nobody has."""

    HT: Floats
    factor: Factor  # of H, or of H carried on along its last step
    divergence: float
    dead: tuple[int, ...]
    WtW: Doubles | None = None  # of the W that it leaves, as `Sums` have it, where that is known


@dataclass(frozen=True)
class FitState:
    """Where a fit stands between two passes; with W it is all that the next pass needs."""

    outcome: Any  # handle of the last Outcome
    iteration: int = 0
    momentum: float = FIRST_MOMENTUM
    rows: tuple[Pass, ...] = field(default=())
    reseeded: int = 0
    stop_reason: str | None = None
    past: Any = (
        None  # handle of sums of rows that are not visited, which whole passes reckon with; None: none
    )


class Ended(NamedTuple):
    """What a fit ends with: its state, what is kept for a later one to go on from, the loss of the rows alone."""

    state: FitState
    kept: Any  # handle of Sums, those of the past included (`Objective.kept`)
    reconstruction_err: float


MOST_RESEEDS = 3
RESET = 1e-3  # the sweeps scale it to the rows at once; zero is the one value that they cannot scale


@dataclass(frozen=True)
class Fit:
    """A fit of H to blocks: what is minimized, by which passes, and when it stops."""

    objective: Objective
    model: ModelSettings
    first: tuple[PassPlan, ...]
    whole: PassPlan
    least_fall: float = 0.1

    @classmethod
    def of(cls, sizes: Sizes, model: ModelSettings, scale: float = 1.0) -> Fit:
        """The fit that settings ask for, of blocks of these sizes; `scale` is the mean of X's nonzeros."""
        first, whole = schedule(model, sizes)
        objective = objective_of(model, sizes.n_features, scale)
        return cls(objective, model, tuple(first), whole, least_fall(sizes, model.beta_loss))

    def begin(self, HT: Floats) -> FitState:
        """The state before the first pass; W is started by the blocks."""
        return FitState(Outcome(HT, self.objective.factor(HT), np.inf, ()))

    def advance(self, blocks: Blocks, state: FitState) -> FitState:
        """One pass over the data."""
        started = time.perf_counter()
        steady = state.iteration >= len(self.first)
        plan = self.whole if steady else self.first[state.iteration]
        momentum = state.momentum if steady and not is_plain(self.model) else 0.0
        if momentum:
            blocks.keep()
        if plan.rounds > 1:
            outcome = self._many_rounds(blocks, plan, state)
        else:
            outcome = self._whole_pass(blocks, plan, state, momentum)
        divergence, dead, revived = blocks.fetch(blocks.apply(_summary, outcome, state.outcome))
        err = float(np.sqrt(2 * divergence))
        rose = len(state.rows) > len(self.first) and err > state.rows[-1].reconstruction_err
        if momentum and rose and not revived:
            # Carried on too far: take it back.
            blocks.restore()
            plainly = blocks.apply(self._uncarried, state.outcome)
            return replace(
                state, outcome=plainly, momentum=momentum / 2 if momentum > LEAST_MOMENTUM else 0.0
            )
        blocks.forget()
        row = Pass(state.iteration + 1, err, time.perf_counter() - started, plan.rounds)
        if momentum:
            momentum = min(MOST_MOMENTUM, momentum * MOMENTUM_GROWTH)
        state = replace(
            state,
            outcome=outcome,
            iteration=row.iteration,
            rows=(*state.rows, row),
            momentum=momentum if steady else state.momentum,
        )
        judged = self._judged(state, revived)
        if judged.stop_reason == "max_iter":
            return judged  # no pass is left that would give new topics their weights
        reseeded = self._reseeded(blocks, state, dead)
        return judged if reseeded is state else reseeded

    def _uncarried(self, outcome: Outcome) -> Outcome:
        return outcome._replace(factor=self.objective.factor(outcome.HT))

    def _many_rounds(self, blocks: Blocks, plan: PassPlan, state: FitState) -> Any:
        """H updated after each share of the rows, from sums that decay; blocks are shuffled, so shares are random."""
        step = Visit(self.objective, plan.w_sweeps)
        turn = Turn(self.objective, plan, blocks.parallel)
        carry = blocks.apply(_first_carry, state.outcome)
        for part in range(plan.rounds):
            sums = blocks.visit(step, blocks.apply(_first, carry), Share(part, plan.rounds))
            carry = blocks.apply(turn, carry, sums)
        return blocks.outcome(turn.outcome, carry)

    def _whole_pass(self, blocks: Blocks, plan: PassPlan, state: FitState, momentum: float) -> Any:
        """All rows, then H, which is carried on along its last step."""
        sums = blocks.visit(Visit(self.objective, plan.w_sweeps), blocks.apply(factor_of, state.outcome))
        close = Close(self.objective, plan.h_sweeps, momentum, blocks.parallel)
        return blocks.outcome(close, state.outcome, sums, state.past)

    def _reseeded(self, blocks: Blocks, state: FitState, dead: tuple[int, ...]) -> FitState:
        """Give dead topics weights to start from again, unless penalties or too little data want them dead."""
        penalties = self.objective.penalties
        dead = tuple(topic for topic in dead if topic < self.model.n_components)
        meant = penalties.l1_H > 0 or penalties.l1_W > 0 or is_plain(self.model)
        if not dead or meant or state.reseeded >= MOST_RESEEDS:
            return state
        seed = self.model.random_state + state.iteration
        outcome = blocks.apply(Reseed(self.objective, dead, seed), state.outcome)
        return replace(state, outcome=outcome, reseeded=state.reseeded + 1)

    def _judged(self, state: FitState, revived: bool) -> FitState:
        """The state with a reason to stop, if there is one; a pass that `revived` topics may well end higher.

        scikit-learn compares errors 10 iterations apart with `tol` times the first. Plain passes are compared so;
        others, each worth several iterations, with the pass before.
        """
        apart, share = (10, 1.0) if is_plain(self.model) else (1, self.least_fall)
        rows = state.rows
        compared = len(rows) > len(self.first) + apart and len(rows) % apart == 0 and not revived
        if self.model.tol > 0 and compared:
            fell = rows[-1 - apart].reconstruction_err - rows[-1].reconstruction_err
            if fell <= self.model.tol * share * rows[0].reconstruction_err:  # both are zero where X is
                return replace(state, stop_reason="tol")
        if state.iteration >= self.model.max_iter:
            return replace(state, stop_reason="max_iter")
        return state

    def finished(self, blocks: Blocks, state: FitState) -> FitState:
        """The last state with an exact loss: KL's passes know that of the H before."""
        if isinstance(self.objective, Frobenius) and state.rows and state.rows[-1].rounds == 1:
            return state
        return self.ended(blocks, state).state

    def ended(self, blocks: Blocks, state: FitState, solved: bool = False) -> Ended:
        """The last state with an exact loss, and what a later fit may go on from: one more visit of all rows.

        With `solved` W becomes what the rows' own problems under H have for a minimum, unless passes are plain.
        """
        factor = blocks.apply(factor_of, blocks.apply(self._uncarried, state.outcome))
        if solved and not is_plain(self.model):
            step = Solve(self.objective, self.model)
            sums = blocks.visit(step, blocks.apply(step.shared, factor))
        else:
            sums = blocks.visit(Visit(self.objective, 0), factor)
        kept = blocks.apply(self._kept, sums, factor, state.past)
        own, err = (
            float(np.sqrt(2 * max(one, 0.0)))
            for one in blocks.fetch(blocks.apply(self._divergences, sums, factor, state.past))
        )
        rows = (*state.rows[:-1], state.rows[-1]._replace(reconstruction_err=err))
        return Ended(replace(state, rows=rows), kept, own)

    def _kept(self, sums: Sums, factor: Factor, past: Sums | None) -> Sums:
        kept = self.objective.kept(self.objective.settled(sums, factor), factor)
        return kept if past is None else kept.plus(past)

    def _divergences(self, sums: Sums, factor: Factor, past: Sums | None) -> tuple[float, float]:
        """Of the rows, and with what the past adds."""
        own = self.objective.divergence(sums, factor)
        return own, own if past is None else own + self.objective.surrogate(past, factor)


Carry = tuple[Factor, "Sums | None", float]


def _first_carry(outcome: Outcome) -> Carry:
    return outcome.factor, None, 0.0


def _first(carry: Carry) -> Factor:
    return carry[0]


def factor_of(outcome: Outcome) -> Factor:
    """What the next pass meets rows with."""
    return outcome.factor


def _summary(outcome: Outcome, before: Outcome) -> tuple[float, tuple[int, ...], bool]:
    """Divergence, dead topics, and whether the pass gave topics that had died their weights."""
    return outcome.divergence, outcome.dead, before.factor.reset is not None


@dataclass(frozen=True)
class Turn:
    """One round's update of H: (factor, decayed sums, divergence so far), sums of the share → the same, later."""

    objective: Objective
    plan: PassPlan
    parallel: Callable[..., Any] = map

    def __call__(self, carry: Carry, sums: Sums) -> Carry:
        factor, history, divergence = carry
        if sums.n_rows == 0:
            return carry  # strips of fewer rows than rounds: the share is empty, and says nothing of H
        divergence += self.objective.divergence(sums, factor)
        sums = self.objective.settled(sums, factor)
        if history is None:
            history = self.objective.started(sums, factor, self.plan.decay)
        history = history.aged(self.plan.decay, sums, self.parallel)
        updated = self.objective.update(factor, history, self.plan.h_sweeps, self.parallel)
        # Each round meets rows of its own: those of later rounds need their weights reset as well.
        return updated._replace(reset=factor.reset), history, divergence

    def outcome(self, carry: Carry) -> Outcome:
        """What the last round leaves of the pass."""
        factor, history, divergence = carry
        dead = dead_topics(factor, history) if history is not None else ()
        return Outcome(factor.HT, factor._replace(reset=None), divergence, dead)


@dataclass(frozen=True)
class Close:
    """The end of a whole pass: H from the sums, its divergence, and H carried on along its step (BMMe)."""

    objective: Objective
    sweeps: int
    momentum: float
    parallel: Callable[..., Any] = map

    def __call__(self, before: Outcome, sums: Sums, past: Sums | None = None) -> Outcome:
        own = self.objective.settled(sums, before.factor)
        sums = own if past is None else own.plus(past)
        updated = self.objective.update(before.factor, sums, self.sweeps, self.parallel)
        exact = updated if isinstance(self.objective, Frobenius) else before.factor
        divergence = self.objective.divergence(own, exact)
        if past is not None:
            divergence = max(divergence + self.objective.surrogate(past, exact), 0.0)
        carried = updated
        if self.momentum > 0:
            HT = self._carried_on(updated.HT, before.HT)
            carried = self.objective.factor(HT, self.parallel)
        return Outcome(updated.HT, carried, divergence, dead_topics(updated, sums), own.WtW)

    def _carried_on(self, HT: Floats, before: Floats) -> Floats:
        """H carried on, each topic at its old size, which W makes up for: H would grow with every pass, without end."""
        carried = unset(*HT.shape)

        def carry(low: int) -> tuple[Floats, Floats]:
            old, new = HT[low : low + TALL], carried[low : low + TALL]
            new[:] = self.objective.extrapolated(old, before[low : low + TALL], self.momentum)
            return old.sum(axis=0), new.sum(axis=0)

        def scale(low: int) -> None:
            carried[low : low + TALL] *= factors

        sizes = np.asarray(list(self.parallel(carry, range(0, len(HT), TALL))), np.float64).sum(axis=0)
        factors = (sizes[0] / np.maximum(sizes[1], np.finfo(np.float32).tiny)).astype(np.float32)
        each_tile(self.parallel, scale, len(HT), TALL)
        return carried


def dead_topics(factor: Factor, sums: Sums) -> tuple[int, ...]:
    """Topics of which no document or no term has any weight to speak of, the padding among them."""
    weights = np.sqrt(np.diag(sums.WtW)) if len(sums.WtW) > 1 else sums.WtW[0]
    product = weights * factor.HT.sum(axis=0)
    return tuple(np.flatnonzero(product <= 1e-12 * product.max()).tolist())


@dataclass(frozen=True)
class Reseed:
    """Random rows of H, of the size of the others, in place of dead ones; W gets weights for them again."""

    objective: Objective
    dead: tuple[int, ...]
    seed: int

    def __call__(self, outcome: Outcome) -> Outcome:
        HT = outcome.HT.copy()
        alive = HT[:, HT.any(axis=0)]
        mean = alive.mean(axis=1) if alive.size else np.ones(len(HT), np.float32)
        reset = np.zeros(HT.shape[1], np.float32)
        rng = np.random.default_rng([self.seed, 3])
        for topic in self.dead:
            HT[:, topic] = mean * rng.exponential(size=len(HT))
            reset[topic] = RESET
        return outcome._replace(HT=HT, factor=self.objective.factor(HT)._replace(reset=reset))
