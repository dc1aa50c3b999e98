"""Many small partitions: they are counted, weighed and fitted in groups, and each has its own file of W."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nmf_dask import TopicModel, fit
from nmf_dask.corpus import open_corpus
from nmf_dask.observer import Observer
from nmf_dask.pipeline.planning import grouped
from tests.small_corpora import generated_texts, settings_of, wh_bytes, write_corpus

SMALL = {"partition_bytes": 200}
MODEL = {"max_iter": 8, "tol": 0.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), generated_texts(400), 3)


def job(corpus: Path, folder: Path, **sections):
    return settings_of(corpus, folder / "m", corpus=SMALL, **{"model": MODEL, **sections})


@pytest.fixture(scope="module")
def result(tmp_path_factory, corpus):
    return fit(job(corpus, tmp_path_factory.mktemp("out")))


class Heard(Observer):
    """What a display would show of the stages."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int | None]] = []
        self.done: dict[str, int] = {}

    def stage(self, name: str, total: int | None = None) -> None:
        self.told.append((name, total))

    def advance(self, done: int, n_bytes: int = 0) -> None:
        self.done[self.told[-1][0]] = done


def test_each_partition_has_its_file_of_w_in_the_order_of_the_corpus(result, corpus, tmp_path):
    settings = job(corpus, tmp_path)
    opened = open_corpus(settings.corpus)
    groups = grouped(opened, settings.vectorizer)
    assert len(groups) < len(opened.partitions) / 2
    files = sorted(Path(result.uri).glob("W/*.parquet"))
    assert [pq.read_metadata(file).num_rows for file in files] == [one.n_rows for one in opened.partitions]
    ids = [one for file in files for one in pq.read_table(file)["doc_id"].to_pylist()]
    assert ids == pq.read_table(corpus)["doc_id"].to_pylist()


def test_rows_are_those_of_their_documents(result, corpus, tmp_path):
    """As a transform has them, which knows nothing of groups."""
    model = TopicModel.load(result.uri)
    texts = pq.read_table(corpus)["text"]
    expected = model.transform(texts)
    found = pq.read_table(Path(result.uri) / "W")["weights"].to_pylist()
    assert [[pytest.approx(weight, abs=1e-4) for weight in row] for row in expected.tolist()] == found


@pytest.mark.parametrize("cluster", [{"threads_per_worker": 1}, {"workers": 2, "threads_per_worker": 1}])
def test_the_same_bytes_whoever_runs_it(result, corpus, tmp_path, cluster):
    heard = Heard()
    assert wh_bytes(fit(job(corpus, tmp_path, cluster=cluster), heard).uri) == wh_bytes(result.uri)
    n_partitions = result.run["input"]["n_partitions"]
    for stage in ("count", "weigh", "write"):
        assert (stage, n_partitions) in heard.told
        assert heard.done[stage] == n_partitions


class Stopped(Observer):
    """A job that is stopped in the middle of its passes."""

    def passed(self, row) -> None:
        if row.iteration >= 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("ungrouped", [False, True])
def test_a_stopped_job_goes_on_but_not_from_other_groups(result, corpus, tmp_path, monkeypatch, ungrouped):
    monkeypatch.setattr("nmf_dask.pipeline.fitting.one_task.TURN_SECONDS", 0.0)
    settings = job(corpus, tmp_path, run={"checkpoint_every": 1})
    with monkeypatch.context() as patch:
        if ungrouped:
            patch.setattr("nmf_dask.corpus.partitions.MOST_GROUPED", 1)
        with pytest.raises(KeyboardInterrupt):
            fit(settings, Stopped())
    [work] = tmp_path.glob("m/runs/*/_work")
    assert any((work / "checkpoints").iterdir())
    if ungrouped:  # an earlier version did not tell
        told = json.loads((work / "counted.json").read_text())
        del told["n_blocks"]
        (work / "counted.json").write_text(json.dumps(told))
    again = fit(settings)
    assert (again.run["resumed_from"] or "").startswith("pass") != ungrouped
    assert wh_bytes(again.uri) == wh_bytes(result.uri)
