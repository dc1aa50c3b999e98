"""Strings to hashed counts, by compiled code that reads Arrow's buffers where they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmf_dask.config import VectorizerSettings
from nmf_dask.errors import InputDataError
from nmf_dask.text.analysis import Analysis, analysis_of
from nmf_dask.text.characters import count_characters
from nmf_dask.text.counts import Counts, counts_by_bucket, term_strings
from nmf_dask.text.documents import Documents, documents_of, lowered_by_python, string_chunks
from nmf_dask.text.fold import Fold, fold_tables
from nmf_dask.text.reference import count_by_analyzer
from nmf_dask.text.terms import PADDING, RECORD, Tally, count_ngrams, empty_tally
from nmf_dask.text.words import count_words

# Lengths of documents and terms are 31-bit numbers in the kernels.
MAX_DOCUMENT = 2**31 - 2**16


def count_texts(texts: Any, settings: VectorizerSettings) -> Counts:
    """Count the terms of one partition's documents, an Arrow array (or chunked array) of strings.

    Buckets are those of scikit-learn's HashingVectorizer(alternate_sign=False), terms those of its analyzers.
    A null is an empty document. Raises ConfigurationError for settings that no analyzer can follow,
    InputDataError for a column that holds no strings or a document too long to count.
    """
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
    n_terms, n_bytes, nnz = tally.sizes.tolist()
    offsets = np.append(tally.records[1 : RECORD * n_terms : RECORD], n_bytes)
    hashes = tally.records[2 : RECORD * n_terms : RECORD] & 0xFFFFFFFF
    terms = term_strings(offsets, tally.arena)
    return counts_by_bucket(
        indptr, tally.indices[:nnz], tally.counts[:nnz], hashes, terms, settings.n_features, n_invalid
    )


def _tally(parts: Sequence[Documents], analysis: Analysis, row_ends: NDArray[np.int64]) -> Tally:
    """Count the documents of all parts, one after the other, in one tally."""
    settings = analysis.settings
    ascii_only = all(part.ascii_only for part in parts)
    fold = fold_tables(settings.lowercase, settings.strip_accents, ascii_only)
    n_bytes = sum(int((part.ends - part.begins).sum()) for part in parts)
    # English has a distinct word of a document about every 10 bytes.
    tally = empty_tally(n_bytes // 8 + 1024)
    stops = _stop_table(analysis.stop_words)
    done = 0
    for part in parts:
        room = _room(part, fold, done)
        ends = row_ends[done : done + len(part.begins)]
        if settings.analyzer == "word":
            tally = count_words(
                tally,
                stops,
                *part,
                fold.table,
                fold.sequences,
                room,
                analysis.min_length,
                *settings.ngram_range,
                ends,
            )
        else:
            within_words = settings.analyzer == "char_wb"
            tally = count_characters(
                tally, *part, fold.table, fold.sequences, room, within_words, *settings.ngram_range, ends
            )
        done += len(part.begins)
    return tally


def _room(part: Documents, fold: Fold, first_row: int) -> int:
    """Bytes that the longest document has once it is folded, at most."""
    room = fold.growth * part.longest
    if room > MAX_DOCUMENT:
        row = first_row + int((part.ends - part.begins).argmax())
        raise InputDataError(
            f"document {row} of this partition has {part.longest} bytes; documents of up to "
            f"{MAX_DOCUMENT // fold.growth} bytes can be counted: split it"
        )
    return room


def _stop_table(words: frozenset[str] | None) -> Tally:
    """The stop words as a tally of their own, small enough to stay in the nearest cache."""
    contents = [word.encode("utf-8", "surrogatepass") for word in sorted(words or ())]
    buffer = np.frombuffer(b"".join(contents) + bytes(PADDING), np.uint8).copy()
    starts = np.cumsum([0, *map(len, contents)], dtype=np.int64)
    return count_ngrams(empty_tally(0), buffer, starts, 0, len(contents), 1, 0, 0)  # type: ignore[no-any-return]
