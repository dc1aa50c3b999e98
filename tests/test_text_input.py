"""Arrow arrays of every layout, dirty texts, and settings that cannot be followed."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nmf_dask.config import VectorizerSettings
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.text import count_texts
from nmf_dask.text import counts as counts_module
from nmf_dask.text.analysis import least_length
from nmf_dask.text.counts import term_strings
from tests.text_oracle import assert_as_scikit_learn

TEXTS = ["Hello big World", "", "naïve ΟΔΟΣ hello", None, "one two", "İstanbul"]
PLAIN = [text or "" for text in TEXTS]
SETTINGS = VectorizerSettings()


def null_over_text() -> pa.Array:
    """A null with bytes under it, as the format allows."""
    strings = pa.array(["Hello big World", "", "naïve ΟΔΟΣ hello", "ghost Σ", "one two", "İstanbul"])
    _, offsets, data = strings.buffers()
    return pa.StringArray.from_buffers(6, offsets, data, pa.py_buffer(bytes([0b110111])))


LAYOUTS: dict[str, Any] = {
    "string": pa.array(TEXTS),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "string_view": pa.array(TEXTS).cast(pa.string_view()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "slice": pa.array(["left", "Σ out", *TEXTS, "right"]).slice(2, 6),
    "slice of large": pa.array(["left", *TEXTS, "right é"], pa.large_string()).slice(1, 6),
    "chunks": pa.chunked_array([TEXTS[:2], [], TEXTS[2:]], pa.string()),
    "null over text": null_over_text(),
}


@pytest.mark.parametrize("texts", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"analyzer": "char"}, {"token_pattern": r"[a-z]+"}], ids=str)
def test_layouts(texts: Any, options: dict[str, Any]) -> None:
    vectorizer = VectorizerSettings(**options)
    counts = count_texts(texts, vectorizer)
    assert_as_scikit_learn(counts, PLAIN, vectorizer)
    assert counts.n_invalid == 0


@pytest.mark.parametrize(
    "texts",
    [
        pa.array([], pa.string()),
        pa.array([], pa.large_string()),
        pa.chunked_array([], pa.string()),
        pa.nulls(3),
        pa.nulls(3, pa.string()),
        pa.array(["", "", ""]),
        pa.array(["... !!", " a ", "\n"]),
    ],
    ids=["no string", "no large string", "no chunk", "nulls", "null strings", "empty", "no word"],
)
@pytest.mark.parametrize("analyzer", ["word", "char", "char_wb"])
def test_no_words_at_all(texts: Any, analyzer: str) -> None:
    vectorizer = VectorizerSettings(analyzer=analyzer)
    counts = count_texts(texts, vectorizer)
    assert counts.n_documents == len(texts)
    assert len(counts.document_frequency) == len(counts.total_count) == len(counts.buckets)
    assert_as_scikit_learn(counts, [text or "" for text in texts.to_pylist()], vectorizer)


def strings_of(contents: list[bytes]) -> pa.Array:
    """An array of strings over bytes that nobody checked, as a Parquet reader makes it."""
    return pa.array(contents, pa.binary()).view(pa.string())


def test_invalid_bytes_are_replaced_and_counted() -> None:
    contents = [
        b"good text",
        b"caf\xe9 latin",
        b"trunc \xe4\xb8",
        b"\xed\xa0\x80 surrogate",
        "fine é ΟΔΟΣ".encode(),
        b"\xc3",
        b"over \xc0\xafx \xf5\x80\x80\x80 \xff",
        b"\x80\x80abc ",
    ]
    texts = [content.decode(errors="replace") for content in contents]
    for options in ({}, {"analyzer": "char"}, {"token_pattern": r"\S+"}, {"strip_accents": "unicode"}):
        vectorizer = VectorizerSettings(**options)
        counts = count_texts(strings_of(contents), vectorizer)
        assert counts.n_invalid == 6
        assert_as_scikit_learn(counts, texts, vectorizer)
    chunked = pa.chunked_array([strings_of(contents[:3]), strings_of(contents[3:])])
    assert count_texts(chunked, SETTINGS).n_invalid == 6


@pytest.mark.parametrize(
    "texts", [pa.array([1, 2]), pa.array([["a"]]), pa.array([b"a"]), pa.array([1]).dictionary_encode()]
)
def test_a_column_of_something_else_is_refused(texts: Any) -> None:
    with pytest.raises(InputDataError, match="must hold strings"):
        count_texts(texts, SETTINGS)


def test_million_documents() -> None:
    texts = pa.array(["one two", "", "two"]).take(pa.array(np.arange(1_000_000) % 3))
    counts = count_texts(texts, SETTINGS)
    assert counts.n_documents == 1_000_000
    frequency = dict(
        zip(counts.terms["term"].to_pylist(), counts.terms["document_frequency"].to_pylist(), strict=True)
    )
    assert frequency == {"one": 333_334, "two": 666_667}


@pytest.mark.slow
def test_document_of_100_megabytes() -> None:
    text = "Alpha beta gamma. " * 6_000_000
    counts = count_texts(pa.array(["alpha", text, "beta"]), VectorizerSettings(ngram_range=(1, 2)))
    total = dict(zip(counts.buckets.tolist(), counts.total_count.tolist(), strict=True))
    terms = dict(zip(counts.terms["term"].to_pylist(), counts.terms["bucket"].to_pylist(), strict=True))
    assert total[terms["gamma"]] == 6_000_000
    assert total[terms["gamma alpha"]] == 5_999_999
    assert total[terms["alpha"]] == 6_000_001


def test_a_document_longer_than_the_kernels_count_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmf_dask.text.counting.MAX_DOCUMENT", 100)
    with pytest.raises(InputDataError, match=r"document 3 .* has 101 bytes; documents of up to 100 bytes"):
        count_texts(pa.chunked_array([["a", "b"], ["c", "d" * 101]]), SETTINGS)


def test_terms_too_long_for_one_arrow_array_go_to_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_module, "STRING_BYTES", 6)
    arena = np.frombuffer(b"abcdefghijkl", np.uint8)
    terms = term_strings(np.array([0, 1, 3, 6, 12]), arena)
    assert terms.to_pylist() == ["a", "bc", "def", "ghijkl"]
    assert terms.num_chunks == 2


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        (r"(?u)\b\w\w+\b", 2),
        (r"\b\w+\b", 1),
        (r"\w+", 1),
        (r"(?u)\w\w\w+", 3),
        (r"\b\w{3,}\b", 3),
        (r"\w{0,}", None),
        (r"\w*", None),
        (r"\w{2,5}", None),
        (r"(?a)\w+", None),
        (r"\b\w\w\b", None),
        (r"\w", None),
        (r"(?i)\w+", None),
        (r"\w+?", None),
        (r"\w+ ", None),
    ],
)
def test_patterns_of_the_kernels(pattern: str, length: int | None) -> None:
    assert least_length(pattern) == length


def test_missing_file_of_stop_words_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"'no/such/file.txt'.*No such file.*one word a line"):
        count_texts(pa.array(["text"]), VectorizerSettings(stop_words="no/such/file.txt"))


def test_stop_words_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "stop.txt"
    # "utf-8-sig" writes a byte order mark, as some editors do: it must not become part of the first word
    path.write_text("the\n  and \n\nÉtait\nпри\n", encoding="utf-8-sig")
    text = "the and était при word"
    # lower-cased "était" is another word than the list's "Était", as in scikit-learn
    counts = count_texts(pa.array([text]), VectorizerSettings(stop_words=str(path)))
    assert sorted(counts.terms["term"].to_pylist()) == ["word", "était"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        count_texts(pa.array([text]), VectorizerSettings(stop_words=str(path)))
