"""`NMF` of a Dask array: fitted where its chunks are, transformed chunk by chunk.

With a client the chunks become blocks on the workers, which Dask spills where memory is short; without one they are
staged in files of a temporary folder, one after the other, and read as they are visited. Either way rows are shuffled
within chunks, and what is left of the fit is H.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data
from threadpoolctl import threadpool_limits

from nmf_dask.beginning import begin, fit_of
from nmf_dask.blocks import LocalBlocks, Run, Sizes, cut_strips
from nmf_dask.config import ModelSettings, machine_bytes
from nmf_dask.estimators.engine import EngineFit, threads
from nmf_dask.estimators.rows import Rows, as_csr, as_scipy, checked_factor
from nmf_dask.factorization import Fit, FitState, FoldIn, Outcome, factor_of
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.matrices import Csr, rows_between
from nmf_dask.schedule import (
    SAMPLE_NONZEROS,
    SAMPLE_PASSES,
    START_SWEEPS,
    fits_one_task,
    is_plain,
    strip_count,
)
from nmf_dask.staging import StagedBlocks, write_block
from nmf_dask.store import Folder

if TYPE_CHECKING:
    from nmf_dask.estimators.nmf import NMF

Array = NDArray[Any]

CACHE_SHARE = 0.1  # of memory, for staged blocks that are read again every pass


class Facts(NamedTuple):
    """What a fit needs to know of a chunk."""

    n_rows: int
    nnz: int
    total: float


class Started(NamedTuple):
    """An H to begin with (k, m), or how many topics to find one for, and by which `init` (None: whichever fits)."""

    model: ModelSettings
    H: Array | None = None
    init: str | None = None


def fit_chunks(estimator: NMF, X: Any, W: Any, H: Any) -> EngineFit:
    """Fit an estimator to a Dask array; H comes back in the type of X."""
    from nmf_dask.distributed.collections import current_tasks, delayed_chunks
    from nmf_dask.estimators.nmf import NAMES

    X = _of_rows(estimator, X, reset=True)
    shape = (sum(X.chunks[0]), X.shape[1])  # NaN where chunks do not tell their rows
    k = estimator._resolved(shape, None, H)
    estimator._check_loss(NAMES)
    init = estimator._init((shape[1] if math.isnan(shape[0]) else shape[0], shape[1]), k)
    if W is not None or (H is not None) != (init == "custom"):
        raise ValueError('of a Dask array init="custom" starts from H, and from H alone: give H, and no W')
    if init == "nndsvdar":
        raise ValueError('init="nndsvdar" is not there for Dask arrays; take "nndsvda"')
    if H is not None:
        H = checked_factor(np.asarray(H), (k, shape[1]), "H")
    start = Started(estimator.model_settings(k, init), H, estimator.init)
    chunks, tasks = delayed_chunks(X), current_tasks()
    m = int(shape[1])
    fit = _staged_fit(chunks, m, start) if tasks is None else _fit_by_workers(tasks, chunks, m, start)
    return fit._replace(H=fit.H.astype(_dtype(X)))


def lazy_weights(estimator: NMF, X: Any) -> Any:
    """A Dask array of W, chunk by chunk, under H as it is now, whatever becomes of the estimator."""
    from nmf_dask.distributed.collections import mapped_rows

    X = _of_rows(estimator, X, reset=False)
    fitted = copy.copy(estimator)
    fitted.components_ = estimator.components_.copy()
    fitted.__dict__.pop("_history", None)
    return mapped_rows(X, _chunk_weights, fitted, len(fitted.components_), _dtype(X))


def chunks_of(X: Any) -> Iterator[Any]:
    """The chunks that have rows, one in memory at a time; of a Dask DataFrame its partitions, with their names."""
    from nmf_dask.distributed.collections import (
        delayed_chunks,
        delayed_parts,
        is_frame,
        one_by_one,
        row_chunks,
    )

    parts = delayed_parts(X) if is_frame(X) else delayed_chunks(row_chunks(X))
    return (part for part in one_by_one(parts) if part.shape[0])


def _of_rows(estimator: NMF, X: Any, *, reset: bool) -> Any:
    """X as a Dask array of whole rows, its width and names checked, or kept where `reset`."""
    from nmf_dask.distributed.collections import is_frame, row_chunks

    names = X._meta if is_frame(X) else None  # an empty pandas frame
    X = row_chunks(X)
    like = np.empty((0, X.shape[1])) if names is None else names
    validate_data(estimator, like, reset=reset, skip_check_array=True)
    return X


def _dtype(X: Any) -> Any:
    return np.float32 if X.dtype == np.float32 else np.float64


def _checked(chunk: Any, m: int) -> Any:
    """A chunk as CSR or NumPy; ValueError for what no factorization takes, and for another width than X told of."""
    chunk = as_scipy(chunk)
    types: dict[str, Any] = {"accept_sparse": "csr", "dtype": [np.float64, np.float32]}
    negative = chunk.shape[0] > 0  # what is empty has no smallest entry
    chunk = check_array(
        chunk, ensure_non_negative=negative, ensure_min_samples=0, input_name="X", estimator="NMF", **types
    )
    if chunk.shape[1] != m:
        raise ValueError(
            f"a chunk of X has {chunk.shape[1]} columns, and X says that it has {m}: give from_delayed or map_blocks "
            "the shape that chunks have"
        )
    return chunk


def _chunk_weights(chunk: Any, estimator: NMF) -> Array:
    """A task: W of one chunk."""
    k, m = estimator.components_.shape
    if not chunk.shape[0]:
        return np.empty((0, k), _dtype(chunk))
    X = _checked(chunk, m)
    return estimator._weights(Rows((X,), X.shape, X.dtype))


def _block_of(chunk: Any, number: int, seed: int, m: int) -> Csr:
    """A task: a chunk as the engine takes it, its rows shuffled: any share of them is a random sample."""
    X = _checked(chunk, m)
    order = np.random.default_rng([seed, 4, number]).permutation(X.shape[0])
    return as_csr(X, order)


def _facts(block: Csr) -> Facts:
    return Facts(block.n_rows, block.nnz, float(block.data.sum(dtype=np.float64)))


class Problem(NamedTuple):
    """Blocks by what is known of them, and the fit that the settings ask for."""

    facts: tuple[Facts, ...]
    sizes: Sizes
    start: Started

    @classmethod
    def of(cls, facts: list[Facts], m: int, start: Started) -> Problem:
        """ValueError where there are fewer rows than NNDSVD takes, or none."""
        n, nnz = sum(one.n_rows for one in facts), sum(one.nnz for one in facts)
        if n == 0:
            raise ValueError("X has no rows; a matrix (n, m) of one row at least is asked for")
        if (start.init or "").startswith("nndsvd") and n < start.model.n_components:
            raise ValueError(
                f"init = '{start.init}' can only be used when n_components <= min(n_samples, n_features)"
            )
        return cls(tuple(facts), Sizes(n, m, nnz, start.model.n_components), start)

    @property
    def total(self) -> float:
        """The sum of X."""
        return sum(one.total for one in self.facts)

    @property
    def fit(self) -> Fit:
        """Of an H that is given nothing is left to find: there are no more topics than asked for."""
        scale = self.total / max(self.sizes.nnz, 1)
        if self.start.H is not None:
            return Fit.of(self.sizes, self.start.model, scale)
        return fit_of(self.sizes, self.start.model, scale)

    def strips(self) -> list[tuple[Run, ...]]:
        """Each block cut into as many strips as are its due: what two workers hold is in no strip together."""
        wanted = strip_count(self.sizes, self.start.model.beta_loss)
        strips: list[tuple[Run, ...]] = []
        for number, one in enumerate(self.facts):
            if one.n_rows:
                cuts = max(1, round(wanted * one.n_rows / self.sizes.n_rows))
                strips += [
                    tuple(run._replace(block=number) for run in strip)
                    for strip in cut_strips([one.n_rows], cuts)
                ]
        return strips

    def solved(self, blocks: Any, n_threads: int) -> EngineFit:
        """The whole fit in this process; `blocks` gives one by its number."""
        with LocalBlocks.of(blocks, self.sizes, self.strips(), n_threads) as local:
            state = self._begun(local)
            while state.stop_reason is None:
                state = self.fit.advance(local, state)
            return _told(self.fit.finished(local, state), self.sizes.n_components)

    def _begun(self, local: LocalBlocks) -> FitState:
        if self.start.H is None:
            return begin(local, self.start.model, self.total)
        state = self.fit.begin(pad_H(self.start.H))
        local.visit(self.fold(), factor_of(state.outcome))
        return state

    def fold(self) -> FoldIn:
        """The step that starts W under an H that is given."""
        model = self.start.model
        return FoldIn(self.fit.objective, model.n_components, START_SWEEPS[model.method])


def _told(state: FitState, k: int) -> EngineFit:
    last = state.rows[-1].reconstruction_err
    H = np.ascontiguousarray(state.outcome.HT[:, :k].T)
    return EngineFit(H, len(state.rows), state.stop_reason or "", last)


def _staged_fit(chunks: list[Any], m: int, start: Started) -> EngineFit:
    """Without a client: this process does everything, a block in memory at a time and thread."""
    from nmf_dask.distributed.collections import each_part, one_by_one, scratch_folder

    with tempfile.TemporaryDirectory(prefix="nmf-dask-", dir=scratch_folder()) as scratch:
        folder = Folder(scratch)
        files = tuple(folder / f"part-{i:05d}.arrow" for i in range(len(chunks)))
        stage = partial(_staged, files=files, seed=start.model.random_state, m=m)
        problem = Problem.of(list(one_by_one(each_part(stage, chunks))), m, start)
        staged = StagedBlocks(files, int(machine_bytes() * CACHE_SHARE))
        with threadpool_limits(1, user_api="blas"):
            return problem.solved(staged, threads())


def _staged(chunk: Any, number: int, files: tuple[Folder, ...], seed: int, m: int) -> Facts:
    block = _block_of(chunk, number, seed, m)
    write_block(files[number], block)
    return _facts(block)


def _fit_by_workers(tasks: Any, chunks: list[Any], m: int, start: Started) -> EngineFit:
    from nmf_dask.distributed.collections import each_part, persisted

    blocks = persisted(tasks, each_part(_block_of, chunks, start.model.random_state, m))
    facts = [tasks.fetch(one) for one in tasks.map("facts", _facts, blocks)]
    problem = Problem.of(facts, m, start)
    if fits_one_task(problem.sizes) or (is_plain(start.model) and start.H is None):
        fit: EngineFit = tasks.fetch(tasks.call("fit", _fit_task, problem, blocks, tasks.threads))
        return fit
    state = _spread(tasks, problem, blocks)
    outcome = tasks.fetch(state.outcome)
    return _told(replace(state, outcome=outcome), problem.sizes.n_components)


def _fit_task(problem: Problem, blocks: list[Csr], n_threads: int) -> EngineFit:
    """A task: the whole fit, where all blocks together are small."""
    return problem.solved(list(blocks).__getitem__, n_threads)


def _spread(tasks: Any, problem: Problem, blocks: list[Any]) -> FitState:
    """The fit over all workers: H of a sample first, then passes of a task a strip."""
    from nmf_dask.distributed.collections import FutureBlocks

    fit, strips = problem.fit, problem.strips()
    over = FutureBlocks(blocks, tasks, problem.sizes, strips, [None] * len(strips))
    if problem.start.H is None:
        of = max(1, math.ceil(problem.sizes.nnz / SAMPLE_NONZEROS))
        outcome = tasks.call(
            "sample", _sample_task, problem, tasks.map("head", _head, blocks, of), tasks.threads
        )
    else:
        outcome = tasks.call("start", _outcome_of, fit, pad_H(problem.start.H))
    tasks.fetch(over.visit(problem.fold(), tasks.call("factor", factor_of, outcome)))
    state = replace(fit.begin(np.empty((0, 0), np.float32)), outcome=outcome)
    while state.stop_reason is None:
        state = fit.advance(over, state)
    return fit.finished(over, state)


def _head(block: Csr, of: int) -> Csr:
    """A task: the first rows of a block, a random sample."""
    return rows_between(block, 0, max(1, block.n_rows // of) if block.n_rows else 0)


def _outcome_of(fit: Fit, HT: Array) -> Outcome:
    return Outcome(HT, fit.objective.factor(HT), math.inf, ())


def _sample_task(problem: Problem, heads: list[Csr], n_threads: int) -> Outcome:
    """A task: H of the sample."""
    model = problem.start.model.model_copy(update={"max_iter": SAMPLE_PASSES, "tol": 0.0})
    sample = Problem.of([_facts(head) for head in heads], problem.sizes.n_features, Started(model))
    H = sample.solved(list(heads).__getitem__, n_threads).H
    return _outcome_of(problem.fit, pad_H(H))
