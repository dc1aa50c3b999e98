"""Jobs that are run again: finished, changed, broken off, at the same time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nmf_dask import TopicModel, fit
from nmf_dask.errors import InputDataError, RetryableError
from nmf_dask.observer import Observer
from nmf_dask.pipeline import FitResult
from nmf_dask.staging import Stage
from nmf_dask.store import ModelFolder
from tests.faulty_command import Driver, slow_pass
from tests.small_corpora import (
    ROOT,
    environment,
    files_of,
    generated_texts,
    run_command,
    settings_of,
    wh_bytes,
    write_corpus,
)

TEXTS = generated_texts(300)
KL = {"beta_loss": "kullback-leibler", "max_iter": 25, "tol": 0.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS, 3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus):
    """H's weights where nothing happened, by path: one task, and many."""
    found = {}
    for size in (5000, 5001):  # see faulty_job: odd is many
        found[size] = wh_bytes(finished(tmp_path_factory.mktemp("undisturbed"), corpus, size).uri)
    return found


def finished(folder: Path, corpus: Path, size: int) -> FitResult:
    """The job again, in this process and without a fault."""
    with pytest.MonkeyPatch.context() as patch:
        if size % 2:
            patch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
        return fit(job(folder, corpus, size))


def run_folder(model: Path) -> Path:
    [run] = (model / "runs").iterdir()
    return run


def job(folder: Path, corpus: Path, size: int = 5000, **sections):
    sections = {"model": KL, "run": {"checkpoint_every": 2}, **sections}
    return settings_of(corpus, folder / "m", corpus={"partition_bytes": size}, **sections)


def faulty(folder: Path, corpus: Path, size: int, moment: str, action: str, **sections):
    file = folder / "settings.json"
    file.write_text(job(folder, corpus, size, **sections).model_dump_json())
    return subprocess.run(
        [sys.executable, "-m", "tests.faulty_job", str(file), moment, action], cwd=ROOT, env=environment(),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_finished_job_does_nothing(tmp_path, corpus):
    arguments = ("fit", "--input", corpus, "--output", tmp_path / "m", "-k", 5)
    first = run_command(*arguments)
    before = files_of(tmp_path / "m")
    for more in ((), ("--workers", 2, "--resume", "never", "--set", "run.checkpoint_every=1")):
        again = run_command(*arguments, *more)
        assert again.returncode == 0, again.stderr
        assert "nothing to do" in again.stderr
        assert files_of(tmp_path / "m") == before
        assert again.stdout == first.stdout


LEAVES = """
import os, sys
from pathlib import Path
from nmf_dask.store import ModelFolder
model, *folders = sys.argv[1:]
for folder in map(Path, folders):
    folder.mkdir(parents=True)
    (folder / "part-00000.arrow").write_bytes(b"counts")
ModelFolder(model).lock().__enter__()
os.kill(os.getpid(), 9)
"""


def test_what_a_job_that_was_killed_after_its_commit_left_is_cleared(tmp_path, corpus):
    """Staged counts and blocks, some gigabytes of them, which nobody would look for again; and its lock."""
    settings = job(tmp_path, corpus, run={"scratch": str(tmp_path / "scratch")})
    result = fit(settings)
    before = files_of(tmp_path / "m")
    left = [Path(result.uri) / "_work" / "counts", tmp_path / "scratch" / result.run_id / "counts"]
    subprocess.run(
        [sys.executable, "-c", LEAVES, tmp_path / "m", *left], cwd=ROOT, env=environment(), check=False
    )
    assert (tmp_path / "m" / "LOCK").exists()
    assert all(folder.exists() for folder in left)
    assert fit(settings).finished_before
    assert files_of(tmp_path / "m") == before
    assert not (tmp_path / "scratch" / result.run_id).exists()


def test_a_finished_job_leaves_the_lock_of_one_that_lives(tmp_path, corpus):
    result = fit(job(tmp_path, corpus))
    with ModelFolder(str(tmp_path / "m")).lock() as lock:
        assert fit(job(tmp_path, corpus)).run_id == result.run_id
        assert (tmp_path / "m" / "LOCK").exists()
        lock.check()


def test_another_configuration_is_a_second_run_and_moves_LATEST(tmp_path, corpus):
    first = fit(settings_of(corpus, tmp_path / "m"))
    second = fit(settings_of(corpus, tmp_path / "m", model={"n_components": 4}))
    assert first.run_id != second.run_id
    assert (tmp_path / "m" / "LATEST").read_text().strip() == second.run_id
    assert TopicModel.load(str(tmp_path / "m")).n_components == 4
    assert TopicModel.load(first.uri).n_components == 5


def test_changed_input_is_another_run(tmp_path):
    corpus = write_corpus(tmp_path / "c", TEXTS)
    first = fit(settings_of(corpus, tmp_path / "m"))
    write_corpus(tmp_path / "c", [*TEXTS[:-1], "w001 w002 w003"])
    second = fit(settings_of(corpus, tmp_path / "m"))
    assert first.run_id != second.run_id
    assert not second.finished_before


def test_two_at_once_one_commits_and_the_other_names_it(tmp_path, corpus):
    arguments = ("fit", "--input", corpus, "--output", tmp_path / "m", "-k", 5)
    begun, variables = slow_pass(tmp_path)
    one = Driver("one", *arguments, **variables)
    assert one.until(begun)
    other = run_command(*arguments[:-1], 4)
    (tmp_path / "slow").unlink()
    one.done()
    assert other.returncode == 75, other.stderr
    assert f"locked by process {one.process.pid}" in other.stderr
    assert "Traceback" not in other.stderr
    [run] = (tmp_path / "m" / "runs").iterdir()
    assert (run / "_SUCCESS").exists()
    assert not (tmp_path / "m" / "LOCK").exists()


@pytest.mark.parametrize(
    ("moment", "size", "resumed_from"),
    [
        ("count", 5000, None),
        ("count:2", 5000, "count"),
        ("select", 5000, "count"),
        ("weigh:2", 5000, "select"),
        ("pass:1", 5000, "select"),
        ("pass:5", 5000, "pass-00004"),
        ("pass:12", 5001, "pass-00010"),
        ("write:2", 5000, "pass-00024"),
    ],
)
def test_a_killed_driver_goes_on_to_the_same_bytes(tmp_path, corpus, undisturbed, moment, size, resumed_from):
    killed = faulty(tmp_path, corpus, size, moment, "kill")
    assert killed.returncode == -9
    with pytest.raises(InputDataError, match="no finished run"):
        TopicModel.load(str(tmp_path / "m"))
    assert not (tmp_path / "m" / "LATEST").exists()
    again = finished(tmp_path, corpus, size)
    assert again.run["resumed_from"] == resumed_from
    assert again.resumed == (resumed_from is not None)
    assert wh_bytes(again.uri) == undisturbed[size]
    assert not Path(again.uri, "_work").exists()
    assert not (tmp_path / "m" / "LOCK").exists()


def test_resume_never_begins_anew(tmp_path, corpus, undisturbed):
    assert faulty(tmp_path, corpus, 5000, "pass:8", "kill").returncode == -9
    result = fit(job(tmp_path, corpus, run={"resume": "never"}))
    assert result.run["resumed_from"] is None
    assert not result.resumed
    assert wh_bytes(result.uri) == undisturbed[5000]


@pytest.mark.parametrize("size", [5000, 5001])
def test_a_terminated_job_leaves_a_checkpoint_and_exit_75(tmp_path, corpus, undisturbed, size):
    done = faulty(tmp_path, corpus, size, "pass:5", "term")
    assert done.returncode == 75, done.stderr
    assert "Traceback" not in done.stderr
    assert "stopped by SIGTERM" in done.stderr
    told = json.loads((run_folder(tmp_path / "m") / "run.json").read_text())
    assert told["status"] == "failed"
    assert "SIGTERM" in told["error"]
    again = finished(tmp_path, corpus, size)
    assert again.run["resumed_from"] == "pass-00005"
    assert wh_bytes(again.uri) == undisturbed[size]


def damage(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("moment", "victim", "resumed_from"),
    [
        ("weigh:2", "counted.json", "count"),
        ("weigh:2", "vocabulary.parquet", "count"),
        ("pass:1", "blocks/part-00001.arrow", "select"),
        ("pass:8", "checkpoints/pass-00006/W-00000.arrow", "select"),
        ("pass:8", "checkpoints/pass-00006/H.arrow", "select"),
        ("pass:8", "checkpoints/pass-00006/state.json", "select"),
    ],
)
def test_damaged_work_is_made_again(tmp_path, corpus, undisturbed, moment, victim, resumed_from):
    assert faulty(tmp_path, corpus, 5000, moment, "kill").returncode == -9
    work = Stage(ModelFolder(str(tmp_path / "m")).runs()[0].work).folder
    file = Path(work.path, victim)
    assert file.exists(), sorted(files_of(Path(work.path)))
    damage(file)
    again = finished(tmp_path, corpus, 5000)
    assert again.run["resumed_from"] == resumed_from
    assert wh_bytes(again.uri) == undisturbed[5000]


def test_deleted_counts_and_blocks_are_made_again(tmp_path, corpus, undisturbed):
    assert faulty(tmp_path, corpus, 5000, "weigh", "kill").returncode == -9
    work = run_folder(tmp_path / "m") / "_work"
    for file in [*(work / "counts").iterdir(), *(work / "blocks").glob("*")]:
        file.unlink()
    result = fit(job(tmp_path, corpus))
    assert result.run["resumed_from"] == "select"
    assert wh_bytes(result.uri) == undisturbed[5000]


class Removes(Observer):
    """Takes intermediate files away, of a run at work, after each pass: once, H of it may have been read by then."""

    def __init__(self, model: Path, names: str) -> None:
        self.model = model
        self.names = names

    def passed(self, row):
        for file in self.model.glob(f"runs/*/_work/{self.names}"):
            file.unlink(missing_ok=True)


@pytest.mark.parametrize("names", ["blocks/*", "passes/*", "terms.parquet"])
def test_what_goes_while_the_job_is_at_work_is_worth_another_try(tmp_path, corpus, undisturbed, names):
    """Catches an exit code that tells a scheduler to stop, because of the input."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
        with pytest.raises(RetryableError, match="is missing; run the same command again") as told:
            fit(job(tmp_path, corpus, 5001, run={"checkpoint_every": 1000}), Removes(tmp_path / "m", names))
    assert names.partition("/")[0] in str(told.value)
    assert wh_bytes(finished(tmp_path, corpus, 5001).uri) == undisturbed[5001]
