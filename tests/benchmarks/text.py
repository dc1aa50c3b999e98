"""Strings to TF-IDF on one core: nmf_dask.text against HashingVectorizer and TfidfTransformer.

Ours also recovers the terms. Strings are in memory before the clock starts, as Arrow has them for us and as Python's
for scikit-learn. Both have done the first partition before: kernels are compiled, and memory is at hand.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.benchmarks import options
from tests.benchmarks.measuring import Report, Run, in_turn, mebibytes, median, run_function


def ours(corpus: str, text_column: str, terms: dict[str, Any]) -> dict[str, Any]:
    """A child: texts to a weighed matrix, partition by partition."""
    import pyarrow as pa

    from nmf_dask.config import CorpusSettings, VectorizerSettings
    from nmf_dask.corpus import open_corpus, read_texts

    pa.set_cpu_count(1)
    settings = VectorizerSettings(**terms)
    opened = open_corpus(CorpusSettings(input=corpus, text_column=text_column))
    texts = [read_texts(partition, text_column) for partition in opened.partitions]
    _matrices(texts[:2], settings)  # two, whose tables are merged
    (told, blocks), wall, cpu = timed(lambda: _matrices(texts, settings))
    nnz = sum(len(block.data) for block in blocks)
    return told | {
        "wall": wall,
        "cpu": cpu,
        "text_bytes": sum(text.nbytes for text in texts) - 4 * opened.n_rows,
        "nnz": nnz,
        "n_features": blocks[0].n_columns,
    }


def _matrices(texts: list[Any], settings: Any) -> tuple[dict[str, float], list[Any]]:
    from nmf_dask.text import count_texts
    from nmf_dask.vocabulary import TermTable, merge, select, weigh

    marks = [time.perf_counter()]
    counts = [count_texts(text, settings) for text in texts]
    marks.append(time.perf_counter())
    tables = [TermTable.of(one) for one in counts]
    vocabulary = select(tables[0] if len(tables) == 1 else merge(tables), settings)
    marks.append(time.perf_counter())
    counts.reverse()
    # Each goes once it is weighed, as it does in a job: the next block has its memory.
    blocks = [weigh(counts.pop(), vocabulary, settings) for _ in texts]
    marks.append(time.perf_counter())
    count, choose, weighing = (after - before for before, after in itertools.pairwise(marks))
    return {"count": count, "select": choose, "weigh": weighing}, blocks


def theirs(corpus: str, text_column: str, terms: dict[str, Any]) -> dict[str, Any]:
    """A child: the same with scikit-learn, which selects nothing here."""
    from nmf_dask.config import CorpusSettings
    from nmf_dask.corpus import open_corpus, read_texts

    opened = open_corpus(CorpusSettings(input=corpus, text_column=text_column))
    texts: list[str] = []
    for partition in opened.partitions:
        texts += (text or "" for text in read_texts(partition, text_column).to_pylist())
    stop_words = terms["stop_words"]
    _tfidf(texts[: sum(one.n_rows for one in opened.partitions[:2])], stop_words)
    X, wall, cpu = timed(lambda: _tfidf(texts, stop_words))
    return {"wall": wall, "cpu": cpu, "nnz": int(X.nnz)}


def _tfidf(texts: list[str], stop_words: str | None) -> Any:
    import numpy as np
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    hashing = HashingVectorizer(
        n_features=2**20, alternate_sign=False, norm=None, stop_words=stop_words, dtype=np.float32
    )
    return TfidfTransformer().fit_transform(hashing.transform(texts))


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `work` gives, its wall seconds and its process's CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    given = options.parser(__doc__, options.ALL_TERMS, threads=1).parse_args(argv)
    report = Report("text", options.told_of(given), given.threads)
    arguments = {
        "corpus": given.corpus,
        "text_column": given.text_column,
        "terms": options.terms_of(given),
    }
    sides = {"nmf-dask": ours, "HashingVectorizer + TfidfTransformer": theirs}
    cases = {name: partial(run_function, side, arguments, given.threads) for name, side in sides.items()}
    report.runs = in_turn(cases, given.repeat)
    us, them = report.runs.values()
    report.tables["strings to TF-IDF, medians"] = [
        _row(name, runs, them, us[0]["text_bytes"] / 1e6) for name, runs in report.runs.items()
    ]
    report.tables["where our time goes"] = [
        {"stage": stage, "seconds": median(us, stage)} for stage in ("count", "select", "weigh")
    ]
    report.notes.append(f"{us[0]['text_bytes'] / 1e6:.1f} MB of text, {us[0]['n_features']:,} features")
    report.finish(given.json)


def _row(side: str, runs: list[Run], peer: list[Run], megabytes: float) -> dict[str, Any]:
    wall = median(runs, "wall")
    return {
        "side": side,
        "seconds": wall,
        "cpu seconds": median(runs, "cpu"),
        "MB/s": megabytes / wall,
        "times as fast": median(peer, "wall") / wall,
        "by cpu": median(peer, "cpu") / median(runs, "cpu"),
        "nonzeros": runs[0]["nnz"],
        "MiB peak": mebibytes(median(runs, "peak_memory")),
    }


if __name__ == "__main__":
    main()
