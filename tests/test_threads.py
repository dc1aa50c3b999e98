"""Small jobs without Dask: what their threads do that the contract of tests/test_tasks.py does not ask of all."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

import pytest

from nmf_dask.config import ClusterSettings, Settings
from nmf_dask.corpus import open_corpus
from nmf_dask.errors import RetryableError
from nmf_dask.pipeline import running
from nmf_dask.tasks import Batch
from nmf_dask.threads import ThreadTasks, own_threads
from tests.parquet_files import write

JOB = """
import sys
from nmf_dask.cli import main
code = main([{arguments}])
print(code, *sorted({{"dask", "distributed"}} & sys.modules.keys()), file=sys.stderr)
"""


@pytest.fixture
def tasks() -> Any:
    made = ThreadTasks(2)
    yield made
    made.close()


def dask_in(arguments: list[str]) -> list[str]:
    """Exit code of a command, and which of Dask's packages its process had loaded."""
    program = JOB.format(arguments=", ".join(map(repr, arguments)))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1].split()


def test_a_small_job_does_without_dask(tmp_path) -> None:
    write(tmp_path / "corpus.parquet", [f"apples pears {i % 7}plums" for i in range(60)])
    fit = ["fit", "-q", "--input", f"{tmp_path}/corpus.parquet", "--output", f"{tmp_path}/model", "-k", "2"]
    assert dask_in([*fit, "--set", "vectorizer.max_df=1.0"]) == ["0"]
    new = ["--input", f"{tmp_path}/corpus.parquet", "--output", f"{tmp_path}/weights"]
    assert dask_in(["transform", "-q", "--model", f"{tmp_path}/model", *new]) == ["0"]


def test_dask_runs_what_is_large_and_where_it_is_asked_for(tmp_path, monkeypatch) -> None:
    write(tmp_path / "corpus.parquet", ["apples pears"] * 60)

    def settings(**sections: Any) -> Settings:
        return Settings(corpus={"input": f"{tmp_path}/corpus.parquet"}, model={"n_components": 2}, **sections)

    corpus = open_corpus(settings().corpus)
    assert running.is_small(settings(), corpus)
    monkeypatch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
    assert not running.is_small(settings(), corpus)
    chosen = []
    monkeypatch.setattr("nmf_dask.threads.own_threads", lambda *_: chosen.append("threads"))
    monkeypatch.setattr("nmf_dask.cluster.connected", lambda *_: chosen.append("Dask"))
    running.connected(settings(), small=True)
    running.connected(settings(), small=False)
    running.connected(settings(cluster={"workers": 1}), small=True)
    running.connected(settings(cluster={"scheduler": "tcp://127.0.0.1:1"}), small=True)
    running.connected(settings(run={"performance_report": "report.html"}), small=True)
    assert chosen == ["threads", "Dask", "Dask", "Dask", "Dask"]


def test_calls_run_side_by_side(tasks) -> None:
    both = threading.Barrier(2, timeout=30)
    assert len({tasks.fetch(handle) for handle in tasks.map("wait", lambda _: both.wait(), [0, 1])}) == 2


def test_a_store_may_hiccup_once(tasks) -> None:
    tried: list[int] = []

    def hiccup(times: int) -> int:
        tried.append(times)
        if len(tried) <= times:
            raise RetryableError("the store is busy")
        return len(tried)

    assert tasks.fetch(tasks.call("once", hiccup, 1)) == 2
    tried.clear()
    with pytest.raises(RetryableError, match="busy"):
        tasks.fetch(tasks.call("twice", hiccup, 2))
    assert len(tried) == 2


def test_what_nobody_holds_is_let_go(tasks) -> None:
    class Large:
        pass

    made: list[weakref.ref[Large]] = []

    def make() -> Large:
        large = Large()
        made.append(weakref.ref(large))
        return large

    batch = Batch()
    large = batch.call("make", make)
    (handle,) = tasks.submit(batch, [batch.call("count", lambda *given: len(given), large, [large])])
    assert tasks.fetch(handle) == 2
    for _ in range(100):  # a thread forgets its last call a moment after the result is there
        gc.collect()
        if made[0]() is None:
            return
        time.sleep(0.02)
    pytest.fail("an intermediate result is still held")


def test_a_stopped_job_saves_beside_what_holds_the_threads(tasks) -> None:
    held, saved = threading.Event(), []
    done = tasks.call("done", abs, -3)
    assert tasks.fetch(done) == 3
    busy = tasks.map("busy", lambda _: held.wait(30), range(2))
    tasks.beside([(lambda *given: saved.append(given), "file", done)], 1.0)
    assert saved == [("file", 3)]
    with pytest.raises(RetryableError, match="not there within"):
        tasks.beside([(saved.append, busy[0])], 0.1)
    held.set()


def test_what_waits_when_a_job_ends_is_not_begun() -> None:
    held, begun = threading.Event(), []
    with own_threads(ClusterSettings(threads_per_worker=1)) as cluster:
        first = cluster.tasks.call("first", lambda: begun.append("first") or held.wait(30))
        while not begun:
            time.sleep(0.01)
        cluster.tasks.call("second", begun.append, "second")
    held.set()
    cluster.tasks.fetch(first)
    assert begun == ["first"]
    assert not [thread for thread in threading.enumerate() if thread.name == "nmf-dask-1"]


@pytest.mark.parametrize("how", ["fetch", "completed"])
def test_a_signal_that_wakes_nobody_is_seen_all_the_same(tasks, how) -> None:
    """Catches a job that is told to stop just before it waits, and goes on to the end of a long pass."""

    class StoppedError(Exception):
        pass

    def told(signum: int, frame: Any) -> None:
        raise StoppedError

    def tell() -> None:
        time.sleep(0.3)
        signal.pthread_kill(
            threading.get_ident(), signal.SIGUSR1
        )  # this thread: the waiting one is not interrupted

    before = signal.signal(signal.SIGUSR1, told)
    over = threading.Event()
    try:
        handle = tasks.call("pass", over.wait, 20)
        threading.Thread(target=tell).start()
        began = time.monotonic()
        with pytest.raises(StoppedError):
            tasks.fetch(handle) if how == "fetch" else list(tasks.completed([handle]))
        assert time.monotonic() - began < 5
    finally:
        over.set()
        signal.signal(signal.SIGUSR1, before)
