"""What a run leaves: files, schemas, run.json; and that others can read them."""

import json
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmf_dask import TopicModel, fit
from nmf_dask.errors import ConfigurationError
from nmf_dask.observer import Observer
from nmf_dask.pipeline import plan
from nmf_dask.pipeline.fitting import problem
from nmf_dask.store import Folder
from tests.corpora import corpus_folder
from tests.small_corpora import files_of, generated_texts, settings_of, w_table_of, wh_bytes, write_corpus

TEXTS = [*generated_texts(200), "", None, "unheard"]
WEIGHTS = pa.list_(pa.field("item", pa.float32()), 5)
KEYS = {
    "format_version", "run_id", "status", "config", "versions", "input", "n_documents", "n_empty_documents",
    "n_features", "nnz", "n_iter", "stop_reason", "reconstruction_err", "collision_rate", "dead_topics", "stages",
    "peak_memory", "workers_lost", "resumed_from",
}  # fmt: skip
STAGES = ["plan", "count", "select", "weigh", "init", "fit", "write"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS, 3)


@pytest.fixture(scope="module")
def result(tmp_path_factory, corpus):
    settings = settings_of(
        corpus,
        tmp_path_factory.mktemp("out") / "m",
        corpus={"partition_bytes": 6000},
        output={"n_top_terms": 4},
    )
    return fit(settings)


def types_of(file: Path) -> dict[str, pa.DataType]:
    schema = pq.read_schema(file)
    return dict(zip(schema.names, schema.types, strict=True))


def test_folder_holds_the_files_of_the_contract_and_no_others(result):
    model = Path(result.uri).parents[1]
    assert (model / "LATEST").read_text() == f"{result.run_id}\n"
    names = {name.split("/", 2)[-1] for name in files_of(model)} - {"LATEST"}
    parts = {name for name in names if name.startswith("W/")}
    assert parts == {f"W/part-{i:05d}.parquet" for i in range(result.run["input"]["n_partitions"])}
    assert len(parts) >= 3
    assert names - parts == {
        "H/part-00000.parquet", "topics.parquet", "convergence.parquet", "manifest.json", "run.json", "_SUCCESS",
        "history/terms.parquet", "history/features.parquet", "history/topics.parquet", "history/inputs.parquet",
        "history/numbers.json",
    }  # fmt: skip


def test_schemas(result):
    folder = Path(result.uri)
    assert types_of(folder / "W" / "part-00001.parquet") == {
        "doc_id": pa.string(), "topic": pa.int32(), "weights": WEIGHTS,
    }  # fmt: skip
    assert types_of(folder / "H" / "part-00000.parquet") == {
        "feature": pa.int32(), "bucket": pa.int64(), "term": pa.string(), "document_frequency": pa.int64(),
        "idf": pa.float64(), "term_share": pa.float32(), "weights": WEIGHTS,
    }  # fmt: skip
    assert types_of(folder / "topics.parquet") == {
        "topic": pa.int32(), "rank": pa.int32(), "term": pa.string(), "weight": pa.float32(),
    }  # fmt: skip
    assert types_of(folder / "convergence.parquet") == {
        "iteration": pa.int32(), "reconstruction_err": pa.float64(), "seconds": pa.float64(), "rounds": pa.int32(),
    }  # fmt: skip


def test_topic_is_the_largest_weight_and_null_without_known_terms(result):
    W = w_table_of(result.uri)
    weights = np.array(W["weights"].to_pylist())
    topic = W["topic"].to_pylist()
    assert topic[-3:] == [None, None, None]
    assert not weights[-3:].any()
    assert topic[:-3] == weights[:-3].argmax(axis=1).tolist()


def test_topics_are_the_top_of_H(result):
    H = pq.read_table(Path(result.uri, "H")).to_pandas()
    weights = np.stack(H["weights"].tolist())
    topics = pq.read_table(Path(result.uri, "topics.parquet")).to_pandas()
    for topic, rows in topics.groupby("topic"):
        largest = np.sort(weights[:, topic])[::-1][:4]
        assert rows["rank"].tolist() == [1, 2, 3, 4]
        np.testing.assert_array_equal(rows["weight"], largest)
        by_term = dict(zip(H["term"], weights[:, topic], strict=True))
        assert [by_term[term] for term in rows["term"]] == rows["weight"].tolist()
    assert topics["topic"].nunique() == 5


def test_run_json_tells_everything(result):
    run = json.loads(Path(result.uri, "run.json").read_text())
    assert set(run) >= KEYS
    assert run["status"] == "done"
    assert run["n_documents"] == len(TEXTS)
    assert run["n_empty_documents"] == 3
    assert run["n_null_texts"] == 1
    assert list(run["stages"]) == STAGES
    for stage in run["stages"].values():
        assert stage["seconds"] > 0
    assert run["stages"]["count"]["bytes"] == run["input"]["text_bytes"] > 1000
    assert run["peak_memory"]["driver"] > 50 * 2**20
    assert run["workers_lost"] == 0
    assert run["resumed_from"] is None
    assert run["nnz"] > 1000
    assert sum(topic["n_documents"] for topic in run["topics"]) == len(TEXTS) - 3
    assert sum(topic["share"] for topic in run["topics"]) == pytest.approx(1)


def test_row_numbers_where_there_is_no_id_column(tmp_path, corpus):
    settings = settings_of(corpus, tmp_path / "m", corpus={"id_column": None, "partition_bytes": 6000})
    W = w_table_of(fit(settings).uri)
    assert W.schema.field("doc_id").type == pa.int64()
    assert W["doc_id"].to_pylist() == list(range(len(TEXTS)))


@pytest.mark.parametrize(
    "kind", [pa.int32(), pa.large_string(), pa.timestamp("us"), pa.dictionary(pa.int32(), pa.string())]
)
def test_ids_keep_their_name_and_type(tmp_path, kind):
    texts = generated_texts(40)
    ids = pa.array(range(40), pa.int64() if pa.types.is_timestamp(kind) else pa.int32())
    if not pa.types.is_integer(kind):
        ids = ids.cast(kind) if pa.types.is_timestamp(kind) else ids.cast(pa.string()).cast(kind)
    tmp_path.joinpath("c").mkdir()
    pq.write_table(pa.table({"Nummer ä": ids, "text": texts}), tmp_path / "c" / "a.parquet")
    settings = settings_of(
        tmp_path / "c", tmp_path / "m", corpus={"id_column": "Nummer ä"}, model={"n_components": 2}
    )
    W = w_table_of(fit(settings).uri)
    assert W.column_names[0] == "Nummer ä"
    assert W["Nummer ä"].type == (pa.string() if pa.types.is_dictionary(kind) else kind)
    assert [str(one) for one in W["Nummer ä"].to_pylist()] == [str(one) for one in ids.to_pylist()]


def test_pandas_polars_and_duckdb_read_them(result):
    folder = Path(result.uri)
    ours = w_table_of(folder).to_pylist()
    by_pandas = pd.read_parquet(folder / "W")
    assert by_pandas["weights"].map(list).tolist() == [row["weights"] for row in ours]
    by_polars = pl.read_parquet(folder / "W" / "*.parquet")
    assert by_polars["weights"].to_list() == [row["weights"] for row in ours]
    assert by_polars["topic"].to_list() == [row["topic"] for row in ours]
    query = f"select doc_id, topic, weights from read_parquet('{folder}/W/*.parquet') order by doc_id"
    assert [row[1] for row in duckdb.sql(query).fetchall()] == [row["topic"] for row in ours]
    for name in ("H/part-00000.parquet", "topics.parquet", "convergence.parquet"):
        rows = pq.read_table(folder / name).num_rows
        assert len(pd.read_parquet(folder / name)) == len(pl.read_parquet(folder / name)) == rows
        assert duckdb.sql(f"select count(*) from '{folder}/{name}'").fetchall() == [(rows,)]


def test_stop_words_of_a_file_travel_with_the_model(tmp_path, corpus):
    words = tmp_path / "stop.txt"
    words.write_text("w001\nw002\n")
    by_file = fit(settings_of(corpus, tmp_path / "a", vectorizer={"stop_words": str(words)}))
    by_list = fit(settings_of(corpus, tmp_path / "b", vectorizer={"stop_words": ("w001", "w002")}))
    words.unlink()
    assert by_file.run_id == by_list.run_id
    assert by_file.run["config"]["vectorizer"]["stop_words"] == ["w001", "w002"]
    terms = pq.read_table(Path(by_file.uri, "H"))["term"].to_pylist()
    assert not {"w001", "w002"} & set(terms)
    W = TopicModel.load(by_file.uri).transform(TEXTS[:20])
    assert W.argmax(axis=1).tolist() == w_table_of(by_file.uri)["topic"].to_pylist()[:20]


def test_scratch_is_used_and_left_empty(tmp_path, corpus):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    result = fit(settings_of(corpus, tmp_path / "m", run={"scratch": str(scratch)}))
    assert result.run["status"] == "done"
    assert list(scratch.iterdir()) == []


class Listing(Observer):
    """After each pass, before a checkpoint: the files that passes left."""

    def __init__(self, scratch: str) -> None:
        self.scratch = Folder(scratch)
        self.found: list[set[str]] = []

    def passed(self, row):
        [run] = self.scratch.list()
        self.found.append(set((self.scratch / run / "passes").list()))


@pytest.mark.parametrize("scheme", ["disk", "s3"])
def test_H_of_passes_is_in_files_until_the_next_checkpoint(
    tmp_path, corpus, monkeypatch, scheme, request: pytest.FixtureRequest
):
    """Catches files that pile up, or go while something hangs on them, on a disk and in an object store."""
    monkeypatch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
    monkeypatch.setattr(problem, "SAMPLE_NONZEROS", 2000)
    scratch = str(tmp_path / "scratch")
    if scheme == "s3":
        request.getfixturevalue("empty_bucket")("passes")
        scratch = "s3://passes/scratch"
    model = {"max_iter": 8, "tol": 0.0}
    listing = Listing(scratch)
    staged = fit(
        settings_of(corpus, tmp_path / "m", model=model, run={"scratch": scratch, "checkpoint_every": 3}),
        listing,
    )
    assert [len(names) for names in listing.found][:3] == [2, 3, 4]  # of the start, and of each pass
    for before, after in pairwise(listing.found[2::3]):
        assert before.isdisjoint(after)
    assert all(len(names) >= 1 for names in listing.found)
    assert Folder(scratch).list() == ()
    assert wh_bytes(staged.uri) == wh_bytes(fit(settings_of(corpus, tmp_path / "n", model=model)).uri)


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("20newsgroups", {}),
        ("arxiv-abstracts-demo", {"vectorizer": {"ngram_range": (1, 2)}, "model": {"n_components": 30}}),
        ("udhr-articles", {"vectorizer": {"analyzer": "char_wb", "ngram_range": (2, 3)}}),
    ],
)
def test_memory_stays_below_what_the_plan_says(tmp_path, name, sections):
    corpus = corpus_folder(name)
    settings = settings_of(corpus, tmp_path / "m", cluster={"workers": 1}, **sections)
    expected = plan(settings)
    peak = fit(settings).run["peak_memory"]
    assert peak["largest_worker"] <= expected.expected_worker <= 2.5 * peak["largest_worker"]


def test_a_job_that_cannot_fit_is_refused_before_it_starts(tmp_path, corpus):
    settings = settings_of(corpus, tmp_path / "m", cluster={"workers": 1, "memory_limit": "200MiB"})
    for refused in (plan, fit):
        with pytest.raises(ConfigurationError, match=r"needs about .* MiB and may use 200\.0 MiB"):
            refused(settings)
    assert not (tmp_path / "m").exists()
