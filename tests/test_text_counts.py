"""Counts and terms are scikit-learn's, on real corpora and on any text, for every option."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmf_dask.config import VectorizerSettings
from nmf_dask.text import count_texts, counting
from nmf_dask.text.analysis import analysis_of
from nmf_dask.text.characters import count_characters
from nmf_dask.text.counts import bucket_of, copy_terms, merge_buckets
from nmf_dask.text.documents import string_chunks
from nmf_dask.text.reference import count_by_analyzer
from nmf_dask.text.terms import count_block, empty_tally, fill_slots, murmur_terms
from nmf_dask.text.words import count_words
from tests.corpora import corpus_folder
from tests.text_oracle import assert_as_scikit_learn, assert_same_matrix

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "english stop words": {"stop_words": "english"},
    "case kept": {"lowercase": False},
    "pairs too": {"ngram_range": (1, 2)},
    "pairs and triples without stop words": {"ngram_range": (2, 3), "stop_words": ("the", "of", "и", "de")},
    "accents to ascii": {"strip_accents": "ascii"},
    "accents stripped": {"strip_accents": "unicode"},
    "accents stripped, case kept": {"strip_accents": "unicode", "lowercase": False},
    "one letter is a word": {"token_pattern": r"(?u)\b\w+\b"},
    "long words": {"token_pattern": r"\b\w{4,}\b"},
    "another pattern": {"token_pattern": r"[^\W\d_]+"},
    "few buckets": {"n_features": 1000},
    "one bucket": {"n_features": 1},
    "most buckets": {"n_features": 2**31 - 1},
    "characters": {"analyzer": "char", "ngram_range": (1, 3)},
    "characters without accents": {"analyzer": "char", "ngram_range": (2, 2), "strip_accents": "unicode"},
    "characters in words": {"analyzer": "char_wb", "ngram_range": (2, 4)},
    "characters in words, case kept": {"analyzer": "char_wb", "ngram_range": (1, 8), "lowercase": False},
}
# Letters whose lower case, decomposition, class or width is out of the ordinary, and all that ends a word.
SPECIAL = (
    "aAzZ09_ .,'-\t\n\r\v\f\x00\x1c\x1d\x1e\x1f\x7f\x85\xa0\u2000\u2003\u2028\u2029\u202f\u3000\u200b\ufeff"
    "İıΣσςßẞﬁﷺÅÅéÉñçøØŁłK℡½²ªº´¨ǅǆȺΆώЁёЙйІіїאבּ١٣۴०१एकสวัดี한글가ᄀ中文日本語かがカ゛"
    "\u0301\u0307\u0308\u0345\u05b4\u0e31\u1ab0\u20dd\u093e\u0f72\U0001d400\U0001d7d8\U00010400\U0001f600\U000e0100"
)


def texts_of(name: str) -> pa.ChunkedArray:
    return pq.read_table(corpus_folder(name), columns=["text"])["text"]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("corpus", ["20newsgroups", "udhr-articles", "arxiv-abstracts-demo"])
def test_real_corpora(corpus: str, options: dict[str, Any]) -> None:
    vectorizer = VectorizerSettings(**options)
    # Every seventh document, all 532 languages among them: scikit-learn takes seconds for each whole corpus.
    texts = texts_of(corpus).take(pa.array(np.arange(0, len(texts_of(corpus)), 7)))
    assert_as_scikit_learn(count_texts(texts, vectorizer), texts.to_pylist(), vectorizer)


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["20newsgroups", "udhr-articles", "arxiv-abstracts-demo"])
def test_whole_corpora(corpus: str) -> None:
    vectorizer = VectorizerSettings()
    texts = texts_of(corpus)
    assert_as_scikit_learn(count_texts(texts, vectorizer), texts.to_pylist(), vectorizer)


def documents() -> st.SearchStrategy[list[str]]:
    special = st.text(st.sampled_from(SPECIAL), max_size=30)
    anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    words = st.lists(st.sampled_from(["the", "The", "NASA", "a", "of", "ΟΔΟΣ", "İstanbul", "naïve"])).map(
        " ".join
    )
    return st.lists(st.one_of(special, anything, words), max_size=6)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@settings(max_examples=150, deadline=None)
@given(texts=documents())
def test_any_text(options: dict[str, Any], texts: list[str]) -> None:
    vectorizer = VectorizerSettings(**options)
    counts = count_texts(pa.array(texts, pa.string()), vectorizer)
    assert_as_scikit_learn(counts, texts, vectorizer)


@pytest.mark.parametrize("n_parts", [1, 2, 7])
def test_partitions_count_like_the_whole(n_parts: int) -> None:
    """A partition's counts depend on its documents alone; one table for several chunks mixes nothing up."""
    texts = [f"{i} shared word{i % 5} {'Σίσυφος' * (i % 3)} café{i}" for i in range(100)]
    vectorizer = VectorizerSettings(ngram_range=(1, 2))
    bounds = np.linspace(0, len(texts), n_parts + 1).astype(int)
    parts = [texts[a:b] for a, b in pairwise(bounds)]
    for part in parts:
        assert_as_scikit_learn(count_texts(pa.array(part), vectorizer), part, vectorizer)
    chunked = pa.chunked_array([pa.array(part) for part in parts])
    assert_as_scikit_learn(count_texts(chunked, vectorizer), texts, vectorizer)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_reference_and_kernels_agree(options: dict[str, Any]) -> None:
    texts = pa.array(["b a b c a", "", None, "İΣ abc Σ ab", "the of a b"])
    vectorizer = VectorizerSettings(**options)
    analysis = analysis_of(vectorizer)
    fast = count_texts(texts, vectorizer)
    readable = count_by_analyzer(*string_chunks(texts)[:1], analysis, 0)
    rows = [_row(counts, d) for counts in (fast, readable) for d in range(len(texts))]
    assert rows[: len(texts)] == rows[len(texts) :]
    assert _sorted_terms(fast) == _sorted_terms(readable)


def _row(counts: Any, d: int) -> dict[int, int]:
    span = slice(counts.indptr[d], counts.indptr[d + 1])
    return dict(zip(counts.buckets[counts.indices[span]].tolist(), counts.counts[span].tolist(), strict=True))


def _sorted_terms(counts: Any) -> list[dict[str, Any]]:
    return sorted(counts.terms.to_pylist(), key=lambda row: row["term"])


def test_terms_that_share_a_bucket_are_one_entry_of_a_row() -> None:
    texts = ["one two three one", "four", "two four five"]
    counts = count_texts(pa.array(texts), VectorizerSettings(n_features=1))
    assert counts.buckets.tolist() == [0]
    assert counts.indices.tolist() == [0, 0, 0]
    assert counts.counts.tolist() == [4, 1, 3]
    assert counts.document_frequency.tolist() == [3]
    assert counts.total_count.tolist() == [8]


def test_smallest_hash_has_the_bucket_of_scikit_learn() -> None:
    """The absolute value of -2**31 is no int32: scikit-learn has a branch of its own for it."""
    for n_features in (1, 3, 1000, 2**20, 2**31 - 1):
        expected = (2147483647 - (n_features - 1)) % n_features
        assert bucket_of(np.array([2**31], np.int64), n_features).tolist() == [expected]


@pytest.mark.parametrize(
    "options",
    [
        {"ngram_range": (1, 2)},
        {"analyzer": "char", "ngram_range": (3, 5)},
        {"analyzer": "char_wb", "ngram_range": (4, 6)},
    ],
    ids=str,
)
def test_more_terms_than_any_first_guess(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Room runs out in the midst of documents, which the kernels then take up where they left them."""
    texts = ["before", *(" ".join(f"w{i}x{d}" for i in range(20_000)) for d in range(3)), "after"]
    monkeypatch.setattr(counting, "empty_tally", lambda n_bytes, n_lengths: empty_tally(0, 0))
    vectorizer = VectorizerSettings(**options)
    assert_as_scikit_learn(count_texts(pa.array(texts), vectorizer), texts, vectorizer)


@pytest.mark.parametrize("ngram_range", [(1, 1), (1, 2)])
def test_more_stop_words_than_are_counted_at_once(ngram_range: tuple[int, int]) -> None:
    """Short and long ones, some of which no text holds: single words and pairs are stopped by different tables."""
    names = [f"w{i}" if i % 3 else f"a_word_of_more_than_16_bytes_{i}" for i in range(20_000)]
    texts = [" ".join(names[d::7]) for d in range(3)]
    vectorizer = VectorizerSettings(stop_words=tuple(names[::2]), ngram_range=ngram_range)
    assert_as_scikit_learn(count_texts(pa.array(texts), vectorizer), texts, vectorizer)


def test_each_kernel_is_compiled_once() -> None:
    """A second signature would cost a cold worker seconds: no input may choose other types."""
    ascii_texts = pa.array(["plain text", ""])
    for texts in (
        ascii_texts,
        pa.array(["é Σ"]),
        pa.chunked_array([[], ["a b"]], pa.large_string()),
        pa.nulls(2),
    ):
        for options in ({}, {"stop_words": "english", "lowercase": False}, {"strip_accents": "unicode"}):
            count_texts(texts, VectorizerSettings(**options))
            count_texts(texts, VectorizerSettings(analyzer="char_wb", **options))
    kernels = (
        count_words,
        count_characters,
        count_block,
        fill_slots,
        murmur_terms,
        copy_terms,
        merge_buckets,
    )
    assert [len(kernel.signatures) for kernel in kernels] == [1] * len(kernels)


def test_one_huge_word() -> None:
    texts = ["a" * 3_000_000, "A" * 3_000_000 + " b", "é" * 1_000_000]
    vectorizer = VectorizerSettings()
    assert_same_matrix(count_texts(pa.array(texts), vectorizer), texts, vectorizer)
