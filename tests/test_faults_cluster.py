"""Workers that never come, and workers that are all gone: exit 75 when the time is up, and the same command goes on."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.dask_processes import dask_cluster
from tests.faulty_command import Driver, checkpoints, slow_pass
from tests.small_corpora import generated_texts, run_command, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), generated_texts(800), 3)


@pytest.mark.slow
def test_workers_that_never_come(tmp_path, corpus):
    with dask_cluster(tmp_path, n_workers=0) as (file, _):
        done = run_command(
            "fit", "--input", corpus, "--output", tmp_path / "m", "-k", 4, "--scheduler", file, "--workers-timeout", 3
        )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert "0 of 1 workers" in done.stderr
    assert "--workers-timeout" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_all_workers_die_for_good(tmp_path, corpus):
    begun, variables = slow_pass(tmp_path)
    arguments = (
        "fit", "--input", corpus, "--output", tmp_path / "m", "-k", 6, "--beta-loss", "kullback-leibler",
        "--max-iter", 12, "--tol", 0, "--set", "corpus.partition_bytes=20000", "--set", "run.checkpoint_every=2",
    )  # fmt: skip
    with dask_cluster(tmp_path, "--no-nanny", **variables) as (file, processes):
        driver = Driver("many", *arguments, "--scheduler", file, "--workers-timeout", 3, **variables)
        assert driver.until(begun)
        for worker in processes[1:]:
            os.killpg(worker.pid, signal.SIGKILL)
        begun_at = time.monotonic()
        _, log = driver.process.communicate(timeout=100)
        assert driver.process.returncode == 75, log
        assert time.monotonic() - begun_at < 60
    assert "no other came within 3 s (--workers-timeout)" in log
    assert "run the same command again" in log
    assert "Traceback" not in log
    assert checkpoints(tmp_path / "m") == ["pass-00004"]
    assert "going on from checkpoint pass-00004" in Driver("many", *arguments).done()
