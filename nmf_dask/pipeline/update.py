"""New documents into a model: a new run that starts from the last H, whose topics keep their numbers."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmf_dask.comparison import similarities, state_of
from nmf_dask.config import Settings
from nmf_dask.continuation import Frequencies, carried_over, places
from nmf_dask.corpus import Corpus, NoDocumentError
from nmf_dask.observer import Observer
from nmf_dask.pipeline.fit import FitResult, Job, finished_before, tidy
from nmf_dask.pipeline.fitting import EarlierFit, Fitting, Problem
from nmf_dask.pipeline.planning import check_memory
from nmf_dask.pipeline.stages import BlockInfo
from nmf_dask.pipeline.update_plan import Ready, prepared, update_planned_of
from nmf_dask.store import Folder, Manifest, ModelLock, open_run, write_arrays
from nmf_dask.store.history import read_sums, read_terms
from nmf_dask.tasks import Cluster, Tasks
from nmf_dask.vocabulary import TermTable, Vocabulary, merge


def update(settings: Settings, observer: Observer | None = None, since: float | None = None) -> FitResult:
    """Take the new files of the input that settings name into the model that they name: a new run beside its last.

    The new run starts from the H of the last one, and counts what that one kept of its documents with the weight that
    `update.history` says. Settings of [vectorizer] are the model's, those of [model] too where none are given. Where no
    document is new there is nothing to do, and the result is the last run; an update that was interrupted goes on where
    its files end. Raises ConfigurationError, InputDataError and RetryableError, each with a message for the user; what
    was committed before is not touched. Deadlines are as those of `fit`.
    """
    observer = observer or Observer()
    started = time.perf_counter() if since is None else since
    observer.stage("plan")
    ready = prepared(settings)
    ready.model_folder.check_usable()
    if (done := _done_before(ready, observer)) is not None:
        return done
    if settings.cluster.is_own:
        check_memory(update_planned_of(ready))
    with ready.model_folder.lock() as lock:
        ready = prepared(settings)  # another process may have been here, just before it gave the lock away
        if (done := _done_before(ready, observer)) is not None:
            return done
        try:
            return UpdateJob(ready, observer, lock, started).done()
        except NoDocumentError:
            if settings.update.rereads:
                raise
            ready.run.folder.delete()
            return _nothing_new(
                ready, observer, "the new files hold no document, or none that the filter takes"
            )


def _done_before(ready: Ready, observer: Observer) -> FitResult | None:
    if ready.corpus is None:
        return _nothing_new(ready, observer, f"all files with documents are in run {ready.base_id}")
    return finished_before(ready.run, ready.settings, observer) if ready.run.is_committed() else None


def _nothing_new(ready: Ready, observer: Observer, why: str) -> FitResult:
    run = open_run(ready.base.uri)
    if run.model == ready.model_folder:
        tidy(run, ready.settings)
    observer.named(run.run_id, 0)
    observer.inform(f"nothing new: {why}; nothing to do")
    return FitResult(run.folder.uri, run.run_id, False, True, run.read_run())


class UpdateJob(Job):
    """One update under its lock: a fit of what is new that begins with the earlier H."""

    def __init__(self, ready: Ready, observer: Observer, lock: ModelLock, started: float) -> None:
        assert ready.corpus is not None
        super().__init__(ready.settings, ready.corpus, ready.run, observer, lock, started)
        self.ready = ready
        self.weight = ready.settings.update.weight
        if ready.numbers is not None:
            taken = {one.uri for one in self.taken}
            self.taken = [*(one for one in ready.known if one.uri not in taken), *self.taken]
        self.told: dict[str, Any] = {
            "run_id": ready.base_id,
            "history": ready.settings.update.history,
            "n_documents": ready.n_before,
            "files_skipped": ready.n_skipped,
        }
        self.account.tell(updated_from=self.told)
        observer.inform(
            f"going on from run {ready.base_id}: {len(ready.corpus.files):,} files are new, {ready.n_skipped:,} are in "
            "it"
        )

    def _check_documents(self, corpus: Corpus) -> None:
        if not self.weight:  # else topics rest on those of before as well
            super()._check_documents(corpus)

    def _n_documents(self) -> int:
        return self.ready.n_before + self.corpus.n_rows

    def _merged(self, tasks: Tasks, table: Any) -> Any:
        if self.ready.numbers is None:
            return table
        return tasks.call("terms", merged_with, self.ready.base.uri, self.ready.n_before, table)

    def _problem(self, cluster: Cluster, vocabulary: Vocabulary, infos: list[BlockInfo]) -> Problem:
        self._stage_earlier(cluster.tasks, vocabulary)
        problem = super()._problem(cluster, vocabulary, infos)
        return replace(problem, earlier=EarlierFit(self.stage.earlier, self.stage.past))

    def _stage_earlier(self, tasks: Tasks, vocabulary: Vocabulary) -> None:
        """The earlier H and what its documents said of it, in the columns of now, where tasks find them."""
        base, numbers, past = self.ready.base, self.ready.numbers, None
        before = np.zeros(len(vocabulary), np.int64)
        if numbers is not None and self.weight:
            kept = read_sums(Manifest.load(Folder(base.uri)), numbers, *base.H.shape)
            past = kept.scaled(self.weight)
            before = tasks.fetch(
                tasks.call("terms", frequencies_before, base.uri, numbers.n_documents, vocabulary.bucket)
            )
        now = vocabulary.document_frequency - before
        frequencies = Frequencies(before, self.ready.n_before, now, self.corpus.n_rows)
        square = self.settings.model.beta_loss == "frobenius"
        earlier = carried_over(base.H, base.vocabulary, past, vocabulary, frequencies, square)
        write_arrays(self.stage.earlier, earlier.to_arrays())
        _, known = places(base.vocabulary, vocabulary)
        gone = len(base.vocabulary) - int(known.sum())
        self.told |= {"features_new": int((~known).sum()), "features_gone": gone}
        self.observer.inform(f"{self.told['features_new']:,} terms get columns, {gone:,} lose theirs")

    def _written(self, tasks: Tasks, vocabulary: Vocabulary, fitting: Fitting) -> NDArray[np.float32]:
        H = super()._written(tasks, vocabulary, fitting)
        base, k = self.ready.base, len(H)
        similarity = similarities(H, vocabulary, base.H, base.vocabulary)
        states = [
            state_of(one["share"], float(cosine), k)
            for one, cosine in zip(self.account.told["topics"], similarity, strict=True)
        ]
        for state, said in (("new", "are not those of before"), ("gone", "have next to no document")):
            topics = [topic for topic, one in enumerate(states) if one == state]
            self.told[f"topics_{state}"] = topics
            if topics:
                self.observer.warn(f"topics that {said}: {', '.join(map(str, topics))}")
        self.told["similarity"] = [round(float(one), 6) for one in similarity]
        return H


def merged_with(base: str, n_documents: int, table: TermTable) -> TermTable:
    """A task: the terms of a corpus, merged with those that an earlier run kept; names are those of the larger part."""
    return merge([read_terms(Manifest.load(Folder(base)), n_documents), table]).named()


def frequencies_before(base: str, n_documents: int, buckets: NDArray[np.int64]) -> NDArray[np.int64]:
    """A task: how many documents held a term of each of `buckets` (m,), by what an earlier run kept."""
    kept = read_terms(Manifest.load(Folder(base)), n_documents).buckets
    ascending, frequency = kept["bucket"].to_numpy(), kept["document_frequency"].to_numpy()
    place = np.minimum(np.searchsorted(ascending, buckets), len(ascending) - 1)
    return np.where(ascending[place] == buckets, frequency[place], 0)
