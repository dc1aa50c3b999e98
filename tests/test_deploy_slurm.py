"""deploy/slurm on a real SLURM of two nodes: the files as they stand, with the lines changed that a user changes."""

import json
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployed import DEPLOY, copied
from tests.faulty_command import FAST_PASSES, Driver, checkpoints, slow_pass
from tests.slurm_processes import OVER, PATH, Slurm, slurm_processes, until
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
# A script in a process of its own, as such a job. Its workers are slow by what they preload.
QUEUED = """\
import runpy, sys
from tests.faulty_command import prepare
prepare("many")
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
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
    # What a job was given until a second is revoked for all of it: in the same one slurmd would refuse its new start.
    time.sleep(1.1)
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
    slurm.until_idle()
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


# SLURM's commands and the job's, as fit.sbatch calls them; the scheduler is there at once.
STUBS = {
    "srun": '[ "$6" != scheduler ] || echo > "$cluster.json"; echo srun "$@" >> calls',
    "nmf-dask": 'until grep -qs "dask worker" calls; do sleep 0.05; done; exit $CODE',
    "squeue": "echo $STATE",
    "scontrol": 'echo scontrol "$@" >> calls',
}


def run_without_slurm(folder: Path, **more: str) -> tuple[int, str]:
    """The exit code of fit.sbatch, and what it called, as a script of which SLURM is stubs."""
    (folder / "bin").mkdir()
    for name, line in STUBS.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / "bin" / name).chmod(0o755)
    shared = more.pop("shared", str(folder / "shared"))
    lines = {"job": "job=job.toml", "shared": f"shared={shared}", "source": "export cluster"}
    (folder / "fit.sbatch").write_text(copied("slurm/fit.sbatch", lines))
    variables = {
        "PATH": f"{folder / 'bin'}:{PATH}", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "3", "SLURMD_NODENAME": "n1",
        "SLURM_MEM_PER_CPU": "1024", "STATE": "RUNNING", "CODE": "0", **more,
    }  # fmt: skip
    done = subprocess.run(["bash", "fit.sbatch"], cwd=folder, env=variables, timeout=120)
    calls = folder / "calls"
    return done.returncode, calls.read_text() if calls.exists() else ""


@pytest.mark.parametrize(
    ("code", "restarts", "state", "again"),
    [
        ("75", "", "RUNNING", True),
        ("75", "9", "RUNNING", True),
        ("75", "10", "RUNNING", False),
        ("75", "", "CANCELLED", False),
        ("65", "", "RUNNING", False),
        ("2", "", "RUNNING", False),
        ("1", "", "RUNNING", False),
        ("137", "", "RUNNING", False),
        ("0", "", "RUNNING", False),
    ],
)
def test_who_comes_back_into_the_queue(tmp_path, code, restarts, state, again):
    variables = {"CODE": code, "STATE": state} | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
    ended, calls = run_without_slurm(tmp_path, **variables)
    assert ended == int(code)
    assert ("scontrol requeue 7" in calls) is again
    assert "--memory-limit 1024MiB" in calls
    assert not list((tmp_path / "shared").glob("*.json"))


@pytest.mark.parametrize("wrong", [{"SLURM_MEM_PER_CPU": ""}, {"shared": "/dev/null/shared"}], ids=str)
def test_what_another_try_would_not_mend_starts_nothing(tmp_path, wrong):
    assert run_without_slurm(tmp_path, **wrong) == (2, "")


class Queued:
    """A copy of jobqueue.py for two workers, as a driver whose sixth pass is slow."""

    def __init__(self, slurm: Slurm, folder: Path, corpus: Path, **more: str) -> None:
        self.submitted = Submitted(folder, corpus)
        self.folder, script, log = folder, folder / "jobqueue.py", folder / "driver.log"
        worker = {"cores": 1, "processes": 1, "memory": "1GiB", "walltime": "00:10:00"}
        given = {"WORKERS": 2, "WORKER": worker, "MORE": {**more, "log_directory": "."}}
        lines = {name: f"{name} = {value}" for name, value in given.items()}
        script.write_text(copied("slurm/jobqueue.py", lines))
        self.is_slow, variables = slow_pass(folder)
        # After which a worker that went is lost to Dask: fifteen seconds, if nobody says otherwise.
        variables["DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT"] = "1s"
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", QUEUED, script, self.submitted.job_file], cwd=folder,
                env={**slurm.environment, **variables}, stdout=out, stderr=out,
            )  # fmt: skip

    def until(self, happened: Callable[[], Any], what: str) -> None:
        """Wait for something that has to happen while the driver runs."""
        until(lambda: happened() or self.process.poll() is not None, what, tell=self.told)
        assert happened(), self.told()

    def ended(self) -> int:
        """The exit code."""
        until(lambda: self.process.poll() is not None, "jobqueue.py ends", tell=self.told)
        return self.process.wait()

    def told(self) -> str:
        """What the driver said, and the workers."""
        return "\n".join(file.read_text() for file in [self.folder / "driver.log", *self.worker_logs()])

    def worker_logs(self) -> list[Path]:
        return sorted(self.folder.glob("dask-worker-*.err"))


@pytest.fixture
def queued(slurm, tmp_path, corpus) -> Iterator[Callable[..., Queued]]:
    """Starts jobqueue.py, which ends with the test."""
    made: list[Queued] = []

    def start(**more: str) -> Queued:
        made.append(Queued(slurm, tmp_path, corpus, **more))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.wait()


def worker_jobs(slurm: Slurm) -> list[str]:
    """Numbers of the jobs that dask-jobqueue submitted."""
    told = slurm.said("scontrol", "show", "job", "--oneliner")
    return re.findall(r"JobId=(\d+) JobName=dask-worker ", told)


def test_dask_jobqueue_replaces_a_worker_that_is_lost(slurm, queued, undisturbed):
    job = queued()
    job.until(job.is_slow, "the slow pass")
    first, _ = worker_jobs(slurm)
    slurm.cancel(first)
    job.until(lambda: len(job.worker_logs()) == 3, "a third worker")
    (job.folder / "slow").unlink()
    assert job.ended() == 0, job.told()
    assert "2 workers, 2 threads" in job.told()
    assert job.submitted.told["workers_lost"] == 1
    assert wh_bytes(job.submitted.run) == undisturbed
    assert len(worker_jobs(slurm)) == 3
    for number in worker_jobs(slurm):
        slurm.until(number, lambda told: told["JobState"] in OVER)


def test_dask_jobqueue_tells_at_once_what_slurm_has_against_its_jobs(queued):
    job = queued(queue="nowhere")
    assert job.ended() == 2, job.told()
    assert "invalid partition specified: nowhere" in job.told()
    assert "Traceback" not in job.told()


@pytest.mark.parametrize(
    ("sbatch", "scontrol", "code"),
    [("exit 0", "exit 1", 0), ("exit 1", "exit 0", 2), ("exit 1", "exit 1", 75)],
)
def test_who_answers_not_is_asked_again(tmp_path, sbatch, scontrol, code):
    """The check of jobqueue.py, with commands that do as SLURM's do: scontrol ping exits 1 where no controller is."""
    for name, line in (("sbatch", sbatch), ("scontrol", scontrol)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    check = runpy.run_path(str(DEPLOY / "slurm/jobqueue.py"))["CHECK"]
    assert subprocess.run(check, shell=True, env={"PATH": str(tmp_path)}).returncode == code
    for name in ("sbatch", "scontrol"):
        (tmp_path / name).unlink()
    assert subprocess.run(check, shell=True, env={"PATH": str(tmp_path)}, capture_output=True).returncode == 2
