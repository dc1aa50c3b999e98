"""The driver is killed at moments that nobody chose: the same command goes on, to the same bytes; no reader errs."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.faulty_command import Driver, checkpoints
from tests.small_corpora import ROOT, environment, factors_of, generated_texts, write_corpus

N_DOCUMENTS, N_TOPICS = 800, 8
OWN, WORKERS = (), ("--workers", "2")
# kind of job, cluster, how many are killed once: twenty in all.
ONCE = [("one", OWN, 7), ("many", OWN, 8), ("one", WORKERS, 2), ("many", WORKERS, 3)]
# A process that asks for the models of all folders that it is told of, all the while; a few times where there is one.
READER = """
import json, sys, threading, time
from collections import Counter
from pathlib import Path
from nmf_dask import TopicModel
from nmf_dask.errors import InputDataError

folders, found, told = [], Counter(), threading.Event()

def listen():
    for line in sys.stdin:
        folders.append(line.strip())
    told.set()

threading.Thread(target=listen, daemon=True).start()
while not told.wait(0.02):
    for folder in list(folders):
        try:
            model = TopicModel.load(folder)
        except InputDataError as error:
            found[folder, "refused"] += 1
            continue
        assert Path(model.uri, "_SUCCESS").exists(), model.uri
        assert model.H.shape[0] == {n_topics} and model.H.any(axis=1).all()
        assert sum(part.num_rows for part in model.W_parts()) == {n_documents}
        found[folder, "read"] += 1
        if found[folder, "read"] == 5:
            folders.remove(folder)
print(json.dumps([[*key, count] for key, count in found.items()]))
"""


@dataclass
class Job:
    """One model folder: the command that fills it, how long that takes undisturbed."""

    corpus: Path
    model: Path
    kind: str
    cluster: tuple[str, ...]

    def start(self) -> Driver:
        return Driver(
            self.kind, "fit", "--input", self.corpus, "--output", self.model, "--id-column", "doc_id", "-k", N_TOPICS,
            "--beta-loss", "kullback-leibler", "--max-iter", 18, "--tol", 0, "--set", "run.checkpoint_every=2",
            "--set", "corpus.partition_bytes=20000", *self.cluster,
        )  # fmt: skip

    def killed_after(self, seconds: float) -> bool:
        """Start the command, and kill it so long after it began to write; False where it was done before."""
        driver = self.start()
        driver.until(lambda: list(self.model.glob("runs/*/run.json")))
        time.sleep(seconds)
        alive = driver.process.poll() is None
        driver.kill()
        assert driver.left_nobody()
        return alive

    def staged(self) -> list[str | None]:
        """What a run that goes on from here may say of where it began."""
        if whole := checkpoints(self.model):
            return [whole[-1]]
        if list(self.model.glob("runs/*/_work/counted.json")):
            return ["select", "count"]  # its writer may have been killed
        return ["count", None]

    def run(self) -> Path:
        [run] = (self.model / "runs").iterdir()
        return run

    def ends_as(self, factors: list[bytes]) -> None:
        """Give the command again; what it goes on from, and ends with, is as it should be."""
        committed, staged = bool(list(self.model.glob("runs/*/_SUCCESS"))), self.staged()
        log = self.start().done()
        told = json.loads((self.run() / "run.json").read_text())
        assert told["status"] == "done"
        if committed:
            assert "nothing to do" in log
        else:
            assert told["resumed_from"] in staged
        assert bytes_of(self.run()) == factors
        assert (self.model / "LATEST").read_text().strip() == self.run().name
        assert sorted(path.name for path in self.model.iterdir()) == ["LATEST", "runs"]
        assert not (self.run() / "_work").exists()


def bytes_of(run: Path) -> list[bytes]:
    """W and H."""
    return [matrix.tobytes() for matrix in factors_of(run)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), generated_texts(N_DOCUMENTS), 3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus):
    """By kind and cluster: W and H, and the seconds from the first file to the end."""
    found = {}
    for kind, cluster, _ in ONCE:
        job = Job(corpus, tmp_path_factory.mktemp("undisturbed") / "m", kind, cluster)
        driver = job.start()
        driver.until(lambda job=job: list(job.model.glob("runs/*/run.json")))
        begun = time.monotonic()
        driver.done()
        found[kind, cluster] = bytes_of(job.run()), time.monotonic() - begun
    assert found["many", OWN][0] == found["many", WORKERS][0] != found["one", OWN][0]
    return found


@pytest.fixture
def reader() -> Iterator["subprocess.Popen[str]"]:
    code = READER.replace("{n_topics}", str(N_TOPICS)).replace("{n_documents}", str(N_DOCUMENTS))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT, env=environment(),
    ) as process:  # fmt: skip
        yield process
        process.kill()


def watch(reader: "subprocess.Popen[str]", model: Path) -> None:
    assert reader.stdin is not None
    reader.stdin.write(f"{model}\n")
    reader.stdin.flush()


def heard(reader: "subprocess.Popen[str]") -> dict[str, int]:
    """How often models were read, and refused."""
    out, log = reader.communicate(timeout=60)
    assert reader.returncode == 0, log
    found = {"read": 0, "refused": 0}
    for _, what, count in json.loads(out):
        found[what] += count
    return found


@pytest.mark.slow
def test_twenty_drivers_killed_at_random_moments_go_on_to_the_same_bytes(
    tmp_path, corpus, undisturbed, reader
):
    rng = random.Random(4)
    jobs = []
    for kind, cluster, n in ONCE:
        for i in range(n):
            job = Job(corpus, tmp_path / f"{kind}{len(cluster)}{i}", kind, cluster)
            jobs.append((job, undisturbed[kind, cluster][1] * (i + rng.random()) / n))

    def one(job: Job, moment: float) -> int:
        """How many were done before they were killed: a machine is faster at one time than at another."""
        for early in range(6):
            watch(reader, job.model)
            killed = job.killed_after(moment / 2**early)
            job.ends_as(undisturbed[job.kind, job.cluster][0])
            if killed:
                return early
            job = replace(job, model=job.model.with_name(f"{job.model.name}-{early}"))
        raise AssertionError("they were all done before they were killed")

    with ThreadPoolExecutor(2) as pool:
        done_before = list(pool.map(one, *zip(*jobs, strict=True)))
    assert len(done_before) == 20
    read = heard(reader)
    assert read["read"] > 0
    assert read["refused"] > 0
    print(f"20 killed, beside {sum(done_before)} that were done before; {read}")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "cluster"), [("one", OWN), ("many", OWN), ("many", WORKERS)], ids=str)
def test_a_driver_killed_three_times_in_a_row_gets_there(
    tmp_path, corpus, undisturbed, reader, kind, cluster
):
    factors, seconds = undisturbed[kind, cluster]
    job = Job(corpus, tmp_path / "m", kind, cluster)
    watch(reader, job.model)
    rng = random.Random(5)
    reached = []
    for _ in range(3):
        job.killed_after(seconds * rng.uniform(0.3, 0.7))
        if list(Path(job.model).glob("runs/*/_SUCCESS")):
            break  # an attempt that went on from a checkpoint was done before its kill
        reached.append((checkpoints(job.model) or [""])[-1])
    assert reached == sorted(reached)
    job.ends_as(factors)
    assert heard(reader)["refused"] > 0
