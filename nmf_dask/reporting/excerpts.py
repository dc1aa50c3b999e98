"""The texts of chosen documents, out of the corpus that a model was fitted to, with terms marked in them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nmf_dask.config import CorpusSettings, VectorizerSettings
from nmf_dask.corpus import Corpus, open_corpus, python_value, read_ids, read_texts_by_slices
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.text.analysis import Analysis, analysis_of

if TYPE_CHECKING:
    from nmf_dask.model import TopicModel
    from nmf_dask.reporting.documents import Document

EXCERPT = 700
"""Characters of a document that are shown: those where its marked terms are."""
SLICE_BYTES, SLICE_ROWS = 16 * 2**20, 2**16


class Mark(NamedTuple):
    """Characters `start` to `stop` of an excerpt are this term."""

    start: int
    stop: int
    term: str


def texts_of(
    model: TopicModel, inputs: tuple[str, ...], wanted: Collection[Document], n_documents: int
) -> dict[int, str]:
    """Text of each of the documents `wanted`, by its row in W, read from the corpus at `inputs`.

    It is read by the run's own settings, some MiB at a time, in this process, until all are found. Documents are known
    by their ids, or by their order where ids are row numbers. Of several with one id it is the one in its place in W,
    or the first where the corpus has another order. Raises what reading a corpus raises, ConfigurationError for inputs
    that can be none, and InputDataError where documents are not in it, or where it has to have as many as W and has
    not.
    """
    if not wanted:
        return {}
    settings = _settings(model, inputs)
    corpus = open_corpus(settings)
    by_order = settings.id_column is None
    rows: dict[Any, list[int]] = {}
    for one in wanted:
        rows.setdefault(one.row if by_order else one.id, []).append(one.row)
    found: dict[int, str] = {}
    in_place: set[int] = set()
    seen = 0
    for ids, texts in _slices(corpus, list(rows)):
        for key, at in ids:
            for row in rows.get(key, ()):
                if row == seen + at:
                    in_place.add(row)
                if row == seen + at or row not in found:
                    found[row] = texts[at].as_py() or ""
        seen += len(texts)
        if len(in_place) == len(wanted) and not by_order:
            break
    absent = sorted({one.row for one in wanted} - found.keys())
    if absent or (by_order and seen != n_documents):
        raise InputDataError(_another_corpus(inputs, wanted, absent, seen, n_documents))
    return found


def _settings(model: TopicModel, inputs: tuple[str, ...]) -> CorpusSettings:
    try:
        return CorpusSettings.of(model.run["config"]["corpus"] | {"input": inputs})
    except ValueError as error:
        raise ConfigurationError(f"{error}. Give --input that of the fit, or leave it out") from None


def _another_corpus(
    inputs: tuple[str, ...], wanted: Collection[Document], absent: list[int], seen: int, due: int
) -> str:
    where = ", ".join(inputs)
    if not absent or due != seen:
        what = f"has {seen:,} documents where the run had {due:,}"
    if absent:
        one = next(one for one in wanted if one.row == absent[0])
        what = f"has no document {one.id!r}" + (f" ({len(absent)} more)" if len(absent) > 1 else "")
    return f"{where} is not the corpus of this run: it {what}. Give --input that of the fit, or leave it out"


def _slices(corpus: Corpus, keys: list[Any]) -> Iterator[tuple[list[tuple[Any, int]], Any]]:
    """Slices of the corpus's texts, each with the keys that are in it and where."""
    row = 0
    for ids, texts in _id_and_texts(corpus):
        if corpus.settings.id_column is None:
            there = [(key, key - row) for key in keys if row <= key < row + len(texts)]
        else:
            there = [(python_value(ids[at]), at) for at in _places(ids, keys)]
        yield there, texts
        row += len(texts)


def _places(ids: pa.ChunkedArray, keys: list[Any]) -> list[int]:
    """Where ids are that are among `keys`."""
    try:
        among = pc.is_in(ids, pa.array(keys, ids.type))
    except pa.ArrowNotImplementedError:  # of string views and UUIDs
        wanted = set(keys)
        return [at for at, one in enumerate(ids.to_pylist()) if one in wanted]
    return [int(at) for at in np.flatnonzero(among.to_numpy(zero_copy_only=False))]


def _id_and_texts(corpus: Corpus) -> Iterator[tuple[Any, Any]]:
    column = corpus.settings.id_column
    for partition in corpus.partitions:
        if corpus.raw is not None:
            for table in corpus.raw.documents(partition):
                texts = table[corpus.raw.text_name]
                yield (texts if corpus.raw.columns.id is None else table[corpus.raw.columns.id]), texts
            continue
        ids, start = read_ids(partition, column), 0
        for texts in read_texts_by_slices(partition, corpus.settings.text_columns, SLICE_BYTES, SLICE_ROWS):
            yield ids.slice(start, len(texts)), texts
            start += len(texts)


class Marker:
    """Finds terms in text as the vectorizer does, and where they stand."""

    def __init__(self, settings: VectorizerSettings) -> None:
        self._settings = settings
        self._analysis: Analysis = analysis_of(settings)
        self._token = re.compile(settings.token_pattern)

    def excerpt(self, text: str, weights: Mapping[str, float]) -> tuple[str, list[Mark]]:
        """The part of a document where the terms in `weights` weigh most, and the terms in it.

        Where it is not the whole document, an ellipsis stands in place of the rest.
        """
        text = " ".join(text.split()) if len(text) <= 50 * EXCERPT else " ".join(text[: 50 * EXCERPT].split())
        marks = self.marks(text, weights)
        if len(text) <= EXCERPT:
            return text, marks
        low = _densest(marks, weights, len(text))
        low = (
            text.rfind(" ", max(0, low - 30), low) + 1 or low
        )  # where a word begins, if the script has spaces
        high = min(len(text), low + EXCERPT)
        if high < len(text):
            high = text.rfind(" ", high - 30, high) + 1 or high  # and where one ends
        before, after = "…" * (low > 0), "…" * (high < len(text))
        shift = len(before) - low
        inside = [
            Mark(one.start + shift, one.stop + shift, one.term)
            for one in marks
            if one.start >= low and one.stop <= high
        ]
        return before + text[low:high] + after, inside

    def marks(self, text: str, terms: Collection[str]) -> list[Mark]:
        """Where the terms stand, in order, without overlap; of two that overlap, the longer one."""
        found = self._words(text, terms) if self._settings.analyzer == "word" else _parts(text, terms)
        chosen: list[Mark] = []
        for mark in sorted(found, key=lambda one: (one.start, -one.stop)):
            if not chosen or mark.start >= chosen[-1].stop:
                chosen.append(mark)
        return chosen

    def _words(self, text: str, terms: Collection[str]) -> Iterator[Mark]:
        low, high = self._settings.ngram_range
        stop_words = self._analysis.stop_words or ()
        words = []
        for match in self._token.finditer(text):
            group = 1 if self._token.groups else 0
            if (word := self._plain(match[group])) not in stop_words:
                words.append((match.start(group), match.end(group), word))
        for length in range(low, high + 1):
            for at in range(len(words) - length + 1):
                term = " ".join(word for _, _, word in words[at : at + length])
                if term in terms:
                    yield Mark(words[at][0], words[at + length - 1][1], term)

    def _plain(self, word: str) -> str:
        """As scikit-learn's preprocessor leaves it; word by word, so that places in the text stay."""
        word = word.lower() if self._settings.lowercase else word
        if self._settings.strip_accents is None:
            return word
        apart = unicodedata.normalize("NFKD", word)
        if self._settings.strip_accents == "ascii":
            return apart.encode("ascii", "ignore").decode("ascii")
        return "".join(one for one in apart if not unicodedata.combining(one))


def _parts(text: str, terms: Collection[str]) -> Iterator[Mark]:
    """Terms of characters, wherever they stand."""
    for term in terms:
        if bare := term.strip():
            for match in re.finditer(re.escape(bare), text, re.IGNORECASE):
                yield Mark(match.start(), match.end(), term)


def _densest(marks: list[Mark], weights: Mapping[str, float], length: int) -> int:
    """Where an excerpt begins that holds the largest weights: some characters before one of the marks."""
    starts = [0, *(max(0, min(mark.start - EXCERPT // 10, length - EXCERPT)) for mark in marks)]
    place = np.array([mark.start for mark in marks], np.int64)
    weight = np.concatenate([[0.0], np.cumsum([weights[mark.term] for mark in marks])])
    low, high = np.searchsorted(place, starts), np.searchsorted(place, np.array(starts) + EXCERPT)
    return int(starts[int((weight[high] - weight[low]).argmax())])
