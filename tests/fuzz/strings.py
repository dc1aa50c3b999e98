"""Texts that nobody expects: nulls, empties, invalid bytes, one word of a megabyte, scripts of all kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.cases import (
    ID_FLAGS,
    Random,
    heads,
    kind,
    layout_of,
    maybe_ids,
    named,
    one_of,
    table_of,
    texts_of,
)
from tests.fuzz.expected import DONE, WRONG_DATA, Expected

# What no Python string holds: bytes that are no UTF-8 for one reason each.
INVALID = (
    b"\xff\xfe", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\x80", b"\xc0\xaf", b"\xe0\x80\xaf",
    b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80",
)  # fmt: skip
ODD = (
    "", " ", "\t\r\n", "\x00", "word\x00word", "\x00" * 1000, "\ufeffword with a mark", "\ufeff", "\ufffe\uffff",
    "שלום עולם", "مرحبا بالعالم", "\u202eright to left\u202c", "e\u0301" * 200, "a" + "\u0300" * 5000, "\u0301",
    "👍🏽👨‍👩‍👧‍👦🇩🇪", "İSTANBUL ıǅ", "ΣΊΣΥΦΟΣ Σ", "ẞß ﬁ ﬃ", "๑๒๓", "\U0010ffff", "\U000e0001", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "...!?",
    "x" * 100_000, "é" * 70_000, "日" * 50_000, "a " * 50_000, "🙂" * 20_000, "\n".join("ab" * 50), "_" * 300,
    "1 2 3", "a", "ﷺ" * 100, "\u2028\u2029\u0085", "z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍a̴̵̜̰͔ͫ͗͢l̠ͨͧͩ͘g̴͕̱͔̺o͇̺", "Ω" * 33, "%s%n{0}\\u0000", "<b>&amp;</b>",
)  # fmt: skip
NOTHING = (
    "", " ", "...", "a", "\x00", "!? -- !?", "🙂", "the and of", "e i o", "\ufeff", "\u0301",
)  # fmt: skip


def bytes_as_strings(values: list[bytes | None], type_: pa.DataType) -> pa.Array:
    """A column of strings that holds bytes as they are, which no pa.array would take."""
    offsets = np.concatenate([[0], np.cumsum([len(value or b"") for value in values])]).astype(np.int32)
    packed = np.packbits([value is not None for value in values], bitorder="little")
    buffers = [
        pa.py_buffer(packed),
        pa.py_buffer(offsets),
        pa.py_buffer(b"".join(value or b"" for value in values)),
    ]
    strings = pa.Array.from_buffers(pa.string(), len(values), buffers)
    if pa.types.is_dictionary(type_):
        return strings.dictionary_encode()
    return strings.cast(type_)


def mixed(random: Random, odd: list[bytes | None]) -> list[bytes | None]:
    """Odd documents in between ordinary ones."""
    texts: list[bytes | None] = [text.encode() for text in texts_of(random)]
    for value in odd:
        texts.insert(int(random.integers(len(texts) + 1)), value)
    return texts


def written(random: Random, folder: Path, texts: list[bytes | None]) -> Expected:
    """The texts in some type of strings and some layout, and the expectation that they are survived."""
    type_ = one_of(
        random, (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
    )
    options = layout_of(random)
    pq.write_table(table_of(bytes_as_strings(texts, type_)), folder / "a.parquet", **options)
    return Expected((DONE,), len(texts), arguments=analyzer(random))


def analyzer(random: Random) -> tuple[str, ...]:
    """Words as the compiled path reads them, or as Python does, or characters."""
    ways: tuple[tuple[str, ...], ...] = (
        (), (), ID_FLAGS, ("--ngram-range", "1,2"), ("--stop-words", "english"),
        ("--set", "vectorizer.lowercase=false"),
        ("--set", "vectorizer.analyzer=char_wb", "--ngram-range", "2,3"), ("--set", "vectorizer.analyzer=char"),
        ("--set", "vectorizer.strip_accents=unicode"), ("--set", "vectorizer.strip_accents=ascii"),
        ("--set", r"vectorizer.token_pattern=[^\W\d]+"), ("--beta-loss", "kullback-leibler"),
    )  # fmt: skip
    return one_of(random, ways)


@kind(40)
def odd(random: Random, folder: Path) -> Expected:
    chosen = [one_of(random, ODD).encode() for _ in range(int(random.integers(1, 6)))]
    return written(random, folder, mixed(random, [*chosen]))


@kind(25)
def invalid_utf_8(random: Random, folder: Path) -> Expected:
    values = []
    for _ in range(int(random.integers(1, 6))):
        around = one_of(random, (b"", b"word ", b"word"))
        values.append(around + one_of(random, INVALID) * int(random.integers(1, 4)) + around)
    return written(random, folder, mixed(random, [*values]))


@kind(10)
def invalid_utf_8_only(random: Random, folder: Path) -> Expected:
    """Each document is bytes of no encoding; with luck there are words between them."""
    expected = written(random, folder, [random.bytes(int(random.integers(200, 900))) for _ in range(20)])
    return expected._replace(arguments=maybe_ids(random))


@kind(8)
def another_encoding(random: Random, folder: Path) -> Expected:
    encoding = one_of(random, ("latin-1", "utf-16", "utf-16-be", "utf-32", "cp1252", "utf-8-sig"))
    texts = [f"größe straße naïve {'wort' * i} über" for i in range(1, 20)]
    expected = written(random, folder, [text.encode(encoding) for text in texts])
    expected = expected._replace(arguments=maybe_ids(random))
    if encoding.startswith(("utf-16", "utf-32")):  # between bytes of zero, no two letters stand together
        return expected._replace(codes=(WRONG_DATA,), says=named("none of the 19 documents holds a term"))
    return expected


@kind(10)
def invalid_ids(random: Random, folder: Path) -> Expected:
    """Ids are carried, not read."""
    texts = texts_of(random)
    ids = bytes_as_strings([one_of(random, INVALID) + b"%d" % i for i in range(len(texts))], pa.string())
    table = pa.table({"doc_id": ids, "text": texts})
    pq.write_table(table, folder / "a.parquet", **layout_of(random))
    return Expected((DONE,), len(texts), ids, arguments=ID_FLAGS)


@kind(15)
def nulls(random: Random, folder: Path) -> Expected:
    holes: list[bytes | None] = [None] * int(random.integers(1, 60))
    return written(random, folder, mixed(random, holes))


@kind(6)
def a_file_of_nulls(random: Random, folder: Path) -> Expected:
    """Of no type, as pandas writes it, beside one with texts."""
    pq.write_table(table_of(pa.nulls(10)), folder / "a.parquet")
    table = table_of(texts_of(random))
    pq.write_table(table, folder / "b.parquet", **layout_of(random))
    return Expected((DONE,), 10 + table.num_rows, arguments=maybe_ids(random))


@kind(20)
def nothing_to_read(random: Random, folder: Path) -> Expected:
    """No document holds a term: all null, all empty, or only what is left out."""
    n = int(random.integers(3, 30))
    which = int(random.integers(3))
    texts = pa.nulls(n, one_of(random, (pa.null(), pa.string(), pa.large_string()))) if which == 0 else None
    if which == 1:
        texts = pa.array([""] * n)
    elif which == 2:
        texts = pa.array([one_of(random, NOTHING) for _ in range(n)])
    layout = {key: value for key, value in layout_of(random).items() if key != "column_encoding"}
    pq.write_table(table_of(texts), folder / "a.parquet", **layout)
    says = named(f"none of the {n} documents holds a term", "text_column")
    return Expected((WRONG_DATA,), says=says, arguments=("--stop-words", "english", *maybe_ids(random)))


@kind(12)
def all_equal(random: Random, folder: Path) -> Expected:
    """Two topics of one document: no worse than its terms are few. By the default of max_df no term is left."""
    n = int(random.integers(3, 60))
    pq.write_table(table_of(["three words here"] * n), folder / "a.parquet", **layout_of(random))
    if heads(random):
        return Expected((DONE,), n, arguments=maybe_ids(random))
    return Expected((WRONG_DATA,), says=named("max_df"), arguments=("--max-df", "0.5", *maybe_ids(random)))


@kind(10)
def one_long_document(random: Random, folder: Path) -> Expected:
    words = [f"w{i:04d}" for i in range(3000)]
    long = one_of(random, (" ", "", "\n", "\u3000")).join(random.choice(words, 200_000))
    return written(random, folder, mixed(random, [long.encode()]))


@kind(6)
def very_many_documents_of_nothing(random: Random, folder: Path) -> Expected:
    """A few texts in a sea of nulls."""
    texts = [None] * 50_000 + [text.encode() for text in texts_of(random)]
    pq.write_table(table_of(bytes_as_strings(texts, pa.string())), folder / "a.parquet")
    return Expected((DONE,), len(texts), arguments=maybe_ids(random))
