"""The table of distinct terms and the rows of counts, as compiled code fills them.

A term is a range of bytes. A quick hash finds it in an open-addressing table, its bytes decide: two terms of one
hash stay two terms. The murmur hash, which names the bucket, is for distinct terms alone. What depends on the text
is computed without branches where it can be: a wrong guess of the processor costs as much as a word. Hot loops
index by unsigned numbers, since numba tests signed ones for "from the end".
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled
from nmf_dask.text.loads import load32, load64, store64

# Loads may begin at the end of a term: every buffer of bytes is longer than its content by what they read there.
PADDING = 24
# This many n-grams are counted at once; there must be room for as many new terms, so that no loop need ask.
BLOCK = 4096
# Four numbers a term: bytes 0-7, bytes 8-15 (zero padded), length and hash, and where it was counted last.
RECORD = 4
# Factors of the quick hash: any odd numbers without a pattern.
_ODD, _OTHER_ODD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
# Masks for the bytes 0-7 and 8-15 of terms of up to 16 bytes, by their length.
_LOW = np.array([(1 << 8 * min(length, 8)) - 1 for length in range(17)], np.uint64).view(np.int64)
_HIGH = np.array([(1 << 8 * max(length - 8, 0)) - 1 for length in range(17)], np.uint64).view(np.int64)


class Tally(NamedTuple):
    """Distinct terms and rows of counts so far. Arrays have room to spare; `sizes` says how much is used."""

    slots: NDArray[np.int32]  # (power of two,) term + 1; 0 is a free slot
    records: NDArray[np.int64]  # (RECORD * terms,)
    places: NDArray[np.int64]  # (terms + 1,) where each term begins in the arena
    arena: NDArray[np.uint8]  # the terms' bytes, one after the other, in order of their first appearance
    indices: NDArray[np.int32]  # (nnz,) number of the term
    counts: NDArray[np.int32]  # (nnz,)
    sizes: NDArray[np.int64]  # (3,) terms, nnz, how many of the first terms are not counted
    hashes: NDArray[np.int64]  # (BLOCK,) of the n-grams at hand
    guesses: NDArray[np.int64]  # (BLOCK,) their terms, where those are easy to find


class Progress(NamedTuple):
    """How far a kernel came before it ran out of room. Called again with more of it, it goes on from there."""

    document: NDArray[np.int64]  # (1,) the one at hand
    row: NDArray[np.int64]  # (1,) where its counts begin
    counted: NDArray[np.int64]  # (1,) n-grams of it that are counted
    met: NDArray[np.int64]  # (1,) n-grams of it that were met since the kernel was called


def new_progress() -> Progress:
    """Before the first document."""
    return Progress(np.full(1, -1, np.int64), *(np.zeros(1, np.int64) for _ in range(3)))


def empty_tally(n_bytes: int, n_lengths: int) -> Tally:
    """A tally of nothing, with room for what is in so much ordinary text, with so many lengths of n-grams.

    Room that stays unused costs addresses, not memory.
    """
    # English has a word of a document about every 10 bytes, a new word every 500, a new pair every 20.
    n_terms = n_lengths * (n_bytes // 32) + BLOCK
    n_nonzero = n_lengths * (n_bytes // 8) + BLOCK
    return Tally(
        slots=np.zeros(4 * BLOCK, np.int32),
        records=np.empty(RECORD * n_terms, np.int64),
        places=np.zeros(n_terms + 1, np.int64),
        arena=np.empty(16 * n_terms + PADDING, np.uint8),
        indices=np.empty(n_nonzero, np.int32),
        counts=np.empty(n_nonzero, np.int32),
        sizes=np.zeros(3, np.int64),
        hashes=np.empty(BLOCK, np.int64),
        guesses=np.empty(BLOCK, np.int64),
    )


def with_room(tally: Tally, n_bytes: int) -> Tally:
    """A tally with room for a block of new terms, and for so many bytes of them."""
    n_terms, nnz, _ = tally.sizes.tolist()
    used = int(tally.places[n_terms])
    slots = tally.slots
    if 2 * (n_terms + BLOCK) > len(slots):
        slots = np.zeros(4 * len(slots), np.int32)
        fill_slots(slots, tally.records, n_terms)
    return tally._replace(
        slots=slots,
        records=_grown(tally.records, RECORD * n_terms, RECORD * BLOCK),
        places=_grown(tally.places, n_terms + 1, BLOCK),
        arena=_grown(tally.arena, used, n_bytes + PADDING),
        indices=_grown(tally.indices, nnz, BLOCK),
        counts=_grown(tally.counts, nnz, BLOCK),
    )


def _grown(array: NDArray[Any], used: int, more: int) -> NDArray[Any]:
    if used + more <= len(array):
        return array
    larger = np.empty(max(used + more, 2 * len(array)), array.dtype)
    larger[:used] = array[:used]
    return larger


@compiled
def scrambled(block: Any) -> Any:
    """A block of four bytes as murmur3 mixes it; zero stays zero."""
    k = np.uint32(block * np.uint32(0xCC9E2D51))
    k = np.uint32(np.uint32(k << np.uint32(15)) | np.uint32(k >> np.uint32(17)))
    return np.uint32(k * np.uint32(0x1B873593))


@compiled(inline=True)  # type: ignore[untyped-decorator]
def stirred(h: Any, block: Any) -> Any:
    """The state of murmur3 after one more whole block."""
    h = np.uint32(h ^ scrambled(block))
    h = np.uint32(np.uint32(h << np.uint32(13)) | np.uint32(h >> np.uint32(19)))
    return np.uint32(np.uint32(h * np.uint32(5)) + np.uint32(0xE6546B64))


@compiled(inline=True)  # type: ignore[untyped-decorator]
def murmur(buffer: Any, begin: Any, length: Any) -> Any:
    """MurmurHash3_x86_32 (seed 0) of `length` bytes, as an unsigned number.

    The tail is a masked block, because a zero block changes nothing.
    """
    h = np.uint32(0)
    tail = begin + (length & ~3)
    for position in range(begin, tail, 4):
        h = stirred(h, load32(buffer, position))
    mask = np.uint32((1 << (8 * (length & 3))) - 1)
    h = np.uint32(h ^ scrambled(np.uint32(load32(buffer, tail) & mask)))
    h = np.uint32(h ^ np.uint32(length))
    h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.int64(np.uint32(h ^ np.uint32(h >> np.uint32(16))))


@compiled
def first_bytes(length: Any) -> Any:
    """A mask for the first `length` bytes of a word of 8; all of them from 8 on, none up to 0."""
    some = (np.int64(1) << (8 * (length & 7))) - 1
    some = np.int64(-1) if length >= 8 else some
    return np.int64(0) if length <= 0 else some


@compiled(inline=True)  # type: ignore[untyped-decorator]
def quick_hash(buffer: Any, begin: Any, length: Any, low: Any, high: Any) -> Any:
    """32 bits, as a signed number that is not negative, of a term whose first 16 bytes are `low` and `high`."""
    h = np.uint64(low ^ length) * _ODD + np.uint64(high) * _OTHER_ODD
    for done in range(16, length, 8):
        rest = load64(buffer, begin + done) & first_bytes(length - done)
        h = ((h ^ (h >> _HALF)) + np.uint64(rest)) * _ODD
    return np.int64(((h ^ (h >> _HALF)) * _OTHER_ODD) >> _HALF)


@compiled
def murmur_terms(hashes: Any, places: Any, arena: Any) -> None:
    """Set `hashes` to the murmur hashes of terms, term t being arena[places[t]:places[t + 1]]."""
    for term in range(len(hashes)):
        hashes[term] = murmur(arena, places[term], places[term + 1] - places[term])


@compiled
def same_rest(arena: Any, place: Any, buffer: Any, begin: Any, length: Any) -> Any:
    """Whether two terms of one length are the same from byte 16 on."""
    for done in range(16, length, 8):
        differing = load64(arena, place + done) ^ load64(buffer, begin + done)
        if differing & first_bytes(length - done):
            return False
    return True


@compiled(inline=True)  # type: ignore[untyped-decorator]
def find(tally: Any, buffer: Any, begin: Any, length: Any) -> Any:
    """Number of the term, or minus one minus the free slot where it belongs."""
    slots, records = tally.slots, tally.records
    low = load64(buffer, begin) & first_bytes(length)
    high = load64(buffer, begin + 8) & first_bytes(length - 8)
    h = quick_hash(buffer, begin, length, low, high)
    identity = (length << 32) | h
    mask = len(slots) - 1
    slot = h & mask
    while True:
        term = slots[np.uint64(slot)] - 1
        if term < 0:
            return -1 - slot
        record = RECORD * term
        if (
            records[record] == low
            and records[record + 1] == high
            and records[record + 2] == identity
            and (length <= 16 or same_rest(tally.arena, tally.places[term], buffer, begin, length))
        ):
            return term
        slot = (slot + 1) & mask


@compiled(inline=True)  # type: ignore[untyped-decorator]
def add(tally: Any, buffer: Any, begin: Any, length: Any, slot: Any) -> Any:
    """Give a new term its number, in the slot that `find` named. There must be room."""
    term = tally.sizes[0]
    place = tally.places[term]
    for done in range(0, length, 8):
        store64(tally.arena, place + done, load64(buffer, begin + done))
    record = RECORD * term
    low = load64(buffer, begin) & first_bytes(length)
    high = load64(buffer, begin + 8) & first_bytes(length - 8)
    tally.records[record] = low
    tally.records[record + 1] = high
    tally.records[record + 2] = (length << 32) | quick_hash(buffer, begin, length, low, high)
    tally.records[record + 3] = -1
    tally.slots[slot] = term + 1
    tally.places[term + 1] = place + length
    tally.sizes[0] = term + 1
    return term


@compiled
def fill_slots(slots: Any, records: Any, n_terms: Any) -> None:
    """Put terms into free slots."""
    mask = len(slots) - 1
    for term in range(n_terms):
        slot = records[RECORD * term + 2] & mask
        while slots[slot] != 0:
            slot = (slot + 1) & mask
        slots[slot] = term + 1


@compiled(inline=True)  # type: ignore[untyped-decorator]
def guess_block(tally: Any, buffer: Any, begins: Any, ends: Any, size: Any) -> Any:
    """Find the terms of ranges of bytes in `tally.guesses`, without those that are not counted; returns how many.

    Where range i is longer than 16 bytes or not in the first slot of its hash, as few are, it is -1 - i instead.
    """
    slots, records, hashes, guesses = tally.slots, tally.records, tally.hashes, tally.guesses
    mask = np.uint64(len(slots) - 1)
    not_counted = np.uint64(tally.sizes[2])
    for i in range(size):
        begin = begins[np.uint64(i)]
        length = ends[np.uint64(i)] - begin
        short = np.uint64(min(length, 16))
        low = load64(buffer, begin) & _LOW[short]
        high = load64(buffer, begin + 8) & _HIGH[short]
        h = quick_hash(buffer, begin, np.int64(short), low, high)
        hashes[np.uint64(i)] = h
        guesses[np.uint64(i)] = slots[np.uint64(h) & mask] - 1
    kept = np.int64(0)
    for i in range(size):
        begin = begins[np.uint64(i)]
        length = ends[np.uint64(i)] - begin
        short = np.uint64(min(length, 16))
        term = guesses[np.uint64(i)]
        record = np.uint64(RECORD * max(term, 0))
        differing = records[record] ^ (load64(buffer, begin) & _LOW[short])
        differing |= records[record + np.uint64(1)] ^ (load64(buffer, begin + 8) & _HIGH[short])
        differing |= records[record + np.uint64(2)] ^ ((length << 32) | hashes[np.uint64(i)])
        differing |= length - np.int64(short)
        # An empty slot (-1) is no match, whatever memory held before of the record that it was compared with.
        differing |= term >> np.int64(63)
        term = term if differing == 0 else -1 - i
        guesses[np.uint64(kept)] = term
        kept += np.uint64(term) >= not_counted
    return kept


@compiled
def count_block(tally: Any, buffer: Any, begins: Any, ends: Any, size: Any, row: Any) -> None:
    """Count up to BLOCK ranges of bytes as terms, in the row whose counts begin at `row`; there must be room.

    Three loops, because the processor fetches from the table for many words at once where it need not decide.
    """
    records, indices, counts, guesses = tally.records, tally.indices, tally.counts, tally.guesses
    nnz = tally.sizes[1]
    for i in range(guess_block(tally, buffer, begins, ends, size)):
        term = guesses[np.uint64(i)]
        if term < 0:
            begin = begins[-1 - term]
            length = ends[-1 - term] - begin
            term = find(tally, buffer, begin, length)
            if term < 0:
                term = add(tally, buffer, begin, length, -1 - term)
            elif term < tally.sizes[2]:
                continue
        record = np.uint64(RECORD * term + 3)
        position = records[record]
        is_new = position < row
        position = nnz if is_new else position
        # Read even if it is not to be used: where it is new can be guessed by nobody.
        before = counts[np.uint64(position)]
        counts[np.uint64(position)] = (np.int32(0) if is_new else before) + np.int32(1)
        indices[np.uint64(position)] = term
        records[record] = position
        nnz += is_new
    tally.sizes[1] = nnz


@compiled
def count_run(
    tally: Any, progress: Any, buffer: Any, begins: Any, ends: Any, first: Any, stop: Any, n: Any
) -> Any:
    """Count every n of the tokens first..stop-1 that are side by side, token i being buffer[begins[i]:ends[i]].

    What is between the tokens belongs to the n-gram: one space, or nothing. Returns 0, or where there is no room
    the bytes to make room for.
    """
    skipped = min(stop - n + 1 - first, progress.counted[0] - progress.met[0])
    progress.met[0] += skipped
    for i in range(first + skipped, stop - n + 1, BLOCK):
        size = min(BLOCK, stop - n + 1 - i)
        n_bytes = np.int64(0)
        for j in range(i, i + size):
            n_bytes += ends[np.uint64(j + n - 1)] - begins[np.uint64(j)]
        n_terms, nnz = tally.sizes[0], tally.sizes[1]
        if (
            n_terms + BLOCK >= len(tally.places)
            or 2 * (n_terms + BLOCK) > len(tally.slots)
            or tally.places[n_terms] + n_bytes + PADDING > len(tally.arena)
            or nnz + BLOCK > len(tally.indices)
        ):
            return n_bytes
        count_block(tally, buffer, begins[i:], ends[i + n - 1 :], size, progress.row[0])
        progress.met[0] += size
        progress.counted[0] = progress.met[0]
    return np.int64(0)


@compiled
def begin_document(progress: Any, d: Any, nnz: Any) -> None:
    """Make d the document at hand, if it is not yet."""
    if progress.document[0] != d:
        progress.document[0] = d
        progress.row[0] = nnz
        progress.counted[0] = 0
    progress.met[0] = 0
