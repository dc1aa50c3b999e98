"""W of new documents under a fitted H: one streaming pass, a part of W an input partition."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from nmf_dask.config import Settings, redact
from nmf_dask.corpus import Corpus, Partition, no_document
from nmf_dask.errors import InputDataError, RetryableError
from nmf_dask.observer import Observer
from nmf_dask.pipeline.account import basis_of, failure, warn_of
from nmf_dask.pipeline.deadline import Deadline
from nmf_dask.pipeline.deaths import awaited
from nmf_dask.pipeline.ingest import ingested
from nmf_dask.pipeline.parts import (
    GROUP_BYTES,
    Due,
    Made,
    PartTasks,
    folding_of,
    groups_of,
    together,
    told_of,
)
from nmf_dask.pipeline.planning import check_memory
from nmf_dask.pipeline.running import connected
from nmf_dask.pipeline.transform_plan import Elsewhere, Prepared, planned_of, prepared
from nmf_dask.store import Contents, ModelLock, Part, Taken, part_key
from nmf_dask.tasks import Batch, Cluster, Tasks

DROP_SECONDS = 60.0  # for parts that are under way when the input turns out to be wrong
WAVE = 512  # partitions that are handed over at a time: what the driver and the scheduler hold does not grow with n


@dataclass(frozen=True)
class TransformResult:
    """A finished transform: the output's folder, and what transform.json says."""

    uri: str
    told: dict[str, Any] = field(repr=False)


def transform(
    settings: Settings,
    observer: Observer | None = None,
    since: float | None = None,
    elsewhere: Elsewhere = frozenset(),
) -> TransformResult:
    """Write the W of the corpus that settings name, under the model they name, to their output.

    What is done is not done again: an output that has all of the input is left as it is, one that was interrupted goes
    on where its files end, and with `transform.new_only` files that came or changed are added. Raises
    ConfigurationError, InputDataError and RetryableError, each with a message for the user; what was committed before
    is not touched. Before `run.deadline`, which counts from `since` (`time.perf_counter`; now), DeadlineReached (a
    KeyboardInterrupt) is raised; parts that are made stay. Files (URI and version) whose W is `elsewhere` are left out.
    """
    observer = observer or Observer()
    started = time.perf_counter() if since is None else since
    observer.stage("plan")
    ready = prepared(settings, elsewhere)
    if not ready.new and ready.output.is_finished():
        observer.named(ready.basis["run_id"], 0)
        observer.inform("nothing new; nothing to do")
        return TransformResult(ready.output.folder.uri, _told(ready, [], started, "nothing new"))
    if settings.cluster.is_own and ready.corpus is not None:
        check_memory(planned_of(settings, ready))
    with ready.output.lock() as lock:
        if ready.output.contents() != ready.contents:  # another process was here, just before
            ready = prepared(settings, elsewhere)
        if renamed := ready.renamed():
            observer.warn(renamed)
        return _Job(settings, ready, observer, lock, started).done()


def _told(ready: Prepared, made: Sequence[Made], started: float, status: str, **more: Any) -> dict[str, Any]:
    """What transform.json and the command's summary say, of the parts that this run made."""
    new = {one.uri for one in ready.new}
    earlier = sum(one.earlier for one in made)
    return {
        "status": status,
        "model": redact(ready.model.uri),
        "run_id": ready.basis["run_id"],
        **told_of([one.part for one in made], ready.model.H.sum(axis=1, dtype=np.float64)),
        "partitions_done": len(made) - earlier,
        "partitions_resumed": earlier,
        "partitions_skipped": sum(len(one.parts) for uri, one in ready.done.items() if uri not in new),
        "files_new": len(new),
        "files_skipped": len(ready.done),
        "seconds": round(time.perf_counter() - started, 3),
        **more,
    }


class _Job:
    """One transform under its lock."""

    def __init__(
        self, settings: Settings, ready: Prepared, observer: Observer, lock: ModelLock, started: float
    ) -> None:
        self.settings = settings
        self.ready = ready
        self.observer = observer
        self.lock = lock
        self.started = started
        self.output = ready.output
        self.contents = ready.contents or Contents(ready.basis)
        self.facts: dict[str, Any] = {}
        self._finished = False  # whether W/ holds what was committed, and nothing else, when the job began
        self._is_quiet = True  # whether no task writes into W/, once the job has failed
        self.deadline = Deadline(settings.run, started)

    def done(self) -> TransformResult:
        """Make the parts that are due and commit; transform.json tells of a failure too."""

        made: list[Made] = []
        if self.ready.corpus is not None and self.ready.corpus.n_rows:
            self._finished = self.output.is_finished()
            self.observer.named(self.ready.basis["run_id"], self.ready.corpus.n_rows)
            self.observer.connecting(self.settings.cluster.scheduler)
            self.output.begin(fresh=self.settings.run.resume == "never")
            try:
                with self.deadline.alarm(), connected(self.settings, small=True) as cluster:
                    made = self._run(cluster, self.ready.corpus)
            except BaseException as error:
                self._failed(error)
                raise
        told = self._report(made, "done")
        self.output.write_told(told)
        contents = self._grown([one.part for one in made])
        if contents == self.contents:
            self.output.finish(contents)  # a commit that was cut off
        else:
            self.output.commit(contents, [one.part.name for one in made], self.lock)
        empty = "{:,} documents hold no known term; their topic is null, their W is zero"
        warn_of(self.observer, told, empty)
        return TransformResult(self.output.folder.uri, told)

    def _report(self, made: Sequence[Made], status: str, **more: Any) -> dict[str, Any]:
        facts = {**self.facts, **basis_of(self.settings), **more}
        return _told(self.ready, made, self.started, status, **facts)

    def _failed(self, error: BaseException) -> None:
        """Say so in transform.json, unless nothing can be written or it is another process's by now.

        Wrong input is not mended by the same command: what was committed is then all that W/ holds again.
        """
        with suppress(InputDataError, RetryableError):
            self.lock.check()
            self.output.write_told(self._report([], "failed", error=failure(error)))
            if isinstance(error, InputDataError) and self.ready.contents is not None and self._is_quiet:
                self.output.finish(self.contents)

    def _ingested(self, tasks: Tasks, raw: Corpus) -> Corpus:
        """The documents of new files, staged by file."""
        self.observer.stage("ingest", len(raw.partitions))
        versions = {one.uri: one.version for one in self.ready.new}
        names = []
        for partition in raw.partitions:
            file = str(partition.pieces[0].file)
            pieces = [(piece.row_group, piece.start, piece.stop) for piece in partition.pieces]
            names.append(part_key(self.ready.basis, file, versions[file], pieces))
        corpus = ingested(raw, self.output.documents, names, tasks, self.observer.advance, by_file=True)
        if corpus.n_rows == 0 and not self.contents.taken:
            raise no_document(raw.settings, raw.files)
        return corpus

    def _due(self, partitions: Sequence[Partition]) -> Iterator[Due]:
        """The parts to make, under names that other parts do not have; those of an earlier attempt keep theirs."""
        left = (
            {}
            if self.settings.run.resume == "never"
            else self.output.leftovers(self.contents, self._finished)
        )
        number = self.contents.next_number()
        row = self.contents.next_row()
        versions_of = {one.uri: one.version for one in self.ready.new}
        for partition in partitions:
            file, source = partition.pieces[0].file, self._source(partition)
            pieces = [(piece.row_group, piece.start, piece.stop) for piece in partition.pieces]
            numbered = row if self._corpus.columns.id is None else None
            what = (source, versions_of[source], file.digest, pieces, numbered)
            key = part_key(self.ready.basis, *what)
            yield Due(partition, left.get(key, f"part-{number:05d}-{key}.parquet"), row)
            number += 1
            row += partition.n_rows

    @property
    def _corpus(self) -> Corpus:
        """That of the new files."""
        assert self.ready.corpus is not None
        return self.ready.corpus

    def _source(self, partition: Partition) -> str:
        """The file of the input whose documents a partition has."""
        file = partition.pieces[0].file
        return self._sources.get(str(file), str(file))

    @cached_property
    def _sources(self) -> dict[str, str]:
        """The input's file by that in which its documents are staged, where they are."""
        sources = zip(self._corpus.files, self._corpus.sources, strict=False)
        return {str(file): str(source) for file, source in sources}

    def _run(self, cluster: Cluster, corpus: Corpus) -> list[Made]:
        cluster.introduce(self.observer)
        made: list[Made] = []
        try:
            if corpus.raw is not None:
                corpus = self._ingested(cluster.tasks, corpus)
                self.ready = replace(self.ready, corpus=corpus)
                self.observer.named(self.ready.basis["run_id"], corpus.n_rows)
            due = list(self._due(corpus.partitions))
            self.observer.stage("transform", len(due))
            for low in range(0, len(due), WAVE):
                made += self._wave(cluster.tasks, due[low : low + WAVE], len(made))
                self.lock.check()
            self.deadline.met()
            self.facts["peak_memory"] = cluster.peak_memory()
        finally:
            self.facts["workers_lost"] = cluster.lost()
        return made

    def _wave(self, tasks: Tasks, due: Sequence[Due], before: int) -> list[Made]:
        groups = groups_of(due, min(GROUP_BYTES, self.settings.corpus.partition_bytes))
        by_index = {group[0].partition.index: group for group in groups}
        partitions = [together(group) for group in groups]
        made: list[list[Made]] = [[] for _ in groups]
        done = before

        def alone(partition: Partition) -> Any:
            return self._handed(tasks, [by_index[partition.index]])[0]

        handles = self._handed(tasks, groups)
        try:
            for position, value in awaited(tasks, "transform", partitions, handles, alone):
                made[position] = value
                done += len(value)
                self.observer.advance(done, partitions[position].text_bytes)
        except InputDataError:
            self._is_quiet = tasks.drop(handles, DROP_SECONDS)
            raise
        return [one for group in made for one in group]

    def _handed(self, tasks: Tasks, groups: Sequence[Sequence[Due]]) -> list[Any]:
        as_csv, measured = self.settings.output.w_format == "csv", self.settings.transform.loss
        make = PartTasks(self.output, self._corpus.columns, as_csv, measured).make
        batch = Batch()
        # A task like any other: what is lost with its worker is loaded again.
        folding = batch.call("model", folding_of, self.ready.model.uri)
        return tasks.submit(batch, [batch.call("transform", make, group, folding) for group in groups])

    def _grown(self, parts: Sequence[Part]) -> Contents:
        """What the output holds with the new parts, in place of those of earlier versions of their files."""
        taken = dict(self.contents.taken)
        arrived = iter(parts)
        by_file: dict[str, list[Part]] = {one.uri: [] for one in self.ready.new}
        for partition in self.ready.corpus.partitions if self.ready.corpus is not None else ():
            by_file[self._source(partition)].append(next(arrived))
        for one in self.ready.new:
            taken[one.uri] = Taken(one.uri, *one.version, tuple(by_file[one.uri]))
        return replace(self.contents, basis=self.ready.basis, taken=taken)
