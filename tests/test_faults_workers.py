"""Workers that die, hang, or are cut off while a job runs: real processes, at every stage, for real.

Workers load `tests.faulty_worker`: it writes down what they run, and has a worker die in the middle of a call that is
asked for, by the same signal that `kill -9` sends.
"""

import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, default_client, wait

import nmf_dask.cluster.own
from nmf_dask import fit, schedule
from nmf_dask.distributed import TaskBlocks
from nmf_dask.errors import RetryableError
from nmf_dask.observer import Observer
from nmf_dask.pipeline import FitResult
from nmf_dask.pipeline.fitting import Fitting, problem
from nmf_dask.pipeline.fitting.many_tasks import ManyTasks
from tests.dask_processes import DaskProcesses, dask_processes
from tests.networks import network
from tests.small_corpora import files_of, generated_texts, run_command, settings_of, write_corpus

pytestmark = pytest.mark.slow

TEXTS = generated_texts(400)
MODEL = {"beta_loss": "kullback-leibler", "max_iter": 12, "tol": 0.0}
SIZE = {"partition_bytes": 6000}
RUN = {"checkpoint_every": 4}
N_STRIPS = 8
# A worker that imports this dies of every document that holds a certain word.
DEADLY = """
import os
import nmf_dask.pipeline.stages as stages

count = stages.count_texts

def deadly(texts, settings):
    if any("deadly" in (text or "") for text in texts.to_pylist()):
        os._exit(1)
    return count(texts, settings)

stages.count_texts = deadly
"""
# By the calls that `tests.faulty_worker` knows: init is sample and start; update is what comes between two passes.
STAGES = ("count", "select", "weigh", "sample", "visit", "update", "write")
MORE_STAGES = ("start", "save", "load", "keep", "kept")  # the last two of H, after each pass


@pytest.fixture(scope="module", autouse=True)
def _many_tasks() -> Iterator[None]:
    """A fit of many tasks, also of so few documents; workers have the same from `tests.faulty_worker`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 0)
        patch.setattr(problem, "SAMPLE_NONZEROS", 2000)
        patch.setattr(problem, "strip_count", lambda sizes, beta_loss: N_STRIPS)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS, 3)


def results_of(result: FitResult) -> dict[str, bytes]:
    """All files of W and H, byte for byte."""
    files = files_of(Path(result.uri))
    return {name: content for name, content in files.items() if name.startswith(("W/", "H/", "topics"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> dict[str, bytes]:
    """What the job writes in this process, where nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    results = results_of(fit(settings_of(corpus, folder, model=MODEL, corpus=SIZE, run=RUN)))
    assert len(results) > 10
    return results


class Faults:
    """A cluster whose workers load `tests.faulty_worker`, and the folder that they have their fates from."""

    def __init__(self, cluster: DaskProcesses, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder

    @property
    def has_nannies(self) -> bool:
        return "--no-nanny" not in self.cluster.worker_options

    def renew(self, n_workers: int = 3, slow: float = 0.02) -> None:
        """As if nothing had happened yet."""
        for file in self.folder.iterdir():
            if file.name != "workers":
                file.unlink()
        (self.folder / "log").touch()
        self.slow(slow)
        self.cluster.fill(n_workers)

    def slow(self, seconds: float) -> None:
        """Set how much longer each call takes."""
        part = self.folder / "part"
        part.write_text(str(seconds))
        part.rename(self.folder / "slow")

    def send(self, *fates: str) -> None:
        for fate in fates:
            (self.folder / fate).touch()

    def processes(self) -> dict[str, int]:
        """Process of each worker that there ever was, by address."""
        lines = (self.folder / "workers").read_text().splitlines()
        return {address: int(pid) for pid, address in map(str.split, lines)}

    def waiting(self) -> list[str]:
        """Fates that no worker met."""
        return [file.name for file in self.folder.glob("*-*-*")]

    def calls(self, label: str) -> list[tuple[int, str]]:
        """Process and subject of each call of a label."""
        lines = [line.split() for line in (self.folder / "log").read_text().splitlines()]
        return [(int(pid), " ".join(about)) for name, pid, *about in lines if name == label]

    def counted(self) -> Counter[int]:
        """How often each partition was tokenized."""
        return Counter(int(partition) for _, partition in self.calls("count"))


@contextmanager
def faulty_cluster(folder: Path, *options: str, n_workers: int = 3, **more: Any) -> Iterator[Faults]:
    faults = folder / "faults"
    faults.mkdir()
    variables = {"FAULTS": str(faults), "DASK_DISTRIBUTED__WORKER__PRELOAD": "tests.faulty_worker", **more}
    with dask_processes(folder, *options, n_workers=0, **variables) as cluster:
        given = Faults(cluster, faults)
        given.renew(n_workers)
        yield given


@pytest.fixture(scope="module", params=["nannies", "no nannies"])
def faults(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """Three workers, which nannies start again, or nobody does."""
    options = ("--no-nanny",) if request.param == "no nannies" else ()
    with faulty_cluster(tmp_path_factory.mktemp("cluster"), *options) as given:
        yield given


def job(
    faults: Faults,
    corpus: Path,
    model: Path,
    observer: Observer | None = None,
    n_workers: int = 3,
    **more: Any,
) -> FitResult:
    """The job on a faulty cluster, begun with so many workers."""
    cluster = {"scheduler": str(faults.cluster.file), "workers": n_workers, "workers_timeout": 90}
    sections = {"model": MODEL, "corpus": SIZE, "run": RUN, "cluster": cluster, **more}
    return fit(settings_of(corpus, model, **sections), observer)


class AtMoments(Observer):
    """Does what it is given at moments such as count:2 (partitions) or pass:3."""

    def __init__(self, **what: Callable[[], None]) -> None:
        self.what = what
        self.name = ""
        self.warnings: list[str] = []

    def stage(self, name, total=None):
        self.name = name
        self.comes(name)

    def advance(self, done, n_bytes=0):
        self.comes(f"{self.name}_{done}")

    def warn(self, message, **fields):
        self.warnings.append(message)

    def comes(self, moment):
        self.what.pop(moment, lambda: None)()


@pytest.mark.parametrize("stage", [*STAGES, *MORE_STAGES])
def test_a_worker_dies_in_a_stage(tmp_path, corpus, undisturbed, faults, stage):
    """Catches work that a death repeats, or leaves out, or that depends on who computes."""
    if stage in MORE_STAGES and not faults.has_nannies:
        return  # they are no other than those of visits
    faults.renew()
    faults.send(f"die-{stage}-1")
    result = job(faults, corpus, tmp_path / "m")
    assert faults.waiting() == []
    assert results_of(result) == undisturbed
    assert result.run["workers_lost"] == 1
    # What the dying worker was at is done again, and nothing else of what is staged.
    n_partitions = result.run["input"]["n_partitions"]
    assert sorted(faults.counted()) == list(range(n_partitions))
    assert faults.counted().total() == n_partitions + (stage == "count")
    assert len(faults.calls("weigh")) == n_partitions + (stage == "weigh")
    # And passes of before the last checkpoint are not made again.
    assert len(faults.calls("sample")) <= 2


def kill(*processes: int) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)


def processes_of_workers() -> dict[str, int]:
    """Process number of each worker, by address."""
    return default_client().run(os.getpid)


def test_two_workers_die_at_once(tmp_path, corpus, undisturbed, faults):
    """Catches a second death that meets work which the first one had made necessary."""
    faults.renew()
    observer = AtMoments(fit_6=lambda: kill(*sorted(processes_of_workers().values())[:2]))
    result = job(faults, corpus, tmp_path / "m", observer)
    assert results_of(result) == undisturbed
    assert result.run["workers_lost"] == 2
    assert faults.counted().total() == len(faults.calls("weigh")) == result.run["input"]["n_partitions"]
    assert len(faults.calls("sample")) == 1
    assert "2 workers were lost; their work was done again" in observer.warnings


def test_the_worker_that_holds_H_dies(tmp_path, corpus, undisturbed, faults, monkeypatch):
    """Catches an H that nobody can compute again, or that comes out otherwise."""
    faults.renew()
    seen: list[Fitting] = []
    advance = ManyTasks.advance
    monkeypatch.setattr(ManyTasks, "advance", lambda self: (seen.append(self), advance(self))[1])
    lost: list[str] = []

    def kill_it() -> None:
        client = default_client()
        H = seen[-1].outcome()
        wait(H)
        holders = client.who_has([H])[H.key]
        if lost or len(holders) > 2:
            return
        processes = processes_of_workers()
        kill(*(processes[address] for address in holders))
        lost.extend(holders)
        deadline = time.monotonic() + 20
        while not any(H.key in told.get("lost-computed-tasks", ()) for _, told in client.get_events("all")):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    job_done = job(faults, corpus, tmp_path / "m", AtMoments(**{f"fit_{n}": kill_it for n in range(6, 12)}))
    assert lost
    assert results_of(job_done) == undisturbed
    assert job_done.run["workers_lost"] == len(lost)
    assert len(faults.calls("sample")) == 1


@pytest.mark.parametrize("undone", [3, 10])
def test_a_death_has_the_strips_of_the_dead_visited_again_and_no_others(
    tmp_path, corpus, undisturbed, faults, monkeypatch, undone
):
    """Catches an H whose lineage is the visits of all strips, in every pass since the last checkpoint.

    The worker that holds H dies between two passes, after the tenth: `undone` passes after a checkpoint, or the start.
    """
    faults.renew()
    seen: list[ManyTasks] = []
    advance = ManyTasks.advance
    monkeypatch.setattr(ManyTasks, "advance", lambda self: (seen.append(self), advance(self))[1])
    steps: list[str] = []
    visit = TaskBlocks.visit
    monkeypatch.setattr(
        TaskBlocks,
        "visit",
        lambda self, step, *more: (steps.append(type(step).__name__), visit(self, step, *more))[1],
    )
    dead: set[str] = set()

    def kill_one() -> None:
        client = default_client()
        W, H = seen[-1].weights(), seen[-1].outcome()
        wait(H)
        held = client.who_has([*W, H])
        worker = held[H.key][0]
        for strip, w in zip(seen[-1].problem.strips, W, strict=True):
            if worker in held[w.key]:
                dead.add(f"{strip[0].block}:{strip[0].start}")
        kill(processes_of_workers()[worker])

    every = 10 - undone or 100
    result = job(faults, corpus, tmp_path / "m", AtMoments(fit_10=kill_one), run={"checkpoint_every": every})
    assert results_of(result) == undisturbed
    assert result.run["workers_lost"] == 1
    visits = Counter(strip for _, strip in faults.calls("visit"))
    print(f"{len(dead)} of {N_STRIPS} strips were on the dead worker; visits: {sorted(visits.values())}")
    assert len(visits) == N_STRIPS
    asked = steps.count("Visit") + steps.count("Solve")
    assert {strip: visits[strip] for strip in visits if strip not in dead} == dict.fromkeys(
        set(visits) - dead, asked
    )
    assert all(asked <= visits[strip] <= asked + undone for strip in dead)
    assert len(faults.calls("start")) <= N_STRIPS + len(dead)
    assert len(faults.calls("sample")) == 1


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips as they are: workers of the job's own do not load `tests.faulty_worker`."""
    monkeypatch.setattr(problem, "strip_count", schedule.strip_count)


@pytest.mark.usefixtures("own")
def test_own_workers_die_at_every_stage(tmp_path, corpus):
    """Catches a cluster of the job's own whose nannies are not let do their work."""
    killed: list[int] = []

    def kill_one() -> None:
        killed.append(min(processes_of_workers().values()))
        kill(killed[-1])

    quiet = fit(settings_of(corpus, tmp_path / "a", model=MODEL, corpus=SIZE, run=RUN))
    observer = AtMoments(count_2=kill_one, weigh_2=kill_one, fit_2=kill_one, fit_7=kill_one)
    settings = settings_of(corpus, tmp_path / "b", model=MODEL, corpus=SIZE, run=RUN, cluster={"workers": 2})
    result = fit(settings, observer)
    assert len(killed) == 4
    assert results_of(result) == results_of(quiet)
    assert result.run["workers_lost"] == 4


@pytest.mark.usefixtures("own")
def test_a_worker_dies_under_a_fit_of_one_task(tmp_path, corpus, monkeypatch):
    """Catches a small fit, whose W and H are one result of one worker, that is lost with it."""
    monkeypatch.setattr("nmf_dask.schedule.ONE_TASK_BYTES", 2**28)
    quiet = fit(settings_of(corpus, tmp_path / "a", model=MODEL, corpus=SIZE, run=RUN))
    settings = settings_of(corpus, tmp_path / "b", model=MODEL, corpus=SIZE, run=RUN, cluster={"workers": 1})
    result = fit(settings, AtMoments(fit=lambda: kill(*processes_of_workers().values())))
    assert results_of(result) == results_of(quiet)
    assert result.run["workers_lost"] == 1


def test_workers_die_all_the_time(tmp_path, corpus, undisturbed, faults):
    """Catches an innocent task that ends the job, work that starves, and deaths that are counted twice or not."""
    faults.renew(slow=0.06)
    over = threading.Event()
    killed: list[int] = []

    def killing(client: Client) -> None:
        while not over.wait(2):
            there = sorted(client.scheduler_info(n_workers=-1)["workers"])
            if len(there) > 1:  # where one is left at a time, and killed, nobody could finish anything
                address = there[len(killed) % len(there)]
                kill(faults.processes()[address])
                killed.append(address)
                if not faults.has_nannies:
                    faults.cluster.add()

    def begin() -> None:
        chaos.append(threading.Thread(target=killing, args=[default_client()]))
        chaos[0].start()

    chaos: list[threading.Thread] = []
    started = time.monotonic()
    try:
        observer = AtMoments(count_1=begin, write_1=over.set)
        result = job(faults, corpus, tmp_path / "m", observer, run={"checkpoint_every": 1})
    finally:
        over.set()
        chaos[0].join()
    print(f"{len(killed)} workers were killed in {time.monotonic() - started:.0f} s")
    assert results_of(result) == undisturbed
    assert result.run["workers_lost"] == len(killed) >= 3
    assert faults.counted().total() <= result.run["input"]["n_partitions"] + len(killed)


def test_a_worker_that_joins_late_is_used(tmp_path, corpus, undisturbed):
    """Catches work that is tied to the workers of the beginning."""
    with faulty_cluster(tmp_path, "--no-nanny", n_workers=1) as faults:
        faults.slow(0.1)
        late = []
        observer = AtMoments(fit_1=lambda: late.append(faults.cluster.add()))
        result = job(faults, corpus, tmp_path / "m", observer, n_workers=1)
        assert results_of(result) == undisturbed
        assert result.run["workers_lost"] == 0
        assert late[0].pid in {pid for pid, _ in faults.calls("visit")}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """A cluster whose scheduler gives a task up at the first death of a worker that had it."""
    folder = tmp_path_factory.mktemp("strict")
    with faulty_cluster(folder, n_workers=3, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as given:
        yield given


def test_an_innocent_task_does_not_end_the_job(tmp_path, corpus, undisturbed, strict):
    """Catches KilledWorker, which the scheduler sends here for whatever ran, or waited, on a worker that died."""
    strict.renew()
    fates = [f"die-{stage}-1" for stage in (*STAGES, "save")]
    strict.send(*fates)
    observer = AtMoments()
    result = job(strict, corpus, tmp_path / "m", observer)
    assert strict.waiting() == []
    assert results_of(result) == undisturbed
    assert result.run["workers_lost"] == len(fates)
    assert any("going on from what is staged" in message for message in observer.warnings)
    n_partitions = result.run["input"]["n_partitions"]
    assert strict.counted().total() == len(strict.calls("weigh")) == n_partitions + 1
    assert result.run["resumed_from"] is None


@pytest.mark.parametrize("stage", ["count", "visit"])
def test_a_task_that_kills_every_worker_ends_the_job(tmp_path, corpus, strict, stage):
    """Catches a job that kills workers for ever, or that does not say what to change."""
    strict.renew()
    strict.send(f"die-{stage}-always")
    with pytest.raises(RetryableError) as told:
        job(strict, corpus, tmp_path / "m")
    message = str(told.value)
    print(message)
    assert "KilledWorker" not in message
    assert "they may have run out of memory. Give workers more (--memory-limit, or " in message
    assert {"count": "lower corpus.partition_bytes", "visit": "lower --max-features, -k or "}[
        stage
    ] in message
    if stage == "count":
        assert re.match(
            r"partition \d+ \(.*part-\d+\.parquet, row group .* MiB of text\): 6 workers died", message
        )
    assert len(strict.calls("die")) < 20
    strict.renew()
    assert job(strict, corpus, tmp_path / "m").run["status"] == "done"


def test_a_document_that_kills_every_worker_is_named(tmp_path):
    """Catches an end of the command that names another partition, or none."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    texts = [*TEXTS[:50], "a deadly document", *TEXTS[50:100]]
    bad = write_corpus(tmp_path / "c", texts, 2)
    done = run_command(
        "fit", "--input", bad, "--output", tmp_path / "m", "-k", 3, "--workers", 1,
        DASK_DISTRIBUTED__WORKER__PRELOAD=str(tmp_path / "deadly.py"),
        DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1",
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    message = next(line for line in done.stderr.splitlines() if line.startswith("nmf-dask: error: "))
    for part in (
        "error: partition 0 (",
        "part-00000.parquet, row group 0",
        " rows, ",
        "MiB of text",
        ": 6 workers died",
        "memory",
    ):
        assert part in message
    assert "Traceback" not in done.stderr
    [run] = (tmp_path / "m").glob("runs/*/run.json")
    assert json.loads(run.read_text())["workers_lost"] >= 6


# So that a worker of which nothing is heard is given up soon; Dask's own are 30 s and 5 minutes.
SOON = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "12s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "8s",
}


def ends_well(faults: Faults, corpus: Path, model: Path, undisturbed: dict[str, bytes], stage: str) -> None:
    """The job loses the one worker that met its fate, and writes what it would have written."""
    started = time.monotonic()
    result = job(faults, corpus, model)
    print(f"{stage}: {time.monotonic() - started:.0f} s")
    assert faults.waiting() == []
    assert results_of(result) == undisturbed
    assert result.run["workers_lost"] == 1


@pytest.mark.parametrize("stage", ["visit"])
def test_a_worker_hangs(tmp_path, corpus, undisturbed, stage):
    """Catches a job that waits for ever for a worker that is there and does nothing, also in its last question."""
    with faulty_cluster(tmp_path, "--no-nanny", **SOON) as faults:
        faults.send(f"stop-{stage}-1")
        ends_well(faults, corpus, tmp_path / "m", undisturbed, stage)


def test_a_worker_hangs_before_the_job(tmp_path, corpus, undisturbed):
    """Catches a start that fails where the scheduler gives up a worker that it still waits for."""
    with faulty_cluster(tmp_path, "--no-nanny", **SOON) as faults:
        with Client(scheduler_file=str(faults.cluster.file)) as client:
            client.wait_for_workers(3, 60)
        os.killpg(faults.cluster.workers[0].pid, signal.SIGSTOP)
        result = job(faults, corpus, tmp_path / "m")
        assert results_of(result) == undisturbed
        assert len(faults.processes()) == 3
        assert {pid for pid, _ in faults.calls("visit")} <= {one.pid for one in faults.cluster.workers[1:]}


class StopsOne(Observer):
    """Stops one of the job's own two workers before they have anything to do; its nanny goes on."""

    def stage(self, name: str, total: int | None = None) -> None:
        if name == "count":
            os.kill(min(default_client().run(os.getpid).values()), signal.SIGSTOP)


def test_a_worker_of_the_job_itself_hangs(tmp_path, corpus, undisturbed, monkeypatch):
    """Catches a worker that is waited for longer than the job says, and a nanny that cannot end one that is stopped."""
    monkeypatch.setattr(nmf_dask.cluster.own, "WORKER_SILENT", "8s")
    started = time.monotonic()
    settings = settings_of(corpus, tmp_path / "m", model=MODEL, corpus=SIZE, run=RUN, cluster={"workers": 2})
    result = fit(settings, StopsOne())
    print(f"{time.monotonic() - started:.0f} s")
    assert time.monotonic() - started < 100  # Dask's own patience is 300 s
    assert results_of(result) == undisturbed


def test_an_idle_worker_hangs_at_the_end(tmp_path, corpus, undisturbed):
    """Catches a last question to all workers that holds up a job that is done until the scheduler gives one up."""
    with faulty_cluster(tmp_path, "--no-nanny") as faults:
        stopped: list[float] = []

        def stop_one() -> None:
            os.killpg(faults.cluster.workers[0].pid, signal.SIGSTOP)
            stopped.append(time.monotonic())

        result = job(faults, corpus, tmp_path / "m", AtMoments(write_12=stop_one))
        took = time.monotonic() - stopped[0]
        print(f"{took:.0f} s")
        assert took < 100  # the scheduler's patience is 300 s
        assert results_of(result) == undisturbed
        assert result.run["workers_lost"] == 0
        assert result.run["peak_memory"]["largest_worker"] == 0


@pytest.mark.parametrize("stage", ["count", "visit"])
def test_a_worker_is_cut_off(tmp_path, corpus, undisturbed, stage):
    """Catches results that are waited for from a worker whose network is gone, and whose process goes on."""
    with (
        network() as cable,
        faulty_cluster(tmp_path, "--no-nanny", n_workers=0, host=cable.outside, **SOON) as faults,
    ):
        faults.cluster.fill(2)
        faults.cluster.add(host=cable.inside, within=cable.within, FAULTS_DEVICE=cable.name)
        faults.send(f"cut-{stage}-1")
        ends_well(faults, corpus, tmp_path / "m", undisturbed, stage)
