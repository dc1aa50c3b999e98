"""The readable way: scikit-learn's own analyzer, a document at a time.

It serves the token patterns that the kernels do not, and the tests compare the kernels with it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nmf_dask.text.analysis import Analysis
from nmf_dask.text.counts import Counts, counts_by_bucket
from nmf_dask.text.terms import PADDING


def count_by_analyzer(chunks: Sequence[Any], analysis: Analysis, n_invalid: int) -> Counts:
    """Count the terms of valid strings (or nulls) with the analyzer that scikit-learn makes of settings."""
    from sklearn.utils import murmurhash3_32

    settings = analysis.settings
    analyze = _analyzer(analysis, settings.ngram_range)
    numbers: dict[str, int] = {}
    indptr, indices, counts = [0], [], []
    for chunk in chunks:
        for text in chunk.to_pylist():
            for term, count in Counter(analyze(text or "")).items():
                indices.append(numbers.setdefault(term, len(numbers)))
                counts.append(count)
            indptr.append(len(indices))
    contents = [term.encode() for term in numbers]
    hashes = [murmurhash3_32(term, positive=True) for term in numbers]
    return counts_by_bucket(
        np.array(indptr, np.int64),
        np.array(indices, np.int32),
        np.array(counts, np.int32),
        np.array(hashes, np.int64),
        np.cumsum([0, *map(len, contents)], dtype=np.int64),
        np.frombuffer(b"".join(contents) + bytes(PADDING), np.uint8).copy(),
        settings.n_features,
        n_invalid,
    )


def terms_in_order(analysis: Analysis) -> Callable[[str], list[list[str]]]:
    """What gives, of a document, the terms that begin at each of its places: at each word, the n-grams from it on.

    Of characters, each term that the analyzer gives is at a place of its own.
    """
    shortest, longest = analysis.settings.ngram_range
    if analysis.settings.analyzer != "word":
        analyze = _analyzer(analysis, (shortest, longest))
        return lambda text: [[term] for term in analyze(text)]
    words_of = _analyzer(analysis, (1, 1))

    def in_order(text: str) -> list[list[str]]:
        words = words_of(text)
        places = range(len(words) - shortest + 1)
        return [
            [" ".join(words[i : i + n]) for n in range(shortest, min(longest, len(words) - i) + 1)]
            for i in places
        ]

    return in_order


def _analyzer(analysis: Analysis, ngram_range: tuple[int, int]) -> Callable[[str], list[str]]:
    """The one that scikit-learn makes of the settings."""
    from sklearn.feature_extraction.text import HashingVectorizer

    settings = analysis.settings
    made: Callable[[str], list[str]] = HashingVectorizer(
        analyzer=settings.analyzer,
        token_pattern=settings.token_pattern,
        lowercase=settings.lowercase,
        strip_accents=settings.strip_accents,
        stop_words=None if analysis.stop_words is None else sorted(analysis.stop_words),
        ngram_range=ngram_range,
    ).build_analyzer()
    return made
