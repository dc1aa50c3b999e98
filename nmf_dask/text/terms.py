"""The table of distinct terms and the rows of counts, as compiled code fills them.

A term is a range of bytes. Its murmur hash finds it in an open-addressing table, its bytes decide: two terms
of one hash stay two terms. Hot loops index by unsigned numbers: numba tests a signed one for "from the end".
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled

# Loads of 8 bytes may begin at the last byte of a term: every byte buffer is longer than its content by this.
PADDING = 16
# Room is made for this many n-grams at once, so that the loop over them need not ask.
BLOCK = 4096
# Four numbers a term: its first 8 bytes, place in the arena, length and hash, and where it was counted last.
RECORD = 4


class Tally(NamedTuple):
    """Distinct terms and rows of counts so far. Arrays have room to spare; `sizes` says how much is used."""

    slots: NDArray[np.int64]  # (power of two,) hash << 32 | term + 1; 0 is a free slot
    records: NDArray[np.int64]  # (RECORD * terms,)
    arena: NDArray[np.uint8]  # the terms' bytes, one after the other, in order of their first appearance
    indices: NDArray[np.int32]  # (nnz,) number of the term
    counts: NDArray[np.int32]  # (nnz,)
    sizes: NDArray[np.int64]  # (3,) terms, arena bytes, nnz


def empty_tally(n_nonzero: int) -> Tally:
    """A tally of nothing, with room for about `n_nonzero` counts."""
    return Tally(
        slots=np.zeros(2**8, np.int64),
        records=np.empty(RECORD * 2**7, np.int64),
        arena=np.empty(2**10, np.uint8),
        indices=np.empty(n_nonzero, np.int32),
        counts=np.empty(n_nonzero, np.int32),
        sizes=np.zeros(3, np.int64),
    )


@compiled
def load32(buffer: Any, position: Any) -> Any:
    """Four bytes, little-endian, from any position (LLVM makes it one load)."""
    i = np.uint64(position)
    value = np.uint32(buffer[i])
    value |= np.uint32(np.uint32(buffer[i + np.uint64(1)]) << np.uint32(8))
    value |= np.uint32(np.uint32(buffer[i + np.uint64(2)]) << np.uint32(16))
    value |= np.uint32(np.uint32(buffer[i + np.uint64(3)]) << np.uint32(24))
    return np.uint32(value)


@compiled
def load64(buffer: Any, position: Any) -> Any:
    """Eight bytes, little-endian, from any position (LLVM makes it one load)."""
    i = np.uint64(position)
    return np.int64(load32(buffer, i)) | (np.int64(load32(buffer, i + np.uint64(4))) << 32)


@compiled
def scrambled(block: Any) -> Any:
    """A block of four bytes as murmur3 mixes it; zero stays zero."""
    k = np.uint32(block * np.uint32(0xCC9E2D51))
    k = np.uint32(np.uint32(k << np.uint32(15)) | np.uint32(k >> np.uint32(17)))
    return np.uint32(k * np.uint32(0x1B873593))


@compiled
def murmur(buffer: Any, begin: Any, length: Any) -> Any:
    """MurmurHash3_x86_32 (seed 0) of `length` bytes, as an unsigned number.

    Reads up to 3 bytes past the end: the tail is a masked block, because a zero block changes nothing.
    """
    h = np.uint32(0)
    tail = begin + (length & ~3)
    for position in range(begin, tail, 4):
        h = np.uint32(h ^ scrambled(load32(buffer, position)))
        h = np.uint32(np.uint32(h << np.uint32(13)) | np.uint32(h >> np.uint32(19)))
        h = np.uint32(np.uint32(h * np.uint32(5)) + np.uint32(0xE6546B64))
    mask = np.uint32((1 << (8 * (length & 3))) - 1)
    h = np.uint32(h ^ scrambled(np.uint32(load32(buffer, tail) & mask)))
    h = np.uint32(h ^ np.uint32(length))
    h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.int64(np.uint32(h ^ np.uint32(h >> np.uint32(16))))


@compiled
def prefix_of(buffer: Any, begin: Any, length: Any) -> Any:
    """The first 8 bytes of a term, zero where it is shorter."""
    word = load64(buffer, begin)
    return word if length >= 8 else word & ((np.int64(1) << (8 * length)) - 1)


@compiled
def same_rest(arena: Any, place: Any, buffer: Any, begin: Any, length: Any) -> Any:
    """Whether two terms of one length and the same first 8 bytes are the same."""
    done = 8
    while done + 8 <= length:
        if load64(arena, place + done) != load64(buffer, begin + done):
            return False
        done += 8
    if done >= length:
        return True
    differing = load64(arena, place + done) ^ load64(buffer, begin + done)
    return differing & ((np.int64(1) << (8 * (length - done))) - 1) == 0


@compiled
def find(slots: Any, records: Any, arena: Any, buffer: Any, begin: Any, length: Any, h: Any) -> Any:
    """Number of the term, or minus one minus the free slot where it belongs."""
    mask = len(slots) - 1
    slot = h & mask
    signed = (h << 32) >> 32
    identity = (length << 32) | h
    while True:
        entry = slots[np.uint64(slot)]
        if entry == 0:
            return -1 - slot
        if entry >> 32 == signed:
            term = (entry & 0xFFFFFFFF) - 1
            record = np.uint64(RECORD * term)
            if (
                records[record + np.uint64(2)] == identity
                and records[record] == prefix_of(buffer, begin, length)
                and (length <= 8 or same_rest(arena, records[record + np.uint64(1)], buffer, begin, length))
            ):
                return term
        slot = (slot + 1) & mask


@compiled
def add(
    slots: Any, records: Any, arena: Any, sizes: Any, buffer: Any, begin: Any, length: Any, h: Any, slot: Any
) -> Any:
    """Give a new term its number, in the slot that `find` named. There must be room."""
    term = sizes[0]
    place = sizes[1]
    for i in range(length):
        arena[place + i] = buffer[begin + i]
    record = RECORD * term
    records[record] = prefix_of(buffer, begin, length)
    records[record + 1] = place
    records[record + 2] = (length << 32) | h
    records[record + 3] = -1
    slots[slot] = (h << 32) | (term + 1)
    sizes[0] = term + 1
    sizes[1] = place + length
    return term


@compiled
def count_block(
    tally: Any, buffer: Any, starts: Any, first: Any, last: Any, n: Any, gap: Any, row: Any
) -> None:
    """Count the n-grams that begin at tokens first..last-1, in the row whose counts begin at `row`."""
    slots, records, arena, indices, counts, sizes = tally
    nnz = sizes[2]
    for i in range(first, last):
        begin = starts[i]
        length = starts[i + n] - gap - begin
        h = murmur(buffer, begin, length)
        term = find(slots, records, arena, buffer, begin, length, h)
        if term < 0:
            term = add(slots, records, arena, sizes, buffer, begin, length, h, -1 - term)
        record = np.uint64(RECORD * term + 3)
        position = records[record]
        if position >= row:
            counts[np.uint64(position)] += np.int32(1)
        else:
            records[record] = nnz
            indices[np.uint64(nnz)] = term
            counts[np.uint64(nnz)] = 1
            nnz += 1
    sizes[2] = nnz


@compiled
def grown(array: Any, used: Any, needed: Any) -> Any:
    """The same content with room for `needed` or twice what there was."""
    larger = np.empty(max(needed, 2 * len(array)), array.dtype)
    for i in range(used):
        larger[i] = array[i]
    return larger


@compiled
def with_room(tally: Any, n_terms: Any, n_bytes: Any) -> Any:
    """A tally with room for so many more terms and counts, and so many more bytes of terms."""
    slots, records, arena, indices, counts, sizes = tally
    terms, used, nnz = sizes
    if RECORD * (terms + n_terms) > len(records):
        records = grown(records, RECORD * terms, RECORD * (terms + n_terms))
    if used + n_bytes + PADDING > len(arena):
        arena = grown(arena, used, used + n_bytes + PADDING)
    if nnz + n_terms > len(indices):
        indices = grown(indices, nnz, nnz + n_terms)
        counts = grown(counts, nnz, nnz + n_terms)
    if 2 * (terms + n_terms) > len(slots):
        size = 2 * len(slots)
        while 2 * (terms + n_terms) > size:
            size *= 2
        slots = np.zeros(size, np.int64)
        for term in range(terms):
            h = records[RECORD * term + 2] & 0xFFFFFFFF
            slot = h & (size - 1)
            while slots[slot] != 0:
                slot = (slot + 1) & (size - 1)
            slots[slot] = (h << 32) | (term + 1)
    return Tally(slots, records, arena, indices, counts, sizes)


@compiled
def count_ngrams(
    tally: Any, buffer: Any, starts: Any, from_token: Any, to_token: Any, n: Any, gap: Any, row: Any
) -> Any:
    """Count every run of `n` tokens between two tokens (the last excluded), each of them a range of `buffer`.

    Token i is at `starts[i]`, and `gap` bytes lie between its end and `starts[i + 1]`.
    """
    end = to_token - n + 1
    first = from_token
    while first < end:
        last = min(end, first + BLOCK)
        n_bytes = n * (starts[last - 1 + n] - starts[first])
        sizes = tally.sizes
        if (
            RECORD * (sizes[0] + last - first) > len(tally.records)
            or sizes[1] + n_bytes + PADDING > len(tally.arena)
            or sizes[2] + last - first > len(tally.indices)
            or 2 * (sizes[0] + last - first) > len(tally.slots)
        ):
            tally = with_room(tally, last - first, n_bytes)
        count_block(tally, buffer, starts, first, last, n, gap, row)
        first = last
    return tally
