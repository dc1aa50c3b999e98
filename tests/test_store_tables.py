"""The files of a run, as their readers see them: pandas, Polars, DuckDB, and a plain loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.observer import Pass
from nmf_dask.store import Folder, ModelFolder, convergence_table, h_table, topics_table, w_table, weights_of
from tests.small_models import FIRST, VOCABULARY, H, W, write_run

KNOWN = np.array([True, True, False, True])
EXPECTED_TOPIC = [1, 0, None, 2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(ModelFolder(str(tmp_path)).run(FIRST))
    return tmp_path / "runs" / FIRST


def test_pandas_reads_W(run: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(run / "W")
    assert list(frame.columns) == ["doc_id", "topic", "weights"]
    assert frame["doc_id"].tolist() == ["d0", "d1", "d2", "d3"]
    assert [None if pandas.isna(one) else one for one in frame["topic"]] == EXPECTED_TOPIC
    np.testing.assert_array_equal(np.stack(frame["weights"].to_list()), W)


def test_polars_reads_W_and_H(run: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.read_parquet(run / "W" / "*.parquet")
    assert frame["topic"].to_list() == EXPECTED_TOPIC
    assert frame["topic"].dtype == polars.Int32
    np.testing.assert_array_equal(np.array(frame["weights"].to_list(), np.float32), W)
    features = polars.read_parquet(run / "H" / "*.parquet")
    assert features["term"].to_list() == ["star", "café", "quark", "gluon", "日本"]
    np.testing.assert_array_equal(np.array(features["weights"].to_list(), np.float32), H.T)


def test_duckdb_reads_W_and_topics(run: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    rows: list[Any] = duckdb.sql(f"select doc_id, topic, weights from '{run}/W/*.parquet'").fetchall()
    assert [row[1] for row in rows] == EXPECTED_TOPIC
    np.testing.assert_array_equal(np.array([row[2] for row in rows], np.float32), W)
    top = duckdb.sql(f"select term from '{run}/topics.parquet' where rank = 1 order by topic").fetchall()
    assert top == [("café",), ("star",)]


def test_columns_have_the_types_of_the_contract(run: Path) -> None:
    weights = pa.list_(pa.float32(), 3)
    assert {field.name: field.type for field in pq.read_schema(run / "W" / "part-00000.parquet")} == {
        "doc_id": pa.string(),
        "topic": pa.int32(),
        "weights": weights,
    }
    assert {field.name: field.type for field in pq.read_schema(run / "H" / "part-00001.parquet")} == {
        "feature": pa.int32(),
        "bucket": pa.int64(),
        "term": pa.string(),
        "document_frequency": pa.int64(),
        "idf": pa.float64(),
        "term_share": pa.float32(),
        "weights": weights,
    }
    convergence = pq.read_table(run / "convergence.parquet")
    assert convergence.schema.types == [pa.int32(), pa.float64(), pa.float64(), pa.int32()]
    assert convergence["reconstruction_err"].to_pylist() == [2.0, 1.5]
    assert (
        pq.ParquetFile(run / "W" / "part-00000.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    )


@pytest.mark.parametrize("ids", [pa.array([1, 2, 3, 4], pa.uint16()), pa.array([b"1"] * 4, pa.binary())])
def test_ids_keep_their_name_and_type(ids: pa.Array) -> None:
    table = w_table(pa.chunked_array([ids[:1], ids[1:]]), "key", W, KNOWN)
    assert table.schema.field("key").type == ids.type
    assert table["key"].to_pylist() == ids.to_pylist()


@pytest.mark.parametrize("name", ["topic", "weights"])
def test_id_column_of_a_taken_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"named {name}.*rename it"):
        w_table(pa.array([1, 2, 3, 4]), name, W, KNOWN)


def test_W_of_no_documents_and_of_a_padded_slice() -> None:
    empty = w_table(pa.array([], pa.int64()), "doc_id", np.zeros((0, 3), np.float32), np.zeros(0, bool))
    assert weights_of(empty, 3).shape == (0, 3)
    padded = np.pad(W, ((0, 0), (0, 5)))[:, :3]
    np.testing.assert_array_equal(weights_of(w_table(pa.array(range(4)), "i", padded, KNOWN), 3), W)


def test_all_zero_weights_have_no_largest() -> None:
    table = w_table(pa.array([1, 2]), "i", np.array([[0, 0], [0, 1]], np.float32), np.array([True, True]))
    assert table["topic"].to_pylist() == [None, 1]


def test_lengths_that_differ_are_a_bug() -> None:
    with pytest.raises(ValueError, match="4 rows, 3 ids"):
        w_table(pa.array([1, 2, 3]), "i", W, KNOWN)
    with pytest.raises(ValueError, match="4 columns"):
        h_table(VOCABULARY, H[:, :4])


@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_topics_are_the_largest_weights_in_order(n: int) -> None:
    random = np.random.default_rng(0).integers(0, 4, (6, 5)).astype(np.float32)
    expected = []
    for topic, row in enumerate(random):
        best = sorted(range(5), key=lambda j, row=row: (-row[j], j))[:n]
        expected += [
            (topic, r, VOCABULARY.term[j].as_py(), row[j]) for r, j in enumerate(best, 1) if row[j] > 0
        ]
    rows = topics_table(VOCABULARY, random, n).to_pylist()
    assert [tuple(row.values()) for row in rows] == expected


def test_row_groups_are_neither_tiny_nor_huge(tmp_path: Path) -> None:
    n, k = 30_000, 1000
    ids = pa.array(np.arange(n))
    file = Folder(str(tmp_path / "w"))
    file.write_parquet(w_table(ids, "i", np.zeros((n, k), np.float32), np.ones(n, bool)))
    meta = pq.ParquetFile(file.path).metadata
    sizes = [meta.row_group(g).num_rows * k * 4 for g in range(meta.num_row_groups)]
    assert len(sizes) == 4
    assert max(sizes) < 40 * 2**20
    file.write_parquet(convergence_table([Pass(i, 1.0, 1.0, 1) for i in range(n)]))
    assert pq.ParquetFile(file.path).metadata.num_row_groups == 1


def test_column_that_is_absent_is_named(run: Path) -> None:
    part = Folder(str(run / "W" / "part-00000.parquet"))
    assert part.read_parquet(["topic"]).column_names == ["topic"]
    with pytest.raises(InputDataError, match="no column label; its columns are doc_id, topic, weights"):
        part.read_parquet(["label"])


def test_part_cut_at_any_place_is_damaged(run: Path) -> None:
    part = run / "W" / "part-00000.parquet"
    whole = part.read_bytes()
    for length in range(0, len(whole), 7):
        part.write_bytes(whole[:length])
        with pytest.raises(InputDataError, match=r"cannot read .*part-00000\.parquet: it is damaged"):
            Folder(str(part)).read_parquet()


def test_run_json_holds_numbers_and_nulls_that_any_reader_takes(tmp_path: Path) -> None:
    import json

    file = Folder(str(tmp_path / "run.json"))
    file.write_json({"a": np.float32(0.5), "b": np.arange(2), "c": (np.nan, float("inf")), "d": {1: "日"}})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    told = json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)
    assert told == {"a": 0.5, "b": [0, 1], "c": [None, None], "d": {"1": "日"}}
