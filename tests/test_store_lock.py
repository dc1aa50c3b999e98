"""One writer a model folder: real processes fight for it, die with it, and take it over."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nmf_dask.errors import RetryableError
from nmf_dask.store import ModelFolder, lock
from tests.small_models import FIRST, started, write_run

HOLDER = """
import sys, time
from nmf_dask.errors import RetryableError
from nmf_dask.store import ModelFolder, lock
judge = lock._refuse_living
def judge_slowly(file):
    judge(file)
    time.sleep(0.3)  # between judging a lock dead and taking it, somebody else may have
lock._refuse_living = judge_slowly
print("ready", flush=True)
sys.stdin.readline()
try:
    with ModelFolder(sys.argv[1]).lock():
        print("held", flush=True)
        sys.stdin.readline()
except RetryableError as error:
    print(error.exit_code, error, flush=True)
"""


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


@contextmanager
def holder(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock of a model folder."""
    with started(HOLDER, str(path)) as process:
        try:
            assert said(process) == "ready"
            go(process)
            assert said(process) == "held"
            yield process
        finally:
            process.kill()


def forged(path: Path, **changes: Any) -> Path:
    """A lock as this very process would write it, but for `changes`."""
    told = json.loads(lock._card()) | changes
    (path / "LOCK").write_text(json.dumps(told))
    return path / "LOCK"


def take(path: Path) -> None:
    with ModelFolder(str(path)).lock():
        assert json.loads((path / "LOCK").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("earlier", ["no lock", "lock of a dead process", "lock that fell silent"])
def test_of_many_processes_at_one_moment_exactly_one_goes_on(tmp_path: Path, earlier: str) -> None:
    if earlier == "lock of a dead process":
        with holder(tmp_path):
            pass
        assert (tmp_path / "LOCK").exists()
    elif earlier == "lock that fell silent":
        os.utime(forged(tmp_path, machine="another"), (1, 1))
    with ExitStack() as stack:
        fighters = [stack.enter_context(started(HOLDER, str(tmp_path))) for _ in range(6)]
        for fighter in fighters:
            said(fighter)
        for fighter in fighters:
            go(fighter)
        answers = [said(fighter) for fighter in fighters]
        winner = fighters[answers.index("held")]
        refused = [answer for answer in answers if answer != "held"]
        assert len(refused) == 5
        for answer in refused:
            assert answer.startswith(
                f"75 {tmp_path} is locked by process {winner.pid} on {socket.gethostname()} "
            )
        go(winner)
        winner.wait()
    assert os.listdir(tmp_path) == []


def test_holder_is_named_and_its_lock_is_free_when_it_ends(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(RetryableError, match=rf"process {process.pid} on .* since 20\d\d-.*sign of life"):
            take(tmp_path)
        go(process)
        process.wait()
        take(tmp_path)
    assert os.listdir(tmp_path) == []


def test_lock_that_is_released_while_it_is_judged_is_free(tmp_path: Path) -> None:
    file = forged(tmp_path)
    with open(file, "rb") as released, started(HOLDER, str(tmp_path)) as process:
        fcntl.flock(released, fcntl.LOCK_EX)
        said(process)
        go(process)
        time.sleep(0.5)
        file.unlink()
        fcntl.flock(released, fcntl.LOCK_UN)
        assert said(process) == "held"
        go(process)


def test_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        # Not waited for: a container whose first process reaps nothing keeps the dead as zombies.
        deadline = time.monotonic() + 10
        while lock._process_start(process.pid) != "dead" and time.monotonic() < deadline:
            time.sleep(0.01)
        take(tmp_path)
        process.wait()


def test_stopped_process_keeps_its_lock_however_long(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.utime(tmp_path / "LOCK", (1, 1))
        with pytest.raises(RetryableError, match="the lock lapses when that process ends"):
            take(tmp_path)


def test_process_number_that_was_given_again_does_not_keep_a_lock(tmp_path: Path) -> None:
    parent = os.getppid()
    forged(tmp_path, pid=parent, process_start=lock._process_start(parent))
    with pytest.raises(RetryableError, match=f"process {parent} "):
        take(tmp_path)
    forged(tmp_path, pid=parent, process_start="1")
    take(tmp_path)


def test_two_locks_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with ModelFolder(str(tmp_path)).lock():
        with pytest.raises(RetryableError, match=f"process {os.getpid()} "):
            take(tmp_path)
        assert (tmp_path / "LOCK").exists()


def test_other_machine_is_believed_until_it_falls_silent(tmp_path: Path) -> None:
    # The same host name and a process number that is free here: two containers of one host look like that.
    file = forged(tmp_path, machine="another", pid=2**22 + 1)
    with pytest.raises(RetryableError, match=r"lapses after 5 silent minutes"):
        take(tmp_path)
    os.utime(file, (time.time() - lock.STALE_SECONDS - 5,) * 2)
    take(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": "x"}'])
def test_lock_that_cannot_be_read_is_believed_until_it_falls_silent(tmp_path: Path, content: str) -> None:
    (tmp_path / "LOCK").write_text(content)
    with pytest.raises(RetryableError, match="is locked by"):
        take(tmp_path)
    os.utime(tmp_path / "LOCK", (1, 1))
    take(tmp_path)


def test_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    with ModelFolder(str(tmp_path)).lock():
        os.utime(tmp_path / "LOCK", (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / "LOCK").stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - (tmp_path / "LOCK").stat().st_mtime < 10


def test_lost_lock_stops_the_commit_and_is_left_to_its_new_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    run = ModelFolder(str(tmp_path)).run(FIRST)
    with ModelFolder(str(tmp_path)).lock() as held:
        held.check()
        forged(tmp_path, machine="another", pid=7, host="elsewhere")
        os.utime(tmp_path / "LOCK", (1, 1))
        time.sleep(0.2)
        with pytest.raises(RetryableError, match="taken over by process 7 on elsewhere"):
            held.check()
        with pytest.raises(RetryableError, match="nothing was committed"):
            write_run(run)
    assert not run.is_committed()
    assert not (tmp_path / "LATEST").exists()
    assert (tmp_path / "LOCK").stat().st_mtime == 1


def test_lock_is_released_after_an_error_and_survives_its_file_s_loss(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ModelFolder(str(tmp_path / "new")).lock():
        raise KeyboardInterrupt
    with ModelFolder(str(tmp_path / "new")).lock():
        (tmp_path / "new" / "LOCK").unlink()
    assert os.listdir(tmp_path / "new") == []
