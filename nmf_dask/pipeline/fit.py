"""The main job: corpus to topics, end to end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import nmf_dask
from nmf_dask.blocks import FAN_IN, Sizes
from nmf_dask.cluster import Cluster, connected, peak_rss
from nmf_dask.config import Settings, redact
from nmf_dask.corpus import Corpus
from nmf_dask.errors import ConfigurationError, NmfDaskError
from nmf_dask.observer import Observer
from nmf_dask.pipeline.fitting import Fitting, Problem, fitting_of
from nmf_dask.pipeline.planning import opened
from nmf_dask.pipeline.stages import (
    BlockInfo,
    CorpusTasks,
    Counted,
    WriteTasks,
    Written,
    counted_of,
    runs_of_partitions,
    table_of,
)
from nmf_dask.staging import Stage, StagedBlocks
from nmf_dask.store import Folder, ModelFolder, RunFolder, convergence_table, h_table, run_id, topics_table
from nmf_dask.tasks import Batch, Tasks
from nmf_dask.vocabulary import Vocabulary, merge, select

CACHE_SHARE = 0.3  # of a worker's memory, for blocks that are read again every pass
H_PART_BYTES = 256 * 2**20


@dataclass(frozen=True)
class FitResult:
    """A finished fit: the run's folder and what its run.json says."""

    uri: str
    run_id: str
    resumed: bool
    finished_before: bool
    run: dict[str, Any] = field(repr=False)


def fit(settings: Settings, observer: Observer | None = None) -> FitResult:
    """Read the corpus that settings name, fit the model they describe, write the run under their output.

    A run that has finished is not run again; one that was interrupted goes on where its files end. Raises
    ConfigurationError, InputDataError and RetryableError, each with a message for the user; what was
    committed before is never touched.
    """
    observer = observer or Observer()
    if settings.output.output is None:
        raise ConfigurationError("no output: name the model folder by output.output")
    started = time.perf_counter()
    observer.stage("plan")
    corpus = opened(settings)
    model_folder = ModelFolder(settings.output.output)
    model_folder.check_usable()
    run = model_folder.run(run_id(settings, corpus.fingerprint))
    if run.is_committed():
        observer.inform(f"run {run.run_id} has finished before; nothing to do")
        run.commit()
        return FitResult(run.folder.uri, run.run_id, False, True, run.read_run())
    with model_folder.lock():
        job = Job(settings, corpus, run, observer)
        job.stages["plan"] = {"seconds": time.perf_counter() - started, "bytes": 0}
        return job.done()


class Job:
    """One fit under its lock: the stages in order, and what run.json will say of them."""

    def __init__(self, settings: Settings, corpus: Corpus, run: RunFolder, observer: Observer) -> None:
        self.settings = settings
        self.corpus = corpus
        self.run = run
        self.observer = observer
        scratch = settings.run.scratch
        self.stage = Stage(Folder(scratch) / run.run_id if scratch else run.work)
        self.stages: dict[str, dict[str, float]] = {}
        self.told: dict[str, Any] = {}
        self.resumed_from: str | None = None

    def done(self) -> FitResult:
        """Run the job, and commit it; run.json tells of a failure too."""
        if self.settings.run.resume == "never":
            self.stage.folder.delete()
        self.run.begin()
        self.run.write_run(self._report("running"))
        try:
            with connected(self.settings.cluster) as cluster:
                self._run(cluster)
        except BaseException as error:
            message = str(error) if isinstance(error, NmfDaskError) else f"{type(error).__name__}: {error}"
            self.run.write_run(self._report("failed") | {"error": redact(message)})
            raise
        self.run.write_run(self._report("done"))
        self.run.commit(len(self.corpus.partitions))
        if self.settings.run.scratch:
            self.stage.folder.delete()
        resumed = self.resumed_from is not None
        return FitResult(self.run.folder.uri, self.run.run_id, resumed, False, self.run.read_run())

    def _run(self, cluster: Cluster) -> None:
        workers = cluster.workers()
        threads = sum(int(worker["nthreads"]) for worker in workers.values())
        self.observer.connected(len(workers), threads, cluster.dashboard)
        vocabulary = self._vocabulary(cluster.tasks)
        infos = self._blocks(cluster.tasks, vocabulary)
        problem = self._problem(cluster, vocabulary, infos)
        fitting = self._fitted(cluster.tasks, problem)
        self._written(cluster.tasks, vocabulary, fitting)
        largest = cluster.peak_memory()
        self.told["peak_memory"] = {"driver": peak_rss(), "largest_worker": largest}
        self.told["workers_lost"] = cluster.lost()
        if cluster.lost():
            self.observer.warn(f"{cluster.lost()} workers were lost; their work was done again")

    @contextmanager
    def _timed(self, stage: str, total: int | None = None, n_bytes: int = 0) -> Iterator[None]:
        started = time.perf_counter()
        self.observer.stage(stage, total)
        yield
        self.stages[stage] = {"seconds": time.perf_counter() - started, "bytes": n_bytes}

    def _corpus_tasks(self) -> CorpusTasks:
        settings = self.settings
        return CorpusTasks(
            settings.corpus.text_column, settings.vectorizer, self.stage, settings.model.random_state
        )

    def _vocabulary(self, tasks: Tasks) -> Vocabulary:
        """Count all partitions and select the features; or take what an earlier attempt selected."""
        if self.stage.vocabulary.exists():
            self.resumed_from = "select"
            self.told |= (self.stage.folder / "counted.json").read_json()
            self.stages |= {"count": {"seconds": 0.0, "bytes": 0}, "select": {"seconds": 0.0, "bytes": 0}}
            return Vocabulary.from_table(self.stage.vocabulary.read_parquet(), self.corpus.n_rows)
        partitions = self.corpus.partitions
        with self._timed("count", len(partitions), self.corpus.text_bytes):
            tables = self._count(tasks)
        with self._timed("select"):
            merged = tasks.tree("merge", merge, tables, FAN_IN)
            vocabulary: Vocabulary = tasks.fetch(
                tasks.call("select", select, merged, self.settings.vectorizer)
            )
        (self.stage.folder / "counted.json").write_json(self.told)
        self.stage.vocabulary.write_parquet(vocabulary.to_table())
        return vocabulary

    def _count(self, tasks: Tasks) -> list[Any]:
        batch = Batch()
        numbers, tables = [], []
        for partition in self.corpus.partitions:
            result = batch.call("count", self._corpus_tasks().count, partition)
            numbers.append(batch.call("counted", counted_of, result))
            tables.append(batch.call("table", table_of, result))
        handles = tasks.submit(batch, [*numbers, *tables])
        counted: list[Counted] = self._awaited(tasks, handles[: len(numbers)])
        nulls, invalid = sum(one.n_nulls for one in counted), sum(one.n_invalid for one in counted)
        self.told |= {"n_null_texts": nulls, "n_invalid_utf8": invalid}
        if nulls:
            self.observer.warn(f"{nulls:,} documents have no text (null); they count as empty")
        if invalid:
            self.observer.warn(f"{invalid:,} documents are no valid UTF-8; what is not stands as U+FFFD")
        return handles[len(numbers) :]

    def _awaited(self, tasks: Tasks, handles: list[Any]) -> list[Any]:
        """Values of one handle a partition, with progress as they come."""
        for done, position in enumerate(tasks.completed(handles), 1):
            self.observer.advance(done, self.corpus.partitions[position].text_bytes)
        return [tasks.fetch(handle) for handle in handles]

    def _blocks(self, tasks: Tasks, vocabulary: Vocabulary) -> list[BlockInfo]:
        partitions = self.corpus.partitions
        with self._timed("weigh", len(partitions), self.corpus.text_bytes):
            shared = tasks.call("vocabulary", _same, vocabulary)
            handles = tasks.map("weigh", self._corpus_tasks().weigh, list(partitions), shared)
            infos: list[BlockInfo] = self._awaited(tasks, handles)
        self.told |= {
            "n_documents": self.corpus.n_rows,
            "n_empty_documents": sum(info.n_empty for info in infos),
            "n_features": len(vocabulary),
            "nnz": sum(info.nnz for info in infos),
            "collision_rate": vocabulary.collision_rate,
        }
        if self.told["n_empty_documents"]:
            self.observer.warn(
                f"{self.told['n_empty_documents']:,} documents hold no selected term; their W is zero"
            )
        return infos

    def _problem(self, cluster: Cluster, vocabulary: Vocabulary, infos: list[BlockInfo]) -> Problem:
        model = self.settings.model
        files = tuple(self.stage.block(i) for i in range(len(infos)))
        return Problem(
            StagedBlocks(files, int(cluster.memory_limit * CACHE_SHARE)),
            tuple(info.n_rows for info in infos),
            Sizes(self.corpus.n_rows, len(vocabulary), self.told["nnz"], model.n_components),
            sum(info.total for info in infos),
            model,
        )

    def _fitted(self, tasks: Tasks, problem: Problem) -> Fitting:
        fitting = fitting_of(tasks, problem)
        with self._timed("init"):
            if not self._resumed(fitting):
                fitting.begin()
        with self._timed("fit", problem.model.max_iter):
            self._passes(fitting)
            fitting.finish()
        rows = fitting.state.rows
        self.told |= {
            "n_iter": len(rows),
            "stop_reason": fitting.state.stop_reason,
            "reconstruction_err": rows[-1].reconstruction_err,
        }
        return fitting

    def _passes(self, fitting: Fitting) -> None:
        seen = saved = len(fitting.state.rows)
        try:
            while fitting.state.stop_reason is None:
                fitting.advance()
                for row in fitting.state.rows[seen:]:
                    self.observer.passed(row)
                    self.observer.advance(row.iteration)
                seen = len(fitting.state.rows)
                if fitting.state.stop_reason is None and seen - saved >= self.settings.run.checkpoint_every:
                    self._save(fitting)
                    saved = seen
        except (KeyboardInterrupt, NmfDaskError):
            if seen > saved:
                self._save(fitting)
            raise

    def _save(self, fitting: Fitting) -> None:
        """A checkpoint; the ones before it go once it is whole."""
        number = len(fitting.state.rows)
        fitting.save(self.stage.checkpoint(number))
        for name in (self.stage.folder / "checkpoints").list():
            if name != self.stage.checkpoint(number).name:
                (self.stage.folder / "checkpoints" / name).delete()

    def _resumed(self, fitting: Fitting) -> bool:
        checkpoints = self.stage.folder / "checkpoints"
        for name in sorted(checkpoints.list(), reverse=True):
            if (checkpoints / name / "state.json").exists():
                fitting.load(checkpoints / name)
                self.resumed_from = name
                self.observer.inform(f"going on from checkpoint {name}")
                return True
        return False

    def _written(self, tasks: Tasks, vocabulary: Vocabulary, fitting: Fitting) -> None:
        with self._timed("write", len(self.corpus.partitions), self.corpus.text_bytes):
            outcome = tasks.fetch(tasks.call("H", _H_of, fitting.outcome()))
            H = np.ascontiguousarray(outcome[:, : self.settings.model.n_components].T)
            scale = np.ones(len(H), np.float32)
            if self.settings.model.normalize:
                sums = H.sum(axis=1, dtype=np.float64)
                scale = np.where(sums > 0, sums, 1).astype(np.float32)
                H = (H / scale[:, np.newaxis]).astype(np.float32)
            written = self._write_W(tasks, fitting, scale)
            self._write_H(vocabulary, H)
            self.run.convergence.write_parquet(convergence_table(fitting.state.rows))
        self._tell_topics(H, written)

    def _write_W(self, tasks: Tasks, fitting: Fitting, scale: NDArray[np.float32]) -> list[Written]:
        settings = self.settings
        writer = WriteTasks(
            self.run, self.stage, settings.corpus.id_column, settings.model.random_state, len(scale)
        )
        weights = fitting.weights()
        batch = Batch()
        refs = []
        runs = runs_of_partitions(fitting.problem.strips, len(self.corpus.partitions))
        for partition, places in zip(self.corpus.partitions, runs, strict=True):
            strips = [weights[strip] for strip, _, _ in places]
            rows = tuple((offset, run) for _, offset, run in places)
            refs.append(batch.call("write", writer.write, partition, rows, strips, scale))
        return self._awaited(tasks, tasks.submit(batch, refs))

    def _write_H(self, vocabulary: Vocabulary, H: NDArray[np.float32]) -> None:
        table: pa.Table = h_table(vocabulary, H)
        rows = max(1, H_PART_BYTES // (4 * len(H)))
        for index, low in enumerate(range(0, table.num_rows, rows)):
            self.run.h_part(index).write_parquet(table.slice(low, rows))
        self.run.topics.write_parquet(topics_table(vocabulary, H, self.settings.output.n_top_terms))

    def _tell_topics(self, H: NDArray[np.float32], written: list[Written]) -> None:
        weights = np.sum([one.weights for one in written], axis=0) * H.sum(axis=1, dtype=np.float64)
        documents = np.sum([one.documents for one in written], axis=0)
        total = float(np.sum(weights)) or 1.0
        self.told["topics"] = [
            {"topic": t, "share": float(weights[t] / total), "n_documents": int(documents[t])}
            for t in range(len(H))
        ]
        self.told["dead_topics"] = [t for t in range(len(H)) if weights[t] <= 0]
        if self.told["dead_topics"]:
            self.observer.warn(f"topics without any document: {self.told['dead_topics']}; lower -k")

    def _report(self, status: str) -> dict[str, Any]:
        config = json.loads(redact(self.settings.model_dump_json()))
        source = self.corpus.describe()
        for file in source["files"]:
            file["uri"] = redact(file["uri"])
        return {
            "status": status,
            "config": config,
            "versions": _versions(),
            "input": source,
            **self.told,
            "stages": self.stages,
            "resumed_from": self.resumed_from,
        }


def _same(value: Any) -> Any:
    return value


def _H_of(outcome: Any) -> NDArray[np.float32]:
    H: NDArray[np.float32] = outcome.HT
    return H


def _versions() -> dict[str, str]:
    from importlib.metadata import version
    from platform import python_version

    names = ("dask", "distributed", "numba", "numpy", "pyarrow", "scikit-learn", "scipy")
    return {
        "nmf-dask": nmf_dask.__version__,
        "python": python_version(),
        **{name: version(name) for name in names},
    }
