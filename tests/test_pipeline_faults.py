"""Workers and schedulers that die under a job, at every stage, for real."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from distributed import default_client

from nmf_dask import fit
from nmf_dask.observer import Observer
from nmf_dask.pipeline import fitting
from tests.dask_processes import dask_cluster
from tests.small_corpora import (
    ROOT,
    command,
    environment,
    generated_texts,
    h_bytes,
    run_command,
    settings_of,
    write_corpus,
)

TEXTS = generated_texts(400)
KL = {"beta_loss": "kullback-leibler", "max_iter": 20, "tol": 0.0}
SIZE = {"partition_bytes": 6000}
RUN = {"checkpoint_every": 6}
# A worker that imports this dies of every document that holds a certain word.
DEADLY = """
import os
import nmf_dask.pipeline.stages as stages

count = stages.count_texts

def deadly(texts, settings):
    if any("deadly" in (text or "") for text in texts.to_pylist()):
        os._exit(1)
    return count(texts, settings)

stages.count_texts = deadly
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS, 3)


@pytest.fixture(autouse=True)
def _many_tasks(monkeypatch):
    monkeypatch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
    monkeypatch.setattr(fitting, "SAMPLE_NONZEROS", 2000)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
        patch.setattr(fitting, "SAMPLE_NONZEROS", 2000)
        folder = tmp_path_factory.mktemp("undisturbed")
        return h_bytes(fit(settings_of(corpus, folder / "m", model=KL, corpus=SIZE, run=RUN)).uri)


class Killer(Observer):
    """Kills one worker each time that one of its moments comes."""

    def __init__(self, *moments: str) -> None:
        self.moments = list(moments)
        self.killed: list[int] = []
        self.warnings: list[str] = []
        self.name = ""

    def stage(self, name, total=None):
        self.name = name
        self.comes(name)

    def advance(self, done, n_bytes=0):
        self.comes(f"{self.name}:{done}")

    def passed(self, row):
        self.comes(f"pass:{row.iteration}")

    def warn(self, message, **fields):
        self.warnings.append(message)

    def comes(self, moment):
        if moment in self.moments:
            self.moments.remove(moment)
            _, pid = sorted(default_client().run(os.getpid).items())[0]
            assert pid != os.getpid()
            os.kill(pid, signal.SIGKILL)
            self.killed.append(pid)


@pytest.mark.slow
def test_own_workers_die_at_every_stage(tmp_path, corpus, undisturbed):
    killer = Killer("count:2", "weigh:2", "pass:4", "pass:15")
    settings = settings_of(corpus, tmp_path / "m", model=KL, corpus=SIZE, run=RUN, cluster={"workers": 2})
    result = fit(settings, killer)
    assert len(killer.killed) == 4
    assert h_bytes(result.uri) == undisturbed
    assert result.run["workers_lost"] == 4
    assert "4 workers were lost; their work was done again" in killer.warnings


@pytest.mark.slow
def test_workers_of_a_running_cluster_die_for_good(tmp_path, corpus, undisturbed):
    with dask_cluster(tmp_path, "--no-nanny", n_workers=4) as (file, _):
        for left, moment in ((4, "count:2"), (3, "pass:4"), (2, "write:1")):
            killer = Killer(moment)
            cluster = {"scheduler": str(file), "workers": left}
            folder = tmp_path / f"m{left}"
            result = fit(settings_of(corpus, folder, model=KL, corpus=SIZE, run=RUN, cluster=cluster), killer)
            assert len(killer.killed) == 1
            assert h_bytes(result.uri) == undisturbed
            assert result.run["workers_lost"] == 1


@pytest.mark.slow
def test_a_worker_dies_under_a_fit_of_one_task(tmp_path, corpus, monkeypatch):
    monkeypatch.undo()
    settings = settings_of(corpus, tmp_path / "a", model=KL, corpus=SIZE, run=RUN)
    quiet = fit(settings)
    cluster = {"workers": 1}
    killer = Killer("fit")
    result = fit(settings_of(corpus, tmp_path / "b", model=KL, corpus=SIZE, run=RUN, cluster=cluster), killer)
    assert len(killer.killed) == 1
    assert h_bytes(result.uri) == h_bytes(quiet.uri)
    assert result.run["workers_lost"] == 1


@pytest.mark.slow
def test_a_document_that_kills_every_worker_is_named(tmp_path, corpus):
    (tmp_path / "deadly.py").write_text(DEADLY)
    texts = [*TEXTS[:50], "a deadly document", *TEXTS[50:100]]
    bad = write_corpus(tmp_path / "c", texts, 2)
    done = run_command(
        "fit", "--input", bad, "--output", tmp_path / "m", "-k", 3, "--workers", 1,
        DASK_DISTRIBUTED__WORKER__PRELOAD=str(tmp_path / "deadly.py"),
        DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1",
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    message = next(line for line in done.stderr.splitlines() if line.startswith("nmf-dask: error: "))
    for part in (
        "partition 0",
        "part-00000.parquet, row group 0",
        "rows",
        "MiB of text",
        "2 workers died",
        "memory",
    ):
        assert part in message
    assert "Traceback" not in done.stderr
    [told] = (tmp_path / "m").glob("runs/*/run.json")
    assert json.loads(told.read_text())["workers_lost"] >= 2


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
def test_a_killed_scheduler_is_told_and_the_job_goes_on_elsewhere(tmp_path, larger):
    with dask_cluster(tmp_path) as (file, processes):
        process = started(larger, tmp_path / "m", "--scheduler", file)
        wait_for(CHECKPOINT, tmp_path / "m", process)
        begun = time.monotonic()
        processes[0].kill()
        _, log = process.communicate(timeout=100)
    assert process.returncode == 75, log
    assert time.monotonic() - begun < 60
    assert "run the same command again" in log
    assert "Traceback" not in log
    [told] = (tmp_path / "m").glob("runs/*/run.json")
    assert json.loads(told.read_text())["status"] == "failed"
    again = started(larger, tmp_path / "m")
    try:
        _, log = again.communicate(timeout=4)
    except subprocess.TimeoutExpired:
        again.terminate()
        _, log = again.communicate(timeout=60)
    assert "going on from checkpoint pass-" in log


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
