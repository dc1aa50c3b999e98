"""The readable way: scikit-learn's own analyzer, a document at a time.

It serves the token patterns that the kernels do not, and the tests compare the kernels with it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from nmf_dask.text.analysis import Analysis
from nmf_dask.text.counts import Counts, counts_by_bucket
from nmf_dask.text.terms import PADDING


def count_by_analyzer(chunks: Sequence[Any], analysis: Analysis, n_invalid: int) -> Counts:
    """Count the terms of valid strings (or nulls) with the analyzer that scikit-learn makes of settings."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.utils import murmurhash3_32

    settings = analysis.settings
    analyze = HashingVectorizer(
        analyzer=settings.analyzer,
        token_pattern=settings.token_pattern,
        lowercase=settings.lowercase,
        strip_accents=settings.strip_accents,
        stop_words=None if analysis.stop_words is None else sorted(analysis.stop_words),
        ngram_range=settings.ngram_range,
    ).build_analyzer()
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
