"""What one case of the fuzz is: files that a seeded generator writes, and what the command must say of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.expected import Expected

Random = np.random.Generator
Generate = Callable[[Random, Path], Expected]

ID_FLAGS = ("--id-column", "doc_id")
# snappy, gzip, brotli, zstd, lz4 where they are built in, as they are in the wheels.
CODECS = (
    "none",
    *(codec for codec in ("snappy", "gzip", "brotli", "zstd", "lz4") if pa.Codec.is_available(codec)),
)
_WORDS = [*(f"word{i:02d}" for i in range(40)), "Straße", "ΣΊΣΥΦΟΣ", "naïve", "日本語", "мир"]

KINDS: dict[str, Generate] = {}
TURNS: list[str] = []


def kind(cases: int) -> Callable[[Generate], Generate]:
    """Register a generator, and how many of a thousand cases are its own."""

    def register(generate: Generate) -> Generate:
        name = f"{generate.__module__.rpartition('.')[2]}.{generate.__name__}"
        KINDS[name] = generate
        TURNS.extend([name] * cases)
        return generate

    return register


class Case(NamedTuple):
    """A seed's case: the kind of its input, and what must come of it."""

    seed: int
    kind: str
    expected: Expected


def kind_of(seed: int) -> str:
    """Kind of a seed's case; turns are mixed, so that the first hundred seeds have something of everything."""
    turns = sorted(TURNS)  # whatever module was imported first
    return turns[np.random.default_rng(0).permutation(len(turns))[seed % len(turns)]]


def make(seed: int, folder: Path) -> Case:
    """Write a seed's files below `folder`, which is there and empty."""
    name = kind_of(seed)
    return Case(seed, name, KINDS[name](np.random.default_rng(seed), folder))


def one_of(random: Random, values: Any) -> Any:
    """A value of a sequence, in its own type: NumPy's choice makes strings of mixed ones."""
    return values[int(random.integers(len(values)))]


def heads(random: Random) -> bool:
    return bool(random.integers(2))


def texts_of(random: Random, n: int | None = None) -> list[str]:
    """Documents of a few known words each, at least eight of them."""
    n = n or int(random.integers(8, 40))
    return [" ".join(random.choice(_WORDS, int(random.integers(3, 12)))) for _ in range(n)]


def table_of(texts: Any, **columns: Any) -> pa.Table:
    """Columns doc_id and text, and more."""
    return pa.table({"doc_id": [f"d{i}" for i in range(len(texts))], "text": texts, **columns})


def layout_of(random: Random) -> dict[str, Any]:
    """Any options of pyarrow's writer that leave types as they are."""
    options: dict[str, Any] = {
        "compression": one_of(random, CODECS),
        "data_page_version": one_of(random, ("1.0", "2.0")),
        "write_page_checksum": heads(random),
        "write_statistics": heads(random),
        "write_page_index": heads(random),
        "row_group_size": one_of(random, (1, 3, 10, 1000)),
        "data_page_size": one_of(random, (1, 100, 2**20)),
        "write_batch_size": one_of(random, (1, 5, 1024)),
        "use_dictionary": heads(random),
    }
    if not options["use_dictionary"]:
        encoding = one_of(random, ("PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"))
        options["column_encoding"] = {"text": encoding}
    return options


def write_clean(random: Random, path: Path, texts: Any = None, **options: Any) -> pa.Table:
    """A file that is as it should be, in some layout."""
    table = table_of(texts_of(random) if texts is None else texts)
    pq.write_table(table, path, **{**layout_of(random), **options})
    return table


def maybe_ids(random: Random) -> tuple[str, ...]:
    return ID_FLAGS if heads(random) else ()


def named(*texts: str) -> tuple[str, ...]:
    """Patterns for what a message must hold as it is."""
    return tuple(map(re.escape, texts))
