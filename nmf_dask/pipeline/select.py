"""Choosing the number of topics: perturbed fits of each, side by side, from one counted and weighed matrix."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from nmf_dask import evaluation
from nmf_dask.config import SelectSettings, Settings
from nmf_dask.corpus import Corpus
from nmf_dask.errors import ConfigurationError, InputDataError, NmfDaskError
from nmf_dask.evaluation import TopTerms
from nmf_dask.kernels.matrices import padded_width
from nmf_dask.observer import Observer
from nmf_dask.pipeline.evaluate import EvidenceTasks, gathered
from nmf_dask.pipeline.fit import Job
from nmf_dask.pipeline.fitting import Problem
from nmf_dask.pipeline.perturbed import Fitted, PerturbedFits, Stable
from nmf_dask.pipeline.planning import (
    Plan,
    Planned,
    amounts,
    check_memory,
    opened,
    planned_of,
    stage_folder,
    with_stop_words,
)
from nmf_dask.schedule import SAMPLE_NONZEROS
from nmf_dask.selection import Candidate, Recommendation, drawn, recommended
from nmf_dask.store import ModelFolder, RunFolder, run_id
from nmf_dask.store.folder import hash_of
from nmf_dask.tasks import Batch, Cluster, Tasks

N_TERMS = 10  # of a topic, whose coherence is told
WINDOWS = {name: evaluation.WINDOWS[name] for name in ("c_npmi", "c_v")}
SAMPLE_COPIES = 4  # of a sample, while it is drawn and fitted


@dataclass(frozen=True)
class SelectResult:
    """A finished selection: its folder, the recommended k and why, and all that selection.json says."""

    uri: str
    n_components: int
    reason: str
    finished_before: bool
    told: dict[str, Any] = field(repr=False)


def select(settings: Settings, observer: Observer | None = None, since: float | None = None) -> SelectResult:
    """Try the numbers of topics that `settings.select` names on the corpus, and recommend one.

    Writes selection.parquet (a row a number), selection.json and selection.svg below `selections/` of the output, and
    with `select.commit` a run of the recommended number. A selection that has finished is not run again; one that was
    interrupted goes on: every finished fit is staged. Raises ConfigurationError, InputDataError and RetryableError,
    each with a message for the user; in time for `run.deadline`, which counts from `since`, DeadlineReached.
    """
    observer = observer or Observer()
    started = time.perf_counter() if since is None else since
    observer.stage("plan")
    settings = _checked(settings)
    corpus = opened(settings)
    folder = ModelFolder(settings.output.output or "")
    folder.check_usable()
    run = folder.selection(_selection_id(settings, corpus))
    earlier = _earlier(run)
    if earlier is not None and not settings.select.commit:
        observer.inform(f"selection {run.run_id} has finished before; nothing to do")
        with suppress(NmfDaskError):  # it is in nobody's way
            if (staged := stage_folder(settings, run)).exists():  # of a job that was killed before it ended
                with folder.lock():
                    staged.delete()
        return _result(run, earlier, True)
    if settings.cluster.is_own:
        check_memory(_planned(settings, corpus))
    with folder.lock() as lock:
        job = Selecting(settings, corpus, run, observer, lock, started)
        told = earlier or job.found()
        if settings.select.commit:
            job.commit(folder, corpus, told["recommended"])
        with suppress(NmfDaskError):  # it is in nobody's way
            job.stage.folder.delete()
        return _result(run, told, earlier is not None)


def _result(run: RunFolder, told: dict[str, Any], finished_before: bool) -> SelectResult:
    return SelectResult(run.folder.uri, told["recommended"], told["reason"], finished_before, told)


def _checked(settings: Settings) -> Settings:
    """The settings with the largest k as the model's, which everything has to be large enough for."""
    if settings.output.output is None:
        raise ConfigurationError("no output: name the model folder by output.output")
    if not settings.select.candidates:
        raise ConfigurationError("no numbers of topics to try: name them by select.candidates")
    largest = max(settings.select.candidates)
    for key in ("max_features", "n_features"):
        limit = getattr(settings.vectorizer, key)
        if limit is not None and largest > limit:
            raise ConfigurationError(
                f"{largest} topics (select.candidates) need at least as many terms, and vectorizer.{key} is {limit}: "
                f"raise {key} or try fewer"
            )
    return with_stop_words(_of(settings, largest))


def _of(settings: Settings, k: int) -> Settings:
    """The settings of a fit of k topics."""
    return settings.model_copy(update={"model": settings.model.model_copy(update={"n_components": k})})


def _selection_id(settings: Settings, corpus: Corpus) -> str:
    chosen = settings.select.model_dump(mode="json", exclude={"commit"})
    return hash_of([run_id(settings, corpus.fingerprint), chosen])


def _earlier(run: RunFolder) -> dict[str, Any] | None:
    """What a finished selection told; None where there is none."""
    with suppress(InputDataError):
        told = (run.folder / "selection.json").read_json()
        return told if "recommended" in told else None
    return None


class Selecting(Job):
    """One selection under its lock: the stages of a fit up to the weighed matrix, then fits of samples of it."""

    def found(self) -> dict[str, Any]:
        """Run it, and write what was found; selection.json comes last."""

        if self.settings.run.resume == "never":
            self.stage.folder.delete()
        self.observer.named(self.run.run_id, self.corpus.n_rows)
        self.observer.connecting(self.settings.cluster.scheduler)
        with self.deadline.alarm(), self._connected() as cluster:
            candidates = self._candidates(cluster)
        asked = self.settings.select
        chosen = recommended(candidates, asked.stability)
        return self._told(candidates, chosen)

    def _candidates(self, cluster: Cluster) -> list[Candidate]:
        cluster.introduce(self.observer)
        self._warn_of_paused(cluster)
        tasks = cluster.tasks
        try:
            if self.corpus.raw is not None:
                self._patiently(lambda: self._ingest(tasks))
            vocabulary = self._vocabulary(tasks)
            infos = self._blocks(tasks, vocabulary)
            fits = self._fits(self._problem(cluster, vocabulary, infos))
            made = self._patiently(lambda: self._made(tasks, fits))
            stable = self._patiently(lambda: self._stable(tasks, fits, made))
            coherent = self._coherent(tasks, stable)
            peak_memory = cluster.peak_memory()
        finally:
            self.account.told["workers_lost"] = cluster.lost()
        self.account.tell(peak_memory=peak_memory, workers_lost=cluster.lost())
        asked = self.settings.select.candidates
        return [_candidate(k, made[k], stable[k], coherent[k]) for k in asked]

    def _fits(self, problem: Problem) -> PerturbedFits:
        return PerturbedFits(problem, self.stage, self.settings.select.share, self.corpus.n_rows)

    def _made(self, tasks: Tasks, fits: PerturbedFits) -> dict[int, list[Fitted]]:
        """Fits of every k to the same samples, the largest first: they take longest."""
        asked = self.settings.select
        pairs = [(k, seed) for k in sorted(asked.candidates, reverse=True) for seed in range(asked.fits)]
        with self.account.timed("perturb", len(pairs)):
            batch = Batch()
            handles = tasks.submit(batch, [batch.call("perturb", fits.make, *pair) for pair in pairs])
            found: dict[tuple[int, int], Fitted] = {}
            for done, position in enumerate(tasks.completed(handles), 1):
                found[pairs[position]] = tasks.fetch(handles[position])
                self.patience.reached("perturb", done)
                self.observer.advance(done)
        return {k: [found[k, seed] for seed in range(asked.fits)] for k in asked.candidates}

    def _stable(self, tasks: Tasks, fits: PerturbedFits, made: dict[int, list[Fitted]]) -> dict[int, Stable]:
        asked = self.settings.select
        with self.account.timed("stability", len(made)):
            batch = Batch()
            refs = [batch.call("stability", fits.stable, k, asked.fits, N_TERMS, made[k]) for k in made]
            return dict(zip(made, map(tasks.fetch, tasks.submit(batch, refs)), strict=True))

    def _coherent(self, tasks: Tasks, stable: dict[int, Stable]) -> dict[int, dict[str, float]]:
        """Coherence of the topics of every k, from one pass over the text; of counts there is none."""
        if self.corpus.features is not None:
            return {k: dict.fromkeys(("c_npmi", "c_v"), math.nan) for k in stable}
        top = TopTerms.of([terms for one in stable.values() for terms in one.terms])
        sizes = tuple(WINDOWS.values())
        partitions = self.corpus.partitions
        with self.account.timed("evaluate", len(partitions), self.corpus.text_bytes):
            make = EvidenceTasks("", self.corpus.columns.text, None, N_TERMS, sizes, False, top)
            evidence = gathered(tasks, self.observer, partitions, make, self.settings.vectorizer)
        values = evaluation.coherence(top, evidence.windows, WINDOWS)
        found, low = {}, 0
        for k, one in stable.items():
            rows = slice(low, low + len(one.terms))
            found[k] = {name: evaluation.mean(value[rows]) for name, value in values.items()}
            low += len(one.terms)
        return found

    def _told(self, candidates: Sequence[Candidate], chosen: Recommendation) -> dict[str, Any]:
        self.lock.check()
        rows = [{**asdict(one), "recommended": one.n_components == chosen.n_components} for one in candidates]
        folder = self.run.folder
        (folder / "selection.parquet").write_parquet(pa.Table.from_pylist(rows))
        picture = drawn(candidates, chosen.n_components)
        (folder / "selection.svg").write_bytes(picture.encode())
        report = self.account.report("done")
        told = {
            "selection_id": self.run.run_id,
            "recommended": chosen.n_components,
            "reason": chosen.reason,
            "candidates": rows,
            "seconds": round(time.perf_counter() - self.started, 3),
            **{key: report[key] for key in report if report[key] is not None},
        }
        (folder / "selection.json").write_json(told)
        return (folder / "selection.json").read_json()

    def commit(self, folder: ModelFolder, corpus: Corpus, k: int) -> None:
        """Fit the chosen number of topics to the corpus, as it was opened, from what is staged of it still."""
        run_settings = self.settings.run.model_copy(update={"resume": "auto"})
        settings = _of(self.settings, k).model_copy(update={"run": run_settings})
        run = folder.run(run_id(settings, corpus.fingerprint))
        if run.is_committed():
            run.commit()
            self.observer.inform(f"run {run.run_id} of {k} topics has finished before")
            return
        job = Job(settings, corpus, run, self.observer, self.lock, self.started, self.stage)
        self.observer.inform(f"{k} topics: fitting them to the whole corpus")
        result = job.done()
        self.observer.inform(f"the model is in {result.uri}")


def _candidate(k: int, made: Sequence[Fitted], stable: Stable, coherent: dict[str, float]) -> Candidate:
    held_out = np.array([one.held_out_loss for one in made])
    held_out = held_out[~np.isnan(held_out)]
    n = len(held_out)
    return Candidate(
        n_components=k,
        n_fits=len(made),
        stability_least=stable.least,
        stability_mean=stable.mean,
        loss=float(np.mean([one.loss for one in made])),
        held_out_loss=float(held_out.mean()) if n else float("nan"),
        held_out_error=float(held_out.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0,
        c_npmi=coherent["c_npmi"],
        c_v=coherent["c_v"],
        n_iter=float(np.mean([one.n_iter for one in made])),
        seconds=float(np.sum([one.seconds for one in made])),
    )


@dataclass(frozen=True, kw_only=True)
class SelectPlan(Planned):
    """What a selection would do."""

    also_lower = ", --max-features or the largest of --n-components"

    selection_id: str
    output: str
    finished_before: bool
    n_components: tuple[int, ...]
    fits: int
    staging: str
    expected_staging: int

    def lines(self) -> list[str]:
        """The plan for a person to read."""
        done = " (finished: running it again does nothing)" if self.finished_before else ""
        numbers = ", ".join(map(str, self.n_components))
        return [
            f"selection    {self.selection_id}{done}",
            f"output       {self.output}",
            f"topics       {numbers}: {self.fits} fits each, {self.fits * len(self.n_components):,} in all",
            *self.input_lines(),
            f"features     at most {self.n_features:,}",
            *self.worker_lines(),
        ]


def plan_select(settings: Settings) -> SelectPlan:
    """What `select` would do with these settings; reads footers only and writes nothing.

    Raises what `select` raises for bad input, and ConfigurationError where the job cannot fit the memory.
    """
    settings = _checked(settings)
    corpus = opened(settings)
    ModelFolder(settings.output.output or "").check_usable()
    planned = _planned(settings, corpus)
    if settings.cluster.is_own:
        check_memory(planned)
    return planned


def _planned(settings: Settings, corpus: Corpus) -> SelectPlan:
    """That of a fit of the largest number, with a sample and its factors for each thread beside it."""
    plan: Plan = planned_of(settings, corpus)
    run = ModelFolder(settings.output.output or "").selection(_selection_id(settings, corpus))
    more = _sample_bytes(settings.select, plan, settings)
    own = SelectPlan.__dataclass_fields__
    known = {key: value for key, value in vars(plan).items() if key in own and key != "finished_before"}
    known["expected_worker"] += more
    if settings.cluster.in_process:
        known["expected_driver"] += more
    k, fits = max(settings.select.candidates), settings.select.fits
    known["expected_staging"] += len(settings.select.candidates) * fits * k * plan.n_features * 4
    return SelectPlan(
        selection_id=run.run_id,
        finished_before=_earlier(run) is not None,
        n_components=settings.select.candidates,
        fits=fits,
        **known,
    )


def _sample_bytes(asked: SelectSettings, plan: Plan, settings: Settings) -> int:
    """Of all threads of a worker: samples, W and H of their fits; or, later, the cosines of one k."""
    k = max(asked.candidates)
    nonzeros = min(SAMPLE_NONZEROS, amounts(plan.text_bytes, settings.vectorizer).nonzeros)
    rows = min(plan.n_rows, SAMPLE_NONZEROS)
    factors = (rows + 6 * plan.n_features) * padded_width(2 * k) * 4
    cosines = 4 * (k * asked.fits) ** 2
    return plan.threads_per_worker * max(SAMPLE_COPIES * nonzeros * 8 + factors, cosines)
