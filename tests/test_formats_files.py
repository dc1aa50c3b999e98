"""CSV, JSON lines and text files, compressed or not: what is read of them, compared with other readers, and errors."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmf_dask import fit, transform
from nmf_dask.corpus import Corpus, open_corpus
from nmf_dask.errors import InputDataError, NmfDaskError
from nmf_dask.pipeline.planning import plan
from tests.parquet_files import opened
from tests.small_corpora import (
    ROOT,
    environment,
    generated_texts,
    h_bytes,
    run_command,
    settings_of,
    w_table_of,
    wh_bytes,
    write_corpus,
)
from tests.transforms import job, table_of

N = 120
TEXTS = generated_texts(N)
RECORDS = [
    {
        "key": f"k{i}",
        "year": 2000 + i % 20,
        "score": i / 8,
        "label": None if i % 5 == 0 else f"l{i % 3}",
        "meta": None if i % 17 == 0 else {"id": i, "body": f'{text}, "quoted"\nand more é'},
        "text": None if i % 13 == 0 else text,
    }
    for i, text in enumerate(TEXTS)
]


def compressed(content: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return pa.Codec("zstd").compress(content, asbytes=True) if name.endswith(".zst") else content


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(compressed(content, path.name))
    return path


def as_jsonl(records=RECORDS) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)


def as_csv(records=RECORDS, delimiter=",") -> str:
    flat = [{**one, "meta": (one["meta"] or {}).get("body", "")} for one in records]
    return pd.DataFrame(flat).to_csv(index=False, sep=delimiter)


def documents(corpus: Corpus) -> pa.Table:
    assert corpus.raw is not None
    tables = [table for one in corpus.partitions for table in corpus.raw.documents(one)]
    return pa.concat_tables([corpus.raw.schema.empty_table(), *tables])


def refused(*inputs, **given) -> str:
    with pytest.raises(NmfDaskError) as caught:
        documents(opened(*inputs, **given))
    assert caught.value.exit_code == 65
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines(tmp_path, suffix):
    put(tmp_path / f"a.jsonl{suffix}", as_jsonl())
    read = documents(
        opened(
            tmp_path,
            text_column=("text", "meta.body"),
            id_column="key",
            keep=("year", "score", "meta.id", "label"),
        )
    )
    frame = pd.read_json(io.StringIO(as_jsonl()), lines=True)
    assert read["key"].to_pylist() == frame["key"].tolist()
    assert read["year"].type == pa.int64()
    assert read["year"].to_pylist() == frame["year"].tolist()
    assert read["score"].to_pylist() == frame["score"].tolist()
    assert read["label"].to_pylist() == [one["label"] for one in RECORDS]
    assert read["meta.id"].to_pylist() == [one["meta"] and one["meta"]["id"] for one in RECORDS]
    expected = [[one["text"], one["meta"] and one["meta"]["body"]] for one in RECORDS]
    assert read["text"].to_pylist() == ["\n".join(filter(None, both)) or None for both in expected]


@pytest.mark.parametrize("name", ["a.csv", "b.csv.gz", "c.tsv", "d.tsv.zst"])
def test_csv(tmp_path, name):
    delimiter = "\t" if "tsv" in name else ","
    put(tmp_path / name, "\ufeff" + as_csv(delimiter=delimiter))
    read = documents(opened(tmp_path, text_column="meta", id_column="key", keep=("year", "score", "text")))
    with (gzip.open if name.endswith("gz") else open)(
        tmp_path / name, "rt", encoding="utf-8-sig", newline=""
    ) as file:
        rows = [] if name.endswith("zst") else list(csv.DictReader(file, delimiter=delimiter))
    texts = [(one["meta"] or {}).get("body", "") for one in RECORDS]
    assert read.column_names == ["text_", "key", "year", "score", "text"]
    assert read["text_"].to_pylist() == texts
    assert rows == [] or [row["meta"] for row in rows] == texts
    assert read["year"].to_pylist() == [one["year"] for one in RECORDS]
    assert read["score"].to_pylist() == [one["score"] for one in RECORDS]
    assert read["text"].to_pylist() == [one["text"] or "" for one in RECORDS]


def test_types_of_csv_are_those_that_all_files_have(tmp_path):
    """An id stays as it is written."""
    put(tmp_path / "a.csv", "id,n,x,d,e,text\n007,1,1,2020-01-02,,a\n")
    put(tmp_path / "b.csv", "id,n,x,d,e,text\n8,1.5,b,2020-01-03,,b\n")
    put(tmp_path / "c.csv", "id,n,x,d,e,text\n")
    read = documents(opened(tmp_path, id_column="id", keep=("n", "x", "d", "e")))
    assert read.to_pylist() == [
        {"text": "a", "id": "007", "n": 1.0, "x": "1", "d": date(2020, 1, 2), "e": ""},
        {"text": "b", "id": "8", "n": 1.5, "x": "b", "d": date(2020, 1, 3), "e": ""},
    ]


def test_types_of_json_are_those_that_all_files_have(tmp_path):
    """JSON has no dates, and a column that one file lacks is null there."""
    put(tmp_path / "a.jsonl", '{"id": 1, "n": 1, "d": "2020-01-02", "text": "a"}\n')
    put(tmp_path / "b.jsonl", '\n{"id": 2, "n": 1.5, "more": {"x": 1}, "text": null}\n\n')
    put(tmp_path / "c.jsonl", "")
    read = documents(opened(tmp_path, id_column="id", keep=("n", "d", "more.x")))
    assert read.to_pylist() == [
        {"text": "a", "id": 1, "n": 1.0, "d": "2020-01-02", "more.x": None},
        {"text": None, "id": 2, "n": 1.5, "d": None, "more.x": 1},
    ]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_text_file_is_a_document_and_its_path_the_id(tmp_path, suffix):
    for i, text in enumerate(TEXTS[:5]):
        put(tmp_path / "a" / f"{i}" / f"x.txt{suffix}", f"\ufeff{text}\n\nsecond é\n" if i else "")
    corpus = opened(tmp_path)
    read = documents(corpus)
    assert read["text"].to_pylist() == ["", *(f"{text}\n\nsecond é\n" for text in TEXTS[1:5])]
    assert read["path"].to_pylist() == [f"a/{i}/x.txt{suffix}" for i in range(5)]
    assert corpus.columns.id_name == "path"
    assert len(corpus.partitions) == 1


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_line_is_a_document_on_request(tmp_path, suffix):
    put(tmp_path / f"a.txt{suffix}", "one\r\n\ntwo é\nlast")
    put(tmp_path / f"b.txt{suffix}", "three\n")
    put(tmp_path / f"c.txt{suffix}", "")
    read = documents(opened(tmp_path, format="lines", keep=("path", "line")))
    assert read["text"].to_pylist() == ["one", "", "two é", "last", "three"]
    assert read["line"].to_pylist() == [1, 2, 3, 4, 1]
    assert set(read["path"].to_pylist()) == {f"a.txt{suffix}", f"b.txt{suffix}"}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.binary(max_size=60), st.sampled_from([1, 2, 3, 7]))
def test_lines_are_those_of_python_whatever_the_blocks(content, block_bytes):
    from nmf_dask.corpus import records
    from nmf_dask.corpus.locations import Location

    content = content.replace(b"\0", b"").removeprefix(b"\xef\xbb\xbf").lstrip(b"\xff\xfe")
    path = Path(os.environ["PYTEST_LINES"])
    path.write_bytes(content)
    whole, before = records.BLOCK_BYTES, []
    records.BLOCK_BYTES = block_bytes
    try:
        tables = list(records._line_tables(Location("", str(path)), "p"))
    finally:
        records.BLOCK_BYTES = whole
    for table in tables:
        assert table["line"].to_pylist() == list(range(len(before) + 1, len(before) + 1 + len(table)))
        before += table["text"].cast(pa.binary()).to_pylist()
    expected = content.split(b"\n")
    expected = expected[:-1] if expected[-1] == b"" else expected
    assert before == [line.rstrip(b"\r") for line in expected]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("a\n"), max_size=40), st.lists(st.integers(0, 40)), st.sampled_from([1, 2, 5]))
def test_each_line_is_in_one_span(content, cuts, block_bytes):
    from nmf_dask.corpus import records
    from nmf_dask.corpus.locations import Location

    path = Path(os.environ["PYTEST_LINES"])
    path.write_text(content)
    edges = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    whole, read = (records.BLOCK_BYTES, records.HEAD_BYTES), []
    records.BLOCK_BYTES = records.HEAD_BYTES = block_bytes
    try:
        for span in pairwise(edges):
            with records._lines_within(Location("", str(path)), span) as blocks:
                found = list(blocks)
            place = records._Place(Location("", str(path)), span[0], 0)
            for before, block in found:
                assert place._replace(before=before).lines_before() == b"".join(read).count(b"\n")
                read.append(block)
    finally:
        records.BLOCK_BYTES, records.HEAD_BYTES = whole
    assert b"".join(read).decode() == content


def test_json_lines_that_are_not_compressed_are_cut(tmp_path):
    rows = [{"id": i, "text": "words " * (i % 50)} for i in range(5_000)]
    put(tmp_path / "a.jsonl", as_jsonl(rows[:4_000]))
    put(tmp_path / "b.jsonl", as_jsonl(rows[4_000:]))
    corpus = opened(tmp_path, id_column="id", partition_bytes=50_000)
    assert 10 < len(corpus.partitions) < 20
    assert documents(corpus).to_pylist() == [{"text": one["text"], "id": one["id"]} for one in rows]
    sizes = [len(documents(replace(corpus, partitions=(one,)))) for one in corpus.partitions]
    assert min(sizes) > 100
    # A file's partitions are its own where a transform asks for them.
    alone = open_corpus(corpus.settings, by_file=True)
    again = open_corpus(
        corpus.settings.model_copy(update={"input": (str(tmp_path / "a.jsonl"),)}), by_file=True
    )
    cut = [[(p.start, p.stop) for p in one.pieces if p.file.name == "a.jsonl"] for one in alone.partitions]
    assert [one for one in cut if one] == [
        [(p.start, p.stop) for p in one.pieces] for one in again.partitions
    ]
    lines = as_jsonl(rows).splitlines()
    put(tmp_path / "bad" / "a.jsonl", "\n".join([*lines[:3_999], '{"text": 3}', *lines[4_000:]]))
    assert "a.jsonl, line 4,000: column 'text'" in refused(tmp_path / "bad", partition_bytes=50_000)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv"])
def test_a_file_that_changed_since_the_job_began(tmp_path, name):
    content = as_csv() if "csv" in name else as_jsonl()
    corpus = opened(put(tmp_path / name, content))
    put(tmp_path / name, content + content)
    with pytest.raises(InputDataError, match=f"{name} changed since the job began"):
        documents(corpus)


@pytest.fixture(autouse=True)
def _place_for_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_LINES", str(tmp_path / "lines.bin"))


def test_rows_and_lines_larger_than_a_block(tmp_path, monkeypatch):
    """Larger than what the types are found by, too."""
    from nmf_dask.corpus import records

    monkeypatch.setattr(records, "BLOCK_BYTES", 2**16)
    large = "word " * 500_000
    rows = [{"id": i, "text": large if i in (3, 40) else f"text {i}"} for i in range(60)]
    first = [{"id": -1, "text": large}, *rows]
    put(tmp_path / "j" / "a.jsonl.gz", as_jsonl(rows))
    put(tmp_path / "j" / "b.jsonl.gz", as_jsonl(first))
    put(tmp_path / "c" / "a.csv", pd.DataFrame(rows).to_csv(index=False))
    put(tmp_path / "c" / "b.csv", pd.DataFrame(first).to_csv(index=False))
    for folder in ("j", "c"):
        read = documents(opened(tmp_path / folder, id_column="id"))
        assert [int(one) for one in read["id"].to_pylist()] == [*range(60), -1, *range(60)]
        assert read["text"].to_pylist() == [one["text"] for one in (*rows, *first)]


def test_keys_of_folders_and_filters(tmp_path):
    for day in range(1, 4):
        put(tmp_path / f"day=2026-11-0{day}" / "a.jsonl", as_jsonl(RECORDS[:40]))
    where = "day >= '2026-11-02' and year > 2010 and meta.id != 15"
    read = documents(opened(tmp_path, keep="year", where=where))
    expected = [one for one in RECORDS[:40] if one["year"] > 2010 and one["meta"] and one["meta"]["id"] != 15]
    assert read["year"].to_pylist() == [one["year"] for one in expected] * 2
    assert set(read["day"].to_pylist()) == {date(2026, 11, 2), date(2026, 11, 3)}


def test_columns_that_are_not_read_may_be_of_several_types(tmp_path):
    """JSON lines of logs and crawls often are: those alone that are asked for must be of one."""
    several = [{"n": 1}, {"n": "one"}, {"n": [1]}, {"n": {"m": None}}]
    rows = [
        {**one, "x": several[i % 4], "meta": one["meta"] and {**one["meta"], **several[i % 4]}}
        for i, one in enumerate(RECORDS)
    ]
    put(tmp_path / "a.jsonl", "\n" + as_jsonl(rows))
    read = documents(opened(tmp_path, id_column="key", text_column=["text", "meta.body"], keep="meta.id"))
    assert read["key"].to_pylist() == [one["key"] for one in RECORDS]
    assert read["meta.id"].to_pylist() == [(one["meta"] or {}).get("id") for one in RECORDS]
    due = [(one["meta"] or {}).get("body") or one["text"] for one in RECORDS]
    texts = zip(read["text"].to_pylist(), RECORDS, strict=True)
    assert [text and text.removeprefix(f"{one['text']}\n") for text, one in texts] == due
    message = refused(tmp_path, keep="meta.n")
    assert "a.jsonl, line 4: column 'meta.n' is of type array, and was of string" in message
    assert "Its columns: text, key, year" in refused(tmp_path, id_column="kee")


def test_a_row_of_names_alone_that_no_line_break_ends(tmp_path):
    """Arrow takes it for an empty file."""
    put(tmp_path / "a.csv", as_csv())
    for name, names in (("b.csv", "key,text"), ("c.csv.gz", '"text","key"')):
        put(tmp_path / name, names)
    assert documents(opened(tmp_path, id_column="key"))["key"].to_pylist() == [one["key"] for one in RECORDS]


def test_a_byte_order_mark_is_no_object(tmp_path):
    for name in ("a.jsonl", "b.jsonl.gz"):
        put(tmp_path / name, "\ufeff\n" + as_jsonl())
    keys = documents(opened(tmp_path, id_column="key", partition_bytes=1000))["key"].to_pylist()
    assert keys == [one["key"] for one in RECORDS] * 2


def test_a_key_of_folders_with_the_name_of_the_texts(tmp_path):
    """Texts are those of the files, the key goes to W and into filters."""
    for number in (3, 4):
        put(tmp_path / "j" / f"text={number}" / "a.jsonl", as_jsonl())
        put(tmp_path / "c" / f"text={number}" / "a.csv", as_csv())
        (tmp_path / "p" / f"text={number}").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "p" / f"text={number}" / "a.parquet")
    for folder in "jcp":
        read = documents(opened(tmp_path / folder, where="text == 4"))
        assert read["text"].to_pylist() == [4] * N
        assert [one or None for one in read["text_"].to_pylist()] == [one["text"] for one in RECORDS]


def test_a_file_is_known_by_its_size_and_time(tmp_path):
    file = put(tmp_path / "a.jsonl", as_jsonl())
    first = opened(tmp_path).fingerprint
    assert opened(tmp_path).fingerprint == first
    os.utime(file, ns=(0, 1_600_000_000_000_000_000))
    assert opened(tmp_path).fingerprint != first


# What is wrong.


@pytest.mark.parametrize(
    ("name", "content", "given", "says"),
    [
        ("a.jsonl", as_jsonl()[:-40] + "\n", {}, ["a.jsonl, line 120: ", "A line holds one JSON object"]),
        ("a.jsonl", '{"text": "a"}\n\n{"text": 1}\n', {}, ["line 3", "'text' is of type number, and was of string"]),
        ("a.jsonl", '{"text": "a"}\n[1]\n', {}, ["line 2", "array"]),
        ("a.json", '[{"text": "a"},\n {"text": "b"}]', {}, ["not an object a line", "jq -c"]),
        ("a.json", '{\n  "text": "a"\n}\n', {}, ["not an object a line", "jq -c"]),
        ("a.jsonl", '{"text": "a"}\n{"text":\n"b"}\n', {}, ["lines 1 to 3", "2 objects", "in 3 lines"]),
        ("a.jsonl", '{"text": "a"} {"text": "b"}\n', {}, ["2 objects", "in 1 line"]),
        ("a.jsonl", '{"text": ["a"]}\n', {}, ["'text' has type list", "--text-column"]),
        ("a.jsonl", '{"text": 3}\n', {}, ["'text' has type int64, not of strings", "--text-column"]),
        ("a.jsonl", '{"txt": "a"}\n', {}, ["no column 'text'", "Did you mean 'txt'?"]),
        ("a.jsonl", '{"m": {"body": "a"}}\n', {"text_column": "m.bodi"}, ["Did you mean 'm.body'?"]),
        ("a.jsonl", as_jsonl(), {"id_column": "label"}, ["'label' has no id", "rows 0 to 119", "--id-column"]),
        ("a.jsonl", as_jsonl(), {"keep": "meta"}, ["'meta' has type struct", "by a dot"]),
        ("a.jsonl", as_jsonl(), {"where": "yaer > 3"}, ["no column 'yaer'", "'year'?", "--where (corpus.where)"]),
        ("a.jsonl", as_jsonl(), {"where": "year > 'x'"}, ["'year' has type int64"]),
        ("a.jsonl", as_jsonl().encode("utf-16"), {}, ["is UTF-16, not UTF-8", "iconv"]),
        ("a.csv", as_csv().encode("utf-16"), {}, ["is UTF-16, not UTF-8", "iconv"]),
        ("a.txt", "text".encode("utf-16"), {}, ["is UTF-16, not UTF-8", "iconv"]),
        ("a.csv", "text,n\na,1\ncaf\xe9,2\n".encode("latin-1"), {}, ["row 3 is not UTF-8", "iconv -f WINDOWS-1252"]),
        ("a.csv", "id,text\n1,a\n2,b,c\n", {}, ["row 3", "3 values where 2 columns are named", "double quotes"]),
        ("a.tsv", "id\ttext\n1\ta\n2\n", {}, ["row 3", "1 values where 2 columns", "tab"]),
        ("a.csv", "", {}, ["is empty (0 bytes)", "no row names its columns"]),
        ("a.csv", "text,text\na,b\n", {}, ["several columns are named 'text'"]),
        ("a.csv", "Text,n\na,1\n", {}, ["no column 'text'. Its columns: Text, n. Did you mean 'Text'?"]),
        ("a.csv", "text,n\na,1\n", {"keep": "m"}, ["no column 'm'", "--keep (corpus.keep)"]),
        ("a.txt", "x", {"text_column": "body"}, ["no column 'body'. Its columns: text, path."]),
        ("a.csv.gz", b"text\nplain\n", {}, None),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, name, content, given, says):
    if says is None:  # a name that promises what it is not
        (tmp_path / name).write_bytes(content)
        says = ["damaged or cut short", "decompressed as gzip"]
    else:
        put(tmp_path / name, content)
    said = refused(tmp_path, **given)
    assert name in said
    assert all(part in said for part in says), said


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst", "a.csv.gz", "a.txt.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("share", [0.3, 0.999])
def test_a_compressed_file_that_is_cut_short(tmp_path, name, share):
    rows = [{"id": i, "text": os.urandom(400).hex()} for i in range(5_000)]
    content = as_jsonl(rows) if "jsonl" in name else pd.DataFrame(rows).to_csv(index=False)
    file = put(tmp_path / name, content)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    said = refused(tmp_path)
    assert f"{name} is damaged or cut short" in said
    assert "Write or copy it again" in said


def test_a_type_that_later_rows_do_not_have(tmp_path):
    rows = [{"n": i, "text": "words " * 20} for i in range(20_000)]
    put(tmp_path / "a.csv", pd.DataFrame(rows).to_csv(index=False) + "x,last\n")
    said = refused(tmp_path, keep="n")
    assert "a.csv, row 20,002: column 'n' holds int64 in the first MiB" in said
    put(tmp_path / "j" / "a.jsonl", as_jsonl(rows) + '{"n": "x", "text": "last"}\n')
    said = refused(tmp_path / "j", keep="n")
    assert "a.jsonl, line 20,001: column 'n' is of type string, and was of number" in said


def test_a_bad_line_far_into_a_file_is_counted_right(tmp_path, monkeypatch):
    from nmf_dask.corpus import records

    monkeypatch.setattr(records, "BLOCK_BYTES", 1000)
    lines = as_jsonl(RECORDS * 20).splitlines()
    lines[1500] = lines[1500][:-3]
    put(tmp_path / "a.jsonl", "\n\n".join(lines))
    assert "a.jsonl, line 3,001: " in refused(tmp_path)


def test_files_of_several_formats_are_refused(tmp_path):
    put(tmp_path / "c" / "a.csv", "text\na\n")
    write_corpus(tmp_path / "c", ["a"])
    put(tmp_path / "c" / "README.txt", "notes")
    put(tmp_path / "c" / "schema.json", "{}")
    said = refused(tmp_path / "c")
    assert "1 of CSV (a.csv, …), 1 of Parquet (part-00000.parquet, …)" in said
    assert "--format (corpus.format)" in said
    assert documents(opened(tmp_path / "c", format="csv"))["text"].to_pylist() == ["a"]
    assert documents(opened(f"{tmp_path}/c/*.csv"))["text"].to_pylist() == ["a"]
    assert opened(tmp_path / "c", format="parquet").raw is None
    (tmp_path / "c" / "a.csv").unlink()
    assert opened(tmp_path / "c").n_rows == 1  # notes are no documents
    put(tmp_path / "d" / "b.jsonl", '{"text": "b"}')
    put(tmp_path / "d" / "README.txt", "notes")
    assert documents(opened(tmp_path / "d"))["text"].to_pylist() == ["b"]
    assert "several formats" in refused(tmp_path / "c", tmp_path / "d")


def test_a_format_that_the_name_does_not_tell(tmp_path):
    put(tmp_path / "export.log", as_jsonl())
    with pytest.raises(InputDataError, match="not a Parquet file"):
        opened(tmp_path / "export.log")
    assert len(documents(opened(tmp_path / "export.log", format="jsonl"))) == N


def test_text_that_is_not_utf8_is_survived_and_counted(tmp_path):
    for i, text in enumerate(TEXTS[:40]):
        put(tmp_path / "c" / f"{i:03}.txt", text.encode() + (b" caf\xe9" if i < 7 else b""))
    result = fit(
        settings_of(tmp_path / "c", tmp_path / "m", corpus={"id_column": None}, model={"n_components": 2})
    )
    assert result.run["n_invalid_utf8"] == 7
    assert w_table_of(result.uri)["path"].to_pylist() == [f"{i:03}.txt" for i in range(40)]


# Whole jobs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The same documents in four formats."""
    folder = tmp_path_factory.mktemp("formats")
    write_corpus(folder / "parquet", TEXTS)
    rows = [{"doc_id": f"d{i:05}", "text": text} for i, text in enumerate(TEXTS)]
    for part in range(2):
        some = rows[part * 60 : part * 60 + 60]
        put(folder / "jsonl" / f"{part}.jsonl.gz", as_jsonl(some))
        put(folder / "csv" / f"{part}.csv", pd.DataFrame(some).to_csv(index=False))
    for row in rows:
        put(folder / "text" / f"{row['doc_id']}.txt", row["text"])
    return folder


MODEL = {"n_components": 3}


def test_the_model_does_not_depend_on_the_format(folder, tmp_path):
    """One of them with two workers, by the command; every number of W and H, and the ids."""
    expected = fit(settings_of(folder / "parquet", tmp_path / "parquet", model=MODEL))
    given = ["--input", folder / "jsonl", "--output", tmp_path / "jsonl", "-k", "3", "--id-column", "doc_id"]
    done = run_command("fit", *given, "--workers", "2", "--log-format", "json")
    assert done.returncode == 0, done.stderr
    ids = [f"d{i:05}" for i in range(N)]
    for format_ in ("jsonl", "csv", "text"):
        corpus = {"id_column": None if format_ == "text" else "doc_id"}
        result = fit(settings_of(folder / format_, tmp_path / format_, model=MODEL, corpus=corpus))
        assert result.finished_before == (format_ == "jsonl")
        assert wh_bytes(result.uri) == wh_bytes(expected.uri)
        W = w_table_of(result.uri)
        assert W.column_names == ["path" if format_ == "text" else "doc_id", "topic", "weights"]
        assert W[0].to_pylist() == [f"{one}.txt" if format_ == "text" else one for one in ids]
        assert result.run["n_documents"] == result.run["input"]["n_rows"] == N
        assert all(one["n_rows"] is None for one in result.run["input"]["files"])


def test_the_plan_is_about_right(folder, tmp_path):
    exact = plan(settings_of(folder / "parquet", tmp_path / "m", model=MODEL))
    for format_ in ("csv", "jsonl", "text"):
        told = plan(settings_of(folder / format_, tmp_path / "m", model=MODEL, corpus={"id_column": None}))
        assert told.estimated
        assert exact.text_bytes / 3 < told.text_bytes < exact.text_bytes * 3
    assert not (tmp_path / "m").exists()


def test_transform_takes_new_files_of_any_format(folder, tmp_path):
    fit(settings_of(folder / "parquet", tmp_path / "m", model=MODEL))
    rows = [{"doc_id": f"d{i:05}", "text": text} for i, text in enumerate(TEXTS)]
    new = tmp_path / "new"
    put(new / "a.jsonl.gz", as_jsonl(rows[:50]))
    put(new / "b.jsonl", as_jsonl(rows[50:]))
    only_new = {
        "transform": {"new_only": True},
        "corpus": {"id_column": None, "text_column": ("text", "doc_id")},
    }
    transform(job(tmp_path / "m", new, tmp_path / "w", **only_new))
    transform(
        job(tmp_path / "m", folder / "parquet", tmp_path / "p", corpus={"text_column": ("text", "doc_id")})
    )
    W, expected = table_of(tmp_path / "w"), table_of(tmp_path / "p")
    np.testing.assert_array_equal(W["weights"].to_pylist(), expected["weights"].to_pylist())
    put(new / "c.jsonl", as_jsonl(rows[:7]))
    put(new / "d.jsonl", "")
    transform(job(tmp_path / "m", new, tmp_path / "w", **only_new))
    assert table_of(tmp_path / "w")["doc_id"].to_pylist() == [*range(N + 7)]
    told = json.loads((tmp_path / "w" / "transform.json").read_text())
    assert (told["files_new"], told["files_skipped"], told["n_documents"]) == (2, 2, 7)
    assert sorted(one.name for one in (tmp_path / "w").iterdir()) == [
        "W",
        "_SUCCESS",
        "manifest.json",
        "transform.json",
    ]


def test_a_bad_line_leaves_an_error_and_no_staged_files(tmp_path):
    put(tmp_path / "c" / "a.jsonl", as_jsonl())
    put(tmp_path / "c" / "b.jsonl", as_jsonl()[:-10])
    done = run_command("fit", "--input", tmp_path / "c", "--output", tmp_path / "m", "-k", "3")
    assert done.returncode == 65
    assert "b.jsonl, line 120: " in done.stderr
    assert "Traceback" not in done.stderr
    [run] = (tmp_path / "m" / "runs").iterdir()
    assert [one.name for one in run.iterdir()] == ["run.json"]
    assert "b.jsonl, line 120" in json.loads((run / "run.json").read_text())["error"]


def test_a_large_compressed_file_is_streamed(tmp_path):
    """What a task holds does not grow with the file: 25 and 150 MB of lines, in a process of its own each."""
    line = json.dumps({"text": " ".join(TEXTS[:5])}) + "\n"
    peaks = []
    for megabytes in (25, 150):
        file = tmp_path / f"{megabytes}.jsonl.gz"
        with gzip.open(file, "wb", compresslevel=1) as out:
            block = (line * (10**6 // len(line))).encode()
            for _ in range(megabytes):
                out.write(block)
        code = (
            "import resource, sys\n"
            "from nmf_dask.config import CorpusSettings\n"
            "from nmf_dask.corpus import open_corpus\n"
            "from nmf_dask.pipeline.ingest import IngestTasks\n"
            "from nmf_dask.store import Folder\n"
            "corpus = open_corpus(CorpusSettings(input=sys.argv[1]))\n"
            "assert len(corpus.partitions) == 1\n"
            "IngestTasks(Folder(sys.argv[2]), corpus.raw).ingest(corpus.partitions[0], 'one')\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, file, tmp_path / f"out{megabytes}"],
            capture_output=True, text=True, check=True, cwd=ROOT, env=environment(),
        )  # fmt: skip
        peaks.append(int(done.stdout))
        file.unlink()
    assert peaks[1] < peaks[0] + 40, peaks


def test_one_large_file_becomes_several_partitions(tmp_path):
    rows = [{"doc_id": f"d{i}", "text": f"{TEXTS[i % N]} {os.urandom(900).hex()}"} for i in range(12_000)]
    put(tmp_path / "c" / "a.jsonl.gz", as_jsonl(rows))
    result = fit(settings_of(tmp_path / "c", tmp_path / "m", model=MODEL, corpus={"partition_bytes": "4MiB"}))
    assert len(list((Path(result.uri) / "W").iterdir())) > 2
    assert w_table_of(result.uri)["doc_id"].to_pylist() == [one["doc_id"] for one in rows]
    assert h_bytes(result.uri)
