"""Strings to hashed counts, by compiled code that reads Arrow's buffers where they are."""

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmf_dask.config import VectorizerSettings
from nmf_dask.errors import InputDataError
from nmf_dask.text.analysis import Analysis, analysis_of
from nmf_dask.text.characters import character_room, count_characters
from nmf_dask.text.counts import Counts, counts_by_bucket
from nmf_dask.text.documents import Documents, documents_of, lowered_by_python, string_chunks
from nmf_dask.text.fold import Fold, fold_tables
from nmf_dask.text.given import are_given, count_given
from nmf_dask.text.reference import count_by_analyzer
from nmf_dask.text.terms import (
    BLOCK,
    PADDING,
    Progress,
    Tally,
    count_block,
    empty_tally,
    fill_slots,
    murmur_terms,
    new_progress,
    with_room,
)
from nmf_dask.text.words import count_words, word_room

# Lengths of documents and terms are 31-bit numbers in the kernels.
MAX_DOCUMENT = 2**31 - 2**16


def count_texts(texts: Any, settings: VectorizerSettings) -> Counts:
    """Count the terms of one partition's documents, an Arrow array (or chunked array) of strings, or of given counts.

    Buckets are those of scikit-learn's HashingVectorizer(alternate_sign=False), terms those of its analyzers.
    A null is an empty document. Raises ConfigurationError for settings that no analyzer can follow,
    InputDataError for a column that holds no strings or a document too long to count.
    """
    if are_given(texts):
        return count_given(texts, settings)
    analysis = analysis_of(settings)
    chunks, n_invalid = string_chunks(texts)
    if not analysis.compiled:
        return count_by_analyzer(chunks, analysis, n_invalid)
    if settings.lowercase:
        chunks = [lowered_by_python(chunk) for chunk in chunks]
    parts = [documents_of(chunk) for chunk in chunks]
    n_documents = sum(len(part.begins) for part in parts)
    indptr = np.zeros(n_documents + 1, np.int64)
    tally = _tally(parts, analysis, indptr[1:])
    n_terms, nnz, n_stops = tally.sizes.tolist()
    places = tally.places[n_stops : n_terms + 1]
    hashes = np.empty(n_terms - n_stops, np.int64)
    murmur_terms(hashes, places, tally.arena)
    tally.indices[:nnz] -= n_stops
    return counts_by_bucket(
        indptr,
        tally.indices[:nnz],
        tally.counts[:nnz],
        hashes,
        places,
        tally.arena,
        settings.n_features,
        n_invalid,
    )


def _tally(parts: Sequence[Documents], analysis: Analysis, ends: NDArray[np.int64]) -> Tally:
    """Count the documents of all parts, one after the other, in one tally."""
    settings = analysis.settings
    ascii_only = all(part.ascii_only for part in parts)
    fold = fold_tables(settings.lowercase, settings.strip_accents, ascii_only)
    n_bytes = sum(int((part.ends - part.begins).sum()) for part in parts)
    shortest, longest = settings.ngram_range
    tally = empty_tally(n_bytes, longest - shortest + 1)
    stop_words, stops = analysis.stop_words or (), empty_tally(0, 0)
    if longest == 1:
        # One search for a word tells both whether it is counted and as what.
        tally = with_words(tally, stop_words)
    else:
        stops = small_table(with_words(stops, stop_words))
    done = 0
    for part in parts:
        row_ends = ends[done : done + len(part.begins)]
        folding = (*part, fold.table, fold.sequences)
        n_bytes = document_room(part, fold, done)
        if settings.analyzer == "word":
            words = (*folding, *word_room(n_bytes), analysis.min_length, shortest, longest, row_ends)
            tally = _filled(tally, lambda *state, rest=words: count_words(*state, stops, *rest))
        else:
            within = settings.analyzer == "char_wb"
            characters = (*folding, *character_room(n_bytes), within, shortest, longest, row_ends)
            tally = _filled(tally, lambda *state, rest=characters: count_characters(*state, *rest))
        done += len(part.begins)
    return tally


def _filled(tally: Tally, kernel: Callable[[Tally, Progress], int]) -> Tally:
    """Run a kernel to its end, with more room each time it asks for it."""
    progress = new_progress()
    while n_bytes := kernel(tally, progress):
        tally = with_room(tally, n_bytes)
    return tally


def document_room(part: Documents, fold: Fold, first_row: int) -> int:
    """Bytes that the longest document has once it is folded, at most."""
    room = fold.growth * part.longest
    if room > MAX_DOCUMENT:
        row = first_row + int((part.ends - part.begins).argmax())
        raise InputDataError(
            f"document {row} of this partition has {part.longest} bytes; documents of up to "
            f"{MAX_DOCUMENT // fold.growth} bytes can be counted: split it"
        )
    return room


def with_words(tally: Tally, words: Collection[str]) -> Tally:
    """An empty tally with words as its first terms, sorted, which are not counted: stop words above all."""
    buffer, begins, ends = _words_as_bytes(frozenset(words))
    for first in range(0, len(begins), BLOCK):
        tally = with_room(tally, len(buffer))
        count_block(tally, buffer, begins[first:], ends[first:], min(BLOCK, len(begins) - first), 0)
    tally.sizes[1:] = 0, tally.sizes[0]
    return tally


@lru_cache(maxsize=4)  # every partition has the same stop words
def _words_as_bytes(words: frozenset[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The words side by side, sorted, and where each begins and ends."""
    contents = [word.encode("utf-8", "surrogatepass") for word in sorted(words)]
    buffer = np.frombuffer(b"".join(contents) + bytes(PADDING), np.uint8).copy()
    ends = np.cumsum([len(content) for content in contents], dtype=np.int64)
    return buffer, np.append(0, ends)[:-1], ends


def small_table(tally: Tally) -> Tally:
    """The same terms in a table small enough to stay in the nearest cache."""
    n_terms = int(tally.sizes[0])
    slots = np.zeros(2 ** (4 * n_terms).bit_length(), np.int32)
    fill_slots(slots, tally.records, n_terms)
    return tally._replace(slots=slots)
