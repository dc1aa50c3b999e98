"""How good the topics of a model are on a corpus: one streaming pass, from which sums come back."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nmf_dask import evaluation
from nmf_dask.config import OutputSettings, Settings, redact
from nmf_dask.corpus import (
    Corpus,
    Partition,
    Raw,
    as_labels,
    check_labels,
    no_document,
    open_corpus,
    read_labels,
    read_texts_by_slices,
)
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.evaluation import Evidence, TopTerms
from nmf_dask.folding import Folding
from nmf_dask.model import TopicModel
from nmf_dask.observer import Observer
from nmf_dask.pipeline.account import basis_of, warn_of
from nmf_dask.pipeline.deaths import awaited
from nmf_dask.pipeline.parts import SLICE_BYTES, SLICE_ROWS
from nmf_dask.pipeline.planning import (
    Memory,
    Planned,
    amounts,
    check_apart,
    check_kind,
    check_memory,
    ingest_bytes,
    largest_partition,
)
from nmf_dask.pipeline.running import connected
from nmf_dask.pipeline.transform_plan import expected_memory
from nmf_dask.store import Folder
from nmf_dask.tasks import Batch, Cluster, Tasks

WAVE = 256  # partitions that are handed over at a time: what waits to be added does not grow with n
MEASURES = (*evaluation.WINDOWS, "diversity", "exclusivity")
_FORMATS = (".json", ".parquet")


@dataclass(frozen=True)
class EvaluateResult:
    """A finished evaluation: what stdout and a JSON file tell, and the table with a row a topic."""

    told: dict[str, Any] = field(repr=False)
    topics: pa.Table = field(repr=False)


class Subject(NamedTuple):
    """What tasks need of a model: the terms of its topics, and where documents are folded in, how."""

    top: TopTerms
    folding: Folding | None


@dataclass(frozen=True)
class EvidenceTasks:
    """Gathers what partitions say of the topics of a model. Picklable."""

    model: str
    text_columns: tuple[str, ...]
    label_column: str | None
    n_top_terms: int
    sizes: tuple[int, ...]
    held_out: bool
    top: TopTerms | None = None  # in place of a model's
    raw: Raw | None = None  # of a corpus that is not plain columns of Parquet: labels are among what it keeps

    def subject(self) -> Subject:
        """A task: what the others need of the model, read from its run's folder."""
        if self.top is not None:
            return Subject(self.top, None)
        model = TopicModel.load(self.model)
        folds = self.held_out or self.label_column is not None
        return Subject(top_terms(model, self.n_top_terms), model.folding() if folds else None)

    def gather(self, partition: Partition, subject: Subject, settings: Any) -> Evidence:
        """A task: the evidence of one partition, slice by slice.

        Raises InputDataError for what is wrong with the partition's files, naming file and row group.
        """
        total = Evidence({})
        try:
            for number, (texts, labels) in enumerate(self._slices(partition)):
                total.add(
                    evaluation.evidence_of(
                        texts, labels, subject.top, self.sizes, settings, subject.folding, self.held_out,
                        (partition.index, number),
                    )
                )  # fmt: skip
        except MemoryError as error:
            raise InputDataError(
                f"{partition} does not fit the memory of a worker: lower corpus.partition_bytes, or give workers more"
            ) from error
        return total

    def _slices(self, partition: Partition) -> Iterator[tuple[pa.ChunkedArray, pa.ChunkedArray | None]]:
        """Texts, some at a time, and their labels."""
        if self.raw is not None:
            for table in self.raw.documents(partition):
                for low in range(0, len(table), SLICE_ROWS):
                    yield self._of_raw(self.raw, table.slice(low, SLICE_ROWS))
            return
        labels = None if self.label_column is None else read_labels(partition, self.label_column)
        low = 0
        for texts in read_texts_by_slices(partition, self.text_columns, SLICE_BYTES, SLICE_ROWS):
            yield texts, None if labels is None else labels.slice(low, len(texts))
            low += len(texts)

    def _of_raw(self, raw: Raw, rows: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
        if self.label_column is None:
            return rows[raw.text_name], None
        labels = as_labels(rows[self.label_column])
        if raw.format in ("csv", "tsv"):  # where an empty field is all that stands for a null
            labels = pc.if_else(pc.equal(labels, ""), None, labels)
        return rows[raw.text_name], labels.dictionary_encode().unify_dictionaries()


def top_terms(model: TopicModel, n: int) -> TopTerms:
    """The `n` terms of the largest weight of each topic."""
    return TopTerms.of([[term for term, _ in topic.terms] for topic in model.topics(n)])


def gathered(
    tasks: Tasks, observer: Observer, partitions: Sequence[Partition], make: EvidenceTasks, vectorizer: Any
) -> Evidence:
    """The evidence of all partitions; what a lost worker had is gathered again."""
    total, done = Evidence({}), 0

    def handed(some: Sequence[Partition]) -> list[Any]:
        batch = Batch()
        subject = batch.call("model", make.subject)
        refs = [batch.call("evaluate", make.gather, one, subject, vectorizer) for one in some]
        return tasks.submit(batch, refs)

    for low in range(0, len(partitions), WAVE):
        wave = partitions[low : low + WAVE]
        for position, value in awaited(tasks, "evaluate", wave, handed(wave), lambda one: handed([one])[0]):
            total.add(value)
            done += 1
            observer.advance(done, wave[position].text_bytes)
    return total


@dataclass(frozen=True, eq=False)
class _Ready:
    """An evaluation that was checked."""

    model: TopicModel
    other: TopicModel | None
    corpus: Corpus
    output: Folder | None


def _ready(settings: Settings) -> _Ready:
    asked = settings.evaluate
    if asked.judged_model is None:
        raise ConfigurationError("an evaluation needs a model: name its folder by evaluate.judged_model")
    output = None
    if asked.result_file is not None:
        if not asked.result_file.endswith(_FORMATS):
            raise ConfigurationError(
                f"the output {redact(asked.result_file)} is neither .json nor .parquet: end its name in one of them"
            )
        written = settings.model_copy(update={"output": OutputSettings(output=asked.result_file)})
        check_apart(written, "evaluation")
        output = Folder(asked.result_file)
    model = TopicModel.load(asked.judged_model)
    if model.of_counts:
        raise ConfigurationError("the model is of counts, and evaluate judges topics by the words of texts")
    check_kind(settings.corpus, of_counts=False)
    other = TopicModel.load(asked.compare) if asked.compare is not None else None
    corpus = open_corpus(settings.corpus)
    if asked.label_column is not None:
        corpus = _with_labels(corpus, asked.label_column)
    return _Ready(model, other, corpus, output)


def _with_labels(corpus: Corpus, column: str) -> Corpus:
    """The corpus, with labels that can be read; InputDataError where there are none."""
    if corpus.raw is None or corpus.raw.format == "parquet":
        check_labels(corpus, column)
    if corpus.raw is None or column == corpus.raw.columns.id:
        return corpus
    try:
        kept = corpus.settings.model_copy(update={"keep": (column,)})
        return open_corpus(kept, corpus.found)
    except InputDataError as error:
        # It is kept here to be looked at, which is not how it was asked for.
        asked = str(error).replace("--keep (corpus.keep)", "--label-column (evaluate.label_column)")
        raise InputDataError(asked) from None


def evaluate(settings: Settings, observer: Observer | None = None) -> EvaluateResult:
    """Judge the topics of `settings.evaluate.judged_model` by the corpus that settings name.

    One pass over the corpus, in tasks; the driver holds sums. Writes nothing but `evaluate.result_file`, where that is
    named.
    Raises ConfigurationError, InputDataError and RetryableError, each with a message for the user.
    """
    observer = observer or Observer()
    started = time.perf_counter()
    observer.stage("plan")
    ready = _ready(settings)
    if settings.cluster.is_own:
        check_memory(_planned(settings, ready))

    with connected(settings, small=True) as cluster:
        facts, evidence = _run(settings, ready, cluster, observer)
    result = _judged(settings, ready, evidence, seconds=time.perf_counter() - started, **facts)
    _warn(observer, result.told)
    if ready.output is not None:
        _write(ready.output, result)
    return result


def _run(
    settings: Settings, ready: _Ready, cluster: Cluster, observer: Observer
) -> tuple[dict[str, Any], Evidence]:
    cluster.introduce(observer)
    asked, partitions = settings.evaluate, ready.corpus.partitions
    observer.stage("evaluate", len(partitions))
    make = EvidenceTasks(
        ready.model.uri,
        ready.corpus.columns.text,
        asked.label_column,
        asked.n_judged_terms,
        tuple(_sizes(settings).values()),
        asked.held_out,
        raw=ready.corpus.raw,
    )
    evidence = gathered(cluster.tasks, observer, partitions, make, ready.model.vectorizer_settings)
    if evidence.n_documents == 0:
        raise no_document(settings.corpus, ready.corpus.files)
    return {"peak_memory": cluster.peak_memory(), "workers_lost": cluster.lost()}, evidence


def _sizes(settings: Settings) -> dict[str, int]:
    window = settings.evaluate.window
    return evaluation.coherence_windows(None if window == "auto" else window)


def _judged(settings: Settings, ready: _Ready, evidence: Evidence, **facts: Any) -> EvaluateResult:
    """All measures, overall and of each topic."""
    model, asked, sizes = ready.model, settings.evaluate, _sizes(settings)
    top = top_terms(model, asked.n_judged_terms)
    columns: dict[str, Any] = dict(evaluation.coherence(top, evidence.windows, sizes))
    overall = {name: evaluation.mean(values) for name, values in columns.items()}
    overall["diversity"], columns["diversity"] = evaluation.diversity(top)
    columns["exclusivity"] = evaluation.exclusivity(model.H, asked.n_judged_terms)
    overall["exclusivity"] = evaluation.mean(columns["exclusivity"])
    told: dict[str, Any] = {
        "model": redact(model.uri),
        "run_id": model.run.get("run_id"),
        "n_documents": evidence.n_documents,
        "n_null_texts": evidence.n_null,
        "n_top_terms": asked.n_judged_terms,
        "windows": {
            name: {
                "words": None if size == evaluation.DOCUMENT else size,
                "n": evidence.windows[size].n_windows,
            }
            for name, size in sizes.items()
        },
        "unknown_terms": _unknown(top, evidence),
    }
    if asked.held_out or asked.label_column is not None:
        told["n_empty_documents"] = evidence.n_empty
    if asked.held_out:
        told["held_out"] = _held_out(evidence)
        overall["held_out_loss"] = told["held_out"]["loss"]
    if ready.other is not None:
        found = _compared(model, ready.other, asked.n_judged_terms)
        columns |= {"matched_topic": found.other, "stability": found.cosine, "shared_terms": found.jaccard}
        told["compared_with"] = redact(ready.other.uri)
        overall["stability"] = evaluation.mean(found.cosine)
        overall["shared_terms"] = evaluation.mean(found.jaccard)
    if asked.label_column is not None:
        told["labels"] = _labelled(evidence, model.n_components)
        overall |= {name: told["labels"].pop(name) for name in ("nmi", "purity")}
    topics = _table(model, asked.n_judged_terms, columns)
    told |= {"overall": overall, "topics": topics.to_pylist(), **basis_of(settings), **facts}
    return EvaluateResult(_without_nan(told), topics)


def _unknown(top: TopTerms, evidence: Evidence) -> list[str]:
    """Top terms that the corpus does not hold."""
    single = evidence.windows[evaluation.DOCUMENT].single
    return [name for name, n in zip(top.names, single.tolist(), strict=True) if n == 0]


def _held_out(evidence: Evidence) -> dict[str, Any]:
    """The loss as a share of what no topics at all would leave, and as scikit-learn gives it."""
    n, divergence, size = evidence.loss()
    return {
        "n_documents": n,
        "loss": divergence / size if size else math.nan,
        "reconstruction_err": math.sqrt(2 * max(divergence, 0.0)),
    }


def _compared(model: TopicModel, other: TopicModel, n: int) -> evaluation.Matched:
    sides = [(one.H, one.vocabulary.term.to_pylist()) for one in (model, other)]
    return evaluation.matched(sides[0], sides[1], n)


def _labelled(evidence: Evidence, k: int) -> dict[str, Any]:
    names, table = evaluation.confusion(evidence.labels, k)
    return {
        "names": names,
        "documents_by_topic": table.tolist(),
        "n_without": evidence.n_unlabelled,
        "nmi": evaluation.normalized_mutual_information(table),
        "purity": evaluation.purity(table),
    }


def _table(model: TopicModel, n: int, columns: Mapping[str, Any]) -> pa.Table:
    topics = model.topics(n)
    data: dict[str, Any] = {
        "topic": pa.array([one.topic for one in topics], pa.int32()),
        "share": pa.array([one.share for one in topics], pa.float64(), from_pandas=True),
    }
    for name, values in columns.items():
        mask = np.isnan(values) if values.dtype.kind == "f" else values < 0
        data[name] = pa.array(values, pa.float64() if values.dtype.kind == "f" else pa.int32(), mask=mask)
    data["terms"] = pa.array([[term for term, _ in one.terms] for one in topics], pa.list_(pa.string()))
    return pa.table(data)


def _without_nan(value: Any) -> Any:
    """For JSON: what there is no number for is null."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _warn(observer: Observer, told: Mapping[str, Any]) -> None:
    unknown = told["unknown_terms"]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        observer.warn(f"{len(unknown):,} top terms are not in this corpus and are left out: {shown}")
    warn_of(observer, {key: told[key] for key in ("n_null_texts", "workers_lost")}, "")
    without = told.get("labels", {}).get("n_without")
    if without:
        observer.warn(f"{without:,} documents have no label or no topic, and are left out of NMI and purity")


def _write(file: Folder, result: EvaluateResult) -> None:
    if file.name.endswith(".json"):
        file.write_json(result.told)
    else:
        rest = {key: value for key, value in result.told.items() if key != "topics"}
        file.write_parquet(result.topics.replace_schema_metadata({"nmf_dask.evaluation": json.dumps(rest)}))


@dataclass(frozen=True, kw_only=True)
class EvaluatePlan(Planned):
    """What an evaluation would do."""

    also_lower = " or --n-top-terms"

    model: str
    n_components: int

    def lines(self) -> list[str]:
        """The plan for a person to read."""
        return [
            f"model        {self.model} ({self.n_components} topics, {self.n_features:,} features)",
            *self.input_lines(),
            *self.worker_lines(),
        ]


def plan_evaluate(settings: Settings) -> EvaluatePlan:
    """What `evaluate` would do with these settings; reads the model and footers, writes nothing.

    Raises what `evaluate` raises for bad input, and ConfigurationError where the job cannot fit the memory.
    """
    planned = _planned(settings, _ready(settings))
    if settings.cluster.is_own:
        check_memory(planned)
    return planned


def _planned(settings: Settings, ready: _Ready) -> EvaluatePlan:
    corpus, model = ready.corpus, ready.model
    workers, threads = settings.cluster.shape()
    expected = _expected(settings, ready, threads)
    return EvaluatePlan(
        model=redact(model.uri),
        n_files=len(corpus.files),
        n_partitions=len(corpus.partitions),
        n_rows=corpus.n_rows,
        text_bytes=corpus.text_bytes,
        largest_partition=largest_partition(corpus),
        n_components=model.n_components,
        n_features=len(model.vocabulary),
        workers=workers,
        threads_per_worker=threads,
        memory_limit=settings.cluster.worker_bytes(),
        expected_driver=expected.driver,
        expected_worker=max(expected.worker, ingest_bytes(corpus, threads)),
        estimated=corpus.raw is not None,
    )


def _expected(settings: Settings, ready: _Ready, threads: int) -> Memory:
    """That of a transform, with the halves of a slice's documents and the counts of each task beside it."""
    partitions, model = ready.corpus.partitions, ready.model
    largest = largest_partition(ready.corpus)
    base = expected_memory(
        model,
        partition_bytes=largest,
        partition_rows=max(one.n_rows for one in partitions),
        threads=threads,
        in_process=settings.cluster.in_process,
    )
    text = min(largest, SLICE_BYTES)
    n_terms = min(settings.evaluate.n_judged_terms, len(model.vocabulary))
    pairs = 3 * 8 * model.n_components * n_terms**2
    more = threads * (2 * text * amounts(text, model.vectorizer_settings).counting + 3 * pairs)
    return Memory(base.driver + 2 * pairs, base.worker + more)
