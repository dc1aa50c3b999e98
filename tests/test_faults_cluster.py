"""Workers that never come or are all gone, a scheduler that dies: exit 75 in time, and the same command goes on."""

import os
import re
import signal
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import nmf_dask.cluster.existing
import nmf_dask.cluster.followed
from nmf_dask import TopicModel, fit
from nmf_dask.cli import main
from nmf_dask.cluster import DaskCluster
from nmf_dask.distributed import DaskTasks
from nmf_dask.errors import InputDataError, RetryableError
from nmf_dask.observer import Observer
from tests.dask_processes import dask_cluster
from tests.faulty_command import Driver, checkpoints, slow_pass
from tests.networks import network
from tests.small_corpora import files_of, generated_texts, run_command, settings_of, write_corpus

# A worker that preloads this writes one part of W; the next takes ten minutes, and has half of itself on the disk.
STUCK = """
import time
from nmf_dask.pipeline.stages import WriteTasks

def stuck(self, partition, *more, write=WriteTasks.write, written=[]):
    if written:
        with self.run.w_part(partition.index).writing() as part:
            part.write(b"PAR1 and so on")
            part.flush()
            time.sleep(600)
    written.append(partition)
    return write(self, partition, *more)

if WriteTasks.write.__name__ != "stuck":  # a process of many parts preloads it more than once
    WriteTasks.write = stuck
"""


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


def test_the_scheduler_dies_while_the_job_waits_for_workers(tmp_path, corpus, monkeypatch):
    """Catches five minutes of waiting for workers of a scheduler that is gone, and a word that does not say so."""
    monkeypatch.setattr(nmf_dask.cluster.existing, "CONNECT_SECONDS", 3)
    with dask_cluster(tmp_path, n_workers=0) as (file, processes):

        class Kills(Observer):
            def connecting(self, scheduler):
                threading.Timer(4, processes[0].kill).start()

        while not file.exists():
            time.sleep(0.1)
        begun = time.monotonic()
        with pytest.raises(
            RetryableError, match=r"the scheduler went away while .* run the same command again"
        ):
            fit(settings_of(corpus, tmp_path / "m", cluster={"scheduler": str(file)}), Kills())
        assert time.monotonic() - begun < 60


def job(corpus: Path, model: Path) -> tuple[Any, ...]:
    """A fit of 12 passes, with a checkpoint after every second."""
    return (
        "fit", "--input", corpus, "--output", model, "-k", 6, "--beta-loss", "kullback-leibler",
        "--max-iter", 12, "--tol", 0, "--set", "corpus.partition_bytes=20000", "--set", "run.checkpoint_every=2",
    )  # fmt: skip


@pytest.mark.slow
def test_the_driver_is_cut_off(tmp_path, corpus):
    """Catches a job that waits for ever for a scheduler that does not hear it any more."""
    begun, variables = slow_pass(tmp_path)
    with (
        network() as cable,
        dask_cluster(tmp_path, "--no-nanny", host=cable.outside, **variables) as (file, _),
    ):
        soon = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"}
        arguments = job(corpus, tmp_path / "m")
        driver = Driver("many", *arguments, "--scheduler", file, within=cable.within, **variables, **soon)
        assert driver.until(begun)
        cable.cut()
        cut_at = time.monotonic()
        _, log = driver.process.communicate(timeout=100)
        assert driver.process.returncode == 75, log
        assert time.monotonic() - cut_at < 60
    assert "the cluster went away" in log
    assert "run the same command again" in log
    assert "Traceback" not in log
    assert checkpoints(tmp_path / "m") == ["pass-00004"]
    assert "going on from checkpoint pass-00004" in Driver("many", *arguments).done()


@pytest.mark.parametrize("asked", ["run.performance_report=r.html", "cluster.workers=1"])
def test_own_workers_that_do_not_start(tmp_path, corpus, monkeypatch, capsys, asked):
    """As on a machine that is so busy that Dask's own time is up: no bug, and worth another try."""

    async def too_late(self):
        raise OSError("timed out after 30 s")

    for kind in ("OwnThreads", "OwnNanny"):
        monkeypatch.setattr(f"nmf_dask.cluster.own.{kind}.start_unsafe", too_late)
    assert (
        main(["fit", "--input", str(corpus), "--output", str(tmp_path / "m"), "-k", "4", "--set", asked])
        == 75
    )
    err = capsys.readouterr().err
    assert "the job's own workers did not start (timed out after 30 s)" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_all_workers_die_for_good(tmp_path, corpus):
    begun, variables = slow_pass(tmp_path)
    arguments = job(corpus, tmp_path / "m")
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
    assert "was done again" not in log
    assert "run the same command again" in log
    assert "Traceback" not in log
    assert checkpoints(tmp_path / "m") == ["pass-00004"]
    assert "going on from checkpoint pass-00004" in Driver("many", *arguments).done()


class NoClient:
    """Of a cluster with one worker, of which a test tells."""

    def __init__(self) -> None:
        self.hear: Any = None
        self.closed = threading.Event()

    def subscribe_topic(self, topic: str, handler: Any) -> None:
        self.hear = handler

    def unsubscribe_topic(self, topic: str) -> None:
        pass

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": {"a": {"nthreads": 1}}}

    def close(self, timeout: float) -> None:
        self.closed.set()


class Words(Observer):
    def __init__(self) -> None:
        self.said: SimpleQueue[str] = SimpleQueue()

    def warn(self, message, **fields):
        self.said.put(message)

    inform = warn


@pytest.mark.parametrize("ending", ["another comes", "the job ends", "nobody comes"])
def test_a_job_without_workers_says_what_it_waits_for(monkeypatch, ending):
    """Catches minutes of silence, words of nannies that do their work, and a job that is given up with workers."""
    monkeypatch.setattr(nmf_dask.cluster.followed, "NURSED_SECONDS", 0.2)
    client, words = NoClient(), Words()
    seconds = 1.2 if ending == "nobody comes" else 60.0
    cluster = DaskCluster(client, DaskTasks(client, 1), 0, None, workers_timeout=seconds)  # type: ignore[arg-type]
    cluster.introduce(words)

    def tell(action: str, worker: str) -> None:
        client.hear((0.0, {"action": action, "worker": worker}))

    tell("remove-worker", "a")
    tell("add-worker", "b")  # by a nanny, at once
    tell("remove-worker", "b")
    said = words.said.get(timeout=10)
    assert re.fullmatch(
        r"no worker is there any more; waiting for another \d+ s at most \(--workers-timeout\)", said
    )
    if ending == "another comes":
        tell("add-worker", "c")
        assert words.said.get(timeout=10) == "a worker is there again; going on"
        assert not client.closed.wait(0.5)
    elif ending == "nobody comes":
        assert client.closed.wait(10)
        assert "no other came within 1 s" in (cluster.tasks.why_lost or "")
    cluster.close()
    assert ending == "nobody comes" or not client.closed.wait(0.5)
    assert words.said.empty()


@pytest.mark.slow
def test_the_scheduler_dies_while_the_job_writes(tmp_path, corpus):
    """Catches parts of W that are taken for a model, and a second attempt that keeps what the first left."""
    preload = tmp_path / "stuck.py"
    preload.write_text(STUCK)

    def arguments(model: str) -> list[object]:
        return [
            "fit", "--input", corpus, "--output", tmp_path / model, "-k", 6, "--id-column", "doc_id", "--max-iter", 7,
            "--tol", 0, "--set", "corpus.partition_bytes=8000", "--set", "run.checkpoint_every=3",
        ]  # fmt: skip

    def results(model: str) -> dict[str, bytes]:
        [run] = (tmp_path / model / "runs").iterdir()
        return {
            name: content
            for name, content in files_of(run).items()
            if name.startswith(("W/", "H/", "topics"))
        }

    def ends(model: str) -> set[bytes]:
        return {part.read_bytes()[-4:] for part in (tmp_path / model).glob("runs/*/W/part-*")}

    first = tmp_path / "first"
    first.mkdir()
    with dask_cluster(first, DASK_DISTRIBUTED__WORKER__PRELOAD=str(preload)) as (file, processes):
        driver = Driver("many", *arguments("m"), "--scheduler", file)
        assert driver.until(lambda: ends("m") == {b"PAR1", b"o on"})
        begun = time.monotonic()
        processes[0].kill()
        _, log = driver.process.communicate(timeout=100)
        took = time.monotonic() - begun
    assert driver.process.returncode == 75, log
    assert took < 60
    assert "run the same command again" in log
    assert "Traceback" not in log
    with pytest.raises(InputDataError):
        TopicModel.load(str(tmp_path / "m"))
    assert ends("m") == {b"PAR1", b"o on"}
    second = tmp_path / "second"
    second.mkdir()
    with dask_cluster(second) as (file, _):
        log = Driver("many", *arguments("m"), "--scheduler", file).done()
    assert "going on from checkpoint pass-00006" in log
    Driver("many", *arguments("undisturbed")).done()
    assert results("m") == results("undisturbed")
    assert TopicModel.load(str(tmp_path / "m")).n_components == 6
