"""What a job needs of disk: no more than its plan says, in the folders that settings name, and nothing afterwards."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from nmf_dask import Settings, fit
from nmf_dask.observer import Observer
from nmf_dask.pipeline import plan
from nmf_dask.pipeline.fitting import problem
from nmf_dask.pipeline.spilling import expected_spill
from tests.corpora import corpus_folder
from tests.small_corpora import generated_texts, settings_of, wh_bytes, write_corpus

KL = {"beta_loss": "kullback-leibler", "max_iter": 8, "tol": 0.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), generated_texts(400), 3)


def bytes_below(folder: Path) -> int:
    found = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # files go meanwhile
                found += os.path.getsize(os.path.join(where, name))
    return found


class Peak(Observer):
    """The most bytes that were below some folder when something got done."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self.folder = folder
        self.n_bytes = 0

    def stage(self, name, total=None):
        self.look()

    def advance(self, done, n_bytes=0):
        self.look()

    def passed(self, row):
        self.look()

    def look(self):
        self.n_bytes = max(self.n_bytes, bytes_below(self.folder()))


@pytest.mark.parametrize("one_task", [True, False])
def test_staging_takes_no_more_than_the_plan_says(tmp_path, monkeypatch, one_task):
    if not one_task:
        monkeypatch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
        monkeypatch.setattr(problem, "SAMPLE_NONZEROS", 50_000)
    settings = settings_of(
        corpus_folder("arxiv-abstracts-demo"), tmp_path / "m", model={"n_components": 20, **KL},
        vectorizer={"max_features": 5000},
        run={"scratch": str(tmp_path / "s"), "checkpoint_every": 3},
    )  # fmt: skip
    planned = plan(settings)
    peak = Peak(lambda: tmp_path / "s")
    fit(settings, peak)
    print(f"{peak.n_bytes:,} of {planned.expected_staging:,}")
    assert peak.n_bytes <= planned.expected_staging <= 5 * peak.n_bytes
    assert list((tmp_path / "s").iterdir()) == []


def test_results_that_are_not_held_wait_below_the_scratch_folder(tmp_path, corpus, monkeypatch):
    """Catches W on a disk that nobody named, and files that stay."""
    expected = wh_bytes(fit(settings_of(corpus, tmp_path / "a", model=KL)).uri)
    for place in ("nmf_dask.cluster.own.held_bytes", "nmf_dask.pipeline.spilling.held_bytes"):
        monkeypatch.setattr(place, lambda limit: 1000.0)
    monkeypatch.setattr(sys.modules["nmf_dask.pipeline.fit"], "is_small", lambda *_: False)
    settings = settings_of(corpus, tmp_path / "m", model=KL, run={"scratch": str(tmp_path / "s")})
    planned = plan(settings)
    assert planned.spill == str(tmp_path / "s" / planned.run_id / "spill")
    assert any(line.startswith("spilling ") and planned.spill in line for line in planned.lines())
    stale = tmp_path / "s" / planned.run_id / "spill" / "of-a-killed-worker"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(bytes(1000))
    peak = Peak(lambda: Path(planned.spill))
    assert wh_bytes(fit(settings, peak).uri) == expected
    assert peak.n_bytes > 400 * 8 * 4  # W, padded
    assert list((tmp_path / "s").iterdir()) == []


def test_what_is_spilled_is_reckoned_with_where_memory_does_not_hold_it():
    settings = Settings(model={"n_components": 50}, cluster={"workers": 2, "memory_limit": "2GiB"})
    assert expected_spill(settings, 1_000) == 0
    assert expected_spill(settings, 100_000_000) >= 3 * 100_000_000 * 50 * 4
    elsewhere = Settings(cluster={"scheduler": "tcp://somewhere:8786"})
    assert expected_spill(elsewhere, 100_000_000) == 0
