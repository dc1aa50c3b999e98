"""The job's settings: validated once, then frozen.

Names and meanings are scikit-learn's wherever it has one; where a default differs, the description says so.
The descriptions are the comments of jobs/example.toml and the help of the command line, so they stand alone.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

_SHORTEST_DEADLINE = 15  # seconds; the end of a job is given ten of them (pipeline/deadline.py)
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?\s*", re.IGNORECASE)
_RANGE = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*(?::\s*(\d+)\s*)?")
_SECONDS = re.compile(r"\s*(\d+)\s*(s|sec|seconds?|m|min|minutes?|h|hours?)?\s*", re.IGNORECASE)
# S3 secrets hold slashes, which people paste as they are; no other scheme has a colon that far from a port.
_S3_SECRET = re.compile(r"\b(s3[an]?://)[^\s@:\"']*:[^\s@\"']*@", re.IGNORECASE)
_PASSWORD = re.compile(r"\b([a-z][a-z0-9+.-]*://[^/\s@:\"']*):[^/\s@\"']*@", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(
    r"([?&;][^=&;#\s]*(?:key|secret|token|password|passwd|credential|sig|signature)[^=&;#\s]*=)[^&;#\s\"']+",
    re.IGNORECASE,
)


def parse_bytes(text: str) -> int:
    """Bytes of a size such as "4GiB" (of 1024³), "500MB" (of 1000²) or "1048576"; ValueError otherwise."""
    match = _BYTES.fullmatch(text)
    if match is None or (match[2] is None and "." in match[1]):
        raise ValueError(f'{text!r} is no size; write it like "4GiB" or "500MB"')
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix.lower()) if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power) if power else int(number)


def machine_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(file) as limit:
            return min(machine, int(limit.read()))
    return machine


def parse_seconds(text: str) -> int:
    """Seconds of a time such as "90s", "5min", "2h" or "300"; ValueError otherwise."""
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is no time; write seconds, or it like "90s", "5min" or "2h"')
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[(match[2] or "s")[0].lower()]


def redact(text: str) -> str:
    """`text` without the credentials that the URIs in it carry (user:password@, ?secret_key=…)."""
    without_user_info = _PASSWORD.sub(r"\1:***@", _S3_SECRET.sub(r"\1***@", text))
    return _SECRET_PARAMETER.sub(r"\1***", without_user_info)


def _refuse(keys: tuple[str, ...], message: str) -> NoReturn:
    """Report a contradiction between `keys`, which whoever explains the error traces to their sources."""
    raise PydanticCustomError("conflict", "{message}", {"message": message, "keys": keys})


def _bytes_of_size(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


def _seconds_of_time(value: Any) -> Any:
    return parse_seconds(value) if isinstance(value, str) else value


def _size(value: str) -> str:
    if parse_bytes(value) == 0:
        raise ValueError("a worker needs some memory")
    return value


def _text_of_size(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"no regular expression: {error}") from None
    if groups > 1:
        raise ValueError("more than one capturing group; write (?:…) for the groups that are not the token")
    return value


def _document_frequency(value: int | float) -> int | float:
    if isinstance(value, int) and value < 1:
        raise ValueError("a count is at least 1; write a share with a decimal point, such as 0.0")
    if isinstance(value, float) and not 0.0 <= value <= 1.0:
        raise ValueError("a share is from 0.0 to 1.0; write a count without a decimal point")
    return value


def _deadline(value: int) -> int:
    if value < _SHORTEST_DEADLINE:
        raise ValueError(f"give at least {_SHORTEST_DEADLINE} s: ten are kept for the end of the job")
    return value


def _ordered(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] > value[1]:
        raise ValueError("the shortest n-gram comes first")
    return value


def _numbers(value: Any) -> Any:
    """A number, a range "from:to:step" (or "from:to") and a list of both as one tuple, ascending, each once."""
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    numbers: list[Any] = []
    for one in listed:
        match = _RANGE.fullmatch(one) if isinstance(one, str) else None
        if match is None:
            numbers.append(one)
            continue
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
        if step == 0 or last < first:
            raise ValueError('a range is "from:to:step", such as "5:50:5"')
        numbers += range(first, last + 1, step)
    if all(type(one) is int for one in numbers):
        return tuple(sorted(set(numbers)))
    return tuple(numbers)


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({name for name in value if value.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} twice; name each column once")
    return value


def _history(value: str) -> str:
    kind, equals, share = value.partition("=")
    with suppress(ValueError):
        if not equals and kind in ("keep", "forget", "reread"):
            return value
        if kind == "discount" and 0 < float(share) < 1:
            return value
    raise ValueError('write "keep", "forget", "reread", or "discount=0.9" with a share between 0 and 1')


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], AfterValidator(_distinct)]
SomeNames = Annotated[Names, Field(min_length=1)]
Numbers = Annotated[tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(_numbers)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Penalty = Annotated[float, Field(ge=0.0)]
# An int is a count and a float is a share, as in scikit-learn: 1 and 1.0 are opposites.
DocumentFrequency = Annotated[int | float, AfterValidator(_document_frequency)]
MemorySize = Annotated[Name, BeforeValidator(_text_of_size), AfterValidator(_size)]
ByteCount = Annotated[PositiveInt, BeforeValidator(_bytes_of_size)]
Seconds = Annotated[PositiveInt, BeforeValidator(_seconds_of_time)]
Deadline = Annotated[Seconds, AfterValidator(_deadline)]
NgramRange = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_ordered)]


class Section(BaseModel):
    """A section of the job file: no key but the declared ones, and no change after it was validated."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _from_toml(cls, value: Any, info: ValidationInfo) -> Any:
        """TOML has neither null nor tuples: "none" is None where None is allowed, and a list is a tuple."""
        if isinstance(value, list):
            return tuple(value)
        if value == "none" and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            return None if NoneType in get_args(annotation) else value
        return value


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
        """The columns that make up a document."""
        return (self.text_column,) if isinstance(self.text_column, str) else self.text_column

    @field_validator("input", "keep", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class VectorizerSettings(Section):
    """Strings to hashed TF-IDF."""

    analyzer: Literal["word", "char", "char_wb"] = Field(
        "word", description="what a term is made of: words, characters, or characters within words"
    )
    token_pattern: Annotated[Name, AfterValidator(_pattern)] = Field(
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
        2**20, description="buckets of the hash; more buckets, fewer terms that share one"
    )
    min_df: DocumentFrequency = Field(
        2,
        description="drop terms in fewer documents: 10 is a count, 0.01 a share of all; scikit-learn: 1",
    )
    max_df: DocumentFrequency = Field(
        0.5,
        description="drop terms in more documents: 10 is a count, 0.5 a share of all; scikit-learn: 1.0",
    )
    max_features: PositiveInt | None = Field(
        50_000,
        description='keep the terms of the largest total count; "none" keeps all; scikit-learn: "none"',
    )
    use_idf: bool = Field(True, description="weigh by inverse document frequency")
    smooth_idf: bool = Field(True, description="idf as if one more document held every term")
    sublinear_tf: bool = Field(False, description="1 + ln(count) instead of the count")
    norm: Literal["l1", "l2"] | None = Field(
        "l2", description='scale each document to this norm; "none": not'
    )

    @model_validator(mode="after")
    def _leaves_some_terms(self) -> VectorizerSettings:
        if isinstance(self.min_df, int) is isinstance(self.max_df, int) and self.max_df < self.min_df:
            _refuse(("min_df", "max_df"), "no term can be in that many and in that few documents at once")
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
    normalize: bool = Field(
        False, description="scale so that each topic's weights sum to 1 (W takes the factor)"
    )
    rounds: PositiveInt | Literal["auto"] = Field(
        "auto", description="updates of H in each of the first passes"
    )
    sweeps: PositiveInt | Literal["auto"] = Field(
        "auto", description="updates of a block's W at each visit of the block"
    )

    @property
    def method(self) -> Literal["mu", "cd"]:
        """The solver, with "auto" decided."""
        if self.solver == "auto":
            return "cd" if self.beta_loss == "frobenius" else "mu"
        return self.solver

    @model_validator(mode="after")
    def _solver_knows_the_loss(self) -> ModelSettings:
        if self.solver == "cd" and self.beta_loss != "frobenius":
            _refuse(("solver", "beta_loss"), 'coordinate descent minimizes "frobenius" only; use solver "mu"')
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
    def in_process(self) -> bool:
        """Whether the workers are threads of this process."""
        return self.scheduler is None and self.workers is None

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
        if self.scheduler is not None and given:
            _refuse(
                ("scheduler", *given),
                f'the workers run already, as they are; leave out {" and ".join(given)}, or set "none"',
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ClusterSettings:
        given = tuple(key for key in ("tls_ca", "tls_cert", "tls_key") if getattr(self, key) is not None)
        if given and self.scheduler is None:
            _refuse(
                ("scheduler", *given), "a cluster of its own stays on this machine; TLS is for --scheduler"
            )
        if given and len(given) < 3:
            _refuse(given, "TLS needs tls_ca, tls_cert and tls_key together")
        return self


class RunSettings(Section):
    """How it runs."""

    resume: Literal["auto", "never"] = Field(
        "auto", description="go on from the last checkpoint of an unfinished run, or start again"
    )
    scratch: Name | None = Field(
        None,
        description="folder or URI for intermediate blocks; none: inside the run's folder",
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


class TransformSettings(Section):
    """New documents under a fitted model; read by `nmf-dask transform` alone."""

    model: Name | None = Field(
        None,
        description="the model folder, or one run in it: a path or URI",
        examples=["s3://bucket/model"],
    )
    new_only: bool = Field(
        False,
        description="keep the W of files with the same path, size and time of change, and make that of the others",
    )
    loss: bool = Field(
        False,
        description="measure how far the documents are from WH as well (relative_loss): a few hundredths longer",
    )


class EvaluateSettings(Section):
    """How good the topics of a model are; read by `nmf-dask evaluate` alone."""

    judged_model: Name | None = Field(
        None,
        description="the model folder, or one run in it: a path or URI",
        examples=["s3://bucket/model"],
    )
    result_file: Name | None = Field(
        None,
        description="file for the result beside stdout: .json (all of it) or .parquet (one row a topic)",
        examples=["evaluation.parquet"],
    )
    n_judged_terms: Annotated[int, Field(ge=2)] = Field(10, description="terms a topic that are judged")
    window: PositiveInt | Literal["auto"] = Field(
        "auto", description='words of a sliding window; "auto": gensim\'s, 10 for NPMI and C_uci, 110 for C_v'
    )
    held_out: bool = Field(
        True, description="also fold in half of each document, for the loss of the other half"
    )
    label_column: Name | None = Field(
        None, description="column of labels to compare topics with; none: nothing", examples=["label"]
    )
    compare: Name | None = Field(
        None,
        description="another model, or run, whose topics are matched with these: a path or URI; none: nothing",
        examples=["model/runs/0123456789abcdef"],
    )


class SelectSettings(Section):
    """Choosing the number of topics; read by `nmf-dask select` alone, in place of model.n_components."""

    candidates: Numbers = Field(
        (),
        description='numbers of topics to try: a list, or a range "from:to:step" that ends with `to`',
        examples=[[5, 10, 20, 40]],
    )
    fits: Annotated[int, Field(ge=2)] = Field(10, description="fits of perturbed data for each of them")
    share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="rows of a fit, drawn with replacement: a share of all"
    )
    stability: Annotated[float, Field(ge=-1.0, le=1.0)] = Field(
        0.5, description="silhouette that each topic must reach for its k to count as stable"
    )
    commit: bool = Field(
        False,
        description="also fit the recommended number of topics to the whole corpus, as a run of the model",
    )


class UpdateSettings(Section):
    """New documents into a model, whose topics go on; read by `nmf-dask update` alone."""

    base: Name | None = Field(
        None,
        description="model folder, or the run in it that the new one starts from and goes beside; none: output.output",
        examples=["s3://bucket/model"],
    )
    history: Annotated[Name, AfterValidator(_history)] = Field(
        "keep",
        description="what documents of earlier runs count, whose text is not read again: "
        '"keep", "discount=0.9" (each update, that share of what they counted), "forget"; '
        '"reread": the input is all of the corpus, and is read again',
    )

    @property
    def weight(self) -> float:
        """Of what earlier runs kept: from 0 to 1."""
        return 1.0 if self.history == "keep" else float(self.history.partition("=")[2] or 0)

    @property
    def rereads(self) -> bool:
        """Whether the input is all of the corpus."""
        return self.history == "reread"


class NightlySettings(Section):
    """Every night: what came is transformed, the model updated when it is due; read by `nmf-dask nightly` alone."""

    weights: Name | None = Field(
        None,
        description="folder of the weights, one below it for each run of the model in output.output: a path or URI",
        examples=["s3://bucket/weights"],
    )
    every: PositiveInt | None = Field(
        7, description="update at this many nights with new files since the last; none: not by number"
    )
    loss_rise: Annotated[float, Field(ge=0.0)] | Literal["auto"] | None = Field(
        "auto",
        description="update when the relative loss of new documents is above that of the run's own by more than this "
        'share of it; "auto": 0.002 for Frobenius, whose loss of text is near 1 whatever comes, 0.02 for '
        'Kullback-Leibler; "none": not by loss',
    )


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
    def _terms_for_every_topic(self) -> Settings:
        k, vectorizer = self.model.n_components, self.vectorizer
        for key in ("max_features", "n_features"):
            limit = getattr(vectorizer, key)
            if limit is not None and k > limit:
                _refuse(
                    ("model.n_components", f"vectorizer.{key}"),
                    f"{k} topics need at least {k} terms; raise {key} or lower n_components",
                )
        return self
