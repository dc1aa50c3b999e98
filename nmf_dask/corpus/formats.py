"""Which format a file is of, by its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nmf_dask.errors import InputDataError

if TYPE_CHECKING:
    from nmf_dask.corpus.locations import Found

SUFFIXES: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq", ".parq"),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "text": (".txt",),
    "lines": (".txt",),
}
"""Of each format that corpus.format may name; `lines` are text files too, with a document a line."""
COMPRESSED = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_NAMES = {
    "parquet": "Parquet",
    "csv": "CSV",
    "tsv": "TSV",
    "jsonl": "JSON lines",
    "text": "text",
    "lines": "text",
}
# Beside a corpus of another format these are notes: README.txt, schema.json.
_NOTES = (".txt", ".json")


def compression_of(name: str) -> str | None:
    """The codec that a name ends in; None where it ends in none."""
    return next((codec for suffix, codec in COMPRESSED.items() if name.lower().endswith(suffix)), None)


def format_of(name: str) -> str | None:
    """The format that a name ends in, compressed or not; None where it ends in none."""
    bare = _bare(name)
    return next((one for one, suffixes in SUFFIXES.items() if bare.endswith(suffixes)), None)


def in_folder(text: str, files: Sequence[Found], wanted: str) -> list[Found]:
    """Those of a folder's files that are the corpus: of the format that is wanted, or ("auto") of the one there is.

    Raises InputDataError where there are several.
    """
    if wanted != "auto":
        return [one for one in files if _bare(one.name).endswith(SUFFIXES[wanted])]
    formats = {one: format_of(one.name) for one in files}
    known = [one for one, format_ in formats.items() if format_]
    main = [one for one in known if not _bare(one.name).endswith(_NOTES)]
    if main and len({formats[one] for one in known}) > 1:
        known = main
    check_one_format(text, known, "auto")
    return known


def check_one_format(text: str, files: Sequence[Found], wanted: str) -> str:
    """The format of files; raises InputDataError where they are of several. A name that tells none is Parquet's."""
    if wanted != "auto":
        return wanted
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for one in files:
        format_ = format_of(one.name) or "parquet"
        counts[format_] += 1
        first.setdefault(format_, one.name)
    if len(counts) > 1:
        told = ", ".join(f"{n} of {_NAMES[one]} ({first[one]}, …)" for one, n in counts.items())
        raise InputDataError(
            f"input {text}: files of several formats: {told}. Name those of one by a glob, or say which they are by "
            f"--format (corpus.format), such as --format {next(iter(counts))}"
        )
    return next(iter(counts), "parquet")


def _bare(name: str) -> str:
    """The name in lower case, without the suffix of a compression."""
    lower = name.lower()
    suffix = next((one for one in COMPRESSED if lower.endswith(one)), "")
    return lower.removesuffix(suffix)
