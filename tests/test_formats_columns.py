"""Nested columns, texts of several columns, columns carried to W, keys of folders: compared with what pyarrow reads."""

import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from nmf_dask import fit, transform
from nmf_dask.corpus import read_ids, read_kept, read_texts
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.model import TopicModel
from nmf_dask.pipeline.planning import plan
from tests.parquet_files import opened
from tests.small_corpora import files_of, generated_texts, run_command, settings_of, wh_bytes
from tests.transforms import job, table_of

N = 120
TEXTS = generated_texts(N)
TITLES = [None if i % 7 == 0 else f"title{i % 5} shared" for i in range(N)]
BODIES = [None if i % 14 == 0 else text for i, text in enumerate(TEXTS)]
META = [
    None if i % 21 == 0 else {"n": {"id": i, "date": date(2020, 1, 1 + i % 28)}, "body": body}
    for i, body in enumerate(BODIES)
]
ROWS = pa.table(
    {
        "key": [f"k{i}" for i in range(N)],
        "title": TITLES,
        "text": BODIES,
        "meta": META,
        "label": pa.array(["even" if i % 2 else None for i in range(N)]).dictionary_encode(),
        "score": pa.array(range(N), pa.int16()),
        "tags": [["a"]] * N,
    }
)


def write_rows(folder: Path, rows: pa.Table = ROWS, **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "a.parquet", **{"row_group_size": 50, **options})
    return folder


def lake(folder: Path, days=("2026-11-01", "2026-11-02", "2026-11-03")) -> Path:
    """Folders of days and languages, of equally many rows each."""
    step = N // (2 * len(days))
    for number, (day, lang) in enumerate((day, lang) for day in days for lang in ("de", "en")):
        write_rows(folder / f"day={day}" / f"lang={lang}", ROWS.slice(number * step, step))
    return folder


def texts(folder: Path, **settings) -> list[str | None]:
    corpus = opened(folder, **settings)
    return [
        text
        for partition in corpus.partitions
        for text in read_texts(partition, corpus.columns.text).to_pylist()
    ]


def kept(folder: Path, **settings) -> pa.Table:
    corpus = opened(folder, **settings)
    return pa.concat_tables(read_kept(partition, corpus.columns) for partition in corpus.partitions)


@pytest.mark.parametrize("options", [{}, {"row_group_size": N, "data_page_size": 64, "write_batch_size": 4}])
def test_a_dot_leads_into_a_struct(tmp_path, options):
    """Also where a partition begins in the middle of a row group: the pages before it are those of the inner column."""
    write_rows(tmp_path, **options)
    expected = [None if one is None else one["body"] for one in META]
    assert texts(tmp_path, text_column="meta.body") == expected
    assert texts(tmp_path, text_column="meta.body", partition_bytes=500) == expected
    corpus = opened(
        tmp_path, text_column="text", id_column="score", keep=("meta.n.date",), partition_bytes=500
    )
    assert len(corpus.partitions) > 5
    dates = [one for p in corpus.partitions for one in read_kept(p, corpus.columns)[0].to_pylist()]
    assert dates == [None if one is None else one["n"]["date"] for one in META]
    assert corpus.kept.field("meta.n.date").type == pa.date32()


def test_a_column_with_a_dot_in_its_name_comes_before_a_struct(tmp_path):
    rows = pa.table({"meta.body": ["plain"], "meta": [{"body": "nested", "a.b": "dotted"}]})
    assert texts(write_rows(tmp_path, rows), text_column="meta.body") == ["plain"]
    assert texts(tmp_path, text_column="meta.a.b") == ["dotted"]


def test_strings_in_a_dictionary_in_a_struct(tmp_path):
    inner = pa.array(["x", None, "y"]).dictionary_encode()
    rows = pa.table({"m": pa.StructArray.from_arrays([inner], ["t"], mask=pa.array([False, False, True]))})
    assert texts(write_rows(tmp_path, rows), text_column="m.t") == ["x", None, None]
    assert kept(tmp_path, text_column="m.t", keep="m.t").schema == pa.schema([("m.t", pa.string())])


def test_texts_of_several_columns_are_joined(tmp_path):
    expected = [
        "\n".join(filter(None, both)) if any(both) else None for both in zip(TITLES, BODIES, strict=True)
    ]
    assert None in expected
    write_rows(tmp_path)
    assert texts(tmp_path, text_column=("title", "text")) == expected
    assert texts(tmp_path, text_column=["title", "meta.body"], partition_bytes=700) == [
        "\n".join(filter(None, both)) or None
        for both in zip(TITLES, [one and one["body"] for one in META], strict=True)
    ]
    corpus = opened(tmp_path, text_column=("title", "text"))
    single = [opened(tmp_path, text_column=name).text_bytes for name in ("title", "text")]
    assert corpus.text_bytes == sum(single)


def test_kept_columns_have_their_own_names_and_types(tmp_path):
    read = kept(write_rows(tmp_path), keep=("score", "label", "meta.n.id"))
    plain = pq.read_table(tmp_path / "a.parquet")
    assert read["score"].equals(plain["score"])
    assert read["label"].equals(plain["label"].cast(pa.string()))
    assert read["meta.n.id"].to_pylist() == [None if one is None else one["n"]["id"] for one in META]


def test_a_file_without_any_value_takes_the_type_of_the_others(tmp_path):
    write_rows(tmp_path / "1", pa.table({"text": ["a"], "label": pa.nulls(1)}))
    write_rows(tmp_path / "2", pa.table({"text": ["b"], "label": ["x"]}))
    assert kept(tmp_path, keep="label")["label"].to_pylist() == [None, "x"]


def test_keys_of_folders_are_columns(tmp_path):
    """As pyarrow has them, save that a day is a day."""
    lake(tmp_path)
    read = kept(tmp_path)
    oracle = ds.dataset(tmp_path, partitioning="hive").to_table()
    assert read["lang"].to_pylist() == oracle["lang"].to_pylist()
    assert [str(day) for day in read["day"].to_pylist()] == oracle["day"].to_pylist()
    assert read.schema == pa.schema([("day", pa.date32()), ("lang", pa.string())])
    assert kept(tmp_path, keep=("lang", "score")).column_names == ["lang", "score", "day"]
    # Named one day at a time, or by a glob, it is the same column.
    one = tmp_path / "day=2026-11-02"
    assert kept(one).schema == kept(f"{tmp_path}/day=*/lang=de/a.parquet").schema == read.schema
    assert set(kept(one)["day"].to_pylist()) == {date(2026, 11, 2)}


@pytest.mark.parametrize(
    ("values", "type_", "expected"),
    [
        (("7", "-12"), pa.int32(), [-12, 7]),
        (("07", "9999999999"), pa.int64(), [7, 9999999999]),
        (("7", "beta"), pa.string(), ["7", "beta"]),
        (("2026-11-01", "2026-13-01"), pa.string(), ["2026-11-01", "2026-13-01"]),
        (("2026-W01-1", "2026-W02-1"), pa.string(), ["2026-W01-1", "2026-W02-1"]),
        (("a%2Fb", "__HIVE_DEFAULT_PARTITION__"), pa.string(), [None, "a/b"]),
        (("1_000", "99999999999999999999"), pa.string(), ["1_000", "99999999999999999999"]),
    ],
)
def test_types_of_keys(tmp_path, values, type_, expected):
    for value in values:
        write_rows(tmp_path / "job=7" / "corpus" / f"v={value}")
    read = kept(tmp_path)
    assert read.schema == pa.schema([("v", type_)])  # job=7 is no folder of the lake
    assert sorted(read["v"].unique().to_pylist(), key=str) == sorted(expected, key=str)


def test_the_same_files_in_other_days_are_another_corpus(tmp_path):
    for day in ("2026-11-01", "2026-11-02"):
        write_rows(tmp_path / f"day={day}")
    first, second = (opened(tmp_path / f"day={day}") for day in ("2026-11-01", "2026-11-02"))
    assert first.files[0].name == second.files[0].name
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"text_column": "meta.bodi"},
            ["no column 'meta.bodi'", "Did you mean 'meta.body'?", "--text-column"],
        ),
        ({"text_column": "meta"}, ["'meta' has type struct", "--text-column"]),
        ({"text_column": ("title", "score")}, ["'score' has type int16"]),
        ({"id_column": "meta.n"}, ["'meta.n' has type struct", "an id must be a single value"]),
        ({"id_column": "meta.n.id"}, ["'meta.n.id' has no id in row 0 of row group 0"]),
        ({"keep": "lable"}, ["no column 'lable'", "Did you mean 'label'?", "--keep (corpus.keep)"]),
        ({"keep": "tags"}, ["'tags' has type list", "--keep (corpus.keep) takes columns of single values"]),
        (
            {"keep": "meta.n"},
            ["--keep (corpus.keep) takes columns of single values", "meta.n.id, meta.n.date"],
        ),
    ],
)
def test_columns_that_cannot_be_taken(tmp_path, settings, says):
    write_rows(tmp_path)
    with pytest.raises(InputDataError) as caught:
        opened(tmp_path, **settings)
    assert all(part in str(caught.value) for part in ["a.parquet", *says]), caught.value


def test_a_kept_column_of_two_types_is_refused(tmp_path):
    write_rows(tmp_path / "1", pa.table({"text": ["a"], "label": [1]}))
    write_rows(tmp_path / "2", pa.table({"text": ["b"], "label": ["x"]}))
    with pytest.raises(
        InputDataError, match=r"'label' has type int64 in .*1/a\.parquet, but string in .*2/a\.par"
    ):
        opened(tmp_path, keep="label")


@pytest.mark.parametrize(
    "corpus", [{"keep": "topic"}, {"keep": "doc_id"}, {"id_column": "doc_id", "keep": "doc_id"}]
)
def test_names_that_w_has_itself_are_refused(tmp_path, corpus):
    columns = {name: [f"{name}{i}" for i in range(N)] for name in ("topic", "doc_id")}
    write_rows(tmp_path / "c", pa.table({"text": TEXTS, **columns}))
    with pytest.raises(ConfigurationError, match="rename it in the corpus"):
        fit(settings_of(tmp_path / "c", tmp_path / "m", corpus={"id_column": None, **corpus}))
    assert not (tmp_path / "m").exists()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A model of a lake, by the command, with two workers; and its settings."""
    folder = tmp_path_factory.mktemp("lake")
    lake(folder / "c")
    given = ["--input", folder / "c", "--id-column", "key", "--text-column", "title,meta.body"]
    given += ["--keep", "label,score", "-k", "3", "--set", "corpus.partition_bytes=2000"]
    done = run_command("fit", *given, "--output", folder / "m", "--workers", "2", "--log-format", "json")
    assert done.returncode == 0, done.stderr
    columns = {"id_column": "key", "text_column": ("title", "meta.body"), "keep": ("label", "score")}
    return folder, {**columns, "partition_bytes": 2000}


def expected_kept(rows: pa.Table) -> list[dict]:
    names = ("key", "label", "score")
    return rows.select(names).to_pylist()


def test_w_carries_them(fitted):
    folder, _ = fitted
    model = TopicModel.load(str(folder / "m"))
    W = pa.concat_tables(model.W_parts())
    assert W.column_names == ["key", "label", "score", "day", "lang", "topic", "weights"]
    assert W.select(["key", "label", "score"]).to_pylist() == expected_kept(ROWS)
    assert W["score"].type == pa.int16()
    oracle = ds.dataset(folder / "c", partitioning="hive").to_table(["key", "day", "lang"])
    assert W["lang"].equals(oracle["lang"].cast(pa.string()))
    assert [str(day) for day in W["day"].to_pylist()] == oracle["day"].to_pylist()
    assert len(list((Path(model.uri) / "W").iterdir())) > 4


def test_workers_do_not_change_a_byte_and_kept_columns_none_of_the_weights(fitted, tmp_path):
    folder, corpus = fitted
    fit(settings_of(folder / "c", tmp_path / "m", corpus=corpus, model={"n_components": 3}))
    parallel_run = Path(TopicModel.load(str(folder / "m")).uri)
    serial_run = Path(TopicModel.load(str(tmp_path / "m")).uri)
    for part in ("W", "H"):
        assert files_of(serial_run / part) == files_of(parallel_run / part)
    settings = settings_of(
        folder / "c", tmp_path / "n", model={"n_components": 3}, corpus={**corpus, "keep": ()}
    )
    without = fit(settings)
    assert without.run_id != serial_run.name
    assert wh_bytes(without.uri) == wh_bytes(serial_run)


def test_transform_carries_them_and_takes_in_new_days(fitted, tmp_path):
    folder, _ = fitted
    corpus = {"id_column": "key", "text_column": ("title", "meta.body"), "keep": ("score",)}
    lake(tmp_path / "c", ("2026-11-01",))
    settings = job(folder / "m", tmp_path / "c", tmp_path / "w", corpus=corpus)
    transform(settings)
    write_rows(tmp_path / "c" / "day=2026-11-04" / "lang=fr", ROWS.slice(100, 20))
    transform(job(folder / "m", tmp_path / "c", tmp_path / "w", corpus=corpus, transform={"new_only": True}))
    W = table_of(tmp_path / "w")
    assert W.column_names == ["key", "score", "day", "lang", "topic", "weights"]
    assert W["score"].to_pylist() == [*range(120), *range(100, 120)]
    assert {(str(r["day"]), r["lang"]) for r in W.to_pylist()} == {
        ("2026-11-01", "de"), ("2026-11-01", "en"), ("2026-11-04", "fr")
    }  # fmt: skip
    # Without them, or with another type, it would be another table.
    other = job(folder / "m", tmp_path / "c", tmp_path / "w", corpus={**corpus, "keep": ()})
    with pytest.raises(InputDataError, match=r"corpus\.keep was \['score'\], and is None"):
        transform(other)
    write_rows(tmp_path / "c" / "day=soon" / "lang=fr", ROWS.slice(100, 20))
    with pytest.raises(InputDataError, match=r"day \(date32.*would carry .*day \(string\)"):
        transform(
            job(folder / "m", tmp_path / "c", tmp_path / "w", corpus=corpus, transform={"new_only": True})
        )


def test_damage_in_a_kept_column_is_told_before_the_fit(tmp_path):
    write_rows(tmp_path / "c", use_dictionary=False, compression="none")
    file = tmp_path / "c" / "a.parquet"
    metadata = pq.read_metadata(file).row_group(2)
    column = next(
        metadata.column(i)
        for i in range(metadata.num_columns)
        if metadata.column(i).path_in_schema == "score"
    )
    content = bytearray(file.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 12] = b"\xff" * 12
    file.write_bytes(content)
    settings = settings_of(
        tmp_path / "c", tmp_path / "m", corpus={"id_column": None, "keep": "score"}, model={"n_components": 2}
    )
    with pytest.raises(InputDataError, match=r"a\.parquet .*row group 2 of column 'score'"):
        fit(settings)
    [run] = (tmp_path / "m" / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["n_features"] is None


def test_the_plan_counts_the_bytes_of_all_texts(tmp_path):
    write_rows(tmp_path / "c")
    corpus = {"id_column": None, "text_column": ("title", "text")}
    told = plan(settings_of(tmp_path / "c", tmp_path / "m", corpus=corpus))
    assert told.text_bytes == opened(tmp_path / "c", text_column=("title", "text")).text_bytes
    assert not told.estimated


def test_ids_in_a_struct(tmp_path):
    rows = pa.table({"text": ["a", "b"], "m": [{"id": 3}, {"id": 4}]})
    corpus = opened(write_rows(tmp_path, rows), id_column="m.id")
    assert read_ids(corpus.partitions[0], "m.id").to_pylist() == [3, 4]
    assert corpus.columns.id_name == "m.id"
