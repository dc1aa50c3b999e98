"""Jobs whose time is up: a checkpoint or the model as it stands, before the deadline, and how they go on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from nmf_dask import Settings
from nmf_dask.cli import main
from nmf_dask.config import RunSettings
from nmf_dask.pipeline import deadline as module
from nmf_dask.pipeline.deadline import END_SECONDS, Deadline, DeadlineReached
from nmf_dask.pipeline.fitting import one_task
from nmf_dask.pipeline.parts import PartTasks
from nmf_dask.pipeline.passes import Passes
from nmf_dask.pipeline.stages import CorpusTasks
from nmf_dask.store import run_id
from tests.faulty_command import FAST_PASSES, Driver, checkpoints, slow_pass
from tests.small_corpora import assert_written_loss, generated_texts, settings_of, wh_bytes, write_corpus

TEXTS = generated_texts(400)
PASSES = 60
KL = {"beta_loss": "kullback-leibler", "max_iter": PASSES, "tol": 0.0}
SMALL = {"partition_bytes": 20_000}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS, 3)


@pytest.fixture(scope="module")
def once(tmp_path_factory, corpus):
    """What an undisturbed run writes, and how many seconds its process takes on a machine as busy as this one."""
    model = tmp_path_factory.mktemp("undisturbed") / "m"
    began = time.monotonic()
    Driver("one", *arguments(corpus, model)).done()
    return written(model), time.monotonic() - began


@pytest.fixture(scope="module")
def undisturbed(once):
    return once[0]


def arguments(corpus: Path, model: Path) -> list[str]:
    return [
        "fit", "--input", str(corpus), "--output", str(model), "--id-column", "doc_id", "-k", "5",
        "--beta-loss", "kullback-leibler", "--max-iter", str(PASSES), "--tol", "0",
        "--set", "corpus.partition_bytes=20000", "--log-format", "json",
    ]  # fmt: skip


def written(model: Path) -> tuple[bytes, list[float]]:
    """W and H, and the error after each pass."""
    convergence = pq.read_table(run_of(model) / "convergence.parquet")
    return wh_bytes(run_of(model)), convergence["reconstruction_err"].to_pylist()


def told(model: Path) -> dict:
    [run] = (model / "runs").iterdir()
    return json.loads((run / "run.json").read_text())


def run_of(model: Path) -> Path:
    [run] = (model / "runs").iterdir()
    return run


def errors(log: str) -> list[str]:
    return [line["message"] for line in map(json.loads, log.splitlines()) if line["level"] == "error"]


class Job:
    """One driver with a deadline, whose passes after the fifth take long."""

    def __init__(
        self, folder: Path, kind: str, corpus: Path, action: str, slow: float, deadline: int
    ) -> None:
        folder.mkdir()
        self.deadline = deadline
        self.model = folder / "m"
        _, variables = slow_pass(folder, slow)
        more = ("--deadline", f"{deadline}s", "--deadline-action", action)
        self._began = time.monotonic()
        self._driver = Driver(kind, *arguments(corpus, self.model), *more, **variables)
        self._ended = threading.Thread(target=self._wait)
        self._ended.start()

    def _wait(self) -> None:
        _, self._log = self._driver.process.communicate(timeout=200)
        self._seconds = time.monotonic() - self._began

    def end(self) -> tuple[int, str]:
        """The exit code, and the log; it ended in time."""
        self._ended.join()
        assert self._seconds < self.deadline, self._log
        return self._driver.process.returncode, self._log


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, corpus, once):
    """Side by side, because they mostly wait. There is time to start all three, and for some passes."""
    folder = tmp_path_factory.mktemp("jobs")
    deadline = int(END_SECONDS + 3 * once[1] + 6)
    return {
        "left": Job(folder / "left", "one", corpus, "checkpoint", 1.0, deadline),
        "committed": Job(folder / "committed", "one", corpus, "commit", 1.0, deadline),
        # A pass without an end holds all threads: nothing can be written for a commit.
        "held": Job(folder / "held", "many", corpus, "commit", 600.0, deadline),
    }


@pytest.mark.slow
def test_a_checkpoint_in_time_and_then_the_bytes_of_an_undisturbed_run(jobs, corpus, undisturbed):
    code, log = jobs["left"].end()
    deadline = f"the deadline of {jobs['left'].deadline} s"
    assert code == 75, log
    assert errors(log) == [
        f"stopped in time for {deadline} (--deadline); run the same command again to go on"
    ]
    model = jobs["left"].model
    *_, name = checkpoints(model)
    assert FAST_PASSES < int(name.removeprefix("pass-")) < PASSES
    assert told(model)["status"] == "failed"
    assert deadline in told(model)["error"]
    assert main([*arguments(corpus, model), "--deadline", "1h"]) == 0
    assert told(model)["resumed_from"] == name
    assert written(model) == undisturbed


@pytest.mark.slow
def test_the_model_as_it_stands_is_whole_and_says_so(jobs, corpus, capsys):
    code, log = jobs["committed"].end()
    assert code == 0, log
    model = jobs["committed"].model
    run = told(model)
    assert (run["status"], run["stop_reason"]) == ("done", "deadline")
    assert FAST_PASSES < run["n_iter"] < PASSES
    assert (model / "LATEST").read_text().strip() == run["run_id"]
    assert_written_loss(run, run_of(model), TEXTS, settings_of(corpus, model, corpus=SMALL, model=KL))
    assert "not converged" in log
    assert main(arguments(corpus, model)) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["converged"], json.loads(out)["stop_reason"]) == (False, "deadline")
    assert "as its deadline left it; nothing to do" in err


@pytest.mark.slow
def test_where_nothing_can_be_written_in_time_a_checkpoint_is_left(jobs):
    code, log = jobs["held"].end()
    assert code == 75, log
    assert checkpoints(jobs["held"].model)[-1] == f"pass-{FAST_PASSES:05d}"
    assert not list(jobs["held"].model.glob("runs/*/_SUCCESS"))


class Clock:
    """Stands in for the module `time` of the deadline: goes on by itself, and jumps when it is told to."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.ahead

    def jump(self, seconds: float) -> None:
        self.ahead += seconds
        os.kill(os.getpid(), signal.SIGALRM)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_before_the_first_pass_what_is_staged_stays(
    tmp_path, corpus, undisturbed, clock, monkeypatch, capsys
):
    """Also where the model was to be committed: there is none yet."""
    count, counted = CorpusTasks.count, []

    def slow(self, partition):
        if len(counted) == 2:
            clock.jump(3600)
            time.sleep(0.5)
        counted.append(partition)
        return count(self, partition)

    slow.__name__ = "count"  # it travels by its name
    monkeypatch.setattr(CorpusTasks, "count", slow)
    model = tmp_path / "m"
    more = ("--deadline", "1h", "--deadline-action", "commit", "--set", "cluster.threads_per_worker=1")
    assert main([*arguments(corpus, model), *more]) == 75
    [message] = errors(capsys.readouterr().err)
    assert "deadline of 3600 s" in message
    assert not list(model.glob("runs/*/_SUCCESS"))
    assert list(model.glob("runs/*/_work/counts/terms-*"))
    monkeypatch.undo()
    assert main(arguments(corpus, model)) == 0
    assert told(model)["resumed_from"] == "count"
    assert written(model) == undisturbed


def test_a_commit_that_is_not_done_in_time_is_a_fit_to_go_on_from(
    tmp_path, corpus, undisturbed, clock, monkeypatch, capsys
):
    """The exact loss of the model that was to be written must not decide over later passes."""
    advanced = Passes._advanced

    def late(self, fitting):
        if len(fitting.state.rows) == 42:
            clock.ahead += 3600
        return advanced(self, fitting)

    monkeypatch.setattr(Passes, "_advanced", late)
    monkeypatch.setattr(one_task, "TURN_SECONDS", 0.0)
    model = tmp_path / "m"
    assert main([*arguments(corpus, model), "--deadline", "1h", "--deadline-action", "commit"]) == 75
    assert "after pass 42" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(arguments(corpus, model)) == 0
    assert told(model)["resumed_from"] == "pass-00042"
    assert written(model) == undisturbed


def test_parts_of_a_transform_stay(tmp_path, corpus, clock, monkeypatch, capsys):
    model, output = tmp_path / "m", tmp_path / "w"
    assert main([*arguments(corpus, model), "--max-iter", "3"]) == 0
    make, made = PartTasks.make, []

    def slow(self, due, folding):
        if len(made) == 2:
            clock.jump(3600)
            time.sleep(0.5)
        made.append(due)
        return make(self, due, folding)

    slow.__name__ = "make"
    monkeypatch.setattr(PartTasks, "make", slow)
    again = [
        "transform", "--model", str(model), "--input", str(corpus), "--output", str(output), "--id-column", "doc_id",
        "--set", "corpus.partition_bytes=20000", "--log-format", "json",
    ]  # fmt: skip
    assert main([*again, "--deadline", "1h", "--set", "cluster.threads_per_worker=1"]) == 75
    capsys.readouterr()
    run = json.loads((output / "transform.json").read_text())
    assert (run["status"], run["run_id"]) == ("failed", told(model)["run_id"])
    assert "deadline of 3600 s" in run["error"]
    assert not (output / "_SUCCESS").exists()
    monkeypatch.undo()
    assert main(again) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["partitions_resumed"] >= 2
    assert result["n_documents"] == len(TEXTS)


class TestAlarm:
    @pytest.fixture
    def deadline(self, clock):
        return Deadline(RunSettings(deadline=100), clock.perf_counter())

    def interrupted(self, deadline, margin, work):
        try:
            with deadline.alarm(margin):
                work()
                time.sleep(5)
        except DeadlineReached:
            return True
        return False

    def test_rings_in_the_block_with_its_margin_and_after_it_no_more(self, deadline, clock):
        handler = signal.getsignal(signal.SIGALRM)
        with deadline.alarm():
            assert self.interrupted(deadline, 50, lambda: clock.jump(100 - END_SECONDS - 40))
            time.sleep(0.05)  # forty seconds are left: the outer one is still quiet
            deadline.met()
            clock.jump(1000)
        assert signal.getsignal(signal.SIGALRM) is handler
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0

    def test_the_timer_itself(self, clock):
        deadline = Deadline(RunSettings(deadline=15), clock.perf_counter())
        began = time.monotonic()
        with pytest.raises(DeadlineReached), deadline.alarm(15 - END_SECONDS - 0.3):
            time.sleep(5)
        assert 0.25 < time.monotonic() - began < 3

    def test_at_once_where_no_time_is_left(self, deadline):
        with pytest.raises(DeadlineReached), deadline.alarm(100 - END_SECONDS):
            raise AssertionError("the block ran")

    def test_where_python_drops_what_is_raised(self, deadline, clock):
        class Finalized:
            def __del__(self):
                clock.jump(100)
                time.sleep(0)

        reached = []

        def finalize():
            Finalized()
            reached.append("the error was dropped")

        assert self.interrupted(deadline, 0, finalize)
        assert reached

    def test_outside_of_the_main_thread_nothing_is_interrupted(self, deadline, clock):
        found = []

        def work():
            with deadline.alarm():
                clock.ahead += 1000
                found.append("through")
            try:
                with deadline.alarm():
                    found.append("begun")
            except DeadlineReached:
                found.append("refused")

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == ["through", "refused"]

    def test_none_is_no_deadline(self):
        with Deadline(RunSettings(), 0.0).alarm(1e9):
            assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_the_run_is_the_same_run():
    """What an operator asks of a job is no part of what it makes."""
    run = {"deadline": 60, "deadline_action": "commit", "metrics_port": 0, "performance_report": "a.html"}
    settings = Settings(run=run, output={"keep_runs": 3})
    assert run_id(settings, "abc") == run_id(Settings(), "abc")


@pytest.mark.parametrize("seconds", [0, 14, "5s", "never", 10**10, "999999999999h"])
def test_a_deadline_that_leaves_no_time_or_that_no_clock_reaches_is_refused(seconds, capsys):
    assert main(["fit", "--input", "i", "--output", "o", "--deadline", str(seconds)]) == 2
    assert "--deadline" in capsys.readouterr().err


@pytest.mark.slow
def test_the_last_resort(tmp_path):
    """A store that does not answer holds the job: the process ends by its deadline nonetheless."""
    code = (
        "import time\nfrom nmf_dask.cli.errors import Console\nfrom nmf_dask.cli.termination import ended_by\n"
        "with ended_by(1.5, Console(log_format='json', run_id='abc', is_the_process=True)):\n    pass\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert time.monotonic() - began < 20
    assert done.returncode == 75
    [line] = map(json.loads, done.stderr.splitlines())
    assert (line["exit_code"], line["run_id"], line["message"].split(";")[0]) == (
        75,
        "abc",
        "the deadline is here",
    )


def test_the_start_of_a_command_is_that_of_its_process():
    """Imports take seconds on a file system that is slow."""
    code = "import time; time.sleep(1); from nmf_dask.residence import age; print(age())"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True
    )
    assert 1 < float(done.stdout) <= time.monotonic() - began + 0.02
