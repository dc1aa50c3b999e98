"""What run.json tells of a fit, whole or broken off."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from platform import python_version
from typing import Any, Protocol

import numpy as np

import nmf_dask
from nmf_dask.config import Settings, redact
from nmf_dask.corpus import Corpus
from nmf_dask.errors import NmfDaskError
from nmf_dask.observer import Observer
from nmf_dask.pipeline.stages import Written

# Null where a run broke off before it was known.
_KEYS = (
    "n_documents", "n_null_texts", "n_invalid_utf8", "n_empty_documents", "n_features", "nnz", "collision_rate",
    "n_iter", "stop_reason", "reconstruction_err", "topics", "dead_topics", "peak_memory", "workers_lost",
)  # fmt: skip
_PACKAGES = ("dask", "distributed", "numba", "numpy", "pyarrow", "scikit-learn", "scipy")


class Account:
    """Gathers, stage by stage, what run.json tells."""

    def __init__(self, settings: Settings, corpus: Corpus, observer: Observer) -> None:
        self.settings = settings
        self.corpus = corpus
        self.observer = observer
        self.told: dict[str, Any] = dict.fromkeys(_KEYS)
        self.stages: dict[str, dict[str, float]] = {}
        self.resumed_from: str | None = None

    @contextmanager
    def timed(self, stage: str, total: int | None = None, n_bytes: int = 0) -> Iterator[None]:
        """A stage, for the length of a `with`: the observer hears of it, run.json keeps its seconds and bytes.

        The seconds of one that is begun again add up.
        """
        started = time.perf_counter() - self.stages.get(stage, {}).get("seconds", 0.0)
        self.observer.stage(stage, total)
        try:
            yield
        finally:
            self.stages[stage] = {"seconds": time.perf_counter() - started, "bytes": n_bytes}

    def tell(self, **facts: Any) -> None:
        """Take facts in; the user hears of those that are survived."""
        self.told |= facts
        warn_of(self.observer, facts, "{:,} documents hold no selected term; their W is zero")

    def tell_topics(self, H_sums: Any, written: list[Written]) -> None:
        """The share of each topic, from the sums of the rows of H and what was written of W."""
        topics = topics_told(H_sums, written)
        self.tell(topics=topics, dead_topics=[one["topic"] for one in topics if one["share"] <= 0])

    def report(self, status: str, error: BaseException | None = None) -> dict[str, Any]:
        """Content of run.json, without credentials."""
        source = self.corpus.describe()
        for file in source["files"]:
            file["uri"] = redact(file["uri"])
        report = {
            "status": status,
            **basis_of(self.settings),
            "input": source,
            **self.told,
            "stages": self.stages,
            "resumed_from": self.resumed_from,
        }
        if error is not None:
            report["error"] = failure(error)
        return report


class Counted(Protocol):
    """A part of W that was written: the sums of its columns, its documents by their largest weight, k of each."""

    @property
    def weights(self) -> Any: ...

    @property
    def documents(self) -> Any: ...


def topics_told(H_sums: Any, parts: Sequence[Counted]) -> list[dict[str, Any]]:
    """The share and the documents of each topic, from the sums of the rows of H (k,) and the parts of W."""
    weights = np.sum([one.weights for one in parts], axis=0) * H_sums if parts else 0 * H_sums
    documents = np.sum([one.documents for one in parts], axis=0) if parts else np.zeros(len(H_sums), int)
    total = float(np.sum(weights)) or 1.0
    return [
        {"topic": t, "share": float(weights[t] / total), "n_documents": int(documents[t])}
        for t in range(len(weights))
    ]


def warn_of(observer: Observer, facts: Mapping[str, Any], empty: str) -> None:
    """The user hears of what is survived; `empty` says what became of documents without terms."""
    lost = "1 worker was lost; its" if facts.get("workers_lost") == 1 else "{:,} workers were lost; their"
    for key, message in (
        ("n_null_texts", "{:,} documents have no text (null); they count as empty"),
        ("n_invalid_utf8", "{:,} documents are no valid UTF-8; what is not stands as U+FFFD"),
        ("n_empty_documents", empty),
        ("dead_topics", "topics without any document: {}; lower -k"),
        ("workers_lost", f"{lost} work was done again"),
    ):
        if facts.get(key):
            observer.warn(message.format(facts[key]))


def failure(error: BaseException) -> str:
    """What a file that tells of a job says of its error, without credentials."""
    if isinstance(error, KeyboardInterrupt):
        return redact(str(error)) or "interrupted"
    known = isinstance(error, NmfDaskError)
    return redact(str(error) if known else f"{type(error).__name__}: {error}")


def basis_of(settings: Settings) -> dict[str, Any]:
    """What a job was made by: its settings, without credentials, and the versions that numbers depend on."""
    return {"config": json.loads(redact(settings.model_dump_json())), "versions": _versions()}


@cache
def _versions() -> dict[str, str]:
    """Read once a process: the metadata of seven packages take longer than some hundred documents do."""
    own = {"nmf-dask": nmf_dask.__version__, "python": python_version()}
    return own | {name: version(name) for name in _PACKAGES}
