"""Two writers of one model folder at the same moment, on disk and in an object store: one of them goes on."""

import json
import random
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import pytest
from pyarrow import fs

from nmf_dask import fit
from nmf_dask.store import ModelFolder
from nmf_dask.store.folder import _file_system
from tests.faulty_command import Driver, slow_pass
from tests.small_corpora import environment, files_of, generated_texts, settings_of, write_corpus
from tests.small_models import started

TRIES = 20
# Takes the lock at a word, gives it back at the next, as often as it is told to. A fighter may be slow between looking
# for a lock and asking for it (the second argument, seconds): then somebody else asks meanwhile.
FIGHTER = """
import sys, time
from nmf_dask.errors import RetryableError
from nmf_dask.store import ModelFolder, lock

card, late = lock._card, []

def card_written_slowly():
    time.sleep(late.pop() if late else 0)
    return card()

lock._card = card_written_slowly
lock.SETTLE_SECONDS = 1.2  # more than the second to which stores tell times
print("ready", flush=True)
for line in sys.stdin:
    late[:] = [float(line)]
    try:
        with ModelFolder(sys.argv[1]).lock() as held:
            print("held", flush=True)
            sys.stdin.readline()
            held.check()
        print("released", flush=True)
    except RetryableError as error:
        print(error.exit_code, error, flush=True)
        sys.stdin.readline()
        print("refused", flush=True)
"""
LOCKED = r"75 .* is locked by process \d+ on \S+ since \d{4}-\d\d-\d\dT\S+, last sign of life \d+ s ago"


@pytest.fixture
def bucket(empty_bucket: Callable[[str], fs.FileSystem]) -> Iterator[str]:
    """Address of a bucket that is empty; processes that are started find the server by their environment."""
    _file_system.cache_clear()
    empty_bucket("fights")
    yield "s3://fights"
    _file_system.cache_clear()


def fight(uri: str, tries: int, latest: float) -> list[str]:
    """Two processes want the lock of `uri` so many times; what the ones that did not get it said."""
    rng = random.Random(3)
    refusals = []
    with ExitStack() as stack:
        both = [stack.enter_context(started(FIGHTER, uri, env=environment())) for _ in range(2)]
        assert [said(one) for one in both] == ["ready", "ready"]
        for attempt in range(tries):
            late = [0.0, rng.uniform(0, latest) if attempt % 2 else 0.0]
            for one, seconds in zip(both, late, strict=True):
                tell(one, str(seconds))
            answers = [said(one) for one in both]
            assert answers.count("held") == 1, answers
            refusals += [answer for answer in answers if answer != "held"]
            winner = both[answers.index("held")]
            assert f"process {winner.pid} on {socket.gethostname()} since" in refusals[-1]
            for one in both:
                tell(one, "go on")
            assert sorted(map(said, both)) == ["refused", "released"]
            assert not [name for name in ModelFolder(uri).folder.list() if name.startswith("LOCK")]
    return refusals


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{words}\n")
    process.stdin.flush()


def test_of_two_at_once_on_disk_one_has_the_lock_twenty_times_in_a_row(tmp_path: Path) -> None:
    refusals = fight(str(tmp_path / "m"), TRIES, latest=0.05)
    assert len(refusals) == TRIES
    assert all(re.match(LOCKED, refusal) for refusal in refusals), refusals


@pytest.mark.slow
def test_of_two_at_once_in_a_store_one_has_the_lock_twenty_times_in_a_row(bucket: str) -> None:
    """Also where one is so slow that it asks when the other has already looked, and found itself alone."""
    refusals = fight(f"{bucket}/m", TRIES, latest=2.4)
    assert len(refusals) == TRIES
    assert all(re.match(LOCKED, refusal) for refusal in refusals), refusals


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(2))
@pytest.mark.parametrize("place", ["disk", "store"])
def test_of_two_commands_at_once_one_commits(tmp_path: Path, bucket: str, place: str, attempt: int) -> None:
    """Two whole commands at the same moment, which differ in k; one of them commits."""
    corpus = write_corpus(tmp_path / "c", generated_texts(300), 2)
    model = str(tmp_path / "m") if place == "disk" else f"{bucket}/m"
    # Whoever has the lock is held in a pass until the other is gone: one may start when a quick one is done.
    is_slow, slow = slow_pass(tmp_path)
    both = [
        Driver(
            "one", "fit", "--input", corpus, "--output", model, "-k", k, "--max-iter", 20, "--tol", 0, **slow
        )
        for k in (4, 5)
    ]
    deadline = time.monotonic() + 100
    while not (is_slow() and any(driver.process.poll() is not None for driver in both)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (tmp_path / "slow").unlink()
    logs = [driver.process.communicate(timeout=100)[1] for driver in both]
    codes = [driver.process.returncode for driver in both]
    assert sorted(codes) == [0, 75], logs
    winner, loser = both[codes.index(0)], logs[codes.index(75)]
    assert f"is locked by process {winner.process.pid} on {socket.gethostname()} since 20" in loser
    assert "Traceback" not in loser
    folder = ModelFolder(model)
    [run] = folder.runs()
    assert run.is_committed()
    assert (folder.folder / "LATEST").read_bytes().decode().strip() == run.run_id
    assert not [name for name in folder.folder.list() if name.startswith("LOCK")]


def test_what_was_committed_while_one_waited_for_the_lock_is_not_done_again(
    tmp_path: Path, monkeypatch
) -> None:
    """The same command twice: the second looks for a finished run, the first commits, the second has the lock."""
    corpus = write_corpus(tmp_path / "c", generated_texts(100))
    settings = settings_of(corpus, tmp_path / "m")
    planned = []

    def commits_meanwhile(plan: object) -> None:
        if not planned:
            planned.append(plan)
            planned.append(fit(settings))

    monkeypatch.setattr(import_module("nmf_dask.pipeline.fit"), "check_memory", commits_meanwhile)
    second = fit(settings)
    before = files_of(tmp_path / "m")
    assert second.finished_before
    assert second.run_id == planned[1].run_id
    assert files_of(tmp_path / "m") == before
    assert json.loads(before[f"runs/{second.run_id}/run.json"])["status"] == "done"
