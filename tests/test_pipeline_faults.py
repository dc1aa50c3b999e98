"""Jobs and schedulers that end in the middle, for real; of workers see test_faults_workers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nmf_dask import fit
from nmf_dask.observer import Observer
from tests.dask_processes import dask_cluster
from tests.small_corpora import (
    ROOT,
    command,
    environment,
    generated_texts,
    settings_of,
    write_corpus,
)

TEXTS = generated_texts(400)
SIZE = {"partition_bytes": 6000}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS, 3)


def started(corpus: Path, model: Path, *more, **variables: str) -> "subprocess.Popen[str]":
    """A job that takes many seconds, as a process group of its own."""
    return subprocess.Popen(
        command(
            "fit", "--input", corpus, "--output", model, "-k", 40, "--beta-loss", "kullback-leibler", "--solver", "mu",
            "--max-iter", 5000, "--tol", 0, "--set", "run.checkpoint_every=1", *more,
        ),
        cwd=ROOT, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(pattern: str, folder: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("larger"), generated_texts(1500, length=60), 2)


CHECKPOINT = "runs/*/_work/checkpoints/*/state.json"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_to_the_whole_group_leaves_a_checkpoint_and_no_traceback(tmp_path, larger, number):
    process = started(larger, tmp_path / "m", "--workers", "2")
    wait_for(CHECKPOINT, tmp_path / "m", process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        os.kill(process.pid, number)
    out, log = process.communicate(timeout=60)
    assert process.returncode == 75, log
    assert "run the same command again to go on" in log
    assert "Traceback" not in log
    assert out == ""
    assert list((tmp_path / "m").glob(CHECKPOINT))
    assert not (tmp_path / "m" / "LOCK").exists()
    assert _gone(process.pid)


@pytest.mark.slow
def test_a_killed_driver_leaves_no_workers_behind(tmp_path, larger):
    process = started(larger, tmp_path / "m", "--workers", "2")
    wait_for(CHECKPOINT, tmp_path / "m", process)
    process.kill()
    process.communicate(timeout=60)
    assert _gone(process.pid)
    assert not list((tmp_path / "m").glob("runs/*/_SUCCESS"))
    assert not (tmp_path / "m" / "LATEST").exists()


def _gone(group: int) -> bool:
    """Whether all processes of the group end within some seconds."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "said"),
    [("runs/*/_work/counts/terms-*", "count: begins"), (CHECKPOINT, "going on from checkpoint pass-")],
    ids=["count", "fit"],
)
def test_a_killed_scheduler_is_told_and_the_job_goes_on_elsewhere(tmp_path, larger, moment, said):
    with dask_cluster(tmp_path) as (file, processes):
        process = started(larger, tmp_path / "m", "--scheduler", file, "--set", "corpus.partition_bytes=8000")
        wait_for(moment, tmp_path / "m", process)
        begun = time.monotonic()
        processes[0].kill()
        _, log = process.communicate(timeout=100)
    assert process.returncode == 75, log
    assert time.monotonic() - begun < 60
    assert "run the same command again" in log
    assert "Traceback" not in log
    [told] = (tmp_path / "m").glob("runs/*/run.json")
    assert json.loads(told.read_text())["status"] == "failed"
    again = started(larger, tmp_path / "m", "--set", "corpus.partition_bytes=8000")
    assert again.stderr is not None
    log = ""
    while said not in log and (line := again.stderr.readline()):
        log += line
    again.terminate()
    log += again.communicate(timeout=60)[1]
    assert said in log
    assert "Traceback" not in log


def test_partial_runs_are_never_read(tmp_path, corpus):
    seen = []

    class Reader(Observer):
        def advance(self, done, n_bytes=0):
            seen.append([path.name for path in (tmp_path / "m").glob("**/_SUCCESS")])
            seen.append([path.name for path in (tmp_path / "m").glob("LATEST")])

    result = fit(settings_of(corpus, tmp_path / "m", corpus=SIZE), Reader())
    assert len(seen) > 10
    assert not any(seen)
    assert pq.read_table(Path(result.uri, "W")).num_rows == len(TEXTS)


# A worker whose nanny ended it while it was starting: it ends again, and finds its connections closed.
ENDED_TWICE = """
import time
from nmf_dask.cluster import connected
from nmf_dask.config import ClusterSettings

async def end_without_connections(dask_worker):
    await dask_worker.rpc.close()
    dask_worker.loop.call_later(0.1, dask_worker._event_finished.set)

if __name__ == "__main__":
    with connected(ClusterSettings(workers=1)) as cluster:
        cluster.client.run(end_without_connections)
        time.sleep(1)
"""


def test_a_worker_process_that_ends_twice_prints_nothing(tmp_path):
    (tmp_path / "ended_twice.py").write_text(ENDED_TWICE)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "ended_twice.py")],
        env=environment(), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
