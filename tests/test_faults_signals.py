"""Jobs that are told to stop, in the middle of a pass of ten minutes: a checkpoint, exit 75, within ten seconds."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.dask_processes import dask_cluster
from tests.faulty_command import FAST_PASSES, Driver, checkpoints, slow_parts, slow_pass
from tests.small_corpora import factors_of, files_of, generated_texts, write_corpus
from tests.test_pipeline_again import faulty, finished, run_folder

OWN, WORKERS, RUNNING = "own", "workers", "running"
LEFT = f"pass-{FAST_PASSES:05d}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), generated_texts(800), 3)


def start(kind: str, corpus: Path, model: Path, *more: Any, **options: Any) -> Driver:
    return Driver(
        kind, "fit", "--input", corpus, "--output", model, "--id-column", "doc_id", "-k", 6,
        "--beta-loss", "kullback-leibler", "--max-iter", 12, "--tol", 0,
        "--set", "corpus.partition_bytes=20000", *more, **options,
    )  # fmt: skip


def run_of(model: Path) -> Path:
    [run] = (model / "runs").iterdir()
    return run


def told(model: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_of(model) / "run.json").read_text())
    return found


def bytes_of(model: Path) -> list[bytes]:
    return [matrix.tobytes() for matrix in factors_of(run_of(model))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus):
    found = {}
    for kind in ("one", "many"):
        model = tmp_path_factory.mktemp("undisturbed") / "m"
        start(kind, corpus, model).done()
        found[kind] = bytes_of(model)
    return found


def resumed(kind: str, corpus: Path, model: Path) -> tuple[str, list[bytes]]:
    """The same command again, with nothing slow about it: where it went on from, and W and H."""
    start(kind, corpus, model).done()
    return told(model)["resumed_from"], bytes_of(model)


def assert_stopped_well(code: int, log: str, seconds: float, model: Path) -> None:
    assert code == 75, log
    assert "run the same command again" in log
    assert "Traceback" not in log
    assert seconds < 10, log
    assert checkpoints(model) == [LEFT]
    assert told(model)["status"] == "failed"
    assert not (model / "LOCK").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cluster", "number", "every"),
    [
        ("one", OWN, signal.SIGTERM, 1000),
        ("many", OWN, signal.SIGINT, 1000),
        ("one", WORKERS, signal.SIGINT, 1000),
        ("many", WORKERS, signal.SIGTERM, 1000),
        ("many", WORKERS, signal.SIGINT, FAST_PASSES),  # no pass ended since the last checkpoint
        ("one", RUNNING, signal.SIGTERM, 1000),
        ("many", RUNNING, signal.SIGINT, 1000),
    ],
    ids=str,
)
def test_a_signal_in_a_long_pass_leaves_a_checkpoint_in_time(
    tmp_path, corpus, undisturbed, kind, cluster, number, every
):
    begun, variables = slow_pass(tmp_path)
    more: list[Any] = ["--set", f"run.checkpoint_every={every}"]
    workers = cluster == RUNNING
    with dask_cluster(tmp_path, n_workers=2 if workers else 0, **variables) as (file, processes):
        if cluster != OWN:
            more += ["--workers", 2]
        if workers:
            more += ["--scheduler", file]
        driver = start(kind, corpus, tmp_path / "m", *more, **variables)
        assert driver.until(begun)
        code, log, seconds = driver.stop(number)
        assert_stopped_well(code, log, seconds, tmp_path / "m")
        assert driver.left_nobody()
        assert [process.poll() for process in processes] == [None] * len(processes)
    assert resumed(kind, corpus, tmp_path / "m") == (LEFT, undisturbed[kind])


@pytest.mark.slow
def test_a_signal_to_every_process_of_the_job_leaves_a_checkpoint_too(tmp_path, corpus, undisturbed):
    """As systemd does, and SLURM: the workers hold what is to be saved, and live until it is."""
    begun, variables = slow_pass(tmp_path)
    driver = start(
        "many", corpus, tmp_path / "m", "--workers", 2, "--set", "run.checkpoint_every=1000", **variables
    )
    assert driver.until(begun)
    code, log, seconds = driver.stop(signal.SIGTERM, whole_group=True)
    assert_stopped_well(code, log, seconds, tmp_path / "m")
    assert driver.left_nobody()
    assert resumed("many", corpus, tmp_path / "m") == (LEFT, undisturbed["many"])


def spawned(process: int) -> int:
    """How many Python processes a process has started by now."""
    children = " ".join(file.read_text() for file in Path(f"/proc/{process}/task").glob("*/children")).split()
    return sum(b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_signal_while_workers_start_ends_the_job_without_a_word_of_dask(tmp_path, corpus, n_processes):
    """Catches a cluster that is left half started: Dask trips over it when the process ends."""
    driver = start("one", corpus, tmp_path / "m", "--workers", 2)
    assert driver.until(lambda: spawned(driver.process.pid) >= n_processes)
    code, log, seconds = driver.stop(signal.SIGTERM)
    assert code == 75, log
    assert "run the same command again" in log
    assert "Traceback" not in log
    assert seconds < 10, log
    assert driver.left_nobody()
    assert not (tmp_path / "m" / "LOCK").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["write", "write:2"])
def test_a_signal_while_the_result_is_written_loses_no_pass(tmp_path, corpus, moment):
    for size in (5000, 5001):  # one task, many
        folder = tmp_path / str(size)
        folder.mkdir()
        done = faulty(folder, corpus, size, moment, "term", run={"checkpoint_every": 1000})
        assert done.returncode == 75, done.stderr
        assert checkpoints(folder / "m") == ["pass-00025"]
        again = finished(folder, corpus, size)
        assert again.run["resumed_from"] == "pass-00025"
        whole = tmp_path / f"whole{size}"
        finished(whole, corpus, size)
        assert factors_equal(run_folder(folder / "m"), run_folder(whole / "m"))


def start_transform(corpus: Path, model: Path, output: Path, *more: Any, **variables: str) -> Driver:
    return Driver(
        "one", "transform", "--model", model, "--input", corpus, "--output", output, "--id-column", "doc_id",
        "--set", "corpus.partition_bytes=10000", *more, **variables,
    )  # fmt: skip


@pytest.fixture(scope="module")
def transformed(tmp_path_factory, corpus):
    """A model, and the parts of its W for the corpus."""
    folder = tmp_path_factory.mktemp("transformed")
    start("one", corpus, folder / "m").done()
    start_transform(corpus, folder / "m", folder / "w").done()
    return folder / "m", files_of(folder / "w" / "W")


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [OWN, WORKERS])
def test_a_signal_in_a_transform_keeps_the_parts_that_are_made(tmp_path, corpus, transformed, cluster):
    model, whole = transformed
    begun, variables = slow_parts(tmp_path)
    output = tmp_path / "w"
    workers = ["--workers", 2, "--threads-per-worker", 1] if cluster == WORKERS else []
    driver = start_transform(corpus, model, output, *workers, **variables)
    assert driver.until(begun)
    code, log, seconds = driver.stop(signal.SIGTERM)
    assert code == 75, log
    assert "run the same command again" in log
    assert "Traceback" not in log
    assert seconds < 10, log
    assert driver.left_nobody()
    assert json.loads((output / "transform.json").read_text())["status"] == "failed"
    assert not (output / "_SUCCESS").exists()
    assert not (output / "_LOCK").exists()

    start_transform(corpus, model, output).done()
    assert 3 <= json.loads((output / "transform.json").read_text())["partitions_resumed"] <= 4
    assert files_of(output / "W") == whole


def factors_equal(one: Path, other: Path) -> bool:
    return [m.tobytes() for m in factors_of(one)] == [m.tobytes() for m in factors_of(other)]


class Terminal:
    """The far end of a terminal: keeps what is written to it."""

    def __init__(self) -> None:
        self._far, self.near = pty.openpty()
        self._said = bytearray()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                self._said += os.read(self._far, 4096)
            except OSError:  # nobody holds the near end any more
                return

    def close(self) -> str:
        os.close(self.near)
        self._thread.join(timeout=10)
        return self._said.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [OWN, WORKERS])
def test_a_second_interrupt_leaves_at_once_and_the_cursor_stays(tmp_path, corpus, cluster):
    begun, variables = slow_pass(tmp_path)
    terminal = Terminal()
    more = ["--workers", 2] if cluster == WORKERS else []
    driver = start(
        "many", corpus, tmp_path / "m", *more, "--set", "run.checkpoint_every=1000",
        stderr=terminal.near, TERM="xterm", **variables,
    )  # fmt: skip
    assert driver.until(begun)
    os.killpg(driver.process.pid, signal.SIGINT)  # as a terminal does
    time.sleep(0.5)
    os.killpg(driver.process.pid, signal.SIGINT)
    again = time.monotonic()
    code = driver.process.wait(timeout=30)
    seconds = time.monotonic() - again
    driver.process.communicate(timeout=30)
    said = terminal.close()
    assert code == 75, said
    assert seconds < 2
    assert driver.left_nobody(seconds=5)
    assert "\x1b[?25l" in said, "the display did not hide the cursor: this proves nothing"
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "m").glob("runs/*/_SUCCESS"))


def test_a_clean_up_that_hangs_is_ended(tmp_path):
    """The last resort: whatever the clean-up waits for, the process is gone in time."""
    code = (
        "import threading, time\n"
        "from nmf_dask.cli import termination\n"
        "termination.LAST_SECONDS = 1.0\n"
        "with termination.termination_as_error():\n"
        "    try:\n        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n        time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 75
    assert log == "nmf-dask: stopped at once; run the same command again to go on from the last checkpoint\n"
