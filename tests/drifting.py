"""Corpora that drift, in months: a generated one, and arXiv by year; and how well models do on documents held out."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from nmf_dask import TopicModel
from nmf_dask.continuation import places
from nmf_dask.kernels.matrices import to_scipy
from nmf_dask.text import count_texts
from nmf_dask.vocabulary import weigh
from tests.small_corpora import loss


class Drift(NamedTuple):
    """Documents in their order, in periods; of the last, every second one of its newest month is held out."""

    periods: list[list[str]]
    held_out: list[str]


def generated_drift(n: int = 400, n_periods: int = 3, n_topics: int = 5, seed: int = 3) -> Drift:
    """Subjects whose words change from period to period: of 40, 6 go in each, and 6 come that nobody used before."""
    random = np.random.default_rng(seed)
    words = [[f"t{topic}w{i}" for i in range(40)] for topic in range(n_topics)]
    common = [f"c{i}" for i in range(60)]
    periods = []
    for period in range(n_periods):
        if period:
            words = [
                [*own[6:], *(f"t{topic}p{period}w{i}" for i in range(6))] for topic, own in enumerate(words)
            ]
        texts = []
        for _ in range(n):
            mix = random.dirichlet(np.full(n_topics, 0.15))
            topics = random.choice(n_topics, 30, p=mix)
            own = [words[topic][random.integers(40)] for topic in topics]
            texts.append(" ".join([*own, *random.choice(common, 10)]))
        periods.append(texts)
    held_out = periods[-1][-n // 4 :: 2]
    periods[-1] = [*periods[-1][: -n // 4], *periods[-1][-n // 4 + 1 :: 2]]
    return Drift(periods, held_out)


def arxiv_drift(folder: Path, first_year: int, n_years: int) -> Drift:
    """What was submitted before a year, then year by year; held out is half of the newest month."""
    table = pa.concat_tables(
        pq.read_table(file, columns=["text", "date"]) for file in sorted(folder.glob("*.parquet"))
    )
    table = table.sort_by("date")
    dates: list[datetime.date] = table["date"].to_pylist()
    texts: list[str] = table["text"].to_pylist()
    newest = (dates[-1].year, dates[-1].month)
    month = [i for i, date in enumerate(dates) if (date.year, date.month) == newest]
    held = set(month[::2])
    bounds = range(first_year, first_year + n_years)
    periods: list[list[str]] = [[] for _ in range(n_years + 1)]
    for i, (date, text) in enumerate(zip(dates, texts, strict=True)):
        if i not in held:
            periods[sum(date.year >= year for year in bounds)].append(text)
    return Drift(periods, [texts[i] for i in sorted(held)])


def write_period(corpus: Path, number: int, texts: Sequence[str]) -> None:
    """One file of a corpus that grows."""
    corpus.mkdir(parents=True, exist_ok=True)
    ids = [f"p{number}-{i}" for i in range(len(texts))]
    table = pa.table({"doc_id": ids, "text": pa.array(list(texts), pa.string())})
    pq.write_table(table, corpus / f"period-{number:03d}.parquet", row_group_size=1000)


def held_out_loss(model: TopicModel, texts: Sequence[str], columns: TopicModel) -> float:
    """√(2D) of documents that no model has seen, in the columns and the idf of one of them, under its own W."""
    X = sparse.csr_matrix(
        to_scipy(
            weigh(
                count_texts(pa.array(list(texts)), columns.vectorizer_settings),
                columns.vocabulary,
                columns.vectorizer_settings,
            )
        )
    ).astype(np.float64)
    place, known = places(model.vocabulary, columns.vocabulary)
    H = np.full((model.n_components, len(columns.vocabulary)), 1e-9)
    H[:, known] = model.H[:, place[known]]
    W = model.transform(list(texts)).astype(np.float64)
    return loss(X, W, H, model.model_settings.beta_loss)
