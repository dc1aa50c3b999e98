"""What a job will read and need, before anything is read or started."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from nmf_dask.blocks import FAN_IN, Sizes
from nmf_dask.config import CorpusSettings, ModelSettings, Settings, VectorizerSettings, redact
from nmf_dask.corpus import GROUP_BYTES, LARGEST_UNCUT, Corpus, Group, open_corpus, plan_groups
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.initialization import krylov_shape
from nmf_dask.pipeline.spilling import expected_spill, spill_place
from nmf_dask.schedule import SAMPLE_NONZEROS, first_components, fits_one_task, strip_count
from nmf_dask.store import (
    Folder,
    ModelFolder,
    RunFolder,
    check_csv_columns,
    check_id_name,
    check_kept_names,
    run_id,
)
from nmf_dask.tasks import BARE_WORKER_BYTES, COMPILER_BYTES, SHRINKABLE_BYTES
from nmf_dask.text.analysis import analysis_of

MIB = 2**20
FIRST_WORKER_BYTES = BARE_WORKER_BYTES + COMPILER_BYTES  # of a worker that holds nothing, at its peak
# Measured on corpora of 4 to 45 MB, with words up to trigrams and with characters; each is a bit above its largest.
DRIVER_BYTES = 270 * MIB
TABLE_ROWS = 4 * MIB  # of the merged table of terms, which keeps no more
TABLE_BYTES = 224  # a row: FAN_IN tables that are merged, and what comes of them
MERGE_BYTES = 32 * MIB  # that one merge of tables of terms may take, however little counting takes
COUNTING_BYTES = 64 * MIB  # that counting partitions together may take
MOST_BUCKETS = 64 * MIB  # that somebody may want filled
NAMED_BYTES = 64  # a bucket of the merged table, with its name
# Of the start's basis: itself, four fifths for the block under way and the vectors, and what the allocator keeps of
# earlier stages beneath them.
START_COPIES = 3
INGEST_BYTES = 64 * MIB  # a block as it is read, decoded and filtered, and the row group that is written
KEPT_COPIES = 4  # of what a run keeps for an update: sums, rescaled, as a table, and as its file's pages
W_COPIES = 5  # before and after a turn, remembered for a step that is taken back, and on the way


@dataclass(frozen=True)
class Memory:
    """Bytes that a job is expected to need at its peak, of the driver and of a worker."""

    driver: int
    worker: int


class Amounts(NamedTuple):
    """What a corpus will hold at most, from the bytes of its text: distinct terms, features (m), nonzeros."""

    terms: int
    features: int
    nonzeros: int
    counting: int  # bytes of memory that counting takes, a byte of text


def amounts(text_bytes: int, vectorizer: VectorizerSettings) -> Amounts:
    """A bound on what a text becomes. Longer n-grams repeat less: each length has more distinct terms."""
    low, high = vectorizer.ngram_range
    lengths = high - low + 1
    if vectorizer.analyzer == "word":
        terms = text_bytes * 4 ** min(high, 4) // 256
        nonzeros = text_bytes * lengths // 8
        counting = sum(n * n + 3 * n for n in range(low, high + 1))
    else:
        terms = text_bytes // 16
        nonzeros = text_bytes * lengths // 3
        counting = 2 + 6 * lengths
    limit = min(vectorizer.max_features or vectorizer.n_features, vectorizer.n_features)
    return Amounts(terms, min(limit, terms + 1000), nonzeros, counting)


def grouped(corpus: Corpus, vectorizer: VectorizerSettings) -> tuple[Group, ...]:
    """The partitions of a corpus in groups, which tasks take: small ones together, as far as counting takes little."""
    return plan_groups(corpus.partitions, min(GROUP_BYTES, COUNTING_BYTES // amounts(0, vectorizer).counting))


def named_bytes(terms: int, vectorizer: VectorizerSettings) -> int:
    """What the table takes that features are selected from, of so many distinct terms.

    Buckets for counts are so many that names share none, and say nothing of how many names there are: as many are
    reckoned with as a table keeps of terms.
    """
    return (
        min(vectorizer.n_features if vectorizer.n_features < MOST_BUCKETS else TABLE_ROWS, terms)
        * NAMED_BYTES
    )


def table_bytes(terms: int) -> int:
    """What merging tables of so many distinct terms takes at once."""
    return min(TABLE_ROWS, terms) * TABLE_BYTES


def expected_memory(
    *,
    text_bytes: int,
    partition_bytes: int,
    n_rows: int,
    threads: int,
    vectorizer: VectorizerSettings,
    model: ModelSettings,
    in_process: bool,
) -> Memory:
    """A bound on the memory of a job, from sizes alone.

    `partition_bytes` is the text of the largest partition, `threads` those of a worker. The driver holds H a few
    times and nothing that grows with the corpus; a worker holds blocks of X as far as there is room (they are
    mapped files), which is not counted beyond those of one partition a thread.
    """
    found = amounts(text_bytes, vectorizer)
    sizes = Sizes(n_rows, found.features, found.nonzeros, model.n_components)
    sizes = sizes._replace(n_components=first_components(model, sizes))
    H = sizes.n_features * sizes.kp * 4
    merging = threads * min(MERGE_BYTES, table_bytes(found.terms))
    selecting = named_bytes(found.terms, vectorizer)
    counting = threads * partition_bytes * found.counting + max(merging, selecting)
    start = START_COPIES * sizes.n_features * math.prod(krylov_shape(sizes.n_components)) * 4
    W = n_rows * sizes.kp * 4
    if fits_one_task(sizes):
        W, sums = W_COPIES * W, strip_count(sizes, model.beta_loss) * H
    else:
        # Of the sample, or of the strips that are being visited, before and after; others wait on disk.
        W = (
            min(W, max(W // strip_count(sizes, model.beta_loss), W * SAMPLE_NONZEROS // sizes.nnz))
            * 2
            * threads
        )
        sums = max(threads, FAN_IN) * 2 * H
    worker = FIRST_WORKER_BYTES + max(
        counting, threads * partition_bytes + W + sums + (4 + KEPT_COPIES) * H + start
    )
    tables = 6 * H + sizes.n_features * 200
    return Memory((worker if in_process else DRIVER_BYTES) + tables, worker + in_process * tables)


def expected_staging(
    text_bytes: int, n_rows: int, vectorizer: VectorizerSettings, model: ModelSettings, checkpoint_every: int
) -> int:
    """A bound on the bytes of intermediate files at their peak.

    These are counts that become blocks, two checkpoints, and H of each pass (and of the start) since the last.
    """
    found = amounts(text_bytes, vectorizer)
    sizes = Sizes(n_rows, found.features, found.nonzeros, model.n_components)
    counts = sizes.nnz * 8 + n_rows * 8 + min(text_bytes, found.terms * 40)
    checkpoint = (n_rows + 3 * sizes.n_features) * sizes.kp * 4
    since = 0 if fits_one_task(sizes) else min(checkpoint_every, model.max_iter) + 1
    return counts + 2 * checkpoint + since * 3 * sizes.n_features * sizes.kp * 4


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What the plans of all jobs tell."""

    n_files: int
    n_partitions: int
    n_rows: int
    text_bytes: int
    largest_partition: int
    n_features: int
    workers: int
    threads_per_worker: int
    memory_limit: int
    expected_driver: int
    expected_worker: int
    estimated: bool = False
    """Whether numbers of documents and bytes are known only once the files are read."""
    of_counts: bool = False
    """Whether they are rows of counts; `text_bytes` is then what the counts take in memory."""
    also_lower: ClassVar[str] = ""
    """What else makes the job smaller than the size of a partition."""

    def as_dict(self) -> dict[str, Any]:
        """The plan for a machine to read."""
        return dict(vars(self))

    def input_lines(self) -> list[str]:
        """What is read, for a person to read."""
        what = "counts" if self.of_counts else "text"
        documents, size = f"{self.n_rows:,} documents", f"{size_told(self.text_bytes)} of {what}"
        about = " at most, or about: they are read first" if self.estimated else ""
        return [
            f"input        {self.n_files:,} files, {documents}, {size}{about}",
            f"partitions   {self.n_partitions:,}, the largest with {size_told(self.largest_partition)} of {what}",
        ]

    def worker_lines(self) -> list[str]:
        """Where it runs, and what it needs there."""
        driver, worker = size_told(self.expected_driver), size_told(self.expected_worker)
        return [
            f"workers      {self.workers} with {self.threads_per_worker} threads and {size_told(self.memory_limit)}",
            f"memory       driver {driver}, each worker {worker} at most",
        ]


@dataclass(frozen=True, kw_only=True)
class Plan(Planned):
    """What a fit would do."""

    also_lower = ", --max-features or -k"

    run_id: str
    output: str
    finished_before: bool
    staging: str
    expected_staging: int
    spill: str = ""
    expected_spill: int = 0

    def lines(self) -> list[str]:
        """The plan for a person to read."""
        done = " (finished: running it again does nothing)" if self.finished_before else ""
        spilled = f"spilling     {size_told(self.expected_spill)} at most, in {self.spill}{_free(self.spill)}"
        return [
            f"run          {self.run_id}{done}",
            f"output       {self.output}",
            *self.input_lines(),
            f"features     at most {self.n_features:,}",
            *self.worker_lines(),
            f"staging      {size_told(self.expected_staging)} at most, in {self.staging}{_free(self.staging)}",
            *([spilled] if self.expected_spill else []),
        ]


def size_told(n_bytes: int) -> str:
    """Such as 3.8 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            return f"{n_bytes:,.0f} {unit}" if unit in ("B", "KiB") else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1024  # type: ignore[assignment]
    raise AssertionError("unreachable")


def _free(place: str) -> str:
    """Room on the disk of a local place, whose folders may not be there yet."""
    while place and not os.path.isdir(place):
        place = os.path.dirname(place)
    if not place:
        return ""
    disk = os.statvfs(place)
    return f" ({size_told(disk.f_bavail * disk.f_frsize)} free)"


def with_stop_words(settings: Settings) -> Settings:
    """The settings with the words of a file of stop words in place of its path.

    So that workers, and whoever loads the model elsewhere, need no such file. Raises ConfigurationError where it
    cannot be read.
    """
    vectorizer = settings.vectorizer
    if not isinstance(vectorizer.stop_words, str) or vectorizer.stop_words == "english":
        return settings
    words = tuple(sorted(analysis_of(vectorizer).stop_words or ()))
    vectorizer = vectorizer.model_copy(update={"stop_words": words})
    return settings.model_copy(update={"vectorizer": vectorizer})


def opened(settings: Settings) -> Corpus:
    """The corpus, checked against the settings before anything is started."""
    check_id_name(settings.corpus.id_column or "doc_id")
    check_apart(settings)
    corpus = open_corpus(settings.corpus)
    check_w(corpus, settings, settings.model.n_components)
    if corpus.raw is None:
        check_documents(corpus, settings)
    return corpus


def check_w(corpus: Corpus, settings: Settings, k: int) -> None:
    """Raise ConfigurationError for what W is to carry and cannot, in the format that it is to have."""
    columns = corpus.columns
    check_kept_names(columns.id_name, corpus.kept.names)
    if settings.output.w_format == "csv":
        check_csv_columns(pa.schema([(columns.id_name, corpus.id_type), *corpus.kept]), k)


def check_documents(corpus: Corpus, settings: Settings) -> None:
    """Raise InputDataError for fewer documents than topics."""
    check_enough_documents(corpus.n_rows, settings.model.n_components)


def check_enough_documents(n_rows: int, n_components: int) -> None:
    """Raise InputDataError for fewer documents than topics."""
    if n_rows < n_components:
        raise InputDataError(
            f"{n_rows} documents cannot make {n_components} topics: lower -k (model.n_components), or give more "
            "documents"
        )


def check_enough_features(n_features: int, n_components: int) -> None:
    """Raise InputDataError for fewer features than topics."""
    if n_features < n_components:
        raise InputDataError(
            f"{n_features} features are left for {n_components} topics: lower -k, or let more terms in "
            "(min_df lower, max_df higher, max_features higher)"
        )


def check_kind(corpus: CorpusSettings, of_counts: bool) -> None:
    """Raise ConfigurationError where settings ask for texts and the model is of counts, or the reverse."""
    if of_counts and corpus.feature_column is None and corpus.names_texts:
        raise ConfigurationError(
            f"the model is of counts, and corpus.text_column is {corpus.text_column}: name the columns of counts by "
            "--feature-column and --value-column, or none, for those of the fit"
        )
    if not of_counts and corpus.feature_column is not None:
        raise ConfigurationError(
            f"the model is of texts, and corpus.feature_column is {corpus.feature_column}: name the column of texts by "
            "--text-column"
        )


def check_apart(settings: Settings, what: str = "model") -> None:
    """Refuse an output inside its own corpus, where the next run would read it as documents, and the reverse."""
    output = _place(settings.output.output or "")
    for text in settings.corpus.input:
        place = _place(text)
        if f"{output}/".startswith(f"{place}/"):
            raise ConfigurationError(
                f"the output {redact(output)} is in the input {redact(text)}: the next run would take the {what} "
                f"for documents. Choose another output, or name the files by a glob, such as {redact(text)}/*.parquet"
            )
        if place.startswith(f"{output}/"):
            raise ConfigurationError(
                f"the input {redact(text)} is in the output {redact(output)}: choose another output"
            )


def check_outside(output: str, model: str) -> None:
    """Refuse an output that is a model folder, lies in it or around it."""
    one, other = _place(output), _place(model)
    if f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/"):
        raise ConfigurationError(
            f"the output {redact(output)} and the model {redact(model)} are one in the other: choose another output"
        )


def _place(text: str) -> str:
    folder = Folder(text)
    return os.path.realpath(folder.uri) if folder.is_local else folder.uri.partition("?")[0].rstrip("/")


def plan(settings: Settings) -> Plan:
    """What `fit` would do with these settings; reads footers only and writes nothing.

    Raises what `fit` raises for bad input, and ConfigurationError where the job cannot fit the memory.
    """
    settings = with_stop_words(settings)
    corpus = opened(settings)
    ModelFolder(settings.output.output or "").check_usable()
    planned = planned_of(settings, corpus)
    if settings.cluster.is_own:
        check_memory(planned)
    return planned


def stage_folder(settings: Settings, run: RunFolder) -> Folder:
    """Where a run's intermediate files lie: below it, or in the folder that the settings name."""
    scratch = settings.run.scratch
    return Folder(scratch) / run.run_id if scratch else run.work


def planned_of(settings: Settings, corpus: Corpus) -> Plan:
    """The plan for a corpus that is open."""
    folder = ModelFolder(settings.output.output or "")
    name = run_id(settings, corpus.fingerprint)
    workers, threads = settings.cluster.shape()
    largest = largest_partition(corpus)
    groups = grouped(corpus, settings.vectorizer)
    several = [group.text_bytes for group in groups if len(group.partitions) > 1]
    expected = expected_memory(
        text_bytes=corpus.text_bytes,
        partition_bytes=max([largest, *several]),
        n_rows=corpus.n_rows,
        threads=threads,
        vectorizer=settings.vectorizer,
        model=settings.model,
        in_process=settings.cluster.in_process,
    )
    return Plan(
        run_id=name,
        output=redact(folder.uri),
        finished_before=folder.run(name).is_committed(),
        n_files=len(corpus.files),
        n_partitions=len(corpus.partitions),
        n_rows=corpus.n_rows,
        text_bytes=corpus.text_bytes,
        largest_partition=largest,
        n_features=amounts(corpus.text_bytes, settings.vectorizer).features,
        workers=workers,
        threads_per_worker=threads,
        memory_limit=settings.cluster.worker_bytes(),
        expected_driver=expected.driver,
        expected_worker=max(expected.worker, ingest_bytes(corpus, threads)),
        staging=redact(stage_folder(settings, folder.run(name)).uri),
        expected_staging=expected_staging(
            corpus.text_bytes,
            corpus.n_rows,
            settings.vectorizer,
            settings.model,
            settings.run.checkpoint_every,
        )
        + (0 if corpus.raw is None and corpus.origin is None else corpus.text_bytes),
        spill=spill_place(settings, name),
        expected_spill=expected_spill(settings, corpus.n_rows),
        estimated=corpus.raw is not None,
        of_counts=corpus.features is not None,
    )


def largest_partition(corpus: Corpus) -> int:
    """Bytes of text of the largest partition; one that is still to be staged is cut as it is."""
    largest = max((partition.text_bytes for partition in corpus.partitions), default=0)
    if corpus.raw is None or corpus.raw.format == "parquet":
        return largest
    return min(largest, int(LARGEST_UNCUT * corpus.settings.partition_bytes))


def ingest_bytes(corpus: Corpus, threads: int) -> int:
    """Memory of a worker while it stages documents."""
    return 0 if corpus.raw is None else FIRST_WORKER_BYTES + threads * INGEST_BYTES


def check_memory(planned: Planned) -> None:
    """Refuse a job that cannot fit its own workers; those of a running cluster have their own say.

    One that lacks memory for the compiler alone is let go: a worker that is ended at its limit while it compiles leaves
    what it compiled before, so that the next gets further.
    """
    needed = planned.expected_worker - COMPILER_BYTES
    if needed - SHRINKABLE_BYTES > planned.memory_limit:
        raise ConfigurationError(
            f"a worker needs about {size_told(needed)} and may use {size_told(planned.memory_limit)}: "
            "raise --memory-limit, use fewer threads a worker, or lower corpus.partition_bytes "
            f"({size_told(planned.largest_partition)} in the largest partition){planned.also_lower}"
        )
