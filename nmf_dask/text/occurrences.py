"""Where chosen terms stand in documents: what co-occurrence in windows is counted from.

A document is the sequence of its words as the settings find them, without stop words; a term of several words stands
where its first word does. Terms are compared by their bytes: no hash, and no other term of a bucket.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.config import VectorizerSettings
from nmf_dask.kernels.compiled import compiled
from nmf_dask.text.analysis import Analysis, analysis_of
from nmf_dask.text.counting import document_room, small_table, with_words
from nmf_dask.text.documents import documents_of, lowered_by_python, string_chunks
from nmf_dask.text.fold import CODE_POINT, fold_tables
from nmf_dask.text.reference import terms_in_order
from nmf_dask.text.terms import empty_tally, find
from nmf_dask.text.words import word_room, words_of


class Occurrences(NamedTuple):
    """Occurrences of chosen terms: those of document d are `indptr[d]:indptr[d + 1]`, by ascending position."""

    indptr: NDArray[np.int64]  # (n + 1,)
    terms: NDArray[np.int32]  # (occurrences,) numbers of the terms
    positions: NDArray[np.int32]  # (occurrences,) places in the sequence of the document's words
    lengths: NDArray[np.int64]  # (n,) of the sequences


def occurrences(texts: Any, terms: Sequence[str], settings: VectorizerSettings) -> Occurrences:
    """Find `terms`, sorted and each once, in an Arrow array of strings; a null is an empty document.

    With a shortest n-gram of n words the sequence of a document is that of its n-grams of n words. Characters, and
    words by another pattern than runs of letters, are found by scikit-learn's own analyzer, which takes its time.

    Raises ConfigurationError and InputDataError as `count_texts` does, ValueError for terms that are not sorted.
    """
    if list(terms) != sorted(set(terms)):
        raise ValueError("the terms are not sorted, or not each once")
    analysis = analysis_of(settings)
    chunks, _ = string_chunks(texts)
    if not analysis.compiled or settings.analyzer != "word":
        found = list(_by_analyzer(chunks, terms, analysis))
    else:
        found = list(_by_kernel(chunks, terms, analysis))
    ends = np.concatenate([[0], *(one.indptr[1:] - one.indptr[:-1] for one in found)]).cumsum()
    numbers, positions = (
        np.concatenate([np.zeros(0, np.int32), *(getattr(one, name) for one in found)])
        for name in ("terms", "positions")
    )
    lengths = np.concatenate([np.zeros(0, np.int64), *(one.lengths for one in found)])
    return Occurrences(ends.astype(np.int64), numbers, positions, lengths)


def _by_kernel(chunks: Sequence[Any], terms: Sequence[str], analysis: Analysis) -> Iterator[Occurrences]:
    settings = analysis.settings
    known = small_table(with_words(empty_tally(0, 0), terms))
    stops = small_table(with_words(empty_tally(0, 0), analysis.stop_words or ()))
    shortest, longest = settings.ngram_range
    for chunk in chunks:
        documents = documents_of(lowered_by_python(chunk) if settings.lowercase else chunk)
        fold = fold_tables(settings.lowercase, settings.strip_accents, documents.ascii_only)
        room = word_room(document_room(documents, fold, 0))
        n = len(documents.begins)
        indptr, lengths = np.zeros(n + 1, np.int64), np.zeros(n, np.int64)
        n_bytes = int((documents.ends - documents.begins).sum())
        numbers, positions = (np.empty(n_bytes // 8 + 64, np.int32) for _ in range(2))
        done = 0
        while True:
            done, needed = find_terms(
                known, stops, *documents, fold.table, fold.sequences, *room, analysis.min_length, shortest,
                longest, done, indptr, lengths, numbers, positions,
            )  # fmt: skip
            if done == n:
                break
            used = int(indptr[done])
            numbers, positions = (_larger(one, used, needed) for one in (numbers, positions))
        used = int(indptr[n])
        yield Occurrences(indptr, numbers[:used], positions[:used], lengths)


def _larger(array: NDArray[np.int32], used: int, more: int) -> NDArray[np.int32]:
    larger = np.empty(2 * len(array) + more, array.dtype)
    larger[:used] = array[:used]
    return larger


@compiled
def find_terms(
    known: Any,
    stops: Any,
    data: Any,
    doc_begins: Any,
    doc_ends: Any,
    table: Any,
    sequences: Any,
    buffer: Any,
    begins: Any,
    ends: Any,
    min_length: Any,
    shortest: Any,
    longest: Any,
    first: Any,
    indptr: Any,
    lengths: Any,
    numbers: Any,
    positions: Any,
) -> Any:
    """Find the terms of `known` in documents from `first` on, by the words that `count_words` counts.

    Returns the number of documents that are done, all told, and, where the next one did not fit, the room for
    occurrences that it needs.
    """
    case = np.uint8((table[ord("A")] ^ ord("A")) & CODE_POINT)
    for d in range(first, len(doc_begins)):
        start, stop = doc_begins[d], doc_ends[d]
        n_tokens = words_of(
            data, start, stop, case, stops, table, sequences, min_length, longest, buffer, begins, ends
        )
        place = indptr[d]
        if place + n_tokens * (longest - shortest + 1) > len(numbers):
            return d, n_tokens * (longest - shortest + 1)
        for i in range(n_tokens):
            for n in range(shortest, min(longest, n_tokens - i) + 1):
                term = find(known, buffer, begins[i], ends[i + n - 1] - begins[i])
                if term >= 0:
                    numbers[place] = term
                    positions[place] = i
                    place += 1
        lengths[d] = max(0, n_tokens - shortest + 1)
        indptr[d + 1] = place
    return len(doc_begins), np.int64(0)


def _by_analyzer(chunks: Sequence[Any], terms: Sequence[str], analysis: Analysis) -> Iterator[Occurrences]:
    """The readable way."""
    number = {term: i for i, term in enumerate(terms)}
    in_order = terms_in_order(analysis)
    for chunk in chunks:
        indptr, found, lengths = [0], [], []
        for text in chunk.to_pylist():
            sequence = in_order(text or "")
            found += [(number[term], i) for i, here in enumerate(sequence) for term in here if term in number]
            indptr.append(len(found))
            lengths.append(len(sequence))
        numbers, positions = np.array(found, np.int32).reshape(-1, 2).T
        yield Occurrences(
            np.array(indptr, np.int64), numbers.copy(), positions.copy(), np.array(lengths, np.int64)
        )
