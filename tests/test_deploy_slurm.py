"""deploy/slurm on a real SLURM of two nodes: the files as they stand, with the lines changed that a user changes."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployed import copied
from tests.faulty_command import FAST_PASSES, Driver, checkpoints, slow_pass
from tests.slurm_processes import OVER, Slurm, slurm_processes
from tests.small_corpora import generated_texts, wh_bytes, write_corpus

pytestmark = pytest.mark.slow

SMALL = ("--ntasks=3", "--mem-per-cpu=1G", "--time=10")
LEFT = f"pass-{FAST_PASSES:05d}"
JOB = """\
[corpus]
input = "{corpus}"
id_column = "{id_column}"
partition_bytes = 20000

[model]
n_components = 6
beta_loss = "kullback-leibler"
max_iter = 12
tol = 0

[run]
checkpoint_every = {checkpoint_every}

[output]
output = "{model}"
"""
# In place of nmf-dask, on the path: as a job of many tasks, however small, whose sixth pass takes as long as the file
# `slow` is there. A job that was requeued is not slow.
FAULTY = """\
#!/bin/sh
[ -z "$SLURM_RESTART_COUNT" ] || { rm -f "$TEST_SLOW_FLAG"; unset TEST_SLOW_FLAG; }
exec "$PYTHON" -m tests.faulty_command many "$@"
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm_processes(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), generated_texts(800), 3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> bytes:
    """W and H of the job of many tasks, in one process."""
    submitted = Submitted(tmp_path_factory.mktemp("undisturbed"), corpus)
    Driver("many", "fit", submitted.job_file).done()
    return wh_bytes(submitted.run)


class Submitted:
    """A copy of fit.sbatch in a folder of its own, with a job file beside it."""

    def __init__(
        self, folder: Path, corpus: Path, id_column: str = "doc_id", faulty: bool = False, every: int = 1000
    ) -> None:
        self.folder, self.model = folder, folder / "model"
        self.job_file, self.script = folder / "job.toml", folder / "fit.sbatch"
        self.job_file.write_text(
            JOB.format(corpus=corpus, id_column=id_column, model=self.model, checkpoint_every=every)
        )
        self.variables: dict[str, str] = {"PYTHON": sys.executable}
        path = f"{Path(sys.executable).parent}:$PATH"
        if faulty:
            self.is_slow, slow = slow_pass(folder)
            self.variables |= slow
            (folder / "bin").mkdir()
            (folder / "bin" / "nmf-dask").write_text(FAULTY)
            (folder / "bin" / "nmf-dask").chmod(0o755)
            path = f"{folder / 'bin'}:{path}"
        lines = {"job": f"job={self.job_file}", "shared": f"shared={folder}", "source": f"export PATH={path}"}
        self.script.write_text(copied("slurm/fit.sbatch", lines))

    def submit(self, slurm: Slurm, *options: str) -> str:
        return slurm.submit(self.script, *SMALL, f"--job-name={self.folder.name}", *options, **self.variables)

    def log(self) -> str:
        """What the driver said."""
        [file] = self.folder.glob(f"{self.folder.name}-*.log")
        return file.read_text()

    def logs(self) -> str:
        return "\n".join(file.read_text() for file in sorted(self.folder.glob("*.log")))

    @property
    def run(self) -> Path:
        [run] = (self.model / "runs").iterdir()
        return run

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / "run.json").read_text())
        return found


def test_a_job_on_two_nodes_and_two_that_fail_for_good(slurm, tmp_path, corpus):
    jobs = {}
    for name, id_column in (("good", "doc_id"), ("input", "no_such_column"), ("usage", "doc_id")):
        (tmp_path / name).mkdir()
        submitted = Submitted(tmp_path / name, corpus, id_column)
        if name == "usage":
            submitted.job_file.unlink()
        options = ("--nodes=2",) if name == "good" else ("--ntasks=2",)
        jobs[name] = submitted, submitted.submit(slurm, *options)
    for name, code in (("usage", "2"), ("input", "65"), ("good", "0")):
        submitted, number = jobs[name]
        ended = slurm.ended(number)
        assert ended["code"] == code, submitted.logs()
        assert (ended["Restarts"], ended["JobState"]) == ("0", "FAILED" if code != "0" else "COMPLETED")
        assert "Traceback" not in submitted.log()
    assert ended["NodeList"] == "n[1-2]"
    good = jobs["good"][0]
    assert (good.run / "_SUCCESS").exists()
    assert "2 workers, 2 threads" in good.logs()
    assert not list(good.folder.glob("cluster-*.json"))


def slow_job(slurm: Slurm, folder: Path, corpus: Path, *options: str, **more: Any) -> tuple[Submitted, str]:
    """One whose sixth pass has begun, and takes long."""
    submitted = Submitted(folder, corpus, faulty=True, **more)
    number = submitted.submit(slurm, *options)
    slurm.until(number, lambda job: submitted.is_slow() or job["JobState"] not in ("PENDING", "RUNNING"))
    assert submitted.is_slow(), submitted.logs()
    return submitted, number


def assert_went_on(submitted: Submitted, ended: dict[str, str], undisturbed: bytes) -> None:
    assert (ended["JobState"], ended["code"]) == ("COMPLETED", "0"), submitted.logs()
    assert submitted.told["resumed_from"] == LEFT
    assert wh_bytes(submitted.run) == undisturbed


def started_again(slurm: Slurm, number: str) -> dict[str, str]:
    """The end of a job that is in the queue again; SLURM would let it wait for two minutes."""
    slurm.until(number, lambda job: job["JobState"] == "PENDING" and job["Restarts"] == "1")
    slurm.control("update", f"JobId={number}", "StartTime=now", "TimeLimit=10")
    return slurm.ended(number)


def test_the_time_limit_is_a_checkpoint_and_the_job_goes_on_from_it(slurm, tmp_path, corpus, undisturbed):
    submitted, number = slow_job(slurm, tmp_path, corpus)
    assert checkpoints(submitted.model) == []
    slurm.control("update", f"JobId={number}", "TimeLimit=2")  # the signal comes two minutes before
    slurm.until(number, lambda job: job["JobState"] == "PENDING")
    assert "stopped by SIGTERM" in submitted.logs()
    assert checkpoints(submitted.model) == [LEFT]
    assert_went_on(submitted, started_again(slurm, number), undisturbed)


def test_a_cancelled_job_stays_away_until_it_is_requeued(slurm, tmp_path, corpus, undisturbed):
    """SLURM ends workers and driver at once: nothing can be saved any more, and the last checkpoint holds."""
    submitted, number = slow_job(slurm, tmp_path, corpus, every=FAST_PASSES)
    slurm.cancel(number)
    ended = slurm.ended(number)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    slurm.control("requeue", number)
    assert_went_on(submitted, started_again(slurm, number), undisturbed)


def test_a_lost_node_costs_its_workers_and_not_the_job(slurm, tmp_path, corpus, undisturbed):
    submitted, number = slow_job(slurm, tmp_path, corpus, "--nodes=2", "--ntasks-per-node=2", "--ntasks=4")
    slurm.lose_node("n2")
    slurm.until(number, lambda job: job["NodeList"] == "n1")
    (tmp_path / "slow").unlink()
    ended = slurm.ended(number)
    slurm.start_node("n2")
    assert (ended["JobState"], ended["code"], ended["Restarts"]) == ("COMPLETED", "0", "0"), submitted.logs()
    assert submitted.told["workers_lost"] == 2
    assert submitted.told["resumed_from"] is None
    assert wh_bytes(submitted.run) == undisturbed


def test_one_of_two_jobs_of_a_name_waits_and_goes_on_from_where_the_other_stopped(
    slurm, tmp_path, corpus, undisturbed
):
    submitted, one = slow_job(slurm, tmp_path, corpus)
    submitted.variables = {"PYTHON": sys.executable}  # no longer slow
    other = submitted.submit(slurm)
    assert slurm.until(other, lambda job: job["Reason"] == "Dependency")["JobState"] == "PENDING"
    # As deploy/README.md says to stop with a checkpoint.
    slurm.control("update", f"JobId={one}", "Requeue=0")
    slurm.cancel("--batch", "--signal=TERM", one)
    before = slurm.ended(one)
    assert (before["JobState"], before["code"], before["Restarts"]) == ("FAILED", "75", "0")
    assert checkpoints(submitted.model) == [LEFT]
    ended = slurm.ended(other)
    assert before["EndTime"] <= ended["StartTime"]
    assert_went_on(submitted, ended, undisturbed)


def test_workers_by_dask_jobqueue(slurm, tmp_path, corpus):
    submitted = Submitted(tmp_path, corpus)
    script = tmp_path / "jobqueue.py"
    worker = {"cores": 1, "processes": 1, "memory": "1GiB", "walltime": "00:10:00"}
    script.write_text(
        copied(
            "slurm/jobqueue.py",
            {
                "WORKERS": "WORKERS = 2",
                "WORKER": f"WORKER = {worker}",
                "MORE": "MORE = {'log_directory': '.'}",
            },
        )
    )
    command = [sys.executable, "-W", "error", script, submitted.job_file]
    done = subprocess.run(
        command, env=slurm.environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "2 workers, 2 threads" in done.stderr
    assert (submitted.run / "_SUCCESS").exists()
    workers = re.findall(
        r"JobId=(\d+) JobName=dask-worker ", slurm.said("scontrol", "show", "job", "--oneliner")
    )
    assert len(workers) == 2
    for worker_job in workers:
        slurm.until(worker_job, lambda told: told["JobState"] in OVER)
