"""One partitioning, one result: the same bytes of W and H wherever a job runs, and on whichever path it is fitted."""

import json
import os
import time
from typing import Any

import pytest
from distributed.nanny import WorkerProcess
from threadpoolctl import threadpool_info

import nmf_dask.cluster.existing
from nmf_dask import fit
from nmf_dask.cluster import connected
from nmf_dask.cluster.own import SEND_SECONDS
from nmf_dask.config import ClusterSettings
from nmf_dask.errors import RetryableError
from nmf_dask.observer import Observer
from nmf_dask.pipeline.fitting import problem
from nmf_dask.residence import rss
from nmf_dask.tasks import Batch
from tests.corpora import corpus_folder
from tests.dask_processes import dask_cluster
from tests.small_corpora import (
    assert_written_loss,
    files_of,
    generated_texts,
    run_command,
    settings_of,
    wh_bytes,
    write_corpus,
)

TEXTS = generated_texts(600)
SMALL = {"partition_bytes": 9000}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS, 3)


class Heard(Observer):
    def __init__(self) -> None:
        self.where: tuple[int, int] | None = None

    def connected(self, workers, threads, dashboard):
        self.where = (workers, threads)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, corpus):
    """W and H of the job in this process, of both paths."""
    folder = tmp_path_factory.mktemp("expected")
    one = fit(settings_of(corpus, folder / "one", corpus=SMALL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
        patch.setattr(problem, "SAMPLE_NONZEROS", 2000)
        many = fit(settings_of(corpus, folder / "many", corpus=SMALL))
    assert one.run["input"]["n_partitions"] >= 6
    return wh_bytes(one.uri), wh_bytes(many.uri)


@pytest.mark.parametrize(
    "cluster", [{"threads_per_worker": 1}, {"threads_per_worker": 4}, {"workers": 2}, {"workers": 3}], ids=str
)
def test_own_clusters_write_the_same_bytes(tmp_path, corpus, expected, monkeypatch, cluster):
    heard = Heard()
    one = fit(settings_of(corpus, tmp_path / "one", corpus=SMALL, cluster=cluster), heard)
    assert wh_bytes(one.uri) == expected[0]
    workers = cluster.get("workers", 1)
    assert heard.where == (workers, cluster.get("threads_per_worker", max(1, _cores() // workers)) * workers)
    monkeypatch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
    monkeypatch.setattr(problem, "SAMPLE_NONZEROS", 2000)
    many = fit(settings_of(corpus, tmp_path / "many", corpus=SMALL, cluster=cluster))
    assert wh_bytes(many.uri) == expected[1]


def test_a_worker_that_dies_slowly_is_no_fault_of_the_job(tmp_path, corpus, monkeypatch):
    """As on a machine that is busy: the system takes longer to end the process than its nanny waits."""
    kill, killed = WorkerProcess.kill, []

    async def slowly(self: WorkerProcess, *args: Any, **kwargs: Any) -> None:
        await kill(self, *args, **kwargs)
        killed.append(self)
        raise TimeoutError

    monkeypatch.setattr(WorkerProcess, "kill", slowly)
    assert fit(settings_of(corpus, tmp_path / "m", cluster={"workers": 2})).run["status"] == "done"
    assert len(killed) == 2


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def test_a_running_cluster_by_address_and_by_file(tmp_path, corpus, expected):
    with dask_cluster(tmp_path) as (file, _):
        by_file = run_command(
            "fit", "--input", corpus, "--output", tmp_path / "file", "--id-column", "doc_id", "-k", 5,
            "--set", "corpus.partition_bytes=9000", "--scheduler", file, "--workers", 2,
        )  # fmt: skip
        assert by_file.returncode == 0, by_file.stderr
        assert "2 workers, 2 threads" in by_file.stderr
        address = json.loads(file.read_text())["address"]
        assert address.startswith("tcp://")
        heard = Heard()
        by_address = fit(
            settings_of(corpus, tmp_path / "tcp", corpus=SMALL, cluster={"scheduler": address}), heard
        )
        assert heard.where is not None
        log = (tmp_path / "cluster.log").read_text()
    [run] = (tmp_path / "file" / "runs").iterdir()
    assert wh_bytes(run) == wh_bytes(by_address.uri) == expected[0]
    for text in (by_file.stderr, log):
        assert "Traceback" not in text
        assert "aligned" not in text


@pytest.mark.parametrize(
    "model",
    [
        {}, {"solver": "mu"}, {"init": "random"}, {"beta_loss": "kullback-leibler", "max_iter": 40},
        {"sweeps": 1, "rounds": 1, "solver": "mu", "max_iter": 30},
    ],
    ids=str,
)  # fmt: skip
def test_many_tasks_are_as_good_as_one(tmp_path, corpus, monkeypatch, model):
    one = fit(settings_of(corpus, tmp_path / "one", corpus=SMALL, model=model))
    monkeypatch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
    monkeypatch.setattr(problem, "SAMPLE_NONZEROS", 3000)
    settings = settings_of(corpus, tmp_path / "many", corpus=SMALL, model=model)
    many = fit(settings)
    assert_written_loss(many.run, many.uri, TEXTS, settings)
    assert many.run["reconstruction_err"] <= one.run["reconstruction_err"] * (1 + 1e-3)


@pytest.mark.parametrize("name", ["20newsgroups", "arxiv-abstracts-demo", "udhr-articles"])
def test_many_tasks_on_real_corpora(tmp_path, monkeypatch, name):
    corpus = corpus_folder(name)
    one = fit(settings_of(corpus, tmp_path / "one", model={"n_components": 10}))
    monkeypatch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
    monkeypatch.setattr(problem, "SAMPLE_NONZEROS", 100_000)
    many = fit(settings_of(corpus, tmp_path / "many", model={"n_components": 10}))
    assert many.run["reconstruction_err"] <= one.run["reconstruction_err"] * (1 + 1e-3)


class Bookkeeping(Observer):
    """After each pass: the tasks that the scheduler knows, and the resident bytes of driver and workers."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int]] = []

    def passed(self, row):
        from distributed import default_client

        client = default_client()
        workers = max(client.run(rss).values()) if row.iteration % 10 == 0 else 0
        self.rows.append((len(client.cluster.scheduler.tasks), rss(), workers))


@pytest.mark.parametrize("cluster", [{"threads_per_worker": 2}, {"workers": 1, "threads_per_worker": 1}])
def test_own_workers_hear_of_the_next_task_at_once(cluster):
    """Dask's own streams wait 5 ms on the way there and 2 ms on the way back, of a worker that is started again too."""

    def swap_interval(seconds: float, dask_worker) -> float:
        stream = dask_worker.batched_stream
        before, stream.interval = stream.interval, seconds
        return before

    def seconds_a_task(tasks) -> float:
        batch, started = Batch(), time.perf_counter()
        ref = batch.call("first", abs, 1)
        for _ in range(20):
            ref = batch.call("next", abs, ref)
        assert tasks.fetch(tasks.submit(batch, [ref])[0]) == 1
        return (time.perf_counter() - started) / 20

    def check(made) -> None:
        """What is set, and that it is what a task waits for: seconds alone say how fast a machine is, and how busy."""
        scheduler = made.client.cluster.scheduler
        [stream] = scheduler.stream_comms.values()
        for one in (stream, made.client.scheduler_comm, *scheduler.client_comms.values()):
            assert one.interval == SEND_SECONDS
        for there, back in ((0.1, SEND_SECONDS), (SEND_SECONDS, 0.1)):
            stream.interval = there
            assert list(made.client.run(swap_interval, back).values()) == [SEND_SECONDS]
            assert seconds_a_task(made.tasks) > 0.08

    with connected(ClusterSettings(**cluster)) as made:
        check(made)
        if "workers" in cluster:
            made.client.restart()
            check(made)


@pytest.mark.slow
def test_bookkeeping_does_not_grow(tmp_path, corpus, monkeypatch):
    """200 passes of 64 strips: lineage that is not cut, or handles that are kept, would show in each of the three."""
    monkeypatch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
    monkeypatch.setattr(problem, "SAMPLE_NONZEROS", 2000)
    monkeypatch.setattr(problem, "strip_count", lambda sizes, beta_loss: 64)
    told = Bookkeeping()
    model = {"max_iter": 200, "tol": 0.0, "beta_loss": "kullback-leibler"}
    result = fit(settings_of(corpus, tmp_path / "m", model=model, cluster={"workers": 2}), told)
    assert result.run["n_iter"] == len(told.rows) == 200
    tasks, driver, workers = (list(column) for column in zip(*told.rows, strict=True))
    # One more or less is what the scheduler happens to hold at that moment; one a pass would be a hundred.
    assert max(tasks[100:]) < max(tasks[20:100]) + 32
    assert max(tasks) < 64 * 4 * 6  # of the passes since the last checkpoint, and of the one under way
    assert max(workers[150:]) - max(workers[40:60]) < 10 * 2**20
    # The scheduler is in this process: Dask's logs, its spans and its names of keys would be 25 MB.
    assert max(driver[150:]) - max(driver[40:60]) < 6 * 2**20


def test_a_scheduler_that_is_not_there(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(nmf_dask.cluster.existing, "CONNECT_SECONDS", 1)
    settings = settings_of(corpus, tmp_path / "m", cluster={"scheduler": "tcp://127.0.0.1:9"})
    with pytest.raises(
        RetryableError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 .* after 1 s"
    ):
        fit(settings)
    [told] = [
        json.loads(file) for name, file in files_of(tmp_path / "m").items() if name.endswith("run.json")
    ]
    assert told["status"] == "failed"
    assert "tcp://127.0.0.1:9" in told["error"]
    assert "LOCK" not in files_of(tmp_path / "m")


def test_the_caller_gets_its_blas_threads_back(tmp_path, corpus):
    """A job in this process runs with one; whoever called from Python goes on with what it had."""
    before = [library["num_threads"] for library in threadpool_info()]
    fit(settings_of(corpus, tmp_path / "m"))
    assert [library["num_threads"] for library in threadpool_info()] == before
