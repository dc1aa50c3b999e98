"""The job's settings: validated once, then frozen.

Names and meanings are scikit-learn's wherever it has one; where a default differs, the description says so.
The descriptions are the comments of jobs/example.toml and the help of the command line, so they stand alone.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from nmf_dask.config.commands import EvaluateSettings as EvaluateSettings
from nmf_dask.config.commands import NightlySettings as NightlySettings
from nmf_dask.config.commands import SelectSettings as SelectSettings
from nmf_dask.config.commands import TransformSettings as TransformSettings
from nmf_dask.config.commands import UpdateSettings as UpdateSettings
from nmf_dask.config.section import Section as Section
from nmf_dask.config.section import refuse
from nmf_dask.config.values import (
    ByteCount,
    Deadline,
    DocumentFrequency,
    MemorySize,
    Name,
    Names,
    NgramRange,
    Penalty,
    Seconds,
    Share,
    SomeNames,
    TokenPattern,
)
from nmf_dask.config.values import machine_bytes as machine_bytes
from nmf_dask.config.values import parse_bytes as parse_bytes
from nmf_dask.config.values import parse_seconds as parse_seconds
from nmf_dask.config.values import redact as redact


class CorpusSettings(Section):
    """What is read."""

    input: tuple[Name, ...] = Field(
        (),
        description="files of Parquet, CSV, JSON lines or text: a file, a folder, a glob, or a list; paths or URIs",
        examples=["s3://bucket/corpus/*.parquet"],
    )
    text_column: Name | SomeNames = Field(
        "text",
        description="column of strings that holds the documents; a list: their texts, joined by newlines; "
        "a dot leads into a struct: meta.body",
    )
    feature_column: Name | None = Field(
        None,
        description="counts in place of texts: column of the names (or numbers) of what a row holds: lists, maps, or "
        "one a row; none: texts",
        examples=["gene"],
    )
    value_column: Name | None = Field(
        None,
        description="column of how much of each, beside feature_column; none: the maps hold it, or each counts once",
        examples=["count"],
    )
    feature_names: Name | None = Field(
        None,
        description="file of names for numbers in feature_column, counted from 0: one a line, or a Parquet column",
        examples=["genes.txt"],
    )
    id_column: Name | None = Field(
        None,
        description="column to carry into W, under its own name; none: the row number, as doc_id",
        examples=["doc_id"],
    )
    keep: Names = Field(
        (),
        description="more columns to carry into W; keys of folders (day=2026-11-01/) come anyway",
        examples=[("label", "date")],
    )
    where: Name | None = Field(
        None,
        description="filter of documents: comparisons, in, is null, and, or, not, parentheses",
        examples=["year >= 2020 and lang == 'en'"],
    )
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl", "text", "lines"] = Field(
        "auto",
        description="what the files are; auto: as their names end; text: a document a file, lines: a document a line",
    )
    partition_bytes: ByteCount = Field(
        64 * 2**20, description='bytes of text that a partition aims at, also as "64MiB"'
    )

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that make up a document: of counts, those of names and of values."""
        if self.feature_column is not None:
            return tuple(name for name in (self.feature_column, self.value_column) if name is not None)
        return (self.text_column,) if isinstance(self.text_column, str) else self.text_column

    @property
    def names_texts(self) -> bool:
        """Whether they name another column of texts than the default."""
        return bool(self.text_column != CorpusSettings.model_fields["text_column"].default)

    @field_validator("input", "keep", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _texts_or_counts(self) -> CorpusSettings:
        if self.feature_column is None:
            for key in ("value_column", "feature_names"):
                if getattr(self, key) is not None:
                    refuse(
                        ("feature_column", key), "counts need the column of what they count: feature_column"
                    )
        elif self.names_texts:
            refuse(
                ("text_column", "feature_column"),
                "a corpus is of texts or of counts; leave one of the two out",
            )
        elif self.format not in ("auto", "parquet"):
            refuse(("format", "feature_column"), "counts are read from Parquet; write them as such")
        return self


class VectorizerSettings(Section):
    """Strings to hashed TF-IDF."""

    analyzer: Literal["word", "char", "char_wb"] = Field(
        "word", description="what a term is made of: words, characters, or characters within words"
    )
    token_pattern: TokenPattern = Field(
        r"(?u)\b\w\w+\b", description="what a word is, as a regular expression"
    )
    lowercase: bool = Field(True, description="lower the text first")
    strip_accents: Literal["ascii", "unicode"] | None = Field(
        None, description="remove accents first", examples=["unicode"]
    )
    stop_words: Name | tuple[str, ...] | None = Field(
        None,
        description='terms to leave out: "english", a list of words, or the path of a file, one word a line',
        examples=["english"],
    )
    ngram_range: NgramRange = Field((1, 1), description="shortest and longest n-gram")
    n_features: Annotated[int, Field(ge=1, le=2**31 - 1)] = Field(
        2**20,
        description="buckets of the hash; more buckets, fewer terms that share one; of counts: 2147483647",
    )
    min_df: DocumentFrequency = Field(
        2,
        description="drop terms in fewer documents: 10 is a count, 0.01 a share of all; of counts: 1; scikit-learn: 1",
    )
    max_df: DocumentFrequency = Field(
        0.5,
        description="drop terms in more documents: 10 is a count, 0.5 a share; of counts: 1.0; scikit-learn: 1.0",
    )
    max_features: PositiveInt | None = Field(
        50_000,
        description='keep the terms of the largest total count; "none" keeps all; scikit-learn: "none"',
    )
    use_idf: bool = Field(True, description="weigh by inverse document frequency; of counts: false")
    smooth_idf: bool = Field(True, description="idf as if one more document held every term")
    sublinear_tf: bool = Field(False, description="1 + ln(count) instead of the count")
    norm: Literal["l1", "l2"] | None = Field(
        "l2", description='scale each document to this norm; "none": not, as of counts'
    )

    @model_validator(mode="after")
    def _leaves_some_terms(self) -> VectorizerSettings:
        if isinstance(self.min_df, int) is isinstance(self.max_df, int) and self.max_df < self.min_df:
            refuse(("min_df", "max_df"), "no term can be in that many and in that few documents at once")
        return self


class ModelSettings(Section):
    """The factorization."""

    n_components: PositiveInt = Field(10, description='topics (k); scikit-learn: "auto"')
    beta_loss: Literal["frobenius", "kullback-leibler"] = Field("frobenius", description="what is minimized")
    solver: Literal["auto", "mu", "cd"] = Field(
        "auto",
        description='multiplicative updates, coordinate descent, or by the loss; scikit-learn: "cd"',
    )
    init: Literal["random", "nndsvd", "nndsvda"] = Field(
        "nndsvda", description='how W and H start; scikit-learn: "none"'
    )
    max_iter: PositiveInt = Field(200, description="passes over the data at most")
    tol: Annotated[float, Field(ge=0.0)] = Field(
        1e-4, description="stop when a pass lowers the loss by less than this share"
    )
    alpha_W: Penalty = Field(0.0, description="penalty on W")
    alpha_H: Penalty | Literal["same"] = Field("same", description='penalty on H; "same": that on W')
    l1_ratio: Share = Field(0.0, description="share of L1 in the penalties; the rest is L2")
    random_state: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(
        0,
        description='seed: the same seed and corpus give the same model; scikit-learn: "none"',
    )
    normalize: bool | Literal["auto"] = Field(
        "auto",
        description="scale so that each topic's weights sum to 1 (W takes the factor), and weights in W compare; "
        '"auto": unless there are penalties, which go by the scale',
    )
    rounds: PositiveInt | Literal["auto"] = Field(
        "auto", description="updates of H in each of the first passes"
    )
    sweeps: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] = Field(
        "auto", description="updates of a block's W at each visit of the block"
    )

    @property
    def scaled(self) -> bool:
        """Whether topics are scaled, with "auto" decided."""
        if self.normalize == "auto":
            return self.alpha_W == 0 and self.alpha_H in ("same", 0)
        return self.normalize

    @property
    def method(self) -> Literal["mu", "cd"]:
        """The solver, with "auto" decided."""
        if self.solver == "auto":
            return "cd" if self.beta_loss == "frobenius" else "mu"
        return self.solver

    @model_validator(mode="after")
    def _solver_knows_the_loss(self) -> ModelSettings:
        if self.solver == "cd" and self.beta_loss != "frobenius":
            refuse(("solver", "beta_loss"), 'coordinate descent minimizes "frobenius" only; use solver "mu"')
        return self


class OutputSettings(Section):
    """What is written."""

    output: Name | None = Field(
        None,
        description="the model folder, which is made if need be: a path or URI",
        examples=["s3://bucket/model"],
    )
    n_top_terms: PositiveInt = Field(50, description="terms a topic in topics.parquet")
    w_format: Literal["parquet", "csv"] = Field(
        "parquet", description="csv: W as CSV too, in W_csv beside W, with a column for each weight"
    )
    keep_runs: PositiveInt | None = Field(
        None,
        description="finished runs to keep in the model folder, the last ones; older ones go after the commit; "
        "none: all",
        examples=[7],
    )


class ClusterSettings(Section):
    """Where it runs."""

    scheduler: Name | None = Field(
        None,
        description="address or scheduler file of a running Dask cluster; none: a cluster of its own",
        examples=["tcp://scheduler:8786"],
    )
    workers: PositiveInt | None = Field(
        None,
        description="worker processes to start, or to wait for where a cluster runs; none: this process",
        examples=[4],
    )
    threads_per_worker: PositiveInt | None = Field(
        None, description="threads a worker; none: as many as there are cores for it", examples=[2]
    )
    memory_limit: MemorySize | None = Field(
        None, description="memory a worker may use; none: its share of all", examples=["4GiB"]
    )

    workers_timeout: Seconds = Field(
        300,
        description='seconds to wait for workers, at the start and where all were lost, also as "5min"',
    )
    tls_ca: Name | None = Field(
        None,
        description="certificate of the authority that signed those of a running cluster with TLS; a PEM file",
        examples=["/etc/dask/ca.pem"],
    )
    tls_cert: Name | None = Field(
        None, description="certificate that the job shows to it; a PEM file", examples=["/etc/dask/cert.pem"]
    )
    tls_key: Name | None = Field(
        None, description="private key of that certificate; a PEM file", examples=["/etc/dask/key.pem"]
    )

    @property
    def is_own(self) -> bool:
        """Whether the job starts its workers itself."""
        return self.scheduler is None

    @property
    def in_process(self) -> bool:
        """Whether the workers are threads of this process."""
        return self.is_own and self.workers is None

    def shape(self) -> tuple[int, int]:
        """Workers of a cluster of its own (one: this process), and threads of each."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = self.workers or 1
        return workers, self.threads_per_worker or max(1, cores // workers)

    def worker_bytes(self) -> int:
        """Memory that a worker of a cluster of its own may use."""
        return parse_bytes(self.memory_limit) if self.memory_limit else machine_bytes() // (self.workers or 1)

    @model_validator(mode="after")
    def _shapes_only_its_own_cluster(self) -> ClusterSettings:
        # A running cluster has its shape already: to take the key and ignore it would be a false promise.
        shape = ("threads_per_worker", "memory_limit")
        given = tuple(key for key in shape if getattr(self, key) is not None)
        if given and not self.is_own:
            refuse(
                ("scheduler", *given),
                f'the workers run already, as they are; leave out {" and ".join(given)}, or set "none"',
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ClusterSettings:
        given = tuple(key for key in ("tls_ca", "tls_cert", "tls_key") if getattr(self, key) is not None)
        if given and self.is_own:
            refuse(
                ("scheduler", *given), "a cluster of its own stays on this machine; TLS is for --scheduler"
            )
        if given and len(given) < 3:
            refuse(given, "TLS needs tls_ca, tls_cert and tls_key together")
        return self


class RunSettings(Section):
    """How it runs."""

    resume: Literal["auto", "never"] = Field(
        "auto", description="go on from the last checkpoint of an unfinished run, or start again"
    )
    scratch: Name | None = Field(
        None,
        description="folder or URI for intermediate blocks; a local one takes W that own workers cannot hold, too; "
        "none: inside the run's folder, and such W in Dask's own",
        examples=["/scratch/nmf-dask"],
    )
    checkpoint_every: PositiveInt = Field(5, description="passes between checkpoints")
    log_format: Literal["text", "json"] = Field("text", description="how logs and results are printed")
    deadline: Deadline | None = Field(
        None,
        description='seconds from the start of the command to its end at the latest, also as "4h"; none: no end',
        examples=["4h"],
    )
    deadline_action: Literal["checkpoint", "commit"] = Field(
        "checkpoint",
        description="where it comes first: leave a checkpoint and exit 75, or write the model as it stands",
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None,
        description="port at which the job tells its numbers to Prometheus while it runs; 0: any free one; none: not",
        examples=[9105],
    )
    performance_report: Name | None = Field(
        None,
        description="HTML file for Dask's report of what its workers did; a local path; none: not made",
        examples=["report.html"],
    )


OF_WORDS = ("analyzer", "token_pattern", "lowercase", "strip_accents", "stop_words", "ngram_range")
"""Settings of [vectorizer] that say what a word is."""
COUNTS: dict[str, Any] = {
    "n_features": 2**31 - 1, "min_df": 1, "max_df": 1.0, "use_idf": False, "norm": None
}  # fmt: skip
"""Defaults of [vectorizer] for counts: the matrix as it is."""


class Settings(Section):
    """One job. A section may be given as a plain dict: ``Settings(model={"n_components": 5})``."""

    corpus: CorpusSettings = CorpusSettings()
    vectorizer: VectorizerSettings = VectorizerSettings()
    model: ModelSettings = ModelSettings()
    output: OutputSettings = OutputSettings()
    cluster: ClusterSettings = ClusterSettings()
    run: RunSettings = RunSettings()
    transform: TransformSettings = TransformSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    select: SelectSettings = SelectSettings()
    update: UpdateSettings = UpdateSettings()
    nightly: NightlySettings = NightlySettings()

    @model_validator(mode="after")
    def _counts_are_no_words(self) -> Settings:
        if self.corpus.feature_column is None:
            return self
        given, fields = self.vectorizer, VectorizerSettings.model_fields
        for key in OF_WORDS:
            if getattr(given, key) != fields[key].default:
                refuse(
                    (f"vectorizer.{key}", "corpus.feature_column"),
                    f"{key} is about the words of texts, and there are none in counts; leave it out",
                )
        values = {**dict(given), **{key: COUNTS[key] for key in COUNTS.keys() - given.model_fields_set}}
        weighed = VectorizerSettings.model_construct(_fields_set=set(given.model_fields_set), **values)
        object.__setattr__(self, "vectorizer", weighed)  # defaults are not what was given
        return self

    @model_validator(mode="after")
    def _terms_for_every_topic(self) -> Settings:
        k, vectorizer = self.model.n_components, self.vectorizer
        for key in ("max_features", "n_features"):
            limit = getattr(vectorizer, key)
            if limit is not None and k > limit:
                refuse(
                    ("model.n_components", f"vectorizer.{key}"),
                    f"{k} topics need at least {k} terms; raise {key} or lower n_components",
                )
        return self
