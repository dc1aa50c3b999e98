"""Which passes a fit makes, and in how many strips: from settings and sizes alone.

So a corpus gets the same schedule, and the same bytes, wherever it runs. A pass goes once over the data, a round over
a share of it. The numbers here were chosen on four corpora.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from nmf_dask.blocks import Sizes
from nmf_dask.config import ModelSettings
from nmf_dask.kernels.kullback_leibler import TINY
from nmf_dask.kernels.matrices import padded_width
from nmf_dask.kernels.objective import Frobenius, KullbackLeibler, Objective, Penalties


class PassPlan(NamedTuple):
    """How one pass goes: H is updated `rounds` times, each after W's and H's sweeps, from sums that decay."""

    rounds: int
    w_sweeps: int
    h_sweeps: int
    decay: float = 0.7


# Near their start W and H decide which local minimum they go to, and long steps there go to a worse one: on four
# corpora, a few passes of one sweep first ended lower than none (KL on the largest alone did not).
GENTLE = PassPlan(1, 1, 1)
GENTLE_PASSES = 5
# 48,000 abstracts, k=50, five seeds in three orders: 210.333 in the median with half as many topics more, 210.348 with
# a quarter more, 210.366 with as many again and 210.368 with none; scikit-learn's own median is 210.359. Up to k=20
# nothing either way.
MORE_TOPICS = 0.5
# Shares of the topics beyond those asked for that are still there in the passes after the first ones. On 48,000
# abstracts fits end at 210.341 in the mean (30 seeds) with two such passes and with three, and topics gain a little of
# each (20 seeds, when what goes was read off decaying sums): NPMI .1403 with two, .1411 with three, .1418 with six, NMI
# .3067, .3087 and .3092. Where all go at once, the first pass after them is at 210.487 in place of 210.415.
LEAVING = (0.75, 0.5, 0.25)
ONE_TASK_BYTES = 256 * 2**20
# Each costs an update of H. Ten seeds on 48,000 abstracts, k=50: 210.335 in the median with 10 rounds and with 20.
MOST_ROUNDS = {"frobenius": 10, "kullback-leibler": 20}
ROUND_ROWS = 2000  # fewer rows say too little of H: on 11,000 messages, rounds of 560 ended higher than none
KL_ROUNDS = 10  # fewer are not worth their passes
WIDE_ROWS = 40_000  # that a fit begins with more topics from
FIRST_MOMENTUM, MOMENTUM_GROWTH, LEAST_MOMENTUM = 0.5, 1.1, 0.05
MOST_MOMENTUM = 2.0
# A pass over this many products (nonzeros times weights) has to bring a fall of `tol` times the first error. What
# passes cost decides how long to go on: 20 milliseconds for the seventh digit are no matter, an hour is.
PRODUCTS_OF_TOL = 2e10
LARGE_FALL = 0.3
SAMPLE_NONZEROS = 4_000_000  # of the fit of a sample that larger corpora begin with
SAMPLE_PASSES = 8
START_SWEEPS = {"mu": 20, "cd": 5}  # of W, from equal weights, under the H of the sample
MOST_STRIP_BYTES = 32 * 2**20


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
        return Frobenius(penalties, solver=model.method)
    # Stored zeros alone are of no scale.
    return KullbackLeibler(penalties, floor=max(1e-7 * scale, float(TINY)))


def is_plain(model: ModelSettings) -> bool:
    """Whether each pass is to be one iteration of scikit-learn: one round, one sweep, nothing added."""
    return model.rounds == 1 and model.sweeps == 1


def fits_one_task(sizes: Sizes) -> bool:
    """Whether one task can hold the whole fit: by sizes, since the result must not depend on the cluster.

    A round of many tasks costs some tens of milliseconds, and a whole pass over so little takes no longer.
    """
    return sizes.nnz * 8 + sizes.n_rows * sizes.kp * 4 <= ONE_TASK_BYTES


def least_fall(sizes: Sizes, beta_loss: str) -> float:
    """The share of `tol` that the error must fall by in a pass, of its first value, for another pass to follow.

    scikit-learn's is a tenth an iteration, and a pass does the work of about three of them: so it is over much data.
    Passes over little data are cheap, and go on for the digits that coordinate descent finds there.
    """
    if not fits_one_task(sizes):
        return LARGE_FALL
    if beta_loss != "frobenius":
        return 0.02
    return min(max(sizes.nnz * sizes.kp / PRODUCTS_OF_TOL, 0.0005), LARGE_FALL)


def first_components(model: ModelSettings, sizes: Sizes) -> int:
    """How many topics a fit begins with: more than asked for, of which the weakest go (`beginning.begin`).

    As many as fill the kernels' width, where passes of many rounds bring them to rest before that. Elsewhere, and
    where the user says how passes go, as many as asked for: on 11,000 messages (5 rounds) those that went had not
    found their places, and the fit ended higher; Kullback-Leibler gained nothing on the largest corpus.
    """
    k = model.n_components
    automatic = model.rounds == "auto" and model.sweeps == "auto" and model.beta_loss == "frobenius"
    if not automatic or k == 1 or sizes.n_rows < WIDE_ROWS:
        return k
    wide = padded_width(k + math.ceil(k * MORE_TOPICS))
    return max(k, min(wide, sizes.n_rows, sizes.n_features))


class WidePasses(NamedTuple):
    """Passes with more topics than asked for."""

    n_components: int
    passes: tuple[PassPlan, ...]


def wide_passes(model: ModelSettings, sizes: Sizes) -> list[WidePasses]:
    """The passes that a fit begins with where it begins with more topics, fewer from one to the next; none elsewhere.

    First those of `schedule`, then whole ones, while the others go: as many stay each time as fill the kernels' width.
    """
    k, wide = model.n_components, first_components(model, sizes)
    if wide == k:
        return []
    first, whole = schedule(model, sizes)
    left = [k + int((wide - k) * share) for share in LEAVING]
    staying = [max(k, n - n % padded_width(1)) for n in left]
    return [WidePasses(wide, tuple(first)), *(WidePasses(n, (whole,)) for n in staying)]


def start_passes(model: ModelSettings, sizes: Sizes) -> int:
    """How many passes a fit makes before the first of its own."""
    return sum(len(stage.passes) for stage in wide_passes(model, sizes))


def strip_count(sizes: Sizes, beta_loss: str) -> int:
    """How many strips to cut: enough for threads and workers, few enough for one scheduler, two at least.

    A strip is worth 100 ms of a core a pass within one task, twice that where each is a task of its own. A pass that
    takes T core-seconds keeps P threads busy with 2 P strips as long as the scheduler hands them over, 6 ms each, in
    less than T / P: P is at most √(T / 12 ms), and more strips would only keep the scheduler busy.
    """
    kp = sizes.kp
    # Seconds of one core a pass: nonzeros and rows by what they cost on a 2021 server core, near enough for a count.
    a_nonzero = 0.45e-9 if beta_loss == "frobenius" else 1.5e-9
    seconds = sizes.nnz * kp * a_nonzero + sizes.n_rows * kp * kp * 1e-10
    if fits_one_task(sizes):
        return max(2, round(seconds / 0.1))
    wanted = min(seconds / 0.2, 2 * math.sqrt(seconds / 0.012))
    # However many rows there are, a strip of them has to fit a small worker.
    least = math.ceil(sizes.n_rows * kp * 4 / MOST_STRIP_BYTES)
    return 4 * max(1, round(wanted / 4), math.ceil(least / 4))  # so that two and four threads end together


def schedule(model: ModelSettings, sizes: Sizes) -> tuple[list[PassPlan], PassPlan]:
    """The passes of many rounds that come first, and the whole pass that is repeated after them.

    From sizes alone, so that a corpus gets the same schedule wherever it runs.
    """
    sweeps = {"mu": 3, "cd": 2}[model.method] if model.sweeps == "auto" else model.sweeps
    h_sweeps = {"mu": 10, "cd": 2}[model.method] if model.sweeps == "auto" else model.sweeps
    if model.beta_loss == "kullback-leibler":
        h_sweeps = 1  # the ratios X / WH are those of the H that was met: a second step would be one too far
    whole = PassPlan(1, sweeps, h_sweeps)
    if is_plain(model):
        return [], whole
    auto, kl = model.rounds == "auto", model.beta_loss == "kullback-leibler"
    most = MOST_ROUNDS[model.beta_loss]
    rounds = min(most, sizes.n_rows // ROUND_ROWS) if model.rounds == "auto" else model.rounds
    rounds = max(1, min(rounds, sizes.n_rows))
    if auto and rounds < (KL_ROUNDS if kl else 2):
        return [GENTLE] * GENTLE_PASSES, whole
    if rounds == 1:
        return [], whole
    round_sweeps = {"mu": 5, "cd": 2}[model.method] if model.sweeps == "auto" else model.sweeps
    many = PassPlan(rounds, round_sweeps, min(round_sweeps, h_sweeps))
    if not auto or kl:
        return [many] * 2, whole
    if sizes.n_rows >= WIDE_ROWS and model.method == "cd":
        return [GENTLE, many._replace(h_sweeps=1)], whole
    return [*[GENTLE] * 2, *[many] * 2], whole
