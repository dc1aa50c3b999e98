"""Words of UTF-8 text: one pass over the bytes finds and folds them."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled
from nmf_dask.text.fold import CODE_POINT, EXPANDS, WORD
from nmf_dask.text.loads import fold_ascii, trailing_zeros
from nmf_dask.text.terms import PADDING, begin_document, count_run, find

_ONE = np.uint64(1)


class WordRoom(NamedTuple):
    """Scratch for the words of one document: its folded bytes, and where each word begins and ends in them."""

    buffer: NDArray[np.uint8]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


def word_room(n_bytes: int) -> WordRoom:
    """Room for documents of up to so many bytes, folded."""
    # scan_ascii writes whole blocks, and notes both edges of each word before it drops the short ones.
    buffer = np.empty(n_bytes + 128 + PADDING, np.uint8)
    return WordRoom(buffer, np.empty(n_bytes + 2, np.int64), np.empty(n_bytes + 2, np.int64))


@compiled(inline=True)  # type: ignore[untyped-decorator]
def scan_ascii(
    data: Any, start: Any, stop: Any, case: Any, min_length: Any, buffer: Any, begins: Any, ends: Any
) -> Any:
    """The words of one document of ASCII, word i folded at buffer[begins[i]:ends[i]]; returns their number.

    Returns -1 where a byte is not ASCII. `case` is what turns a capital into the letter that is counted.
    """
    n = 0
    inside = np.uint64(0)
    length = stop - start
    for block in range(0, length + 1, 64):
        left = length - block
        if start + block + 64 <= len(data):
            words, beyond = fold_ascii(data, start + block, buffer, block, case)
        else:
            for j in range(left):
                buffer[block + j] = data[start + block + j]
            words, beyond = fold_ascii(buffer, block, buffer, block, case)
        valid = (_ONE << np.uint64(left)) - _ONE if left < 64 else ~np.uint64(0)
        if beyond & valid:
            return -1
        words &= valid
        edges = words ^ ((words << _ONE) | inside)
        inside = words >> np.uint64(63)
        while edges != np.uint64(0):
            begins[np.uint64(n)] = block + trailing_zeros(edges)
            n += 1
            edges &= edges - _ONE
    kept = 0
    for i in range(n // 2):
        begin, end = begins[np.uint64(2 * i)], begins[np.uint64(2 * i + 1)]
        begins[np.uint64(kept)] = begin
        ends[np.uint64(kept)] = end
        kept += end - begin >= min_length
    return kept


@compiled(inline=True)  # type: ignore[untyped-decorator]
def decoded(data: Any, i: Any) -> Any:
    """The code point at byte i of valid UTF-8, beyond ASCII, and its length in bytes."""
    lead = np.int64(data[i])
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | np.int64(data[i + 1]) & 0x3F, 2
    middle = (np.int64(data[i + 1]) & 0x3F) << 6 | np.int64(data[i + 2]) & 0x3F
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | middle, 3
    return (lead & 0x07) << 18 | middle << 6 | np.int64(data[i + 3]) & 0x3F, 4


@compiled(inline=True)  # type: ignore[untyped-decorator]
def put(buffer: Any, p: Any, point: Any) -> Any:
    """Write a code point as UTF-8 at p; returns the place after it."""
    if point < 0x80:
        buffer[p] = point
        return p + 1
    if point < 0x800:
        buffer[p] = 0xC0 | point >> 6
        buffer[p + 1] = 0x80 | point & 0x3F
        return p + 2
    if point < 0x10000:
        buffer[p] = 0xE0 | point >> 12
        buffer[p + 1] = 0x80 | point >> 6 & 0x3F
        buffer[p + 2] = 0x80 | point & 0x3F
        return p + 3
    buffer[p] = 0xF0 | point >> 18
    buffer[p + 1] = 0x80 | point >> 12 & 0x3F
    buffer[p + 2] = 0x80 | point >> 6 & 0x3F
    buffer[p + 3] = 0x80 | point & 0x3F
    return p + 4


@compiled
def scan_words(
    data: Any,
    start: Any,
    stop: Any,
    table: Any,
    sequences: Any,
    min_length: Any,
    buffer: Any,
    begins: Any,
    ends: Any,
) -> Any:
    """The words of one document of any script: as `scan_ascii`, by the tables of `fold`."""
    n = p = characters = inside = np.int64(0)
    i = start
    while i < stop:
        point, width = np.int64(data[np.uint64(i)]), 1
        if point >= 0x80:
            point, width = decoded(data, i)
        i += width
        entry = np.int64(table[np.uint64(point)])
        position = last = np.int64(0)
        if entry & EXPANDS:
            position = (entry & CODE_POINT) + 1
            last = position + np.int64(sequences[position - 1])
            if position == last:
                continue
            entry = np.int64(sequences[position])
        while True:
            # The edges of words, and characters before them: noted for each character, for those to stay that are.
            is_word = (entry & WORD) // WORD
            begins[np.uint64(n)], ends[np.uint64(n)] = p, characters
            n += is_word ^ inside
            inside = is_word
            characters += 1
            p = put(buffer, p, entry & CODE_POINT)
            position += 1
            if position >= last:
                break
            entry = np.int64(sequences[position])
    begins[n], ends[n] = p, characters
    n += inside
    kept = np.int64(0)
    for i in range(0, n, 2):
        letters = ends[i + 1] - ends[i]
        begins[kept], ends[kept] = begins[i], begins[i + 1]
        kept += letters >= min_length
    return kept


@compiled
def without_stop_words(stops: Any, buffer: Any, begins: Any, ends: Any, n_tokens: Any) -> Any:
    """Forget the tokens that are stop words; returns the number of those that stay."""
    kept = 0
    for i in range(n_tokens):
        begin, end = begins[i], ends[i]
        begins[kept], ends[kept] = begin, end
        kept += find(stops, buffer, begin, end - begin) < 0
    return kept


@compiled
def lay_out(buffer: Any, begins: Any, ends: Any, n_tokens: Any) -> None:
    """Move the tokens together, one space between them, as n-grams are joined."""
    p = 0
    for i in range(n_tokens):
        begin, end = begins[i], ends[i]
        begins[i] = p
        for j in range(begin, end):
            buffer[p] = buffer[j]
            p += 1
        ends[i] = p
        buffer[p] = 32
        p += 1


@compiled(inline=True)  # type: ignore[untyped-decorator]
def words_of(
    data: Any,
    start: Any,
    stop: Any,
    case: Any,
    stops: Any,
    table: Any,
    sequences: Any,
    min_length: Any,
    longest: Any,
    buffer: Any,
    begins: Any,
    ends: Any,
) -> Any:
    """The words of the document data[start:stop] in `buffer`, folded, without stop words; how many they are."""
    n_tokens = scan_ascii(data, start, stop, case, min_length, buffer, begins, ends)
    if n_tokens < 0:
        n_tokens = scan_words(data, start, stop, table, sequences, min_length, buffer, begins, ends)
    if stops.sizes[0]:
        n_tokens = without_stop_words(stops, buffer, begins, ends, n_tokens)
    if longest > 1:
        lay_out(buffer, begins, ends, n_tokens)
    return n_tokens


@compiled
def count_words(
    tally: Any,
    progress: Any,
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
    row_ends: Any,
) -> Any:
    """Count the word n-grams of documents data[doc_begins[d]:doc_ends[d]]; row d ends at row_ends[d].

    `buffer`, `begins` and `ends` are `word_room` for the longest document. Returns 0, or the bytes of terms that the
    tally must have room for before the next call.
    """
    case = np.uint8((table[ord("A")] ^ ord("A")) & CODE_POINT)
    for d in range(max(0, progress.document[0]), len(doc_begins)):
        begin_document(progress, d, tally.sizes[1])
        start, stop = doc_begins[d], doc_ends[d]
        n_tokens = words_of(
            data, start, stop, case, stops, table, sequences, min_length, longest, buffer, begins, ends
        )
        for n in range(shortest, min(longest, n_tokens) + 1):
            missing = count_run(tally, progress, buffer, begins, ends, 0, n_tokens, n)
            if missing:
                return missing
        row_ends[d] = tally.sizes[1]
    return np.int64(0)
