"""What a job will read and need, before anything is read or started."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from nmf_dask.config import Settings, parse_bytes, redact
from nmf_dask.corpus import Corpus, open_corpus
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.store import Folder, ModelFolder, check_id_name, run_id
from nmf_dask.text.analysis import analysis_of

MIB = 2**20
BASE_BYTES = 350 * MIB  # an interpreter with Arrow, Dask and compiled kernels
# Of counting, for a byte of text: the text itself, its counts and terms while arrays grow by doubling.
COUNT_BYTES = 6
TABLE_BYTES = 96  # a row of the merged table of terms, while it is merged


@dataclass(frozen=True)
class Memory:
    """Bytes that a job is expected to need at its peak, of the driver and of a worker."""

    driver: int
    worker: int


def expected_memory(
    *, partition_bytes: int, threads: int, n_features: int, n_components: int, n_rows: int, in_process: bool
) -> Memory:
    """A bound on the memory of a job, from sizes alone (the README compares it with measured peaks).

    `partition_bytes` is the text of the largest partition, `threads` those of a worker, `n_features` columns (m).
    The driver holds H a few times and nothing that grows with the corpus.
    """
    kp = -(-n_components // 8) * 8
    H = n_features * kp * 4
    table = min(4 * MIB, max(n_features * 4, n_rows * 16)) * TABLE_BYTES
    counting = threads * partition_bytes * COUNT_BYTES + table
    fitting = (4 + 3 * threads) * H + threads * (partition_bytes + 64 * MIB)
    worker = BASE_BYTES + max(counting, fitting)
    driver = BASE_BYTES + 4 * H + n_features * 200
    return Memory(driver + worker - BASE_BYTES if in_process else driver, worker)


@dataclass(frozen=True)
class Plan:
    """What a fit would do."""

    run_id: str
    output: str
    finished_before: bool
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

    def as_dict(self) -> dict[str, Any]:
        """The plan for a machine to read."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The plan for a person to read."""
        done = " (finished: running it again does nothing)" if self.finished_before else ""
        return [
            f"run          {self.run_id}{done}",
            f"output       {self.output}",
            f"input        {self.n_files:,} files, {self.n_rows:,} documents, {_size(self.text_bytes)} of text",
            f"partitions   {self.n_partitions:,}, the largest with {_size(self.largest_partition)} of text",
            f"features     at most {self.n_features:,}",
            f"workers      {self.workers} with {self.threads_per_worker} threads and {_size(self.memory_limit)}",
            f"memory       driver {_size(self.expected_driver)}, each worker {_size(self.expected_worker)} at most",
        ]


def _size(n_bytes: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            return f"{n_bytes:,.0f} {unit}" if unit in ("B", "KiB") else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1024  # type: ignore[assignment]
    raise AssertionError("unreachable")


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
    _check_apart(settings)
    corpus = open_corpus(settings.corpus)
    if corpus.n_rows < settings.model.n_components:
        raise InputDataError(
            f"{corpus.n_rows} documents cannot make {settings.model.n_components} topics: lower -k "
            "(model.n_components), or give more documents"
        )
    return corpus


def _check_apart(settings: Settings) -> None:
    """Refuse a model inside its own corpus, where the next run would read it as documents, and the reverse."""
    model = _place(settings.output.output or "")
    for text in settings.corpus.input:
        place = _place(text)
        if f"{model}/".startswith(f"{place}/"):
            raise ConfigurationError(
                f"the output {redact(model)} is in the input {redact(text)}: the next run would take the model "
                f"for documents. Choose another output, or name the files by a glob, such as {redact(text)}/*.parquet"
            )
        if place.startswith(f"{model}/"):
            raise ConfigurationError(
                f"the input {redact(text)} is in the output {redact(model)}: choose another output"
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
    folder = ModelFolder(settings.output.output or "")
    folder.check_usable()
    name = run_id(settings, corpus.fingerprint)
    workers, threads, limit = _resources(settings)
    n_features = min(
        settings.vectorizer.max_features or settings.vectorizer.n_features, settings.vectorizer.n_features
    )
    largest = max(partition.text_bytes for partition in corpus.partitions)
    expected = expected_memory(
        partition_bytes=largest,
        threads=threads,
        n_features=n_features,
        n_components=settings.model.n_components,
        n_rows=corpus.n_rows,
        in_process=settings.cluster.workers is None and settings.cluster.scheduler is None,
    )
    planned = Plan(
        run_id=name,
        output=redact(folder.uri),
        finished_before=folder.run(name).is_committed(),
        n_files=len(corpus.files),
        n_partitions=len(corpus.partitions),
        n_rows=corpus.n_rows,
        text_bytes=corpus.text_bytes,
        largest_partition=largest,
        n_features=n_features,
        workers=workers,
        threads_per_worker=threads,
        memory_limit=limit,
        expected_driver=expected.driver,
        expected_worker=expected.worker,
    )
    check_memory(planned, on_a_running_cluster=settings.cluster.scheduler is not None)
    return planned


def check_memory(planned: Plan, on_a_running_cluster: bool) -> None:
    """Refuse a job that cannot fit; what a running cluster has shows when it is connected."""
    if not on_a_running_cluster and planned.expected_worker > planned.memory_limit:
        raise ConfigurationError(
            f"a worker needs about {_size(planned.expected_worker)} and may use {_size(planned.memory_limit)}: raise "
            "--memory-limit, use fewer threads a worker, or lower corpus.partition_bytes "
            f"({_size(planned.largest_partition)} in the largest partition), --max-features or -k"
        )


def _resources(settings: Settings) -> tuple[int, int, int]:
    """Workers, threads of each, and bytes that each may use."""
    cluster = settings.cluster
    workers = cluster.workers or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = cluster.threads_per_worker or max(1, cores // workers)
    if cluster.memory_limit is not None:
        return workers, threads, parse_bytes(cluster.memory_limit)
    return workers, threads, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // workers
