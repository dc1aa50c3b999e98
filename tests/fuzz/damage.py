"""Files that were Parquet once: cut off, overwritten, flipped, put together wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from tests.fuzz.cases import (
    Random,
    heads,
    kind,
    maybe_ids,
    named,
    one_of,
    table_of,
    texts_of,
    write_clean,
)
from tests.fuzz.expected import DONE, WRONG_DATA, Expected

MAGIC = b"PAR1"


class Whole(NamedTuple):
    """A file before the damage: its bytes, where its footer begins, and where the chunks of its texts lie."""

    path: Path
    content: bytearray
    n_rows: int
    footer: int
    chunks: tuple[tuple[int, int], ...]
    checksums: bool


def whole(random: Random, path: Path) -> Whole:
    checksums = heads(random)
    table = write_clean(random, path, write_page_checksum=checksums)
    content = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    chunks = []
    for number in range(metadata.num_row_groups):
        chunk = metadata.row_group(number).column(1)
        start = chunk.data_page_offset
        if chunk.has_dictionary_page:
            start = min(start, chunk.dictionary_page_offset)
        chunks.append((start, start + chunk.total_compressed_size))
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return Whole(path, content, table.num_rows, footer, tuple(chunks), checksums)


def flip(random: Random, content: bytearray, low: int, high: int, most: int = 3) -> None:
    """Change one to `most` bytes between two places: single bits, or whole bytes."""
    for _ in range(int(random.integers(1, most + 1))):
        place = int(random.integers(low, high))
        content[place] ^= 1 << int(random.integers(8)) if heads(random) else int(random.integers(1, 256))


def refused(file: str = "a.parquet", *more: str) -> Expected:
    return Expected((WRONG_DATA,), says=named(file, *more))


def survived_or_refused(file: Whole, random: Random, *says: str) -> Expected:
    return Expected(
        (DONE, WRONG_DATA), file.n_rows, says=named("a.parquet", *says), arguments=maybe_ids(random)
    )


@kind(40)
def truncated(random: Random, folder: Path) -> Expected:
    file = whole(random, folder / "a.parquet")
    file.path.write_bytes(file.content[: int(random.integers(1, len(file.content)))])
    return refused()


@kind(10)
def cut_in_the_footer(random: Random, folder: Path) -> Expected:
    file = whole(random, folder / "a.parquet")
    file.path.write_bytes(file.content[: int(random.integers(file.footer, len(file.content)))])
    return refused()


@kind(70)
def flipped_footer(random: Random, folder: Path) -> Expected:
    file = whole(random, folder / "a.parquet")
    flip(random, file.content, file.footer, len(file.content) - 8)
    file.path.write_bytes(file.content)
    return survived_or_refused(file, random)


@kind(50)
def flipped_page_header(random: Random, folder: Path) -> Expected:
    file = whole(random, folder / "a.parquet")
    start, end = one_of(random, file.chunks)
    flip(random, file.content, start, min(start + 24, end))
    file.path.write_bytes(file.content)
    return survived_or_refused(file, random, "'text'", "row group")


@kind(60)
def flipped_page_data(random: Random, folder: Path) -> Expected:
    file = whole(random, folder / "a.parquet")
    start, end = one_of(random, file.chunks)
    flip(random, file.content, min(start + 24, end - 1), end)
    file.path.write_bytes(file.content)
    return survived_or_refused(file, random, "'text'", "row group")


@kind(20)
def overwritten_pages(random: Random, folder: Path) -> Expected:
    """A block of zeros, or of noise, over the pages of the texts."""
    file = whole(random, folder / "a.parquet")
    start, end = one_of(random, file.chunks)
    low = int(random.integers(start, end))
    high = int(random.integers(low + 1, end + 1))
    file.content[low:high] = bytes(high - low) if heads(random) else random.bytes(high - low)
    file.path.write_bytes(file.content)
    return survived_or_refused(file, random, "'text'", "row group")


@kind(10)
def flipped_anywhere(random: Random, folder: Path) -> Expected:
    file = whole(random, folder / "a.parquet")
    flip(random, file.content, 0, len(file.content), most=20)
    file.path.write_bytes(file.content)
    return survived_or_refused(file, random)


@kind(10)
def flipped_magic(random: Random, folder: Path) -> Expected:
    """At the end it is no Parquet file any more; at the beginning nobody needs it."""
    file = whole(random, folder / "a.parquet")
    if heads(random):
        flip(random, file.content, 0, 4)
        file.path.write_bytes(file.content)
        return survived_or_refused(file, random)
    end = len(file.content)
    file.content[end - 4 + int(random.integers(4))] ^= 1 << int(random.integers(8))
    file.path.write_bytes(file.content)
    return refused()


@kind(25)
def footer_length(random: Random, folder: Path) -> Expected:
    file = whole(random, folder / "a.parquet")
    end = len(file.content)
    length = int.from_bytes(file.content[end - 8 : end - 4], "little")
    near = (length + 1, length - 1, length // 2, 0, end, end - 12, end - 8, 2**31, 2**32 - 1)
    other = int(one_of(random, near)) if heads(random) else int(random.integers(2**32))
    file.content[end - 8 : end - 4] = other.to_bytes(4, "little")
    file.path.write_bytes(file.content)
    return refused()


@kind(15)
def missing_middle(random: Random, folder: Path) -> Expected:
    """Bytes are gone from before the footer, or too many are there."""
    file = whole(random, folder / "a.parquet")
    place = int(random.integers(4, file.footer))
    if heads(random):
        del file.content[place : place + int(random.integers(1, file.footer - place + 1))]
    else:
        file.content[place:place] = random.bytes(int(random.integers(1, 100)))
    file.path.write_bytes(file.content)
    return survived_or_refused(file, random)


@kind(20)
def concatenated(random: Random, folder: Path) -> Expected:
    """`cat a b > c`: the last footer stands for the whole, and its places are those of another file."""
    parts = []
    for _ in range(int(random.integers(2, 4))):
        write_clean(random, folder / "a.parquet")
        parts.append((folder / "a.parquet").read_bytes())
    if heads(random):
        parts = parts[:1] * len(parts)
    (folder / "a.parquet").write_bytes(b"".join(parts))
    return refused()


@kind(13)
def junk_around(random: Random, folder: Path) -> Expected:
    """A whole file with something before it (its places are wrong then) or after it (it has no end then)."""
    file = whole(random, folder / "a.parquet")
    junk = random.bytes(int(random.integers(1, 300)))
    after = heads(random)
    file.path.write_bytes(file.content + junk if after else junk + file.content)
    return refused() if after else survived_or_refused(file, random)


@kind(10)
def zero_length(random: Random, folder: Path) -> Expected:
    (folder / "a.parquet").touch()
    return refused()


@kind(15)
def zeros(random: Random, folder: Path) -> Expected:
    """A file system that crashed leaves the right size and no content."""
    file = whole(random, folder / "a.parquet")
    low = int(random.integers(0, len(file.content))) if heads(random) else 0
    file.content[low:] = bytes(len(file.content) - low)
    file.path.write_bytes(file.content)
    return refused()


@kind(25)
def one_bad_among_good(random: Random, folder: Path) -> Expected:
    """The message names the file that is bad, and no other."""
    n_files = int(random.integers(2, 7))
    bad = int(random.integers(n_files))
    for number in range(n_files):
        file = whole(random, folder / f"{number}.parquet")
        if number == bad:
            how = int(random.integers(3))
            cut = (
                file.content[: int(random.integers(len(file.content)))]
                if how
                else file.content[: file.footer]
            )
            file.path.write_bytes(cut if how < 2 else b"")
    others = "|".join(f"/{number}\\.parquet" for number in range(n_files) if number != bad)
    return Expected((WRONG_DATA,), says=(rf"/{bad}\.parquet", f"^(?!.*(?:{others}))"))


@kind(10)
def two_bad(random: Random, folder: Path) -> Expected:
    """Which of two is named must not depend on who was read first."""
    for name in "abc":
        write_clean(random, folder / f"{name}.parquet")
    for name in "bc":
        path = folder / f"{name}.parquet"
        path.write_bytes(path.read_bytes()[:-5])
    return refused("b.parquet")


@kind(10)
def flipped_with_small_partitions(random: Random, folder: Path) -> Expected:
    """Partitions that begin within a row group look for their first page by its header."""
    path = folder / "a.parquet"
    texts = texts_of(random, 200)
    options = {"data_page_size": 200, "write_batch_size": 10, "row_group_size": 1000, "use_dictionary": False}
    table = table_of(texts)
    pq.write_table(table, path, compression="none", write_page_checksum=heads(random), **options)
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(1)
    start = chunk.data_page_offset
    flip(random, content, start, start + chunk.total_compressed_size, most=30)
    path.write_bytes(content)
    return Expected(
        (DONE, WRONG_DATA),
        table.num_rows,
        says=named("a.parquet", "'text'", "row group 0"),
        arguments=("--set", "corpus.partition_bytes=1000", *maybe_ids(random)),
    )


@kind(30)
def flipped_counts(random: Random, folder: Path) -> Expected:
    """A footer without Arrow's schema, of row groups for the most part: numbers of rows, sizes, places."""
    path = folder / "a.parquet"
    table = table_of(texts_of(random))
    pq.write_table(
        table, path, store_schema=False, row_group_size=5, write_statistics=False, compression="none"
    )
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    flip(random, content, footer, len(content) - 8, most=2)
    path.write_bytes(content)
    return Expected((DONE, WRONG_DATA), table.num_rows, says=named("a.parquet"), arguments=maybe_ids(random))
