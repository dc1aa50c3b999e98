"""`nmf-dask select`: the number of topics that was planted, what is shared and staged, and what cannot be done."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import kl_div
from sklearn.metrics import silhouette_samples

from nmf_dask import Settings, TopicModel, fit, select
from nmf_dask.config import SelectSettings
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.fixed import FixedH
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.matrices import from_scipy
from nmf_dask.observer import Observer
from nmf_dask.pipeline import plan_select
from nmf_dask.pipeline.perturbed import _completed
from nmf_dask.selection import Candidate, clustered, drawn, recommended, unit_rows
from tests.corpora import corpus_folder
from tests.planted import planted_texts
from tests.small_corpora import files_of, h_bytes, run_command, settings_of, wh_bytes, write_corpus

PLANTED = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "corpus"
    return write_corpus(folder, planted_texts(PLANTED, n=800), 2, row_group_size=200)


def job(corpus: Path, output: Path, /, **sections) -> Settings:
    asked = {"candidates": [3, 5, 7], "fits": 4, **sections.pop("select", {})}
    return settings_of(corpus, output, select=asked, **sections)


@pytest.mark.slow
@pytest.mark.parametrize(("n_topics", "n", "fits"), [(7, 1000, 6), (15, 1500, 6), (30, 2000, 10)])
def test_finds_the_number_that_was_planted_in_nine_of_ten_corpora(tmp_path, n_topics, n, fits):
    """Among three numbers below it and three above; tests/benchmarks/select.py has larger corpora, and more fits."""
    tried = list(range(n_topics - 3, n_topics + 4))
    found = []
    for seed in range(10):
        texts = planted_texts(n_topics, seed, n=n)
        folder = write_corpus(tmp_path / f"c{seed}", texts, 2, row_group_size=1000)
        result = select(job(folder, tmp_path / f"m{seed}", select={"candidates": tried, "fits": fits}))
        found.append(result.n_components)
    assert sum(abs(one - n_topics) <= 1 for one in found) >= 9, found


def test_what_is_written_and_that_it_is_not_done_again(corpus, tmp_path):
    result = select(job(corpus, tmp_path / "m"))
    assert result.n_components == PLANTED
    assert "all come back" in result.reason
    table = pq.read_table(Path(result.uri) / "selection.parquet").to_pylist()
    assert [row["n_components"] for row in table] == [3, 5, 7]
    assert [row["recommended"] for row in table] == [False, True, False]
    assert table == result.told["candidates"]
    least = {row["n_components"]: row["stability_least"] for row in table}
    assert least[5] > 0.9
    assert least[7] < 0.5
    loss = [row["loss"] for row in table]
    assert loss == sorted(loss, reverse=True)
    assert min(table, key=lambda row: row["held_out_loss"])["n_components"] == PLANTED
    picture = ElementTree.parse(Path(result.uri) / "selection.svg").getroot()
    assert len(picture.findall(".//{*}circle")) == 3 * 4
    assert len(picture.findall(".//{*}line")) == 3 + 3  # where the chosen one is, and standard errors
    assert {"mean", "least stable topic"} < {one.text for one in picture.findall(".//{*}text")}
    before = files_of(tmp_path / "m")
    assert not any("_work" in name or name.startswith("runs") for name in before)
    again = select(job(corpus, tmp_path / "m"))
    assert again.finished_before
    assert again.told == result.told
    assert files_of(tmp_path / "m") == before
    Path(result.uri, "_work", "counts").mkdir(parents=True)  # as one that is killed before it ends leaves it
    Path(result.uri, "_work", "counts", "part-00000.arrow").touch()
    assert select(job(corpus, tmp_path / "m")).finished_before
    assert files_of(tmp_path / "m") == before
    fit(settings_of(corpus, tmp_path / "m"))  # the folder is a model folder


def test_held_out_loss_is_lowest_where_the_fields_are(tmp_path):
    """Abstracts of 14 fields: fewer topics say too little of a row's other terms, many more say too much."""
    settings = job(corpus_folder("arxiv-abstracts-demo"), tmp_path / "m", select={"candidates": [5, 14, 50]})
    rows = select(settings).told["candidates"]
    assert min(rows, key=lambda row: row["held_out_loss"])["n_components"] == 14
    assert all(row["held_out_loss"] < 1 for row in rows)


def test_workers_change_nothing_and_the_chosen_k_is_committed(corpus, tmp_path):
    alone = select(job(corpus, tmp_path / "a", select={"commit": True}))
    workers = {"workers": 2, "threads_per_worker": 1}
    spread = select(job(corpus, tmp_path / "b", cluster=workers))
    for one, other in zip(alone.told["candidates"], spread.told["candidates"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    # Later, from nothing staged, and by a fit of its own: the same model.
    select(job(corpus, tmp_path / "b", select={"commit": True}))
    fit(settings_of(corpus, tmp_path / "c", model={"n_components": PLANTED}))
    models = [TopicModel.load(str(tmp_path / name)) for name in "abc"]
    assert len({wh_bytes(model.uri) for model in models}) == 1
    assert models[0].n_components == PLANTED
    assert h_bytes(models[0].uri)


class Stopping(Observer):
    """Interrupts the job once seven fits are done; afterwards, sees the times of their files."""

    def __init__(self, folder: Path, stop: bool) -> None:
        self.folder, self.stop, self.name = folder, stop, ""
        self.stamps: dict[str, int] = {}

    def stage(self, name, total=None):
        self.name = name
        if name == "stability":
            self.look()

    def advance(self, done, n_bytes=0):
        if self.stop and self.name == "perturb" and done == 7:
            self.look()
            raise KeyboardInterrupt

    def look(self):
        files = sorted(self.folder.rglob("fits/k-*.arrow"))
        self.stamps = {file.name: file.stat().st_mtime_ns for file in files}


def test_an_interrupted_selection_goes_on(corpus, tmp_path):
    stopped, finished = Stopping(tmp_path, True), Stopping(tmp_path, False)
    with pytest.raises(KeyboardInterrupt):
        select(job(corpus, tmp_path / "m"), stopped)
    assert len(stopped.stamps) >= 7
    assert not list(tmp_path.rglob("selection.json"))
    result = select(job(corpus, tmp_path / "m"), finished)
    assert len(finished.stamps) == 12
    assert result.n_components == PLANTED
    kept = [name for name in stopped.stamps if finished.stamps[name] == stopped.stamps[name]]
    assert len(kept) >= 7  # one may have been being written
    assert result.told["stages"]["count"]["seconds"] == 0
    assert {**result.told["candidates"][0], "seconds": 0} == {
        **select(job(corpus, tmp_path / "other")).told["candidates"][0],
        "seconds": 0,
    }


def test_the_command(corpus, tmp_path):
    arguments = (
        "select",
        "--input",
        corpus,
        "--output",
        tmp_path / "m",
        "--n-components",
        "4:6",
        "--fits",
        3,
    )
    planned = run_command(*arguments, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "4, 5, 6: 3 fits each, 9 in all" in planned.stdout
    assert not (tmp_path / "m").exists()
    done = run_command(*arguments, "--commit", "--log-format", "json", "--workers", 2)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["recommended"] == PLANTED
    for line in done.stderr.splitlines():
        json.loads(line)
    assert TopicModel.load(str(tmp_path / "m")).n_components == PLANTED
    again = run_command(*arguments)
    assert "nothing to do" in again.stderr
    assert "5 topics: its topics all come back" in again.stdout
    for more, words in [
        (("-k", "5:50:0"), "a range is"),
        (("-k", "1,2"), "at least 2"),
        (("-k", "5,x"), "select.candidates"),
        (("--fits", 1), "at least 2"),
    ]:
        refused = run_command("select", "--input", corpus, "--output", tmp_path / "x", "-k", 5, *more)
        assert refused.returncode == 2, more
        assert words in refused.stderr


def test_what_cannot_be_done(corpus, tmp_path):
    for sections, error, words in [
        ({"select": {"candidates": []}}, ConfigurationError, "no numbers of topics"),
        ({"select": {"candidates": [5, 900]}}, InputDataError, "800 documents cannot make 900 topics"),
        (
            {"select": {"candidates": [50]}, "vectorizer": {"max_features": 20}},
            ConfigurationError,
            "raise max_features",
        ),
        ({"cluster": {"memory_limit": "100MB", "workers": 1}}, ConfigurationError, "raise --memory-limit"),
        ({"corpus": {"text_column": "txt"}}, InputDataError, "no column 'txt'"),
    ]:
        for call in (select, plan_select):
            with pytest.raises(error, match=words):
                call(job(corpus, tmp_path / "m", **sections))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("given_value", "numbers"),
    [
        ("5:20:5", (5, 10, 15, 20)),
        ("3:5", (3, 4, 5)),
        (7, (7,)),
        ([9, "2:4", 9], (2, 3, 4, 9)),
        ("5:21:5", (5, 10, 15, 20)),
    ],
)
def test_numbers_of_topics(given_value, numbers):
    assert SelectSettings(candidates=given_value).candidates == numbers


def test_a_range_that_no_memory_holds_is_refused():
    with pytest.raises(ValueError, match="10,000 numbers at most"):
        SelectSettings(candidates="5:5000000000")


@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 2**32 - 1), st.floats(0, 2))
@settings(max_examples=60, deadline=None)
def test_silhouettes_are_scikit_learns(n_fits, k, seed, noise):
    random = np.random.default_rng(seed)
    topics = random.random((k, 12))
    rows = [unit_rows(topics[random.permutation(k)] + noise * random.random((k, 12))) for _ in range(n_fits)]
    H = np.stack(rows)
    similar = np.einsum("aim,bjm->aibj", H, H)
    found = clustered(similar)
    assert all(sorted(row) == list(range(k)) for row in found.cluster.tolist())
    distance = np.maximum(1 - similar.reshape(n_fits * k, n_fits * k), 0).astype(np.float64)
    np.fill_diagonal(distance, 0)
    each = silhouette_samples(distance, found.cluster.reshape(-1), metric="precomputed")
    expected = [each[found.cluster.reshape(-1) == c].mean() for c in range(k)]
    np.testing.assert_allclose(found.silhouette, expected, atol=1e-4)
    if noise < 0.01:
        permuted = [np.argmax(H[fit] @ H[0].T, axis=1).tolist() for fit in range(n_fits)]
        assert found.cluster.tolist() == permuted


def candidate(k: int, least: float, held_out: float, error: float = 0.01) -> Candidate:
    return Candidate(k, 5, least, least, 0.9, held_out, error, 0.1, 0.5, 10.0, 1.0)


def test_recommendation():
    some = [candidate(5, 0.9, 0.95), candidate(10, 0.7, 0.90), candidate(20, 0.3, 0.895)]
    assert recommended(some, 0.5)[0] == 10
    assert "20 topics have 0.30 and 0.8950" in recommended(some, 0.5).reason
    assert recommended(some, 0.8)[0] == 5
    assert "try some" in recommended(some, 0.2).reason
    # A larger one that comes back as well, and predicts less.
    assert recommended([*some, candidate(11, 0.9, 0.92)], 0.5)[0] == 10
    assert recommended([*some, candidate(11, 0.9, 0.905)], 0.5)[0] == 11
    assert recommended(some, 0.95)[0] == 10  # within one standard error of the lowest
    unknown = [replace(one, held_out_loss=float("nan")) for one in some]
    assert recommended(unknown, 0.95)[0] == 5
    assert "its topics come back best in the mean" in recommended(unknown, 0.95).reason
    assert recommended(unknown, 0.5)[0] == 10
    assert "largest of which that is so, no held-out loss being known" in recommended(unknown, 0.5).reason
    assert "nan" not in drawn([candidate(5, 0.9, float("nan"))], 5)


def test_numbers_below_a_picture_do_not_lie_on_one_another():
    many = drawn([candidate(k, 0.9, 0.9) for k in range(2, 200)], 101)
    places = re.findall(r'x="([\d.]+)" y="(\d+)" text-anchor="middle">(\d+)<', many)
    for row in {y for _, y, _ in places}:
        assert "101" in [k for _, y, k in places if y == row]
        ends = sorted((float(x) - 3.5 * len(k), float(x) + 3.5 * len(k)) for x, y, k in places if y == row)
        assert len(ends) > 10
        assert all(one[1] < other[0] for one, other in pairwise(ends))
    few = drawn([candidate(k, 0.9, 0.9) for k in (5, 10, 15)], 10)
    assert sorted(re.findall(r'text-anchor="middle">(\d+)<', few)) == sorted(["5", "10", "15"] * 3)


def test_completion_of_rows_takes_every_second_term():
    X = np.array([[1, 2, 0, 3, 4], [0, 1, 0, 0, 0], [0, 0, 2, 5, 1], [0, 0, 0, 0, 0]], np.float32)
    H = np.array([[1, 1, 0, 1, 1], [0, 0, 1, 1, 0]], np.float32)
    fixed = FixedH.of(pad_H(H), Settings().model)
    first = np.array([[1, 0, 0, 3, 0], [0, 0, 2, 0, 1]], np.float32)
    second = np.array([[0, 2, 0, 0, 4], [0, 0, 0, 5, 0]], np.float32)
    W = fixed.weights(from_scipy(first))[:, :2]
    # What was folded in is not asked for.
    expected = np.linalg.norm(np.where(first > 0, 0, second - W @ H)) / np.linalg.norm(second)
    assert _completed(from_scipy(X), fixed) == pytest.approx(expected, rel=1e-5)
    kl = FixedH.of(pad_H(H), Settings(model={"beta_loss": "kullback-leibler"}).model)
    WH = np.maximum(kl.weights(from_scipy(first))[:, :2] @ H, 1e-8)
    due = np.where(first > 0, 0, kl_div(second, WH)).sum() / second.sum()
    assert _completed(from_scipy(X), kl) == pytest.approx(due, rel=1e-5)
