"""The loop over passes: rounds with decaying sums first, then whole passes until the loss stands still.

DESIGN.md section 6 says what a pass and a round are and where the ideas come from (Yin, Gao and Zhang's frequent
updates of block-wise NMF; Lefèvre, Bach and Févotte's online NMF; Mairal's surrogate statistics).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.blocks import Blocks, LocalBlocks, Share, Sizes, cut_strips
from nmf_dask.config import ModelSettings
from nmf_dask.initialization import Total, pad_H, start
from nmf_dask.kernels.matrices import Csr, from_scipy, frozen
from nmf_dask.kernels.objective import Factor, Frobenius, KullbackLeibler, Objective, Penalties, Sums
from nmf_dask.observer import Pass

Floats = NDArray[np.float32]


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


class PassPlan(NamedTuple):
    """How one pass goes: H is updated `rounds` times, each after W's and H's sweeps, from sums that decay."""

    rounds: int
    w_sweeps: int
    h_sweeps: int
    decay: float = 0.7


def objective_of(model: ModelSettings, n_features: int, scale: float = 1.0) -> Objective:
    """The objective that settings ask for. `scale` is the mean of X's nonzeros: float32's floors follow it."""
    alpha_H = model.alpha_W if model.alpha_H == "same" else model.alpha_H
    penalties = Penalties(
        l1_W=n_features * model.alpha_W * model.l1_ratio,
        l2_W=n_features * model.alpha_W * (1 - model.l1_ratio),
        l1_H=alpha_H * model.l1_ratio,
        l2_H=alpha_H * (1 - model.l1_ratio),
    )
    if model.beta_loss == "frobenius":
        return Frobenius(penalties, solver=model.solver)
    return KullbackLeibler(penalties, floor=1e-7 * scale)


def is_plain(model: ModelSettings) -> bool:
    """Whether each pass is to be one iteration of scikit-learn: one round, one sweep, nothing added."""
    return model.rounds == 1 and model.sweeps == 1


def strip_count(sizes: Sizes, beta_loss: str) -> int:
    """How many strips to cut: enough for threads and workers, each worth about 100 ms a pass, two at least."""
    kp = sizes.kp
    # Seconds of one core a pass: nonzeros and rows by what they cost on a 2021 server core, near enough for a count.
    a_nonzero = 0.45e-9 if beta_loss == "frobenius" else 1.5e-9
    seconds = sizes.nnz * kp * a_nonzero + sizes.n_rows * kp * kp * 1e-10
    return max(2, min(round(seconds / 0.1), 65536))


def schedule(model: ModelSettings, sizes: Sizes) -> tuple[list[PassPlan], PassPlan]:
    """The passes of many rounds that come first, and the whole pass that is repeated after them.

    From sizes alone, so that a corpus gets the same schedule wherever it runs.
    """
    sweeps = {"mu": 3, "cd": 2}[model.solver] if model.sweeps == "auto" else model.sweeps
    h_sweeps = {"mu": 10, "cd": 2}[model.solver] if model.sweeps == "auto" else model.sweeps
    if model.beta_loss == "kullback-leibler":
        h_sweeps = 1  # the ratios X / WH are those of the H that was met: a second step would be one too far
    whole = PassPlan(1, sweeps, h_sweeps)
    if model.rounds != "auto":
        rounds = model.rounds
    elif sizes.n_rows >= 40 * sizes.n_components:
        rounds = 20
    else:
        rounds = 1
    rounds = min(rounds, sizes.n_rows)
    if rounds == 1:
        return [], whole
    round_sweeps = {"mu": 5, "cd": 2}[model.solver] if model.sweeps == "auto" else model.sweeps
    passes = [PassPlan(rounds, round_sweeps, round_sweeps if h_sweeps > 1 else 1)] * 2
    return passes, whole


class Outcome(NamedTuple):
    """What a pass leaves: H, the factor that the next pass meets rows with, the divergence, topics nobody has."""

    HT: Floats
    factor: Factor  # of H, or of H carried on along its last step
    divergence: float
    dead: tuple[int, ...]


@dataclass(frozen=True)
class FitState:
    """Where a fit stands between two passes; with W it is all that the next pass needs."""

    outcome: Any  # handle of the last Outcome
    iteration: int = 0
    momentum: float = 0.0
    rows: tuple[Pass, ...] = field(default=())
    reseeded: int = 0
    stop_reason: str | None = None


MOMENTUM = {"mu": 0.9, "cd": 0.7}
LEAST_MOMENTUM = 0.05
MOST_RESEEDS = 3
FOLD_SWEEPS = 10
RESET = 1e-3  # the sweeps scale it to the rows at once; zero is the one value that they cannot scale


@dataclass(frozen=True)
class Fit:
    """A fit of H to blocks: what is minimized, by which passes, and when it stops."""

    objective: Objective
    model: ModelSettings
    first: tuple[PassPlan, ...]
    whole: PassPlan

    @classmethod
    def of(cls, sizes: Sizes, model: ModelSettings, scale: float = 1.0) -> Fit:
        """The fit that settings ask for, of blocks of these sizes; `scale` is the mean of X's nonzeros."""
        first, whole = schedule(model, sizes)
        return cls(objective_of(model, sizes.n_features, scale), model, tuple(first), whole)

    def begin(self, HT: Floats) -> FitState:
        """The state before the first pass; W is started by the blocks."""
        momentum = 0.0 if is_plain(self.model) else MOMENTUM[self.model.solver]
        return FitState(Outcome(HT, self.objective.factor(HT), np.inf, ()), momentum=momentum)

    def advance(self, blocks: Blocks, state: FitState) -> FitState:
        """One pass over the data."""
        started = time.perf_counter()
        plan = self.first[state.iteration] if state.iteration < len(self.first) else self.whole
        outcome = (self._many_rounds if plan.rounds > 1 else self._whole_pass)(blocks, plan, state)
        divergence, dead = blocks.fetch(blocks.apply(_summary, outcome))
        err = float(np.sqrt(2 * divergence))
        if plan.rounds == 1 and self._rose(state, err):  # carried on too far: take it back
            blocks.restore()
            plainly = blocks.apply(self._uncarried, state.outcome)
            momentum = state.momentum / 2 if state.momentum > LEAST_MOMENTUM else 0.0
            return replace(state, outcome=plainly, momentum=momentum)
        row = Pass(state.iteration + 1, err, time.perf_counter() - started, plan.rounds)
        rows = (*state.rows, row)
        return self._judged(
            self._revived(blocks, replace(state, outcome=outcome, iteration=row.iteration, rows=rows), dead)
        )

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
        return blocks.apply(turn.outcome, carry)

    def _whole_pass(self, blocks: Blocks, plan: PassPlan, state: FitState) -> Any:
        """All rows, then H, which is carried on along its last step."""
        if state.momentum > 0:
            blocks.keep()
        sums = blocks.visit(Visit(self.objective, plan.w_sweeps), blocks.apply(_factor, state.outcome))
        close = Close(self.objective, plan.h_sweeps, state.momentum, blocks.parallel)
        return blocks.apply(close, state.outcome, sums)

    def _rose(self, state: FitState, err: float) -> bool:
        whole = [row for row in state.rows if row.rounds == 1]
        return state.momentum > 0 and bool(whole) and err > whole[-1].reconstruction_err

    def _revived(self, blocks: Blocks, state: FitState, dead: tuple[int, ...]) -> FitState:
        """Give dead topics weights to start from again, unless penalties or too little data want them dead."""
        penalties = self.objective.penalties
        dead = tuple(topic for topic in dead if topic < self.model.n_components)
        meant = penalties.l1_H > 0 or penalties.l1_W > 0 or is_plain(self.model)
        if not dead or meant or state.reseeded >= MOST_RESEEDS:
            return state
        seed = self.model.random_state + state.iteration
        outcome = blocks.apply(Reseed(self.objective, dead, seed), state.outcome)
        return replace(state, outcome=outcome, reseeded=state.reseeded + 1)

    def _judged(self, state: FitState) -> FitState:
        """The state with a reason to stop, if there is one.

        scikit-learn compares errors 10 iterations apart with `tol` times the first; here each pass is compared with
        the one before, with a tenth of `tol` (plain passes are compared as scikit-learn does).
        """
        apart = 10 if is_plain(self.model) else 1
        rows = state.rows
        if self.model.tol > 0 and len(rows) > apart and len(rows) % apart == 0:
            fell = rows[-1 - apart].reconstruction_err - rows[-1].reconstruction_err
            compared = rows[-1 - apart].rounds == rows[-1].rounds == 1
            if compared and fell < self.model.tol * apart / 10 * rows[0].reconstruction_err:
                return replace(state, stop_reason="tol")
        if state.iteration >= self.model.max_iter:
            return replace(state, stop_reason="max_iter")
        return state

    def finished(self, blocks: Blocks, state: FitState) -> FitState:
        """The last state with an exact loss: KL's passes know that of the H before."""
        if isinstance(self.objective, Frobenius) and state.rows and state.rows[-1].rounds == 1:
            return state
        factor = blocks.apply(_factor, blocks.apply(self._uncarried, state.outcome))
        sums = blocks.visit(Visit(self.objective, 0), factor)
        err = float(np.sqrt(2 * blocks.fetch(blocks.apply(self.objective.divergence, sums, factor))))
        return replace(state, rows=(*state.rows[:-1], state.rows[-1]._replace(reconstruction_err=err)))


Carry = tuple[Factor, "Sums | None", float]


def _first_carry(outcome: Outcome) -> Carry:
    return outcome.factor, None, 0.0


def _first(carry: Carry) -> Factor:
    return carry[0]


def _factor(outcome: Outcome) -> Factor:
    return outcome.factor


def _summary(outcome: Outcome) -> tuple[float, tuple[int, ...]]:
    return outcome.divergence, outcome.dead


@dataclass(frozen=True)
class Turn:
    """One round's update of H: (factor, decayed sums, divergence so far), sums of the share → the same, later."""

    objective: Objective
    plan: PassPlan
    parallel: Callable[..., Any] = map

    def __call__(self, carry: Carry, sums: Sums) -> Carry:
        factor, history, divergence = carry
        divergence += self.objective.divergence(sums, factor)
        sums = self.objective.settled(sums, factor)
        if history is None:
            history = self.objective.started(sums, factor, self.plan.decay)
        history = history.scaled(self.plan.decay)
        history.add(sums)
        factor = self.objective.update(factor, history, self.plan.h_sweeps, self.parallel)
        return factor, history, divergence

    def outcome(self, carry: Carry) -> Outcome:
        """What the last round leaves of the pass."""
        factor, history, divergence = carry
        dead = dead_topics(factor, history) if history is not None else ()
        return Outcome(factor.HT, factor, divergence, dead)


@dataclass(frozen=True)
class Close:
    """The end of a whole pass: H from the sums, its divergence, and H carried on along its step (BMMe)."""

    objective: Objective
    sweeps: int
    momentum: float
    parallel: Callable[..., Any] = map

    def __call__(self, before: Outcome, sums: Sums) -> Outcome:
        sums = self.objective.settled(sums, before.factor)
        updated = self.objective.update(before.factor, sums, self.sweeps, self.parallel)
        exact = updated if isinstance(self.objective, Frobenius) else before.factor
        divergence = self.objective.divergence(sums, exact)
        carried = updated
        if self.momentum > 0:
            # Extrapolated updates for beta-divergences (arXiv 2401.06646): only what grew is carried on.
            step = np.maximum(updated.HT - before.HT, 0)
            carried = self.objective.factor(updated.HT + np.float32(self.momentum) * step)
        return Outcome(updated.HT, carried, divergence, dead_topics(updated, sums))


def dead_topics(factor: Factor, sums: Sums) -> tuple[int, ...]:
    """Topics of which no document or no term has any weight to speak of, the padding among them."""
    weights = np.sqrt(np.diag(sums.WtW)) if len(sums.WtW) > 1 else sums.WtW[0]
    product = weights * factor.HT.sum(axis=0, dtype=np.float64)
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


class Factorization(NamedTuple):
    """What `factorize` returns: W (n, k) and H (k, m) float32, one row a pass, why it stopped, topics nobody has."""

    W: Floats
    H: Floats
    rows: tuple[Pass, ...]
    stop_reason: str
    dead: tuple[int, ...]


def factorize(
    X: Any,
    model: ModelSettings,
    W: NDArray[Any] | None = None,
    H: NDArray[Any] | None = None,
    n_strips: int | None = None,
    threads: int = 1,
) -> Factorization:
    """Factorize one matrix in this process: X ≈ W H, with X (n, m) SciPy sparse or dense and not negative.

    `W` (n, k) and `H` (k, m) are where it starts; without both it starts as `model.init` says. Rows are visited in
    `n_strips` strips (None: as many as the sizes ask for), `threads` at once; the schedule takes the order of the rows
    for random. Raises ValueError where the arrays do not fit each other.
    """
    csr = frozen(from_scipy(X))
    n, m = len(csr.indptr) - 1, csr.n_columns
    sizes = Sizes(n, m, len(csr.data), model.n_components)
    strips = cut_strips([n], n_strips or strip_count(sizes, model.beta_loss))
    blocks = LocalBlocks.of([csr], sizes, strips, threads)
    total = float(csr.data.sum(dtype=np.float64))
    fit = Fit.of(sizes, model, scale=total / max(len(csr.data), 1))
    if W is None or H is None:
        HT = start(blocks, model.init, model.random_state, total / max(n * m, 1))
    else:
        HT = _custom_start(blocks, W, H)
    state = fit.begin(HT)
    while state.stop_reason is None:
        state = fit.advance(blocks, state)
    state = fit.finished(blocks, state)
    blocks.close()
    k = model.n_components
    weights = np.concatenate(blocks.W)[:, :k]
    HT = state.outcome.HT[:, :k]
    dead = tuple(np.flatnonzero(~weights.any(axis=0) | ~HT.any(axis=0)).tolist())
    return Factorization(weights, HT.T.copy(), state.rows, state.stop_reason or "", dead)


def _custom_start(blocks: LocalBlocks, W: NDArray[Any], H: NDArray[Any]) -> Floats:
    n, m, _, k = blocks.sizes
    if W.shape != (n, k) or H.shape != (k, m):
        raise ValueError(f"W has shape {W.shape} and H {H.shape}; X and n_components ask for {(n, k)} and {(k, m)}")
    padded, low = pad_H(np.asarray(W).T), 0
    for own in blocks.W:
        own[:] = padded[low : low + len(own)]
        low += len(own)
    return pad_H(np.asarray(H))


def fold_in(X: Csr, HT: Floats, model: ModelSettings) -> Floats:
    """W (n, kp) of the rows of X under a fixed H, `HT` (m, kp): updates of W alone, until they stand still.

    The problem is convex, so that W does not depend on where it starts; a row without terms gets zeros.
    """
    X = frozen(X)
    objective = objective_of(model, len(HT), scale=float(X.data.mean()) if X.nnz else 1.0)
    factor = objective.factor(HT)
    W = np.zeros((X.n_rows, HT.shape[1]), np.float32)
    FoldIn(objective, model.n_components, FOLD_SWEEPS)(X, 0, X.n_rows, W, factor, Total(0.0))
    for _ in range(model.max_iter // FOLD_SWEEPS):
        before = W.copy()
        objective.fold_in(X, 0, X.n_rows, W, factor, FOLD_SWEEPS)
        if np.linalg.norm(W - before) <= model.tol * np.linalg.norm(W):
            break
    return W
