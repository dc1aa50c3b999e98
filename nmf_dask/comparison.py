"""Two models of the same topics side by side: what moved from one run to the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nmf_dask.errors import InputDataError
from nmf_dask.model import Topic, TopicModel
from nmf_dask.vocabulary import Vocabulary

SAME_FROM = 0.5
"""Similarity below which a topic is not the one that had its number before."""
GONE_SHARE = 1e-3
"""Of an even share of the corpus: a topic with less is gone."""


@dataclass(frozen=True)
class Moved:
    """A topic, as it is and as it was."""

    now: Topic
    before: Topic
    similarity: float
    """Cosine of its weights and those of then, over the terms of both: from 0 to 1."""
    state: str
    """"new", "gone", or empty: `state_of`."""

    @property
    def terms_in(self) -> list[str]:
        """Terms among the first that were not among them before, the largest weight first."""
        return _without(self.now, self.before)

    @property
    def terms_out(self) -> list[str]:
        """Terms that were among the first and are not any more."""
        return _without(self.before, self.now)


def _without(topic: Topic, other: Topic) -> list[str]:
    theirs = {term for term, _ in other.terms}
    return [term for term, _ in topic.terms if term not in theirs]


def compare(model: TopicModel, before: TopicModel, n: int = 10) -> list[Moved]:
    """Each topic of `model` beside the one of that number in `before`, by their `n` first terms.

    Raises InputDataError where they have different numbers of topics, or turn text into terms differently.
    """
    if model.n_components != before.n_components:
        raise InputDataError(
            f"run {model.run.get('run_id')} has {model.n_components} topics and run {before.run.get('run_id')} has "
            f"{before.n_components}: topics are compared number by number, between a run and one that came from it"
        )
    if model.vectorizer_settings.n_features != before.vectorizer_settings.n_features:
        raise InputDataError(
            "the two runs hash terms into different numbers of buckets (vectorizer.n_features)"
        )
    similarity = similarities(model.H, model.vocabulary, before.H, before.vocabulary)
    return [
        Moved(now, then, float(one), state_of(now.share, float(one), model.n_components))
        for now, then, one in zip(model.topics(n), before.topics(n), similarity, strict=True)
    ]


def state_of(share: float, similarity: float, n_components: int) -> str:
    """ "gone": next to nothing of the corpus is the topic's; "new": it is not the one that it was; or empty."""
    if share < GONE_SHARE / n_components:
        return "gone"
    return "new" if similarity < SAME_FROM else ""


def similarities(
    H: NDArray[np.float32], columns: Vocabulary, earlier: NDArray[np.float32], earlier_columns: Vocabulary
) -> NDArray[np.float64]:
    """Cosine of each row of `H` (k, m) with that of `earlier` (k, m'), over the terms of both; a row of zeros: 0."""
    _, here, there = np.intersect1d(
        columns.bucket, earlier_columns.bucket, assume_unique=True, return_indices=True
    )
    products = np.einsum("tj,tj->t", H[:, here], earlier[:, there], dtype=np.float64)
    norms = [np.sqrt(np.einsum("tj,tj->t", one, one, dtype=np.float64)) for one in (H, earlier)]
    size = norms[0] * norms[1]
    return np.asarray(np.divide(products, size, out=np.zeros(len(H)), where=size > 0))
