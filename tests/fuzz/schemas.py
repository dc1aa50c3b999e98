"""Columns that are missing, double, nested, of odd types, or different from file to file."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tests.fuzz.expected import DONE, WRONG_DATA, WRONG_USAGE, Expected

_DAY = datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC)
STRINGS = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    *(
        pa.dictionary(index, pa.string())
        for index in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8())
    ),
    pa.dictionary(pa.int32(), pa.large_string()),
)
# Types of one value, each with the values of rows 0, 1, 2, …, all different (but for bool).
SCALARS: tuple[tuple[pa.DataType, Callable[[int], Any]], ...] = (
    *((type_, lambda i: i) for type_ in (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
    *((type_, lambda i: i) for type_ in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
    *((type_, lambda i: i / 4) for type_ in (pa.float16(), pa.float32(), pa.float64())),
    (pa.float64(), lambda i: float("nan")),
    (pa.bool_(), lambda i: i % 2 == 0),
    *((type_, lambda i: b"\xff%d" % i) for type_ in (pa.binary(), pa.large_binary(), pa.binary_view())),
    (pa.binary(3), lambda i: b"%03d" % i),
    *((type_, lambda i: (_DAY + datetime.timedelta(i)).date()) for type_ in (pa.date32(), pa.date64())),
    *((pa.timestamp(unit), lambda i: i) for unit in ("s", "ms", "us", "ns")),
    (pa.timestamp("us", "Europe/Berlin"), lambda i: i),
    (pa.time32("s"), lambda i: i),
    (pa.time64("ns"), lambda i: i),
    (pa.duration("ms"), lambda i: i),
    *((type_, decimal.Decimal) for type_ in (pa.decimal128(9, 2), pa.decimal256(50, 3))),
    (pa.dictionary(pa.int32(), pa.int64()), lambda i: i),
    (pa.dictionary(pa.int32(), pa.binary()), lambda i: b"%d" % i),
    (pa.uuid(), lambda i: uuid.UUID(int=i).bytes),
)
NESTED: tuple[tuple[pa.DataType, Any], ...] = (
    (pa.list_(pa.string()), ["one", "two"]),
    (pa.large_list(pa.string()), ["one", "two"]),
    (pa.list_(pa.string(), 2), ["one", "two"]),
    (pa.list_view(pa.string()), ["one", "two"]),
    (pa.list_(pa.list_(pa.string())), [["one"], []]),
    (pa.list_(pa.struct([("text", pa.string())])), [{"text": "one"}]),
    (pa.struct([("text", pa.string())]), {"text": "one"}),
    (pa.struct([("text", pa.struct([("text", pa.string())]))]), {"text": {"text": "one"}}),
    (pa.map_(pa.string(), pa.string()), [("text", "one")]),
)
STRING_IDS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string()))


def column(type_: pa.DataType, values: list[Any]) -> pa.Array:
    """Values as a column of a type; what Arrow cannot make of Python's values at once goes by another type."""
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, pa.array(values, type_.storage_type))
    if pa.types.is_dictionary(type_):
        return pa.array(values, type_.value_type).dictionary_encode().cast(type_)
    if pa.types.is_string_view(type_):
        return pa.array(values).cast(type_)
    return pa.array(values, type_)


def scalars(random: Random, n: int) -> pa.Array:
    type_, value = one_of(random, SCALARS)
    return column(type_, [value(i) for i in range(n)])


def nested(random: Random, n: int) -> pa.Array:
    type_, value = one_of(random, NESTED)
    return pa.array([value] * n, type_)


def write(random: Random, path: Path, table: pa.Table) -> None:
    """In any layout that goes with columns of any type."""
    options = {key: value for key, value in layout_of(random).items() if key != "column_encoding"}
    pq.write_table(table, path, **options)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


@kind(25)
def strings(random: Random, folder: Path) -> Expected:
    """Every type of strings is as good as another, in every file another."""
    n_rows = 0
    for number in range(int(random.integers(1, 4))):
        table = table_of(column(one_of(random, STRINGS), texts_of(random)))
        write(random, folder / f"{number}.parquet", table)
        n_rows += table.num_rows
    return Expected((DONE,), n_rows, arguments=maybe_ids(random))


@kind(25)
def text_that_is_no_string(random: Random, folder: Path) -> Expected:
    n = int(random.integers(4, 20))
    values = (scalars if heads(random) else nested)(random, n)
    write(random, folder / "a.parquet", with_column(table_of(texts_of(random, n)), "text", values))
    return Expected((WRONG_DATA,), says=named("a.parquet", "'text'", "has type"), arguments=maybe_ids(random))


@kind(30)
def ids(random: Random, folder: Path) -> Expected:
    """Any single value is an id, and is in W as it was."""
    texts = texts_of(random)
    values = scalars(random, len(texts))
    if heads(random):
        values = column(one_of(random, STRING_IDS), [f"d{i}" for i in range(len(texts))])
    write(random, folder / "a.parquet", with_column(table_of(texts), "doc_id", values))
    # As they are read, because Parquet has no seconds, and not every view.
    read = pq.read_table(folder / "a.parquet")["doc_id"].combine_chunks()
    plain = read.dictionary_decode() if pa.types.is_dictionary(read.type) else read
    return Expected((DONE,), len(texts), plain, arguments=ID_FLAGS)


@kind(15)
def ids_with_nulls(random: Random, folder: Path) -> Expected:
    texts = texts_of(random)
    values = scalars(random, len(texts))
    row = int(random.integers(len(texts)))
    storage = values.storage if isinstance(values.type, pa.BaseExtensionType) else values
    holed = pa.array(
        [None if i == row else value for i, value in enumerate(storage.to_pylist())], storage.type
    )
    write(random, folder / "a.parquet", with_column(table_of(texts), "doc_id", holed))
    return Expected(
        (WRONG_DATA,), says=(r"a\.parquet", "'doc_id'", r"row \d+ of row group"), arguments=ID_FLAGS
    )


@kind(5)
def ids_all_null(random: Random, folder: Path) -> Expected:
    texts = texts_of(random)
    write(random, folder / "a.parquet", with_column(table_of(texts), "doc_id", pa.nulls(len(texts))))
    return Expected((WRONG_DATA,), says=named("a.parquet", "'doc_id'", "row 0"), arguments=ID_FLAGS)


@kind(10)
def ids_that_are_nested(random: Random, folder: Path) -> Expected:
    texts = texts_of(random)
    values = nested(random, len(texts))
    write(random, folder / "a.parquet", with_column(table_of(texts), "doc_id", values))
    return Expected((WRONG_DATA,), says=named("a.parquet", "'doc_id'", "single value"), arguments=ID_FLAGS)


@kind(10)
def ids_of_two_types(random: Random, folder: Path) -> Expected:
    first, second = random.choice(4, 2, replace=False)
    types = (pa.int64(), pa.string(), pa.float64(), pa.binary(2))
    for name, number in (("a", first), ("b", second)):
        table = table_of(texts_of(random, 8))
        values = [b"%02d" % i if number == 3 else f"{i}" if number == 1 else i for i in range(8)]
        write(
            random, folder / f"{name}.parquet", with_column(table, "doc_id", pa.array(values, types[number]))
        )
    said = named("a.parquet", "b.parquet", "'doc_id'", str(types[first]), str(types[second]))
    return Expected((WRONG_DATA,), says=said, arguments=ID_FLAGS)


@kind(15)
def missing_column(random: Random, folder: Path) -> Expected:
    """In one file of several, near misses among them."""
    n_files = int(random.integers(1, 5))
    bad = int(random.integers(n_files))
    missing = one_of(random, ("text", "doc_id"))
    other = one_of(
        random, ("Text", "text ", "tex", "body", "", "textes", "\N{ZERO WIDTH SPACE}text", "doc-id", "a\nb")
    )
    for number in range(n_files):
        table = table_of(texts_of(random))
        if number == bad:
            table = table.rename_columns([other if name == missing else name for name in table.column_names])
        write(random, folder / f"{number}.parquet", table)
    return Expected(
        (WRONG_DATA,), says=named(f"/{bad}.parquet", f"no column '{missing}'"), arguments=ID_FLAGS
    )


@kind(8)
def two_columns_of_one_name(random: Random, folder: Path) -> Expected:
    """Wrong where it is the column asked for, and nobody's concern where it is another."""
    table = table_of(texts_of(random))
    name = one_of(random, ("text", "doc_id", "title"))
    for _ in range(2 if name == "title" else 1):
        table = table.append_column(name, pa.array(["x"] * table.num_rows))
    write(random, folder / "a.parquet", table)
    if name == "title":
        return Expected((DONE,), table.num_rows, table["doc_id"].combine_chunks(), arguments=ID_FLAGS)
    return Expected(
        (WRONG_DATA,), says=named("a.parquet", f"2 columns are named '{name}'"), arguments=ID_FLAGS
    )


@kind(4)
def no_columns(random: Random, folder: Path) -> Expected:
    pq.write_table(pa.table({}), folder / "a.parquet")
    return Expected((WRONG_DATA,), says=named("a.parquet", "no column 'text'"), arguments=maybe_ids(random))


@kind(15)
def other_columns(random: Random, folder: Path) -> Expected:
    """Beside nested ones, ones with dots, and ones of a wide table, in another order in each file."""
    n_rows = 0
    for number in range(int(random.integers(1, 4))):
        table = table_of(texts_of(random))
        n = table.num_rows
        odd = {
            "text.x": pa.array(["wrong"] * n),
            "s": pa.array([{"text": "wrong", "doc_id": i} for i in range(n)]),
            "m": nested(random, n),
            "v": scalars(random, n),
            "": pa.nulls(n),
            "List.element": pa.array([[1, 2]] * n),
            **{f"c{i}": pa.array(range(n)) for i in range(int(random.integers(30)))},
        }
        table = pa.table({**{name: table[name] for name in table.column_names}, **odd})
        write(
            random,
            folder / f"{number}.parquet",
            table.select([int(i) for i in random.permutation(table.num_columns)]),
        )
        n_rows += n
    return Expected((DONE,), n_rows, arguments=maybe_ids(random))


@kind(8)
def odd_column_names(random: Random, folder: Path) -> Expected:
    """The column asked for may be named anything."""
    name = one_of(
        random,
        ("texte intégral", "text.body", "a\nb", "x" * 5000, "\U0001f600", "list.element", "--", '"', "a/b"),
    )
    table = table_of(texts_of(random)).rename_columns(["doc_id", name])
    write(random, folder / "a.parquet", table)
    return Expected((DONE,), table.num_rows, arguments=("--text-column", name, *maybe_ids(random)))


@kind(5)
def nested_text_by_its_path(random: Random, folder: Path) -> Expected:
    texts = texts_of(random)
    write(random, folder / "a.parquet", pa.table({"s": pa.array([{"text": text} for text in texts])}))
    if heads(random):
        return Expected((DONE,), len(texts), arguments=("--text-column", "s.text"))
    return Expected(
        (WRONG_DATA,), says=named("a.parquet", "no column 's.body'"), arguments=("--text-column", "s.body")
    )


@kind(5)
def ids_named_as_columns_of_w(random: Random, folder: Path) -> Expected:
    name = one_of(random, ("topic", "weights"))
    write(random, folder / "a.parquet", table_of(texts_of(random)).rename_columns([name, "text"]))
    return Expected((WRONG_USAGE,), says=named(f"named {name}"), arguments=("--id-column", name))


@kind(5)
def one_column_for_both(random: Random, folder: Path) -> Expected:
    table = table_of(texts_of(random))
    write(random, folder / "a.parquet", table)
    ids = table["text"].combine_chunks()
    return Expected((DONE,), table.num_rows, ids, arguments=("--id-column", "text"))


@kind(15)
def files_that_differ(random: Random, folder: Path) -> Expected:
    """The text is a string in one file, something else in another."""
    n_files = int(random.integers(2, 5))
    bad = int(random.integers(n_files))
    for number in range(n_files):
        table = table_of(texts_of(random))
        if number == bad:
            table = with_column(table, "text", (scalars if heads(random) else nested)(random, table.num_rows))
        write(random, folder / f"{number}.parquet", table)
    return Expected((WRONG_DATA,), says=named(f"/{bad}.parquet", "'text'"), arguments=maybe_ids(random))
