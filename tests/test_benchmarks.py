"""Every benchmark program runs, on a corpus of some hundred documents, and its JSON says what it promises."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from distributed import Client, LocalCluster
from sklearn.decomposition import NMF

from tests.benchmarks import corpus_c, factorization, jobs, measuring, network, problems
from tests.benchmarks.text import timed

ROOT = Path(__file__).resolve().parents[1]
TOPICS = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Documents of four topics of thirty words each."""
    drawn = random.Random(0)
    words = [[f"{name}{number}" for number in range(30)] for name in ("sea", "wood", "iron", "salt")]
    texts = [" ".join([*drawn.choices(words[i % TOPICS], k=25), "the"]) for i in range(400)]
    folder = tmp_path_factory.mktemp("corpus")
    table = pa.table({"doc_id": [f"d{i}" for i in range(len(texts))], "text": texts})
    pq.write_table(table, folder / "part-0.parquet", row_group_size=100)
    return str(folder)


def run(program: str, corpus: str, folder: Path, *more: str) -> tuple[dict[str, Any], str]:
    """What a program wrote as JSON, and what it printed."""
    answer = folder / "answer.json"
    command = [sys.executable, "-m", f"tests.benchmarks.{program}", "--corpus", corpus, "--json", str(answer)]
    terms = ["--min-df", "2"]
    done = subprocess.run(
        [*command, *terms, "--threads", "1", *more], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(answer.read_text()), done.stdout


def only_row(report: dict[str, Any], title: str) -> dict[str, Any]:
    (found,) = (rows for name, rows in report["tables"].items() if name.startswith(title))
    (row,) = found
    return row


@pytest.mark.slow
class TestPrograms:
    def test_text_gives_both_sides_the_same_matrix(self, corpus: str, tmp_path: Path) -> None:
        report, printed = run("text", corpus, tmp_path, "--repeat", "2", "--min-df", "1")
        us, them = report["tables"]["strings to TF-IDF, medians"]
        assert us["nonzeros"] == them["nonzeros"] > 0
        assert them["times as fast"] == 1
        assert us["seconds"] > 0
        assert [len(runs) for runs in report["runs"].values()] == [2, 2]
        assert f"{report['machine']['cores']} cores, 1 threads" in printed

    def test_factorization(self, corpus: str, tmp_path: Path) -> None:
        options = [
            "--repeat",
            "1",
            "-k",
            "4",
            "--loss",
            "both",
            "--peer-max-iter",
            "30",
            "--pass-iterations",
            "5",
        ]
        report, _ = run("factorization", corpus, tmp_path, *options)
        for loss, peers in (("frobenius", ["mu", "cd"]), ("kullback-leibler", ["mu"])):
            rows = report["tables"][f"{loss}: time until their loss, init included on both sides, medians"]
            assert [row["peer"] for row in rows] == [f"scikit-learn {peer} {loss}" for peer in peers]
            stopped = only_row(report, f"{loss}: ours until it stops")
            # Ours as the fit tells it, against the same in float64 by another formula.
            assert stopped["loss told"] == pytest.approx(stopped["loss"], rel=1e-4)
            assert only_row(report, f"{loss}: one whole pass")["our ms"] > 0

    def test_command_names_what_is_missing(self, corpus: str, tmp_path: Path) -> None:
        options = ["--repeat", "1", "-k", "4", "--gensim", "--starts", "1"]
        report, printed = run("command", corpus, tmp_path, *options)
        rows = {row["what"]: row for row in report["tables"]["whole command, cold process, medians"]}
        gensim = "gensim Nmf, one pass"
        assert set(rows) - {gensim} == {"nmf-dask fit", "scikit-learn"}
        assert (gensim in rows) is measuring.installed("gensim")
        assert ("gensim Nmf is not measured" in printed) is (gensim not in rows)
        assert rows["nmf-dask fit"]["loss"] == pytest.approx(rows["scikit-learn"]["loss"], rel=0.05)
        version, first = report["tables"]["start, medians"]
        assert 0 < version["seconds"] < first["seconds"]

    def test_dask_overhead_writes_one_model(self, corpus: str, tmp_path: Path) -> None:
        options = [
            "--repeat",
            "1",
            "-k",
            "4",
            "--many-tasks",
            "--partition-bytes",
            "1e4",
            "1e5",
            "--max-iter",
            "12",
        ]
        report, printed = run("dask_overhead", corpus, tmp_path, *options)
        assert "H is the same bytes in every job" in printed
        rows = report["tables"]["seconds of the stages, medians"]
        assert [row["what"] for row in rows][-1] == "2 threads, no Dask"
        assert only_row(report, "bytes moved in the fit")["rounds"] >= 1
        assert len(report["tables"]["many small partitions, 2 processes"]) == 3

    def test_scaling(self, corpus: str, tmp_path: Path) -> None:
        sizes = ["--bytes", "2e4", "--times", "1", "2", "--topics", "2", "--partitions", "2"]
        report, _ = run("scaling", corpus, tmp_path, "--repeat", "1", "-k", "4", "--max-iter", "5", *sizes)
        n = report["tables"]["as n grows: microseconds a document, medians"]
        assert n[1]["documents"] == pytest.approx(2 * n[0]["documents"], abs=2)
        model = report["tables"]["model: seconds of one pass over 100 million documents of 60 terms"]
        assert [row["workers"] for row in model] == [1, 10, 100, 1000] * 2
        assert any(note.startswith("assumptions") for note in report["notes"])

    def test_evaluate_comes_to_what_gensim_comes_to(self, corpus: str, tmp_path: Path) -> None:
        report, _ = run("evaluate", corpus, tmp_path, "--repeat", "1", "-k", "4", "-n", "5")
        rows = report["tables"]["four measures of coherence, medians"]
        assert [row["side"] for row in rows][-1] == "gensim's CoherenceModel"
        assert max(row["largest difference"] for row in rows) < 1e-9

    def test_quality_judges_each_side_and_seed_by_its_own_topics(self, corpus: str, tmp_path: Path) -> None:
        """All documents are of one subject: NMI is 1 of any side that finds them, by labels that say them."""
        folder = tmp_path / "labelled"
        folder.mkdir()
        table = ds.dataset(corpus).to_table()
        subjects = [f"s{i % TOPICS}" for i in range(len(table))]
        pq.write_table(table.append_column("subject", pa.array(subjects)), folder / "part.parquet")
        options = ["--repeat", "2", "-k", "4", "--label-column", "subject", "--n-features", "1048576", "32"]
        report, _ = run("quality", str(folder), tmp_path, *options)
        (rows,) = report["tables"].values()
        assert [row["side"] for row in rows] == [
            "scikit-learn cd, nndsvda",
            "scikit-learn mu, nndsvda",
            "nmf-dask, 2^20 buckets",
            "nmf-dask, 2^5 buckets",
        ]
        # In 32 buckets no bucket has its own term alone: what is judged there is not what the others found.
        for row in rows[:3]:
            assert row["NMI"] == pytest.approx(1)
            assert row["NPMI"] > rows[3]["NPMI"] + 0.01
        assert [row["NMI by W as it comes"] is None for row in rows] == [False, False, True, True]
        assert rows[3]["collision rate"] > 0.3 > rows[2]["collision rate"]
        assert rows[3]["NMI"] < 1
        if measuring.installed("gensim"):
            assert all(row["by gensim, off by"] < 1e-9 for row in rows)

    def test_select_finds_what_was_planted(self, corpus: str, tmp_path: Path) -> None:
        few = ["--planted", "3", "--seeds", "1", "--around", "1", "--fits", "3"]
        report, _ = run("select", corpus, tmp_path, "--repeat", "1", "-k", "4", *few)
        assert only_row(report, "planted")["within 1"] == 1
        assert [row["job"] for row in report["tables"]["what fits of one k cost, medians"]] == [
            "one fit",
            "3 fits",
        ]

    def test_transform_comes_to_what_scikit_learn_comes_to(self, corpus: str, tmp_path: Path) -> None:
        options = ["--repeat", "1", "-k", "4", "--sample", "50", "--peer-tol", "1e-3"]
        report, _ = run("transform", corpus, tmp_path, *options)
        for loss in ("frobenius", "kullback-leibler"):
            us, them = report["tables"][f"{loss}: strings to W, medians"]
            assert us["documents"] == them["documents"] == 400
            assert us["error of W"] < 1e-4 > us["error of W"] - them["error of W"]

    def test_plots(self, corpus: str, tmp_path: Path) -> None:
        image = tmp_path / "loss.png"
        options = ["-k", "4", "--iterations", "6", "--kl-iterations", "4", "--output", str(image)]
        report, printed = run("plots", corpus, tmp_path, *options)
        curve = report["runs"]["scikit-learn mu frobenius"][0]["told"]["curve"]
        assert [point["passes"] for point in curve][-1] == 6
        assert all(
            a["loss"] >= b["loss"] and a["seconds"] < b["seconds"] for a, b in itertools.pairwise(curve)
        )
        assert image.exists() is measuring.installed("matplotlib")
        assert ("the plot is not measured" in printed) is not image.exists()


MEASURE = """
import sys
from tests.benchmarks.measuring import environment, run_command
run = run_command([sys.executable, "-c", sys.argv[1]], environment(1))
print(run.peak_memory, run.peak_memory_of_all)
"""


def run_python(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


class TestMeasuring:
    def test_peak_memory_is_that_of_the_child_and_of_its_children(self) -> None:
        grow = "x = bytearray(200 << 20); import time; time.sleep(.3)"
        nest = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{grow}'])"
        for code, least_of_others in ((grow, 0), (nest, 5 << 20)):
            # Measured from a small process, as the programs do: a child's peak begins with that of its parent.
            largest, of_all = run_python(MEASURE, code).split()
            assert 200 << 20 < int(largest) < 250 << 20
            assert least_of_others <= int(of_all) - int(largest) < 50 << 20

    def test_seconds_are_wall_and_cpu(self) -> None:
        run = measuring.run_command(
            [sys.executable, "-c", "import time; time.sleep(0.5)"], measuring.environment(1)
        )
        assert run.seconds >= 0.5 > run.cpu_seconds

    def test_a_child_that_fails_is_heard(self) -> None:
        with pytest.raises(measuring.MeasuredError, match="exited with 3:\nwhy"):
            measuring.run_command(["sh", "-c", "echo why; exit 3"], measuring.environment(1))

    def test_functions_run_in_a_process_of_their_own(self) -> None:
        told = measuring.run_function(network_of, {"workers": 4})
        assert told["seen"] == 4
        assert told["seconds"] > 0

    def test_sides_take_turns(self) -> None:
        order: list[str] = []

        def case(name: str) -> measuring.Run:
            order.append(name)
            return measuring.Run(float(len(order)), 0.0, 0, 0)

        runs = measuring.in_turn({"a": lambda: case("a"), "b": lambda: case("b")}, 3)
        assert "".join(order) == "ababab"
        assert measuring.median(runs["a"], "seconds") == 3

    def test_table(self) -> None:
        text = measuring.table([{"a": "x", "n": 1234}, {"a": "yy", "n": None}])
        assert text.splitlines() == ["a       n", "x   1,234", "yy      -"]

    def test_clock_tells_waiting_from_work(self) -> None:
        import time

        result, wall, cpu = timed(lambda: time.sleep(0.2) or 5)
        assert (result, cpu < 0.1 < wall) == (5, True)


def network_of(workers: int) -> dict[str, Any]:
    """A child of a test."""
    return {"seen": workers}


class TestProblems:
    @pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
    def test_loss_is_that_of_scikit_learn(self, beta_loss: str) -> None:
        X = scipy.sparse.random(40, 30, 0.2, format="csr", random_state=0)
        model = NMF(3, solver="mu", beta_loss=beta_loss, init="random", random_state=0, max_iter=300)
        W = model.fit_transform(X)
        found = problems.loss(X, W, model.components_, beta_loss)
        assert found == pytest.approx(model.reconstruction_err_, rel=1e-6)

    def test_first_at_takes_the_first_that_is_low_enough(self) -> None:
        curve = [{"loss": 3.0}, {"loss": 2.0}, {"loss": 2.5}, {"loss": 1.0}]
        assert factorization.first_at(curve, 2.0) is curve[1]
        assert factorization.first_at(curve, 0.5) is None


class TestCorpusC:
    def test_no_document_stands_twice_and_all_bytes_are_there(self, corpus: str, tmp_path: Path) -> None:
        n_bytes = 3 * sum(len(text) for text in ds.dataset(corpus).to_table()["text"].to_pylist()) + 1000
        made = [tmp_path / "one", tmp_path / "two"]
        for folder in made:
            told = corpus_c.make(corpus, str(folder), n_bytes, files=5, row_groups=2)
        files = [sorted(folder.iterdir()) for folder in made]
        assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
        assert [pq.ParquetFile(file).num_row_groups for file in files[0]] == [2] * 5
        table = ds.dataset(made[0]).to_table()
        assert table.num_rows == told["n_rows"] == len(set(table["doc_id"].to_pylist()))
        texts = table["text"].to_pylist()
        assert len(set(texts)) == len(texts)
        assert abs(sum(map(len, texts)) - n_bytes) < 600
        # Words change places, none is lost.
        assert sorted(" ".join(texts[:400]).split()) == sorted(" ".join(texts[400:800]).split())

    def test_a_folder_that_holds_files_is_left_alone(self, corpus: str) -> None:
        with pytest.raises(ValueError, match="holds files already"):
            corpus_c.make(corpus, corpus, 1000, files=1, row_groups=1)


class TestNetwork:
    LOAD = network.Load(1_000_000, 60, 50, 100_000)

    def test_one_worker_moves_nothing(self) -> None:
        alone = network.pass_time(1, self.LOAD, network.Machine())
        assert (alone.reduce, alone.broadcast) == (0, 0)
        assert alone.compute == pytest.approx(1e6 * 60 * 50 * 0.6e-9 / 8)

    def test_a_tree_has_levels(self) -> None:
        machine = network.Machine(latency=0.0, add_bandwidth=float("inf"))
        reduces = [network.pass_time(workers, self.LOAD, machine).reduce for workers in (8, 64, 512)]
        wire = self.LOAD.H_bytes / machine.bandwidth
        assert reduces == pytest.approx([7 * wire, 14 * wire, 21 * wire])

    def test_split_columns_move_the_same_bytes_at_any_size(self) -> None:
        machine = network.Machine(latency=0.0)
        few, many = (network.split_pass_time(workers, self.LOAD, machine) for workers in (64, 1024))
        assert many.broadcast == pytest.approx(few.broadcast, rel=0.02)
        assert many.update == pytest.approx(few.update / 16)

    def test_more_documents_keep_more_workers_busy(self) -> None:
        machine = network.Machine(task_seconds=0.0)
        small, large = (
            network.most_workers(network.Load(n, 60, 50, 100_000), machine) for n in (10**6, 10**9)
        )
        assert small < large
        assert network.fastest(self.LOAD, machine) >= network.most_workers(self.LOAD, machine)


@dataclass
class Held:
    """Arrays in an object, whose size Dask does not see."""

    values: Any


def grown(seed: int) -> Held:
    return Held(np.random.default_rng(seed).random(1_000_000, np.float32))


def first_values(*held: Held) -> float:
    return sum(float(one.values[0]) for one in held)


@pytest.mark.slow
def test_bytes_are_those_on_the_wire() -> None:
    shape = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**shape) as cluster, Client(cluster) as client:
        client.run(jobs.count_written)
        here, there = client.scheduler_info(n_workers=-1)["workers"]
        held = [client.submit(grown, seed, workers=[where]) for seed, where in enumerate((here, there))]
        client.submit(first_values, *held, workers=[here]).result()
        sent = client.run(jobs.bytes_written)
    assert sent[there] == pytest.approx(4e6, rel=0.05)
    assert sent[here] < 1e5


def test_estimators_are_fitted_by_both_sides(corpus: str, tmp_path: Path) -> None:
    more = ["-k", "3", "--repeat", "1", "--losses", "cd", "--dense", "200", "40", "--dense-iter", "5"]
    report, _ = run("estimators", corpus, tmp_path, *more)
    dense = only_row(report, "dense, cd")
    assert dense["our loss"] == pytest.approx(dense["their loss"], rel=1e-3)
    assert dense["passes"] == dense["iterations"] == 5
    assert only_row(report, "sparse, cd")["our loss"] > 0
