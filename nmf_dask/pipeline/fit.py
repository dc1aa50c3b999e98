"""The main job: corpus to topics, end to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nmf_dask.blocks import Sizes
from nmf_dask.config import Settings
from nmf_dask.corpus import Corpus, Group, look_at
from nmf_dask.errors import ConfigurationError, InputDataError, NmfDaskError, RetryableError
from nmf_dask.observer import Observer
from nmf_dask.pipeline.account import Account
from nmf_dask.pipeline.checkpoints import Checkpoints
from nmf_dask.pipeline.deadline import Deadline
from nmf_dask.pipeline.deaths import Patience, awaited
from nmf_dask.pipeline.fitting import Fitting, Problem, fitting_of
from nmf_dask.pipeline.ingest import ingested
from nmf_dask.pipeline.passes import Passes
from nmf_dask.pipeline.planning import (
    check_documents,
    check_enough_features,
    check_memory,
    grouped,
    opened,
    planned_of,
    stage_folder,
    with_stop_words,
)
from nmf_dask.pipeline.results import Results
from nmf_dask.pipeline.retention import remove_old_runs
from nmf_dask.pipeline.running import connected, is_small
from nmf_dask.pipeline.spilling import spill_folder
from nmf_dask.pipeline.stages import BlockInfo, CorpusTasks, Counted
from nmf_dask.staging import Stage, StagedBlocks
from nmf_dask.store import Digest, ModelFolder, ModelLock, RunFolder, run_id
from nmf_dask.store.history import InputFile, write_terms
from nmf_dask.tasks import (
    BARE_WORKER_BYTES,
    Cluster,
    TaskKilledWorkers,
    Tasks,
    beyond_itself,
    let_go,
)
from nmf_dask.vocabulary import Vocabulary, select

CACHE_SHARE = 0.3  # of what a worker may use beyond itself, for blocks that are read again every pass
PAUSED_SHARE = 0.8  # distributed.worker.memory.pause
T = TypeVar("T")


@dataclass(frozen=True)
class FitResult:
    """A finished fit: the run's folder and what its run.json says."""

    uri: str
    run_id: str
    resumed: bool
    finished_before: bool
    run: dict[str, Any] = field(repr=False)


def fit(settings: Settings, observer: Observer | None = None, since: float | None = None) -> FitResult:
    """Read the corpus that settings name, fit the model they describe, write the run under their output.

    A run that has finished is not run again; one that was interrupted goes on where its files end. Raises
    ConfigurationError, InputDataError and RetryableError, each with a message for the user; what was
    committed before is never touched. Before `run.deadline`, which counts from `since` (`time.perf_counter`; now),
    DeadlineReached (a KeyboardInterrupt) is raised after a checkpoint, or the model is committed as it stands.
    """
    observer = observer or Observer()
    output = settings.output.output
    if output is None:
        raise ConfigurationError("no output: name the model folder by output.output")
    started = time.perf_counter() if since is None else since
    observer.stage("plan")
    settings = with_stop_words(settings)
    corpus = opened(settings)
    model_folder = ModelFolder(output)
    model_folder.check_usable()
    run = model_folder.run(run_id(settings, corpus.fingerprint))
    if run.is_committed():
        return finished_before(run, settings, observer)
    if settings.cluster.is_own:
        check_memory(planned_of(settings, corpus))
    with model_folder.lock() as lock:
        if run.is_committed():  # by another process, just before it gave the lock away
            return finished_before(run, settings, observer)
        return Job(settings, corpus, run, observer, lock, started).done()


def finished_before(run: RunFolder, settings: Settings, observer: Observer) -> FitResult:
    """What comes of a run that is there already."""
    told = run.read_run()
    observer.named(run.run_id, told.get("n_documents") or 0)
    how = ", as its deadline left it" if told.get("stop_reason") == "deadline" else ""
    observer.inform(f"run {run.run_id} has finished before{how}; nothing to do")
    tidy(run, settings)
    return FitResult(run.folder.uri, run.run_id, False, True, told)


def tidy(run: RunFolder, settings: Settings) -> None:
    """Do what the job of a committed run had left to do, if it was killed before it ended."""
    run.commit()
    with suppress(NmfDaskError):  # what stays is in nobody's way
        if settings.run.scratch:
            stage_folder(settings, run).delete()
        if run.model.lock_file.exists():
            with run.model.lock():  # takes over that of a dead job, and no other; it goes at the end
                pass


class Job:
    """One fit under its lock: the stages in order, and what run.json will say of them.

    `stage` holds its intermediate files: unless given, below the run or in `run.scratch`.
    """

    def __init__(
        self,
        settings: Settings,
        corpus: Corpus,
        run: RunFolder,
        observer: Observer,
        lock: ModelLock,
        started: float,
        stage: Stage | None = None,
    ) -> None:
        self.settings = settings
        self.corpus = corpus
        self.run = run
        self.observer = observer
        self.lock = lock
        self.started = started
        self.stage = stage or Stage(stage_folder(settings, run))
        self.checkpoints = Checkpoints(self.stage, lock)
        self.account = Account(settings, corpus, observer)
        self.deadline = Deadline(settings.run, started)
        self.patience = Patience()
        self.passes = Passes(
            self.checkpoints, settings.run.checkpoint_every, self.deadline, self.patience, observer
        )
        self.taken = inputs_of(corpus)  # the files that are in what the run keeps
        self.digests: dict[str, Digest] = {}  # of the files of results, by path within the run

    def done(self) -> FitResult:
        """Run the job, and commit it; run.json tells of a failure too."""
        self.observer.named(self.run.run_id, self.corpus.n_rows)
        self.observer.connecting(self.settings.cluster.scheduler)
        if self.settings.run.resume == "never":
            self.stage.folder.delete()
        self.run.begin()
        self.run.write_run(self.account.report("running"))
        try:
            with self.deadline.alarm(), self._connected() as cluster:
                self._run(cluster)
        except BaseException as error:
            self._failed(error)
            raise
        self.digests["run.json"] = self.run.write_run(self.account.report("done"))
        self.run.commit(len(self.corpus.partitions), self.digests)
        if self.settings.run.scratch:
            self.stage.folder.delete()
        remove_old_runs(self.run, self.settings.output.keep_runs, self.lock, self.observer)
        resumed = self.account.resumed_from is not None
        return FitResult(self.run.folder.uri, self.run.run_id, resumed, False, self.run.read_run())

    def _connected(self) -> AbstractContextManager[Cluster]:
        spill = spill_folder(self.settings, self.run.run_id)
        return connected(self.settings, is_small(self.settings, self.corpus), spill)

    def _failed(self, error: BaseException) -> None:
        """Say so in run.json, unless nothing can be written or it is another process's by now."""
        with suppress(InputDataError, RetryableError):
            self.lock.check()
            if isinstance(error, InputDataError) and not self.stage.vocabulary.exists():
                self.stage.folder.delete()  # the same input will not count better, and another is another run
            self.run.write_run(self.account.report("failed", error))

    def _run(self, cluster: Cluster) -> None:
        cluster.introduce(self.observer)
        self._warn_of_paused(cluster)
        self.account.stages["plan"] = {"seconds": time.perf_counter() - self.started, "bytes": 0}
        try:
            if self.corpus.raw is not None:
                self._patiently(lambda: self._ingest(cluster.tasks))
            vocabulary = self._vocabulary(cluster.tasks)
            infos = self._blocks(cluster.tasks, vocabulary)
            problem = self._problem(cluster, vocabulary, infos)
            self._patiently(lambda: self._factors(cluster.tasks, vocabulary, problem))
            self.deadline.met()
            peak_memory = cluster.peak_memory()
        finally:
            self.account.told["workers_lost"] = cluster.lost()
        self.account.tell(peak_memory=peak_memory, workers_lost=cluster.lost())

    def _warn_of_paused(self, cluster: Cluster) -> None:
        """Own workers are told not to pause for what they are themselves; others are as whoever started them says."""
        limit = cluster.memory_limit
        if not self.settings.cluster.is_own and 0 < limit * PAUSED_SHARE < BARE_WORKER_BYTES:
            self.observer.warn(
                f"a worker may use {limit / 2**20:,.0f} MiB, and Dask pauses it at 80 % of that, which is less than it "
                "takes with nothing to do: give workers 512 MiB at least, or start them with "
                "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False in their environment; the job may wait for ever"
            )

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do work that goes on where files end; do it again where a task of it was given up that may be innocent."""
        while True:
            try:
                return work()
            except TaskKilledWorkers as error:
                self.patience.check(error)
                let_go(error)
                self.observer.warn(f"{error}; going on from what is staged")

    def _ingest(self, tasks: Tasks) -> None:
        """From the files as they are to documents; what was estimated of them is known from here on."""
        raw = self.corpus
        names = [f"part-{partition.index:05d}" for partition in raw.partitions]

        def advance(done: int, n_bytes: int) -> None:
            self.patience.reached("ingest", done)
            self.observer.advance(done, n_bytes)

        with self.account.timed("ingest", len(names), raw.text_bytes):
            corpus = ingested(raw, self.stage.documents, names, tasks, advance)
            self.observer.named(self.run.run_id, corpus.n_rows)
        self._check_documents(corpus)
        if self.settings.cluster.is_own:
            check_memory(planned_of(self.settings, corpus))
        self.corpus = self.account.corpus = corpus

    def _check_documents(self, corpus: Corpus) -> None:
        """InputDataError for too few of them."""
        check_documents(corpus, self.settings)

    def _corpus_tasks(self) -> CorpusTasks:
        settings = self.settings
        return CorpusTasks(self.corpus.columns, settings.vectorizer, self.stage, settings.model.random_state)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Of the corpus's partitions, as tasks take them; once its documents are there."""
        return grouped(self.corpus, self.settings.vectorizer)

    def _vocabulary(self, tasks: Tasks) -> Vocabulary:
        """Count all partitions and select the features; or take what an earlier attempt selected."""
        earlier = self._selected_before()
        if earlier is not None:
            return earlier
        if self.stage.has_counts():
            self.account.resumed_from = "count"
        numbers, vocabulary = self._patiently(lambda: self._selected(tasks))
        check_enough_features(len(vocabulary), self.settings.model.n_components)
        self.stage.vocabulary.write_parquet(vocabulary.to_table())
        self.stage.counted.write_json(numbers | {"n_blocks": len(self.groups)})
        return vocabulary

    def _selected(self, tasks: Tasks) -> tuple[dict[str, int], Vocabulary]:
        with self.account.timed("count", len(self.corpus.partitions), self.corpus.text_bytes):
            numbers, merged = self._count(tasks)
        with self.account.timed("select"):
            self.patience.reached("select")
            merged = self._merged(tasks, merged)
            selected: Vocabulary = tasks.fetch(tasks.call("select", select, merged, self.settings.vectorizer))
            tasks.fetch(tasks.call("keep", write_terms, self.stage.terms, merged))
        return numbers, selected

    def _merged(self, tasks: Tasks, table: Any) -> Any:
        """Handle of the table of terms that features are selected from; `table` is that of the corpus."""
        return table

    def _n_documents(self) -> int:
        """Documents that the features are selected by."""
        return self.corpus.n_rows

    def _selected_before(self) -> Vocabulary | None:
        try:
            numbers = self.stage.counted.read_json()
            vocabulary = Vocabulary.from_table(self.stage.vocabulary.read_parquet(), self._n_documents())
            if not self.stage.terms.exists():  # an earlier version was here
                return None
            if numbers.pop("n_blocks", len(self.corpus.partitions)) != len(self.groups):  # so was one
                self.stage.checkpoints.delete()  # W of rows in another order
                return None
        except InputDataError:  # there is none, or its writer was killed
            return None
        self.account.resumed_from = "select"
        self.account.tell(**numbers)
        for stage in ("count", "select"):
            self.account.stages[stage] = {"seconds": 0.0, "bytes": 0}
        return vocabulary

    def _count(self, tasks: Tasks) -> tuple[dict[str, int], Any]:
        """Numbers of the corpus, and the handle of its table of terms, which merges while others are counted."""
        counting = partial(self._corpus_tasks().counting, tasks)
        *handles, table = counting(self.groups)
        tried: list[Group] = []

        def alone(group: Group) -> Any:
            tried.append(group)
            return counting([group])[0]

        counted: list[Counted] = self._awaited("count", tasks, handles, alone)
        if tried:  # what was given up takes the merged table along; all of it is staged by now
            table = counting(self.groups)[-1]
        told = {
            "n_null_texts": sum(one.n_nulls for one in counted),
            "n_invalid_utf8": sum(one.n_invalid for one in counted),
        }
        self.account.tell(**told)
        return told, table

    def _awaited(
        self, stage: str, tasks: Tasks, handles: list[Any], alone: Callable[[Group], Any] | None = None
    ) -> list[Any]:
        """Values of one handle a group, with progress as they come; an error names its partitions.

        A task that was given up is handed out again by `alone`, where that is given.
        """
        values: list[Any] = [None] * len(handles)
        done = 0
        for position, value in awaited(tasks, stage, self.groups, handles, alone):
            values[position] = value
            done += len(self.groups[position].partitions)
            self.patience.reached(stage, done)
            self.observer.advance(done, self.groups[position].text_bytes)
        return values

    def _blocks(self, tasks: Tasks, vocabulary: Vocabulary) -> list[BlockInfo]:
        with self.account.timed("weigh", len(self.corpus.partitions), self.corpus.text_bytes):
            weigh = self._corpus_tasks().weigh

            def weighing(groups: Sequence[Group]) -> list[Any]:
                return tasks.map("weigh", weigh, groups, tasks.call("vocabulary", _same, vocabulary))

            infos: list[BlockInfo] = self._awaited(
                "weigh", tasks, weighing(self.groups), lambda group: weighing([group])[0]
            )
        self.account.tell(
            n_documents=self.corpus.n_rows,
            n_empty_documents=sum(info.n_empty for info in infos),
            n_features=len(vocabulary),
            nnz=sum(info.nnz for info in infos),
            collision_rate=vocabulary.collision_rate,
        )
        return infos

    def _problem(self, cluster: Cluster, vocabulary: Vocabulary, infos: list[BlockInfo]) -> Problem:
        model = self.settings.model
        files = tuple(self.stage.block(group.name) for group in self.groups)
        return Problem(
            StagedBlocks(files, int(beyond_itself(cluster.memory_limit) * CACHE_SHARE)),
            tuple(info.n_rows for info in infos),
            Sizes(self.corpus.n_rows, len(vocabulary), self.account.told["nnz"], model.n_components),
            sum(info.total for info in infos),
            model,
        )

    def _factors(self, tasks: Tasks, vocabulary: Vocabulary, problem: Problem) -> None:
        fitting = self._begun(tasks, problem)
        with self.checkpoints.kept(fitting):
            self._passes(fitting)
            with self.deadline.alarm(self.checkpoints.seconds_due(fitting)):
                self._written(tasks, vocabulary, fitting)

    def _begun(self, tasks: Tasks, problem: Problem) -> Fitting:
        fitting = fitting_of(tasks, problem, self.stage.passes)
        again = "init" in self.account.stages
        with self.account.timed("init"):
            self.patience.reached("init")
            checkpoint = self.checkpoints.resume(fitting)
            if checkpoint is None:
                fitting.begin()
            else:
                if not again:
                    self.account.resumed_from = checkpoint
                self.observer.inform(f"going on from checkpoint {checkpoint}")
        return fitting

    def _passes(self, fitting: Fitting) -> None:
        with self.account.timed("fit", fitting.problem.model.max_iter):
            reason = self.passes.until_it_stops(fitting)
            err = fitting.finish(solved=reason != "deadline")
        rows = fitting.state.rows
        self.account.tell(n_iter=len(rows), stop_reason=reason, reconstruction_err=err)

    def _written(self, tasks: Tasks, vocabulary: Vocabulary, fitting: Fitting) -> NDArray[np.float32]:
        """Write the results; H (k, m)."""
        with self.account.timed("write", len(self.corpus.partitions), self.corpus.text_bytes):
            self.patience.reached("write")
            awaited = partial(self._awaited, "write", tasks)
            results = Results(
                self.run, self.stage, self.corpus, self.groups, self.settings, self.taken, awaited
            )
            H, written = results.written(tasks, vocabulary, fitting)
        self.digests |= results.digests
        self.account.tell_topics(H.sum(axis=1, dtype=np.float64), written)
        return H


def inputs_of(corpus: Corpus) -> list[InputFile]:
    """The files of a corpus, with what a listing says of them; a store's has said it already."""
    return [
        InputFile.of(one.uri, one.version, file.name, file.size, file.digest)
        for one, file in zip(look_at(corpus.found), corpus.files, strict=True)
    ]


def _same(value: Any) -> Any:
    return value
