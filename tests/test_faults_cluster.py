"""Workers that never come or are all gone, a scheduler that dies: exit 75 in time, and the same command goes on."""

import os
import signal
import time
from pathlib import Path

import pytest

from nmf_dask import TopicModel
from nmf_dask.cli import main
from nmf_dask.errors import InputDataError
from tests.dask_processes import dask_cluster
from tests.faulty_command import Driver, checkpoints, slow_pass
from tests.small_corpora import files_of, generated_texts, run_command, write_corpus

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


@pytest.mark.parametrize("workers", [(), ("--workers", "1")])
def test_own_workers_that_do_not_start(tmp_path, corpus, monkeypatch, capsys, workers):
    """As on a machine that is so busy that Dask's own time is up: no bug, and worth another try."""

    async def too_late(self):
        raise OSError("timed out after 30 s")

    for kind in ("OwnThreads", "OwnNanny"):
        monkeypatch.setattr(f"nmf_dask.cluster.{kind}.start_unsafe", too_late)
    assert main(["fit", "--input", str(corpus), "--output", str(tmp_path / "m"), "-k", "4", *workers]) == 75
    err = capsys.readouterr().err
    assert "the job's own workers did not start (timed out after 30 s)" in err
    assert "Traceback" not in err


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
