"""What scikit-learn says of texts, and the comparison of Counts with it, entry by entry."""

from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer

from nmf_dask.config import VectorizerSettings
from nmf_dask.text import Counts

OF_ANALYZER = ("analyzer", "token_pattern", "lowercase", "strip_accents", "stop_words", "ngram_range")


def analyzer_options(settings: VectorizerSettings) -> dict[str, Any]:
    options = {name: getattr(settings, name) for name in OF_ANALYZER}
    if isinstance(options["stop_words"], tuple):
        options["stop_words"] = list(options["stop_words"])
    if settings.analyzer != "word":
        options["stop_words"] = None  # scikit-learn warns that it does not use them
        del options["token_pattern"]
    return options


def matrix(counts: Counts, n_features: int) -> sparse.csr_matrix:
    columns = counts.buckets[counts.indices]
    return sparse.csr_matrix((counts.counts, columns, counts.indptr), shape=(counts.n_documents, n_features))


def assert_same_matrix(counts: Counts, texts: list[str], settings: VectorizerSettings) -> None:
    oracle = HashingVectorizer(
        alternate_sign=False,
        norm=None,
        n_features=settings.n_features,
        dtype=np.int64,
        **analyzer_options(settings),
    )
    # it cannot take zero documents
    expected = (
        oracle.transform(texts) if texts else sparse.csr_matrix((0, settings.n_features), dtype=np.int64)
    )
    expected.sort_indices()
    found = matrix(counts, settings.n_features)
    found.sort_indices()
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.data, expected.data)


def document_frequencies(texts: list[str], settings: VectorizerSettings) -> dict[str, int]:
    analyze = CountVectorizer(**analyzer_options(settings)).build_analyzer()
    frequencies: dict[str, int] = {}
    for text in texts:
        for term in set(analyze(text)):
            frequencies[term] = frequencies.get(term, 0) + 1
    return frequencies


def assert_same_terms(counts: Counts, texts: list[str], settings: VectorizerSettings) -> None:
    assert counts.terms.schema.equals(
        pa.schema({"bucket": pa.int32(), "term": pa.string(), "document_frequency": pa.int64()})
    )
    terms = counts.terms["term"].to_pylist()
    found = dict(zip(terms, counts.terms["document_frequency"].to_pylist(), strict=True))
    assert found == document_frequencies(texts, settings)
    assert len(terms) == len(found)  # no term twice


def assert_sound(counts: Counts) -> None:
    """What the type promises, whatever the texts are."""
    assert [a.dtype for a in (counts.indptr, counts.indices, counts.counts, counts.buckets)] == [
        np.int64,
        np.int32,
        np.uint8 if counts.counts.max(initial=0) < 256 else np.int32,
        np.int32,
    ]
    assert (np.diff(counts.buckets) > 0).all()
    rows = np.repeat(np.arange(counts.n_documents), np.diff(counts.indptr))
    pairs = rows * max(1, len(counts.buckets)) + counts.indices
    assert len(np.unique(pairs)) == len(pairs)
    np.testing.assert_array_equal(np.unique(counts.terms["bucket"].to_numpy()), counts.buckets)
    n_buckets = len(counts.buckets)
    frequency = np.bincount(counts.indices, minlength=n_buckets)
    np.testing.assert_array_equal(counts.document_frequency, frequency)
    totals = np.bincount(counts.indices, counts.counts, minlength=n_buckets)
    np.testing.assert_array_equal(counts.total_count, totals)
    keys = [(row["bucket"], row["term"].encode()) for row in counts.terms.to_pylist()]
    assert keys == sorted(keys)


def assert_as_scikit_learn(counts: Counts, texts: list[str], settings: VectorizerSettings) -> None:
    assert_sound(counts)
    assert_same_matrix(counts, texts, settings)
    assert_same_terms(counts, texts, settings)
