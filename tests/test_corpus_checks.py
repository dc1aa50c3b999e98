"""What is refused before any row is read: each fault in a real file, its message and its exit code."""

import datetime
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmf_dask.corpus import difference
from nmf_dask.corpus.footers import column_of, null_counts, read_footer
from nmf_dask.corpus.locations import find_files
from nmf_dask.errors import InputDataError
from tests.parquet_files import opened, texts_of, write


def refused(*inputs: Path | str, **settings: Any) -> str:
    with pytest.raises(InputDataError) as caught:
        opened(*inputs, **settings)
    assert caught.value.exit_code == 65
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_zero_bytes(tmp_path):
    (tmp_path / "a.parquet").touch()
    assert f"{tmp_path}/a.parquet is empty (0 bytes), not Parquet" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"id,text\n1,hello world\n" * 20, b"x", b"PAR", b"\x1f\x8b" + b"0" * 99])
def test_not_parquet(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    said = refused(tmp_path)
    assert f"a.parquet ({len(content)} bytes) is not a Parquet file: it begins with" in said
    assert repr(content[:8].decode("latin-1")) in said


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated(tmp_path, kept):
    path = write(tmp_path / "a.parquet", [str(number) for number in range(10_000)])
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    said = refused(tmp_path)
    assert (
        f"a.parquet ({int(kept * len(content)):,} bytes) is damaged: it begins as Parquet, but its end"
        in said
    )


def test_bytes_missing_from_the_middle(tmp_path):
    path = write(tmp_path / "a.parquet", [str(number) for number in range(10_000)], compression="none")
    content = path.read_bytes()
    path.write_bytes(content[:1000] + content[5000:])
    said = refused(tmp_path)
    assert "is damaged: row group 0 of column 'text' should end at byte" in said


def test_footer_that_does_not_decode(tmp_path):
    path = write(tmp_path / "a.parquet")
    content = bytearray(path.read_bytes())
    content[-40:-8] = b"\xff" * 32
    path.write_bytes(content)
    assert "is damaged: its footer cannot be decoded (" in refused(tmp_path)
    content[-8:-4] = b"\xff\xff\xff\x00"
    path.write_bytes(content)
    assert "is damaged: its footer should have 16,777,223 bytes, more than the file" in refused(tmp_path)


def test_a_column_name_that_is_not_utf_8(tmp_path):
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes().replace(b"text", b"te\xf6t"))
    assert "is damaged: its footer cannot be decoded ('utf-8' codec can't" in refused(tmp_path)


def test_encrypted_footer(tmp_path):
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-4] + b"PARE")
    assert "is encrypted" in refused(tmp_path)


def test_footers_larger_than_the_first_read(tmp_path):
    path = write(tmp_path / "a.parquet", [str(number) for number in range(3000)], row_group_size=3)
    assert opened(path).n_rows == 3000
    assert texts_of(opened(path)) == [str(number) for number in range(3000)]


def damaged_footer(path: Path, old: bytes, new: bytes) -> None:
    """The last occurrence of some bytes as others: a footer stands at the end."""
    before, _, after = path.read_bytes().rpartition(old)
    path.write_bytes(before + new + after)


def written_plainly(path: Path, **options: Any) -> Path:
    """A file of three row groups whose footer holds nothing but its counts."""
    return write(
        path, ["one", "two", "six"], ids=["a", "b", "c"], row_group_size=1, store_schema=False, **options
    )


def test_a_footer_whose_size_statistics_do_not_fit(tmp_path):
    """Arrow raises where Python cannot catch it when a column chunk's metadata are asked for: the process ended."""
    path = written_plainly(tmp_path / "a.parquet")
    # The schema element of doc_id: type BYTE_ARRAY, repetition OPTIONAL; then REQUIRED, which has no levels.
    damaged_footer(path, b"\x15\x0c\x25\x02\x18\x06doc_id", b"\x15\x0c\x25\x00\x18\x06doc_id")
    said = refused(tmp_path, id_column="doc_id")
    assert (
        "is damaged: what its footer says of column 'doc_id' cannot be decoded (Definition level hist" in said
    )
    assert opened(tmp_path).n_rows == 3


def test_a_chunk_of_another_type_than_its_column(tmp_path):
    """Arrow ends the process where its statistics are asked for."""
    path = written_plainly(tmp_path / "a.parquet")
    # ColumnMetaData of doc_id: field 1 is the type, 6 BYTE_ARRAY and 4 FLOAT; field 2 the list of encodings.
    content = path.read_bytes()
    place = content.rindex(b"\x18\x06doc_id")
    start = content.rindex(b"\x15\x0c\x19", 0, place)
    path.write_bytes(content[:start] + b"\x15\x08\x19" + content[start + 3 :])
    said = refused(tmp_path, id_column="doc_id")
    assert "is damaged: row group 2 of column 'doc_id' is of type FLOAT, and the column of BYTE_ARRAY" in said


def test_a_row_group_that_counts_other_rows_than_its_column(tmp_path):
    path = write(tmp_path / "a.parquet", [str(number) for number in range(50)], store_schema=False)
    content = path.read_bytes()
    counted = b"\x16\x64"  # 50, as num_values of the column and twice as num_rows
    last = content.rindex(counted)
    path.write_bytes(content[:last] + b"\x16\x62" + content[last + 2 :])
    assert re.search(
        "row group 0 of column 'text' should have (49|50) rows, but has (49|50) values", refused(tmp_path)
    )
    first = content.index(counted, len(content) - 8 - int.from_bytes(content[-8:-4], "little"))
    path.write_bytes(content[:first] + b"\x16\x62" + content[first + 2 :])
    assert "is damaged: its footer counts 49 rows, and its row groups 50" in refused(tmp_path)


@pytest.mark.parametrize("options", [{}, {"write_page_index": True}], ids=["plain", "page index"])
def test_files_put_together_as_one(tmp_path, options):
    """The last footer counts, and finds rows in the places it names: those of the first."""
    path = write(tmp_path / "a.parquet", [f"one {number}" for number in range(50)], **options)
    first = path.read_bytes()
    second = write(tmp_path / "b.parquet", [f"two {number}" for number in range(50)], **options).read_bytes()
    assert opened(tmp_path).n_rows == 100
    path.write_bytes(first + second)
    said = refused(path)
    assert f"is several Parquet files in one: one ends at byte {len(first):,}, and only the last" in said


def test_a_text_about_the_magic_bytes_is_no_end_of_a_file(tmp_path):
    texts = ["a file begins with PAR1 and ends with PAR1PAR1PAR1"] * 50
    write(tmp_path / "a.parquet", texts, compression="none", use_dictionary=False, write_page_index=True)
    assert texts_of(opened(tmp_path)) == texts


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")
    assert f"{tmp_path}/a.parquet is a named pipe, not a Parquet file" in refused(tmp_path)


def test_a_link_that_leads_to_itself(tmp_path):
    (tmp_path / "a.parquet").symlink_to("a.parquet")
    assert f"cannot read {tmp_path}/a.parquet: Too many levels of symbolic links" in refused(tmp_path)
    assert "a.parquet" in refused(tmp_path / "a.parquet")


def test_a_path_that_is_too_long(tmp_path):
    assert "File name too long" in refused(tmp_path / ("x" * 300))


def test_names_of_columns_that_would_break_the_line(tmp_path):
    pq.write_table(pa.table({"a\nb": ["a"], "text ": ["b"], "": ["c"]}), tmp_path / "a.parquet")
    assert "Its columns: 'a\\nb', 'text ', ''." in refused(tmp_path)
    pq.write_table(pa.table({}), tmp_path / "a.parquet")
    assert "no column 'text'. It has no columns." in refused(tmp_path)


def test_missing_text_column_names_the_nearest(tmp_path):
    pq.write_table(pa.table({"Text": ["a"], "title": ["b"], "s": [{"text": "c"}]}), tmp_path / "a.parquet")
    said = refused(tmp_path)
    assert "a.parquet: no column 'text'. Its columns: Text, title, s. Did you mean 'Text'?" in said
    assert "--text-column" in said
    assert "--id-column" in refused(tmp_path, text_column="title", id_column="titel")
    said = refused(tmp_path, text_column="s.txt")
    assert "no column 's.txt'" in said
    assert "Did you mean 's.text'?" in said


def test_one_file_among_many_lacks_the_column(tmp_path):
    for number in range(30):
        write(tmp_path / f"{number:02}.parquet")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "17.parquet")
    assert "17.parquet: no column 'text'. Its columns: body." in refused(tmp_path)


def test_two_columns_of_one_name(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "2 columns are named 'text'" in refused(tmp_path)


@pytest.mark.parametrize(
    ("values", "type_", "said"),
    [
        ([["a", "b"]], pa.list_(pa.string()), "type list<element: string>, not of strings. Join each list"),
        (
            [[1]],
            pa.large_list(pa.int8()),
            "type large_list<element: int8>, not of strings. Write it as strings",
        ),
        ([b"a"], pa.binary(), "type binary, not of strings. If the bytes are UTF-8"),
        ([1], pa.int64(), "type int64, not of strings"),
        ([[("a", "b")]], pa.map_(pa.string(), pa.string()), "type map<string, string"),
        (
            [["a", "b"]],
            pa.list_view(pa.string()),
            "type list_view<element: string>, not of strings. Join each list",
        ),
        ([{"a": "b"}], pa.struct([("a", pa.string())]), "type struct<a: string>, not of strings"),
        ([datetime.date(2024, 1, 1)], pa.date32(), "type date32[day], not of strings"),
    ],
)
def test_text_of_another_type(tmp_path, values, type_, said):
    table = pa.table({"text": pa.array(values, type_), "title": ["t"], "n": [1]})
    pq.write_table(table, tmp_path / "a.parquet")
    message = refused(tmp_path)
    assert f"a.parquet: column 'text' has {said}" in message
    assert "Columns of strings in this file: title." in message
    assert "--text-column (corpus.text_column)" in message


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_every_type_of_strings_is_read_as_strings(tmp_path, type_):
    values = ["one", None, "", "zwölf", "one"]
    texts = pa.array(values, type_) if pa.types.is_dictionary(type_) else pa.array(values).cast(type_)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    assert texts_of(opened(tmp_path)) == values


def test_a_file_of_missing_texts_only_is_empty_documents(tmp_path):
    write(tmp_path / "a.parquet", pa.nulls(3))
    write(tmp_path / "b.parquet", ["x"])
    assert texts_of(opened(tmp_path)) == [None, None, None, "x"]


def test_columns_are_found_behind_nested_ones_and_dots(tmp_path):
    table = pa.table(
        {
            "m": pa.array([[("k", 1)]] * 2, pa.map_(pa.string(), pa.int32())),
            "s": [{"text": "wrong", "t": [1, 2]}] * 2,
            "text.x": ["wrong"] * 2,
            "l": [[{"a": 1, "b": 2}]] * 2,
            "text": ["right"] * 2,
            "s.t": ["dotted"] * 2,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert texts_of(opened(tmp_path)) == ["right"] * 2
    assert texts_of(opened(tmp_path, text_column="s.t")) == ["dotted"] * 2
    metadata = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    sizes = [metadata.column(leaf).total_uncompressed_size for leaf in range(metadata.num_columns)]
    paths = [metadata.column(leaf).path_in_schema for leaf in range(metadata.num_columns)]
    assert opened(tmp_path).text_bytes == sizes[paths.index("text")]


def test_ids_of_two_types(tmp_path):
    write(tmp_path / "a.parquet", ids=[1, 2])
    write(tmp_path / "b.parquet", ids=["1", "2"])
    write(tmp_path / "c.parquet", pa.array([], pa.string()), ids=pa.nulls(0))
    said = refused(tmp_path, id_column="doc_id")
    assert (
        f"column 'doc_id' has type int64 in {tmp_path}/a.parquet, but string in {tmp_path}/b.parquet" in said
    )


def test_an_empty_file_has_no_say_in_the_type_of_ids(tmp_path):
    write(tmp_path / "a.parquet", pa.nulls(0), ids=pa.nulls(0))
    write(tmp_path / "b.parquet", ids=pa.array([1, 2], pa.uint16()))
    assert opened(tmp_path, id_column="doc_id").id_type == pa.uint16()


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([[1]], pa.list_(pa.int64())),
        ([[1]], pa.list_view(pa.int64())),
        ([{"a": 1}], pa.struct([("a", pa.int64())])),
        ([[("a", 1)]], None),
    ],
)
def test_nested_ids(tmp_path, values, type_):
    type_ = type_ or pa.map_(pa.string(), pa.int64())
    write(tmp_path / "a.parquet", ["x"], ids=pa.array(values, type_))
    said = refused(tmp_path, id_column="doc_id")
    assert "a.parquet: column 'doc_id' has type" in said
    assert "must be a single value" in said


def test_null_ids_that_statistics_tell_of(tmp_path):
    write(tmp_path / "a.parquet", ["x"] * 4, ids=[1, 2, 3, 4])
    write(tmp_path / "b.parquet", ["x"] * 5, ids=[5, 6, 7, None, 9], row_group_size=2)
    said = refused(tmp_path, id_column="doc_id")
    assert (
        f"{tmp_path}/b.parquet: column 'doc_id' has no id in row 1 of row group 1 (both counted from 0)"
        in said
    )
    assert "leave --id-column out" in said


TYPES_OF_ONE_WIDTH = {
    "INT64": (pa.array([7770001, 7770002]), 8),
    "INT32": (pa.array([70001, 70002], pa.int32()), 4),
    "DOUBLE": (pa.array([1.5, 2.5]), 8),
    "FLOAT": (pa.array([1.5, 2.5], pa.float32()), 4),
    "timestamp": (pa.array([7770001, 7770002], pa.timestamp("us")), 8),
}


def with_short_statistics(path: Path, values: pa.Array, width: int, plain: bytes) -> Path:
    """A file whose third row group says of doc_id that `plain`, its only value, has a byte less than it has."""
    write(path, ["x"] * 5, ids=pa.concat_arrays([values, values, values.slice(1)]), row_group_size=2)
    content = path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[start:-8]
    # A value stands there behind its length; the last ones are those of the last row group.
    last = footer.rindex(b"\x06doc_id")
    told = bytes([width]) + plain
    assert footer[last:].count(told) >= 2
    footer = footer[:last] + footer[last:].replace(told, bytes([width - 1]) + plain[: width - 1])
    path.write_bytes(content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return path


@pytest.mark.parametrize("name", TYPES_OF_ONE_WIDTH)
def test_statistics_that_are_too_short_for_their_type(tmp_path, name):
    """Arrow ends the process where Python asks for them; a job has no need of them to read the ids."""
    values, width = TYPES_OF_ONE_WIDTH[name]
    path = with_short_statistics(tmp_path / "a.parquet", values, width, plain_of(values, width))
    said = refused(path, id_column="doc_id")
    assert f"{path} (" in said
    assert (
        "is damaged: row group 2 of column 'doc_id' has a smallest or largest value in its statistics that"
        in said
    )
    assert f"is not of {width} bytes" in said
    assert opened(path).n_rows == 5  # nobody asks for its ids


def plain_of(values: pa.Array, width: int) -> bytes:
    """The last of some values as Parquet writes it plainly."""
    return bytes(memoryview(values.buffers()[1])[(len(values) - 1) * width : len(values) * width])


def test_short_statistics_of_values_without_a_width_are_as_writers_make_them(tmp_path):
    """Some shorten those of long values; Arrow ends the process there too, and the file is sound."""
    values = pa.array([b"abcdefgh", b"bcdefghi"], pa.binary(8))
    path = with_short_statistics(tmp_path / "a.parquet", values, 8, b"bcdefghi")
    corpus = opened(path, id_column="doc_id")
    assert corpus.n_rows == 5
    assert corpus.id_type == pa.binary(8)


@pytest.mark.parametrize("column", ["id", "required", "plain", "mixed", "bare"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_nulls_are_counted_as_arrow_counts_them(tmp_path, column, elsewhere):
    """Catches a footer that is read otherwise than Arrow reads it: more columns, nested ones, more than 15 groups.

    What a column is found by may stand `elsewhere` too.
    """
    random = np.random.default_rng(3)
    ids = [None if one < 0.02 else int(one * 1e6) for one in random.random(400)]
    fields = {
        "nested": pa.array([[1, 2], None] * 200),
        "id": pa.array(ids),
        "required": pa.array(range(400)),
        "plain": pa.array([str(one) for one in range(400)]),
        "mixed": pa.array([None if one is None else str(one) for one in ids]),
        "bare": pa.array(ids, pa.float64()),
    }
    schema = pa.schema([pa.field(name, array.type, name != "required") for name, array in fields.items()])
    path = tmp_path / "a.parquet"
    table = pa.table(fields, schema=schema)
    pq.write_table(
        table.replace_schema_metadata(
            {"": bytes([0x19, 0x18, len(column)]) + column.encode()} if elsewhere else {}
        ),
        path,
        row_group_size=10,
        write_statistics=[n for n in fields if n != "bare"],
    )
    [found] = find_files(str(path))
    footer = read_footer(found.location)
    found_column = column_of(footer, column)
    expected = []
    for group in range(40):
        statistics = footer.metadata.row_group(group).column(found_column.leaf).statistics
        expected.append(None if statistics is None else statistics.null_count)
    expected = [0] * 40 if column == "required" else expected
    assert null_counts(footer, found.location, found_column) == expected
    assert column in ("required", "bare") or any(expected) == (None in fields[column].to_pylist())


def test_zero_rows(tmp_path):
    write(tmp_path / "a.parquet", pa.array([], pa.string()))
    write(tmp_path / "b.parquet", pa.array([], pa.string()))
    assert f"no document: none of the 2 files has a row (the first: {tmp_path}/a.parquet)" in refused(
        tmp_path
    )


def test_a_thousand_files(tmp_path):
    for number in range(1000):
        write(
            tmp_path / f"{number:04}.parquet",
            [f"text {number}"] * 3,
            ids=[3 * number + row for row in range(3)],
        )
    corpus = opened(tmp_path, id_column="doc_id")
    assert (corpus.n_rows, len(corpus.files), len(corpus.partitions)) == (3000, 1000, 1)
    assert texts_of(corpus)[::3] == [f"text {number}" for number in range(1000)]
    assert len(pickle.dumps(corpus)) < 400_000
    assert pickle.loads(pickle.dumps(corpus)) == corpus


def test_footers_are_let_go_once_they_are_checked(tmp_path):
    """Readers that Arrow never frees show in what it has allocated."""
    write(tmp_path / "a.parquet", row_group_size=1)
    opened(tmp_path)
    before = pa.total_allocated_bytes()
    for _ in range(20):
        opened(tmp_path)
    assert pa.total_allocated_bytes() <= before


def test_the_fingerprint_follows_content_not_place_or_time(tmp_path):
    write(tmp_path / "here" / "a.parquet")
    write(tmp_path / "here" / "sub" / "b.parquet")
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    first = opened(tmp_path / "here").fingerprint
    assert first == opened(tmp_path / "there").fingerprint
    assert first == opened(f"{tmp_path}/here/**/*.parquet").fingerprint
    assert first != opened(tmp_path / "here" / "a.parquet").fingerprint
    (tmp_path / "there" / "a.parquet").rename(tmp_path / "there" / "c.parquet")
    assert first != opened(tmp_path / "there").fingerprint


def test_the_difference_names_what_changed(tmp_path):
    for name in ("a", "b", "c", "d"):
        write(tmp_path / f"{name}.parquet", [name, "same"])
    before = opened(tmp_path).describe()
    assert difference(before, opened(tmp_path).describe()) == ""
    (tmp_path / "a.parquet").unlink()
    write(tmp_path / "b.parquet", ["b", "same", "more"])
    write(tmp_path / "c.parquet", ["x", "same"])
    write(tmp_path / "e.parquet")
    after = opened(tmp_path).describe()
    assert before["fingerprint"] != after["fingerprint"]
    old, new = before["files"][1]["size"], (tmp_path / "b.parquet").stat().st_size
    assert difference(before, after) == (
        "1 file added (e.parquet); 1 file removed (a.parquet); 2 files changed ("
        f"b.parquet: {old:,} bytes were, {new:,} bytes are, "
        f"c.parquet: other content in as many bytes ({before['files'][2]['size']:,}))"
    )


def test_the_difference_counts_what_it_does_not_name(tmp_path):
    write(tmp_path / "a.parquet")
    before = opened(tmp_path).describe()
    for number in range(8):
        write(tmp_path / f"{number}.parquet")
    after = opened(tmp_path).describe()
    assert difference(before, after) == (
        "8 files added (0.parquet, 1.parquet, 2.parquet, 3.parquet, 4.parquet and 3 more)"
    )


def test_the_difference_knows_order_and_files_of_one_name(tmp_path):
    for folder in ("x", "y"):
        write(tmp_path / folder / "a.parquet", [folder])
        write(tmp_path / folder / f"{folder}.parquet", [folder])
    one = opened(tmp_path / "x", tmp_path / "y").describe()
    other = opened(tmp_path / "y", tmp_path / "x").describe()
    assert difference(one, one) == ""
    assert "a.parquet (2): other content" in difference(one, other)
    files = [tmp_path / "x" / "a.parquet", tmp_path / "x" / "x.parquet"]
    assert difference(opened(*files).describe(), opened(*files[::-1]).describe()) == (
        "the same files in another order"
    )
