"""W as CSV, beside W as Parquet: the same numbers, by whoever reads it, in fit and transform."""

import json
from datetime import date, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmf_dask import fit, transform
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.model import TopicModel
from nmf_dask.store import Folder, Manifest, TransformFolder
from tests.small_corpora import files_of, generated_texts, matrix_of, run_command, settings_of
from tests.transforms import job, parts_of, table_of

N = 100
TEXTS = [None if i == 3 else text for i, text in enumerate(generated_texts(N))]
IDS = [f'd{i}, "é"\n' for i in range(N)]
LABELS = [None if i % 7 == 0 else "" if i % 5 == 0 else f"l{i}" for i in range(N)]
DATES = [date(2020, 1, 1 + i % 28) for i in range(N)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A corpus, and its model with W as CSV, by the command with two workers."""
    folder = tmp_path_factory.mktemp("csv")
    (folder / "c").mkdir()
    rows = pa.table({"id": IDS, "label": LABELS, "date": DATES, "text": TEXTS})
    for part in range(2):
        pq.write_table(rows.slice(part * 50, 50), folder / "c" / f"{part}.parquet", row_group_size=25)
    done = run_command(
        "fit", "--input", folder / "c", "--output", folder / "m", "--id-column", "id", "--keep", "label,date",
        "-k", "3", "--set", "corpus.partition_bytes=2500", "--w-format", "csv", "--workers", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def compared(parquet: Path, csv: Path) -> None:
    """Every value of a part of W in both formats."""
    expected, read = pq.read_table(parquet), pd.read_csv(csv, keep_default_na=False)
    assert list(read.columns) == ["id", "label", "date", "topic", "w0", "w1", "w2"]
    assert read["id"].tolist() == expected["id"].to_pylist()
    assert read["date"].tolist() == [str(one) for one in expected["date"].to_pylist()]
    assert read["topic"].astype(str).tolist() == [
        str("" if t is None else t) for t in expected["topic"].to_pylist()
    ]
    weights = read[["w0", "w1", "w2"]].to_numpy(np.float32)
    np.testing.assert_array_equal(weights, matrix_of(parquet))


def test_a_run_has_both(folder):
    run = Path(TopicModel.load(str(folder / "m")).uri)
    names = sorted(one.stem for one in (run / "W").iterdir())
    assert len(names) > 2
    assert sorted(one.stem for one in (run / "W_csv").iterdir()) == names
    for name in names:
        compared(run / "W" / f"{name}.parquet", run / "W_csv" / f"{name}.csv")
    # An empty label and one that is missing are two things, and DuckDB tells them apart.
    read = duckdb.sql(f"select label from read_csv('{run}/W_csv/*.csv', allow_quoted_nulls=false)").fetchall()
    assert [label for (label,) in read] == LABELS


def test_the_manifest_and_other_readers(folder):
    run = Path(TopicModel.load(str(folder / "m")).uri)
    manifest = Manifest.load(Folder(str(run)))
    csv = {name: digest for name, digest in manifest.digests.items() if name.startswith("W_csv/")}
    assert len(csv) == len(list((run / "W_csv").iterdir()))
    assert all(Folder(str(run / name)).digest() == digest for name, digest in csv.items())
    assert sum(len(table) for table in TopicModel.load(str(run)).W_parts()) == N
    assert run_command("topics", folder / "m").returncode == 0


def test_parquet_alone_is_another_run_with_the_same_numbers(folder, tmp_path):
    """And one worker writes the same bytes as two."""
    csv = Path(TopicModel.load(str(folder / "m")).uri)
    corpus = {"id_column": "id", "keep": ("label", "date"), "partition_bytes": 2500}
    sections = {"corpus": corpus, "model": {"n_components": 3}}
    serial = Path(fit(settings_of(folder / "c", tmp_path / "s", output={"w_format": "csv"}, **sections)).uri)
    assert serial.name == csv.name
    assert files_of(serial / "W_csv") == files_of(csv / "W_csv")
    plain = Path(fit(settings_of(folder / "c", tmp_path / "p", **sections)).uri)
    assert plain.name != csv.name
    assert not (plain / "W_csv").exists()
    assert files_of(plain / "W") == files_of(csv / "W")


def test_transform_writes_both(folder, tmp_path):
    corpus = {"id_column": "id", "keep": ("label", "date")}
    as_csv = {"w_format": "csv", "output": str(tmp_path / "w")}
    settings = job(folder / "m", folder / "c", tmp_path / "w", corpus=corpus, output=as_csv)
    transform(settings)
    for part in (tmp_path / "w" / "W").iterdir():
        compared(part, tmp_path / "w" / "W_csv" / f"{part.stem}.csv")
    manifest = json.loads((tmp_path / "w" / "manifest.json").read_text())
    assert set(manifest["files"]) == {
        str(one.relative_to(tmp_path / "w")) for one in (tmp_path / "w").rglob("part-*")
    }
    assert table_of(tmp_path / "w")["id"].to_pylist() == IDS
    before = files_of(tmp_path / "w" / "W_csv")
    assert transform(settings).told["status"] == "nothing new"
    assert files_of(tmp_path / "w" / "W_csv") == before
    plain = job(folder / "m", folder / "c", tmp_path / "w", corpus=corpus)
    with pytest.raises(InputDataError, match=r"output\.w_format was csv, and is None"):
        transform(plain)
    transform(job(folder / "m", folder / "c", tmp_path / "p", corpus=corpus))
    assert {name.split("-")[1] for name in parts_of(tmp_path / "p")} == {"00000", "00001"}
    assert table_of(tmp_path / "p").equals(table_of(tmp_path / "w"))


def test_a_csv_file_that_was_cut_is_made_again(folder, tmp_path):
    """An interrupted transform: its parts stand, and one CSV file of them is not whole."""
    corpus = {"id_column": "id", "keep": ("label", "date")}
    as_csv = {"w_format": "csv", "output": str(tmp_path / "w")}
    settings = job(folder / "m", folder / "c", tmp_path / "w", corpus=corpus, output=as_csv)
    commit = TransformFolder.commit

    def interrupted(*_):
        raise InputDataError("stopped here")

    TransformFolder.commit = interrupted
    try:
        with pytest.raises(InputDataError, match="stopped here"):
            transform(settings)
    finally:
        TransformFolder.commit = commit
    files = sorted((tmp_path / "w" / "W_csv").iterdir())
    whole = files_of(tmp_path / "w" / "W_csv")
    assert len(files) == 2
    files[0].write_bytes(files[0].read_bytes()[:-30])
    told = transform(settings).told
    assert (told["partitions_resumed"], told["partitions_done"]) == (1, 1)
    assert files_of(tmp_path / "w" / "W_csv") == whole


@pytest.mark.parametrize(
    ("columns", "corpus", "says"),
    [
        ({"id": [bytes([i]) for i in range(N)]}, {"id_column": "id"}, "column 'id' has type binary"),
        ({"w1": range(N)}, {"id_column": None, "keep": ("w1",)}, "column 'w1' is named as a weight"),
    ],
)
def test_what_csv_cannot_hold_is_told_before_the_fit(tmp_path, columns, corpus, says):
    (tmp_path / "c").mkdir()
    columns = {name: list(values) for name, values in columns.items()}
    pq.write_table(pa.table({**columns, "text": TEXTS}), tmp_path / "c" / "a.parquet")
    output = {"w_format": "csv", "output": str(tmp_path / "m")}
    with pytest.raises(ConfigurationError, match=says):
        fit(settings_of(tmp_path / "c", tmp_path / "m", corpus=corpus, output=output))
    assert not (tmp_path / "m").exists()
    fit(settings_of(tmp_path / "c", tmp_path / "m", corpus=corpus))


def test_a_zone_that_the_machine_does_not_know_is_told_in_utc(tmp_path):
    """Catches the bug (exit 1) that a filter ended as, and a CSV that failed once the fit was done."""
    (tmp_path / "c").mkdir()
    days = pa.array([i * 86_400_000_000 for i in range(N)], pa.timestamp("us", "Mars/Base"))
    pq.write_table(pa.table({"at": days, "text": TEXTS}), tmp_path / "c" / "a.parquet")
    corpus = {"id_column": None, "keep": ("at",), "where": "at >= '1970-01-11'"}
    output = {"w_format": "csv", "output": str(tmp_path / "m")}
    run = Path(fit(settings_of(tmp_path / "c", tmp_path / "m", corpus=corpus, output=output)).uri)
    assert pq.read_table(run / "W" / "part-00000.parquet")["at"].type.tz == "Mars/Base"
    csv = pd.read_csv(run / "W_csv" / "part-00000.csv")
    assert csv["at"].str[:10].tolist() == [str(date(1970, 1, 11) + timedelta(i)) for i in range(N - 10)]
