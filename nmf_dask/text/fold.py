"""What happens to each code point before it is counted: lowered, stripped of its accent, word or white space.

The tables are made by the running Python's own `str.lower`, `re` and `unicodedata`, so that they say what
scikit-learn would say in this process.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

N_CODE_POINTS = 0x110000
# Beyond the ideographs of Unicode 17 no code point is a word or a space, or has another lower case: what is there is
# not assigned, private, or a tag. (The tests go through all of them.)
END_OF_LETTERS = 0x33480
ASCII = 0x80
CODE_POINT = (1 << 21) - 1
WORD = 1 << 21
SPACE = 1 << 22
EXPANDS = 1 << 23

# What str.lower() makes of this letter depends on its neighbours; of any other, on the letter alone.
CAPITAL_SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"
# The one letter that becomes two.
DOTTED_I = "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}"

Accents = Literal["ascii", "unicode"]


class Fold(NamedTuple):
    """Tables over code points.

    An entry is a folded code point with the flags WORD (`re`'s \\w) and SPACE (`re`'s \\s), or EXPANDS with a
    position in `sequences`: there stands a number of entries (it may be 0), then the entries.
    """

    table: NDArray[np.uint32]  # (128,) or (0x110000,): ASCII text meets no more
    sequences: NDArray[np.uint32]
    growth: int  # bytes of UTF-8 that one byte of UTF-8 becomes, at most, rounded up


@lru_cache(maxsize=4)
def fold_tables(lowercase: bool, strip_accents: Accents | None, ascii_only: bool) -> Fold:
    """The tables for these settings. All of Unicode takes tens of milliseconds, hence once a process.

    CAPITAL_SIGMA has the entry of the small sigma: a text that holds it must be lowered as a whole before.
    """
    # Stripping to ASCII removes whatever is not.
    end = ASCII if ascii_only else N_CODE_POINTS if strip_accents else END_OF_LETTERS
    points = np.arange(end, dtype=np.uint32)
    points = points[(points < 0xD800) | (points > 0xDFFF)]
    characters = _text(points)
    folded, longer = _lowered(characters) if lowercase else (points, {})
    removed = np.zeros(0, np.int64)
    if strip_accents and not ascii_only:
        folded, longer, removed = _stripped(folded, longer, strip_accents)
    flags = _flags(points, characters)
    table = np.arange(ASCII if ascii_only else N_CODE_POINTS, dtype=np.uint32)
    table[points] = folded | flags[folded]
    table[removed] = EXPANDS
    sequences, growth = [0], 1 if ascii_only else 2
    for point, text in longer.items():
        table[point] = EXPANDS | len(sequences)
        sequences += [len(text), *(ord(c) | int(flags[ord(c)]) for c in text)]
        growth = max(growth, -(-len(text.encode()) // len(chr(point).encode())))
    return Fold(table, np.array(sequences, np.uint32), growth)


def _text(points: NDArray[np.uint32]) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le")


def _points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint32)


def _flags(points: NDArray[np.uint32], characters: str) -> NDArray[np.uint32]:
    """WORD and SPACE of every code point."""
    flags = np.zeros(points[-1] + 1, np.uint32)
    for pattern, flag in ((r"\w+", WORD), (r"\s+", SPACE)):
        for match in re.finditer(pattern, characters):
            flags[points[match.start() : match.end()]] |= np.uint32(flag)
    return flags


def _lowered(characters: str) -> tuple[NDArray[np.uint32], dict[int, str]]:
    """Each character's lower case; those that become several, apart."""
    longer = DOTTED_I if DOTTED_I in characters else ""
    plain = characters.replace(DOTTED_I, "i").replace(CAPITAL_SIGMA, CAPITAL_SIGMA.lower())
    if len(plain.lower()) != len(plain):  # a Python of later Unicode
        longer = "".join(c for c in characters if len(c.lower()) > 1)
        plain = re.sub(f"[{longer}]", "i", plain)
    return _points(plain.lower()), {ord(c): c.lower() for c in longer}


def _stripped(
    folded: NDArray[np.uint32], longer: dict[int, str], accents: Accents
) -> tuple[NDArray[np.uint32], dict[int, str], NDArray[np.int64]]:
    """Each folded character without its accent; those that become several, or nothing, apart.

    Texts follow characters: all that decomposition does besides is to reorder marks, and marks are removed.
    """
    strip = _strip_ascii if accents == "ascii" else _strip_unicode
    numbers = np.flatnonzero(np.arange(len(folded)) >= ASCII)
    texts = strip("\0".join(_text(folded[numbers]))).split("\0")
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    folded = folded.copy()
    folded[numbers[lengths == 1]] = _points("".join(t for t in texts if len(t) == 1))
    points = numbers + np.where(numbers >= 0xD800, 0x800, 0)
    several = {int(points[i]): texts[i] for i in np.flatnonzero(lengths > 1)}
    several |= {point: strip(text) for point, text in longer.items()}
    return folded, several, points[lengths == 0]


def _strip_ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


def _strip_unicode(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
