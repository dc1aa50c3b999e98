"""Words of UTF-8 text: one pass over the bytes finds them, folds them and lays them out for n-grams."""

from typing import Any

import numpy as np

from nmf_dask.kernels.compiled import compiled
from nmf_dask.text.fold import CODE_POINT, EXPANDS, WORD
from nmf_dask.text.terms import PADDING, count_ngrams, find, murmur


@compiled
def decoded(data: Any, i: Any) -> Any:
    """The code point at byte i of valid UTF-8, beyond ASCII, and its length in bytes."""
    lead = np.int64(data[i])
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | np.int64(data[i + 1]) & 0x3F, 2
    middle = (np.int64(data[i + 1]) & 0x3F) << 6 | np.int64(data[i + 2]) & 0x3F
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | middle, 3
    return (lead & 0x07) << 18 | middle << 6 | np.int64(data[i + 3]) & 0x3F, 4


@compiled
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
def close(buffer: Any, starts: Any, n_tokens: Any, p: Any, missing: Any) -> Any:
    """End the word that ends before p, and forget it where it is `missing` bytes or more too short."""
    if p - starts[n_tokens] >= missing:
        buffer[p] = 32
        starts[n_tokens + 1] = p + 1
        return n_tokens + 1, p + 1
    return n_tokens, starts[n_tokens]


@compiled
def scan_words(
    data: Any,
    start: Any,
    stop: Any,
    ascii: Any,
    table: Any,
    sequences: Any,
    min_length: Any,
    buffer: Any,
    starts: Any,
) -> Any:
    """The words of one document, folded, one space after each: token i begins at starts[i] of the buffer.

    Returns their number n; starts[n] is where the next would begin. Words of less than `min_length` letters
    are left out; `missing` is the number of bytes that the present word needs to have as many.
    """
    n_tokens = p = 0
    starts[0] = 0
    missing = min_length
    i = start
    while i < stop:
        c = data[np.uint64(i)]
        if c < 128:
            i += 1
            folded = ascii[c]
            if folded != 0:
                buffer[np.uint64(p)] = folded
                p += 1
            else:
                n_tokens, p = close(buffer, starts, n_tokens, p, missing)
                missing = min_length
            continue
        point, width = decoded(data, i)
        i += width
        entry = np.int64(table[point])
        position = last = np.int64(0)
        if entry & EXPANDS:
            position = entry & CODE_POINT
            last = position + np.int64(sequences[position])
            if position == last:
                continue
            position += 1
            entry = np.int64(sequences[position])
        while True:
            if entry & WORD:
                after = put(buffer, p, entry & CODE_POINT)
                missing += after - p - 1
                p = after
            else:
                n_tokens, p = close(buffer, starts, n_tokens, p, missing)
                missing = min_length
            position += 1
            if position > last:
                break
            entry = np.int64(sequences[position])
    return close(buffer, starts, n_tokens, p, missing)[0]


@compiled
def without_stop_words(stops: Any, buffer: Any, starts: Any, n_tokens: Any) -> Any:
    """Close the gaps that stop words leave; returns the number of tokens that stay."""
    kept = 0
    for i in range(n_tokens):
        begin, end = starts[i], starts[i + 1]
        length = end - 1 - begin
        h = murmur(buffer, begin, length)
        if find(stops.slots, stops.records, stops.arena, buffer, begin, length, h) >= 0:
            continue
        p = starts[kept]
        if p != begin:
            for j in range(end - begin):
                buffer[p + j] = buffer[begin + j]
        kept += 1
        starts[kept] = p + end - begin
    return kept


@compiled
def count_words(
    tally: Any,
    stops: Any,
    data: Any,
    begins: Any,
    ends: Any,
    table: Any,
    sequences: Any,
    room: Any,
    min_length: Any,
    shortest: Any,
    longest: Any,
    indptr: Any,
) -> Any:
    """Count the word n-grams of documents data[begins[d]:ends[d]]; row d of the counts ends at indptr[d]."""
    ascii = np.zeros(128, np.uint8)
    for c in range(128):
        if table[c] & WORD:
            ascii[c] = table[c] & 0x7F
    buffer = np.empty(room + 1 + PADDING, np.uint8)
    starts = np.empty(room // (min_length + 1) + 2, np.int64)
    for d in range(len(begins)):
        row = tally.sizes[2]
        n_tokens = scan_words(data, begins[d], ends[d], ascii, table, sequences, min_length, buffer, starts)
        if stops.sizes[0]:
            n_tokens = without_stop_words(stops, buffer, starts, n_tokens)
        for n in range(shortest, min(longest, n_tokens) + 1):
            tally = count_ngrams(tally, buffer, starts, 0, n_tokens, n, 1, row)
        indptr[d] = tally.sizes[2]
    return tally
