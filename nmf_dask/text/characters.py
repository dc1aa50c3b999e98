"""Character n-grams of UTF-8 text, across words or within them: the analyzers "char" and "char_wb"."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled
from nmf_dask.text.fold import CODE_POINT, EXPANDS, SPACE
from nmf_dask.text.terms import BLOCK, PADDING, begin_document, count_run
from nmf_dask.text.words import decoded, put


class CharacterRoom(NamedTuple):
    """Scratch for one document: its folded bytes, where each character begins, and n-grams that wait to be counted."""

    buffer: NDArray[np.uint8]
    starts: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


def character_room(n_bytes: int) -> CharacterRoom:
    """Room for documents of up to so many bytes, folded."""
    buffer, starts = np.empty(n_bytes + 2 + PADDING, np.uint8), np.empty(n_bytes + 3, np.int64)
    return CharacterRoom(buffer, starts, np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64))


@compiled
def put_character(entry: Any, within_words: Any, buffer: Any, starts: Any, n: Any, run: Any) -> Any:
    """Add one folded character; returns their number, and 0, 1 or 2 for the white space that ends them.

    A run of white space becomes one space; a single one stays, except where n-grams stay within words.
    """
    p = starts[n]
    if not entry & SPACE:
        starts[n + 1] = put(buffer, p, entry & CODE_POINT)
        return n + 1, 0
    if run == 0 and not within_words:
        starts[n + 1] = put(buffer, p, entry & CODE_POINT)
        return n + 1, 1
    if run == 1:
        n -= 1
        p = starts[n]
    if run < 2:
        buffer[p] = 32
        starts[n + 1] = p + 1
        return n + 1, 2
    return n, 2


@compiled
def scan_characters(
    data: Any, start: Any, stop: Any, table: Any, sequences: Any, within_words: Any, buffer: Any, starts: Any
) -> Any:
    """The folded characters of one document, number i at starts[i] of the buffer; returns how many there are.

    Where n-grams stay within words, one space is before, between and after the words.
    """
    n = run = 0
    starts[0] = 0
    if within_words:
        n, run = put_character(32 | SPACE, within_words, buffer, starts, n, run)
    i = start
    while i < stop:
        point, width = np.int64(data[i]), 1
        if point >= 128:
            point, width = decoded(data, i)
        i += width
        entry = np.int64(table[point])
        if entry & EXPANDS:
            position = entry & CODE_POINT
            for j in range(position + 1, position + 1 + np.int64(sequences[position])):
                n, run = put_character(np.int64(sequences[j]), within_words, buffer, starts, n, run)
        else:
            n, run = put_character(entry, within_words, buffer, starts, n, run)
    if within_words and run == 0:
        n, run = put_character(32 | SPACE, within_words, buffer, starts, n, run)
    return n


@compiled
def count_within_words(
    tally: Any,
    progress: Any,
    buffer: Any,
    starts: Any,
    begins: Any,
    ends: Any,
    n_characters: Any,
    shortest: Any,
    longest: Any,
) -> Any:
    """Count the n-grams of each word with the spaces around it; a word too short for n counts once.

    Returns as `count_run`, to which the n-grams of many words go at once.
    """
    waiting: Any = 0
    first: Any = 0
    for i in range(1, n_characters):
        if buffer[starts[i]] != 32:
            continue
        length = i + 1 - first
        for n in range(shortest, longest + 1):
            width = n if n < length else length
            for j in range(first, i + 2 - width):
                begins[waiting], ends[waiting] = starts[j], starts[j + width]
                waiting += 1
                if waiting == BLOCK:
                    missing = count_run(tally, progress, buffer, begins, ends, 0, waiting, 1)
                    if missing:
                        return missing
                    waiting = 0
            if n >= length:
                break
        first = i
    return count_run(tally, progress, buffer, begins, ends, 0, waiting, 1)


@compiled
def count_characters(
    tally: Any,
    progress: Any,
    data: Any,
    doc_begins: Any,
    doc_ends: Any,
    table: Any,
    sequences: Any,
    buffer: Any,
    starts: Any,
    begins: Any,
    ends: Any,
    within_words: Any,
    shortest: Any,
    longest: Any,
    row_ends: Any,
) -> Any:
    """Count the character n-grams of documents; arguments and result are those of `count_words`."""
    for d in range(max(0, progress.document[0]), len(doc_begins)):
        begin_document(progress, d, tally.sizes[1])
        n = scan_characters(data, doc_begins[d], doc_ends[d], table, sequences, within_words, buffer, starts)
        if within_words:
            missing = count_within_words(tally, progress, buffer, starts, begins, ends, n, shortest, longest)
            if missing:
                return missing
        else:
            for length in range(shortest, min(longest, n) + 1):
                missing = count_run(tally, progress, buffer, starts, starts[1:], 0, n, length)
                if missing:
                    return missing
        row_ends[d] = tally.sizes[1]
    return np.int64(0)
