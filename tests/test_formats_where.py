"""The filter of documents: its grammar against DuckDB, what is skipped by statistics, and whole jobs with one."""

import subprocess
import sys
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nmf_dask import fit, transform
from nmf_dask.corpus.where import ANY, Facts, Unfit, columns_of, may_be_true, parse
from nmf_dask.errors import ConfigurationError, InputDataError, NmfDaskError
from nmf_dask.model import TopicModel
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
)
from tests.transforms import job, table_of

N = 240
TEXTS = generated_texts(N)
DAYS = [date(2020, 1, 1 + i // 20) for i in range(N)]
ROWS = pa.table(
    {
        "key": [f"k{i}" for i in range(N)],
        "year": pa.array([2000 + i // 40 for i in range(N)], pa.int16()),
        "lang": pa.array([None if i % 11 == 0 else "en" if i % 3 else "de" for i in range(N)]),
        "day": DAYS,
        "meta": [{"score": i / N} for i in range(N)],
        "text": TEXTS,
    }
)


def write_rows(folder: Path, rows: pa.Table = ROWS, **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "a.parquet", **{"row_group_size": 40, **options})
    return folder


# The grammar.

SMALL = pa.table(
    {
        "i": pa.array([None, *range(-3, 4), 127, -128], pa.int8()),
        "u": pa.array([0, 1, 2, 3, None, 2**64 - 1, 2**53, 2**53 + 1, 5, 6], pa.uint64()),
        "f": pa.array([None, -1.5, -1, 0, 0.1, 0.5, 1, 2, 1e300, -1e300], pa.float64()),
        "s": pa.array(["a", "b", "it's", "", None, "é", "z", "A", "aa", '"q"']),
        "b": pa.array([True, False, None] * 3 + [True]),
        "d": pa.array([None] + [date(2020, 2, 1 + i) for i in range(9)]),
        "t": pa.array([None] + [datetime(2020, 2, 1, i) for i in range(9)], pa.timestamp("us")),
    }
)
LITERALS = {
    "i": st.integers(-130, 130) | st.integers(-(2**70), 2**70) | st.sampled_from([0.5, -1.0, 1.5, 2.0]),
    "u": st.integers(-1, 7) | st.sampled_from([2**53, 2**53 + 1, 2**64 - 1, 2**64, 0.5]),
    "f": st.sampled_from([-1.5, -1, 0, 0.1, 0.5, 1, 2, 1e300]),
    "s": st.sampled_from(["a", "b", "it's", "", "é", "z", "A", '"q"', "null"]),
    "b": st.booleans(),
    "d": st.dates(date(2020, 1, 30), date(2020, 2, 12)).map(str),
    "t": st.datetimes(datetime(2020, 1, 31, 20), datetime(2020, 2, 1, 12)).map(str),
}  # fmt: skip


def written(value, quote="'") -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return quote + value.replace(quote, quote * 2) + quote if isinstance(value, str) else repr(value)


@st.composite
def leaves(draw) -> tuple[str, str]:
    """A condition as we and as DuckDB write it."""
    column = draw(st.sampled_from(SMALL.column_names))
    kind = draw(st.sampled_from(["compare", "mirror", "in", "null"]))
    negated = draw(st.sampled_from(["", "not "]))
    if kind == "null":
        both = f"{column} is {negated}null"
        return both, both
    if kind == "in":
        values = draw(st.lists(LITERALS[column], min_size=1, max_size=4))
        ours, theirs = (
            ", ".join(written(one, quote) for one in values) for quote in ("\"'"[draw(st.booleans())], "'")
        )
        return f"{column} {negated}in ({ours})", f"{column} {negated}in ({theirs})"
    symbol, value = (
        draw(st.sampled_from(["==", "=", "!=", "<>", "<", "<=", ">", ">="])),
        draw(LITERALS[column]),
    )
    if column == "b" and symbol not in ("==", "=", "!=", "<>"):
        symbol = "=="
    if kind == "mirror":
        both = f"{written(value)} {symbol} {column}"
        return both, both
    both = f"{column} {symbol} {written(value)}"
    return both, both


def conditions():
    def grown(inner):
        pair = st.tuples(inner, st.sampled_from(["and", "or", "AND", "Or"]), inner).map(
            lambda drawn: tuple(f"({a}) {drawn[1]} ({b})" for a, b in zip(drawn[0], drawn[2], strict=True))
        )
        return pair | inner.map(lambda both: tuple(f"not ({one})" for one in both))

    return st.recursive(leaves(), grown, max_leaves=6)


def filtered(text: str, table: pa.Table) -> list[int]:
    types = {one.name: one.type for one in table.schema}
    numbered = table.append_column("row", pa.array(range(len(table))))
    return numbered.filter(parse(text).expression(types.__getitem__))["row"].to_pylist()


def of_duckdb(text: str, table: pa.Table) -> list[int]:
    numbered = table.append_column("row", pa.array(range(len(table))))  # noqa: F841  # DuckDB finds it
    return [row for (row,) in duckdb.sql(f"select row from numbered where {text} order by row").fetchall()]


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(conditions())
def test_it_means_what_it_means_in_sql(both):
    ours, theirs = both
    assert filtered(ours, SMALL) == of_duckdb(theirs, SMALL)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(conditions(), st.lists(st.integers(0, len(SMALL) - 1), min_size=1, max_size=4), st.booleans())
def test_what_statistics_exclude_is_never_true(both, rows, exact):
    """And a condition of one column over a single value is decided by them wholly."""
    types = {one.name: one.type for one in SMALL.schema}
    some = SMALL.take(rows)

    def known(name: str) -> Facts:
        column, bounds = some[name], pc.min_max(some[name])
        if column.null_count == len(column):
            return Facts(None, None, True, True)
        return Facts(bounds["min"].as_py(), bounds["max"].as_py(), column.null_count > 0 if exact else None)

    condition = parse(both[0])
    found = filtered(both[0], some)
    assert not found or may_be_true(condition, types.__getitem__, known)
    if exact and len(columns_of(condition)) == 1 and len(set(rows)) == 1 and columns_of(condition) != ["f"]:
        assert may_be_true(condition, types.__getitem__, known) == bool(found)
    assert condition.outcomes(types.__getitem__, lambda _: Facts()) <= ANY


def test_a_name_in_backquotes_decimals_zones_and_lists():
    table = pa.table(
        {
            "two words": [1, 2],
            "and": [True, False],
            "n.d": pa.array([Decimal("1.10"), Decimal("2.20")]),
            "t": pa.array([datetime(2020, 1, 1, 12), None], pa.timestamp("s", "Europe/Berlin")),
        }
    )
    assert filtered("`two words` in [2, 3]", table) == [1]
    assert filtered("`and`", table) == [0]
    assert filtered("n.d > 1.1", table) == [1]
    assert (
        filtered("t == '2020-01-01 12:00:00'", table)
        == filtered("t == '2020-01-01T14:00:00+02:00'", table)
        == [0]
    )
    many = " or ".join(["`two words` == 2"] * 5000)
    assert (
        filtered(f"`two words` in ({', '.join(map(str, range(2, 5000)))})", table)
        == filtered(many, table)
        == [1]
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("year >", 7), ("year >= >= 3", 9), ("and", 1), ("year == 2020 year", 14), ("(year == 1", 11),
        ("year in ()", 10),
        ("year in (1, year)", 13), ("year not 3", 10), ("year is 3", 9), ("lang == 'en", 9), ("year == null", 9),
        ("__import__('os').system('x')", 17), ("year == 1; drop", 10), ("lambda: 1", 7), ("year == 1e999", 9),
        ("year == 2020-01-01", 13), ("", 1), ("  ", 1), ("not", 4), ("(" * 150 + "x" + ")" * 150, 101), ("a == b", 6),
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused_with_the_place(text, place):
    with pytest.raises(ConfigurationError, match=r"^corpus\.where: ") as caught:
        parse(text)
    assert f"at character {place} of" in str(caught.value)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("ab1.'\"` ()<>=!,[]andornotisi\n\\{}é"), max_size=30))
def test_any_text_is_a_filter_or_refused(text):
    with suppress(ConfigurationError):
        assert columns_of(parse(text))


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("year == '2020'", "column 'year' has type int16, which '2020' cannot be compared with"),
        ("lang", "column 'lang' has type string, which true cannot be compared with"),
        (
            "lang > 3",
            "column 'lang' has type string, which 3 cannot be compared with (a text in quotes is expected)",
        ),
        ("day > '2020-13-01'", "column 'day' has type date32"),
        (
            "meta == 3",
            "--where (corpus.where) takes columns of single values. Name one within it: meta.score",
        ),
        ("yaer > 3", "no column 'yaer'. Its columns: key, year, lang, day, meta, text. Did you mean 'year'?"),
    ],
)
def test_a_filter_that_columns_do_not_go_with(tmp_path, where, says):
    with pytest.raises(InputDataError) as caught:
        opened(write_rows(tmp_path), where=where)
    assert says in str(caught.value)
    assert "a.parquet" in str(caught.value)
    assert "corpus.where)" in str(caught.value)


def test_the_type_is_checked_where_no_row_is_read():
    with pytest.raises(Unfit):
        parse("x == 'a'").outcomes(lambda _: pa.int8(), lambda _: Facts())


# Statistics.


@pytest.mark.parametrize(
    ("where", "groups"),
    [
        ("year >= 2004", [4, 5]),
        ("not year < 2004", [4, 5]),
        ("year == 2003.5", []),
        ("day in ('2020-01-01', '2020-01-12')", [0, 5]),
        ("meta.score > 0.9 or year == 2000", [0, 5]),
        ("lang is null", [0, 1, 2, 3, 4, 5]),
        ("lang > 'en'", []),
        ("key is null", []),
        ("year == 2000 and lang == 'fr'", []),
    ],
)
def test_row_groups_that_cannot_match_are_not_planned(tmp_path, where, groups):
    write_rows(tmp_path)
    if not groups:
        with pytest.raises(InputDataError, match=r"no document of 1 files .* is one where"):
            opened(tmp_path, where=where)
        return
    corpus = opened(tmp_path, where=where)
    assert [piece.row_group for one in corpus.partitions for piece in one.pieces] == groups
    assert corpus.n_rows == 40 * len(groups)
    assert [len(opened(write_rows(tmp_path, write_statistics=False), where=where).partitions)] == [
        6 if False else 1
    ]


@pytest.mark.parametrize("type_", [pa.large_string(), pa.string_view()], ids=str)
def test_every_kind_of_strings_is_filtered_and_skipped(tmp_path, type_):
    """Also where Arrow itself cannot filter rows that hold some: views."""
    strings = {
        name: ROWS[name].cast(type_) if pa.types.is_string(ROWS[name].type) else ROWS[name]
        for name in ROWS.column_names
    }
    write_rows(tmp_path, pa.table(strings | {"raw": ROWS["key"].cast(pa.binary()).cast(pa.binary_view())}))
    corpus = opened(tmp_path, id_column="key", keep=("lang", "raw"), where="key < 'k12' and lang == 'en'")
    assert [piece.row_group for one in corpus.partitions for piece in one.pieces] == [0, 2]
    found = pa.concat_tables(table for one in corpus.partitions for table in corpus.raw.documents(one))
    due = ROWS.filter((pc.field("key") < "k12") & (pc.field("lang") == "en"))
    assert found.schema.types == [pa.string(), type_, type_, pa.binary_view()]
    assert found["key"].to_pylist() == due["key"].to_pylist()
    assert found["text"].to_pylist() == due["text"].to_pylist()


def test_groups_that_cannot_match_are_not_read(tmp_path):
    """Every page of them is destroyed."""
    write_rows(tmp_path / "c", compression="none")
    file = tmp_path / "c" / "a.parquet"
    content, metadata = bytearray(file.read_bytes()), pq.read_metadata(file)
    for group in range(4):
        for leaf in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(leaf)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(content)
    corpus = {"id_column": "key", "where": "year >= 2004 and lang == 'en'"}
    result = fit(settings_of(tmp_path / "c", tmp_path / "m", corpus=corpus, model={"n_components": 3}))
    keys = ROWS.filter((pc.field("year") >= 2004) & (pc.field("lang") == "en"))["key"]
    assert w_table_of(result.uri)["key"].equals(keys)


def test_statistics_of_a_wrong_length_end_no_process(tmp_path):
    """Asked for these, Arrow aborts: also where the column has no nulls by its schema."""
    schema = pa.schema([pa.field("year", pa.int64(), nullable=False), ("text", pa.string())])
    rows = pa.table({"year": [2**40 + 7, 2**40 + 8], "text": ["a b", "c d"]}, schema=schema)
    write_rows(tmp_path, rows)
    file = tmp_path / "a.parquet"
    content = file.read_bytes()
    value = (2**40 + 7).to_bytes(8, "little")
    place = content.rindex(b"\x08" + value)
    file.write_bytes(content[:place] + b"\x06" + value[:6] + b"\x18" + b"\x00" + content[place + 9 :])
    code = (
        "from nmf_dask import errors\n"
        "from nmf_dask.config import CorpusSettings\n"
        "from nmf_dask.corpus import open_corpus\n"
        f"try: open_corpus(CorpusSettings(input={str(tmp_path)!r}, where='year > 3'))\n"
        "except errors.InputDataError as error: print('refused', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "refused" in done.stdout
    assert "a.parquet" in done.stdout


def test_a_folder_that_cannot_match_is_left_out(tmp_path):
    for day in ("2026-11-01", "2026-11-02"):
        write_rows(tmp_path / f"day={day}", ROWS.drop_columns("day"))
    corpus = opened(tmp_path, where="day > '2026-11-01' and year == 2001")
    assert {str(piece.file) for one in corpus.partitions for piece in one.pieces} == {
        str(tmp_path / "day=2026-11-02" / "a.parquet")
    }
    assert corpus.n_rows == 40


# Whole jobs.

WHERE = "(year >= 2002 and not lang == 'de' or meta.score < 0.05) and day != '2020-01-09'"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """By the command, with two workers, of two files; and of the documents themselves without a filter."""
    folder = tmp_path_factory.mktemp("where")
    for part in range(2):
        write_rows(folder / "c" / f"part={part}", ROWS.slice(part * 120, 120))
    given = ["--id-column", "key", "--keep", "year", "-k", "3", "--set", "corpus.partition_bytes=2000"]
    done = run_command(
        "fit", "--input", folder / "c", *given, "--where", WHERE, "--output", folder / "m", "--workers", "2",
        "--log-format", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def matching() -> pa.Table:
    rows = ROWS.append_column("score", pc.struct_field(ROWS["meta"], "score")).drop_columns("meta")  # noqa: F841
    text = WHERE.replace("meta.score", "score")
    return duckdb.sql(f"select * from rows where {text} order by cast(key[2:] as int)").to_arrow_table()


def test_w_holds_what_matches_in_the_order_of_the_corpus(fitted):
    folder = fitted
    run = TopicModel.load(str(folder / "m"))
    W = pa.concat_tables(run.W_parts())
    assert W["key"].to_pylist() == matching()["key"].to_pylist()
    assert W["year"].to_pylist() == matching()["year"].to_pylist()
    assert W["part"].type == pa.int32()
    assert run.run["n_documents"] == len(W) == run.run["input"]["n_rows"]
    assert run.run["stages"]["ingest"]["bytes"] > 0
    assert sum(one["n_rows"] for one in run.run["input"]["files"]) == N
    assert not (Path(run.uri) / "_work").exists()


def test_the_model_is_that_of_the_documents_alone(fitted, tmp_path):
    """Counted, weighed and factorized as a corpus that has nothing else, and the same in one process."""
    folder = fitted
    corpus = {"id_column": "key", "keep": ("year",), "where": WHERE, "partition_bytes": 2000}
    fit(settings_of(folder / "c", tmp_path / "s", corpus=corpus, model={"n_components": 3}))
    ours, again = (Path(TopicModel.load(str(one)).uri) for one in (folder / "m", tmp_path / "s"))
    assert ours.name == again.name
    assert h_bytes(ours) == h_bytes(again)
    write_rows(tmp_path / "c", matching())
    plain = fit(
        settings_of(tmp_path / "c", tmp_path / "p", corpus={"id_column": "key"}, model={"n_components": 3})
    )
    other = fit(
        settings_of(
            folder / "c",
            tmp_path / "o",
            corpus={"id_column": "key", "where": WHERE},
            model={"n_components": 3},
        )
    )
    assert plain.run["n_features"] == other.run["n_features"]
    assert h_bytes(plain.uri) == h_bytes(other.uri)


def test_without_an_id_column_documents_are_numbered_as_they_are_left(tmp_path):
    write_rows(tmp_path / "c")
    corpus = {"id_column": None, "where": "year > 2003"}
    result = fit(settings_of(tmp_path / "c", tmp_path / "m", corpus=corpus, model={"n_components": 2}))
    assert w_table_of(result.uri)["doc_id"].to_pylist() == list(range(80))


def test_transform_filters_too(fitted, tmp_path):
    folder = fitted
    corpus = {"id_column": "key", "where": WHERE, "partition_bytes": 2000}
    transform(job(folder / "m", folder / "c", tmp_path / "w", corpus=corpus))
    assert table_of(tmp_path / "w")["key"].to_pylist() == matching()["key"].to_pylist()
    plain = {"id_column": "key"}
    transform(job(folder / "m", folder / "c", tmp_path / "all", corpus=plain))
    by_key = {row["key"]: row["weights"] for row in table_of(tmp_path / "all").to_pylist()}
    for row in table_of(tmp_path / "w").to_pylist():
        np.testing.assert_array_equal(row["weights"], by_key[row["key"]])
    with pytest.raises(InputDataError, match=r"corpus\.where was .*, and is None"):
        transform(job(folder / "m", folder / "c", tmp_path / "w", corpus={**corpus, "where": None}))
    # The statistics exclude the one, and only the rows the other.
    for number, where in enumerate(["year == 1000", "year == 2000 and lang == 'dz'"]):
        nothing = {"id_column": "key", "where": where}
        with pytest.raises(InputDataError, match=f"no document of 2 files .* is one where {where}"):
            transform(job(folder / "m", folder / "c", tmp_path / f"n{number}", corpus=nothing))


def test_nothing_is_left_or_too_little(tmp_path):
    write_rows(tmp_path / "c")

    def refused(where: str) -> NmfDaskError:
        with pytest.raises(NmfDaskError) as caught:
            fit(settings_of(tmp_path / "c", tmp_path / "m", corpus={"id_column": "key", "where": where}))
        return caught.value

    none = refused("lang == 'fr' or lang == 'en' and year == 1000 or lang == 'dx'")
    assert none.exit_code == 65
    assert "is one where lang == 'fr'" in str(none)
    assert "3 documents cannot make 5 topics" in str(refused("meta.score < 0.01"))
    assert refused("year >> 3").exit_code == 2


def test_the_plan_says_at_most(tmp_path):
    write_rows(tmp_path / "c")
    told = plan(
        settings_of(tmp_path / "c", tmp_path / "m", corpus={"id_column": "key", "where": "year >= 2004"})
    )
    assert (told.n_rows, told.estimated) == (80, True)
    assert any("80 documents" in line and "at most" in line for line in told.lines())
    assert not (tmp_path / "m").exists()


def test_what_an_interrupted_ingest_left_is_taken(tmp_path, monkeypatch):
    """A partition that is staged whole is not read again; one whose file is not what its record says is."""
    from nmf_dask.corpus import raw
    from nmf_dask.pipeline.ingest import IngestTasks
    from nmf_dask.store import Folder

    write_rows(tmp_path / "c")
    corpus = opened(tmp_path / "c", id_column="key", where=WHERE)
    tasks = IngestTasks(Folder(str(tmp_path / "s")), corpus.raw)
    n_rows = tasks.ingest(corpus.partitions[0], "one")
    content = (tmp_path / "s" / "one.parquet").read_bytes()
    assert pq.read_table(tmp_path / "s" / "one.parquet")["key"].to_pylist() == matching()["key"].to_pylist()
    read = []
    documents = raw.Raw.documents
    monkeypatch.setattr(raw.Raw, "documents", lambda *given: read.append(1) or documents(*given))
    assert tasks.ingest(corpus.partitions[0], "one") == n_rows
    assert not read
    (tmp_path / "s" / "one.parquet").write_bytes(content[:-1] + b"x")
    assert tasks.ingest(corpus.partitions[0], "one") == n_rows
    assert read == [1]
    assert (tmp_path / "s" / "one.parquet").read_bytes() == content


def test_pyarrow_filters_the_same(tmp_path):
    write_rows(tmp_path / "c")
    corpus = opened(tmp_path / "c", id_column="key", where="day >= '2020-01-04' and lang in ('de', 'en')")
    ours = [
        key
        for one in corpus.partitions
        for table in corpus.raw.documents(one)
        for key in table["key"].to_pylist()
    ]
    expression = (pc.field("day") >= date(2020, 1, 4)) & pc.field("lang").isin(["de", "en"])
    assert ours == ds.dataset(tmp_path / "c").to_table(filter=expression)["key"].to_pylist()
