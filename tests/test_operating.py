"""What an operator meets: exit codes, logs for machines, metrics, Dask's report, and old runs that go."""

import json
import re
import shutil
import signal
import socket
import sys
import urllib.request
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nmf_dask import fit
from nmf_dask.cli import main
from nmf_dask.errors import InputDataError, RetryableError
from nmf_dask.observer import Observer, Observers
from nmf_dask.store import Folder, ModelFolder
from tests.dask_processes import dask_cluster
from tests.faulty_command import Driver, slow_pass
from tests.small_corpora import generated_texts, run_command, settings_of, write_corpus

TEXTS = generated_texts(300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS, 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("model") / "m"
    fit(settings_of(corpus, folder))
    return folder


def command(name: str, corpus: Path, model: Path, output: Path) -> list[str]:
    more = ["-k", "5"] if name == "fit" else ["--model", str(model)]
    return [name, "--input", str(corpus), "--output", str(output), "--id-column", "doc_id", *more]


@pytest.mark.parametrize("name", ["fit", "transform"])
class TestExitCodes:
    @pytest.fixture
    def arguments(self, name, corpus, model, tmp_path):
        return command(name, corpus, model, tmp_path / "out")

    def error(self, capsys, code):
        """The one error that stderr ends with, where stdout stays empty."""
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        last = json.loads(err.splitlines()[-1])
        assert (last["level"], last["exit_code"]) == ("error", code)
        return last

    def told(self, tmp_path, name):
        where = "transform.json" if name == "transform" else "runs/*/run.json"
        [file] = (tmp_path / "out").glob(where)
        return json.loads(file.read_text())

    def test_0_done_and_nothing_new_to_do(self, arguments, capsys):
        results = []
        for _ in range(2):
            assert main([*arguments, "--log-format", "json"]) == 0
            results.append(json.loads(capsys.readouterr().out))
        assert [result["status"] for result in results] == ["done", "nothing new"]
        assert results[0]["n_documents"] == len(TEXTS)
        assert results[0]["run_id"] == results[1]["run_id"]
        assert results[0]["peak_memory"]["driver"] > 0
        assert results[0]["workers_lost"] == 0

    def test_2_configuration(self, arguments, capsys):
        assert main([*arguments, "--workers", "none of them", "--log-format", "json"]) == 2
        assert "--workers" in self.error(capsys, 2)["message"]

    def test_65_input(self, arguments, tmp_path, capsys):
        pq.write_table(pa.table({"doc_id": ["a"], "text": [1]}), tmp_path / "numbers.parquet")
        arguments[2] = str(tmp_path / "numbers.parquet")
        assert main([*arguments, "--log-format", "json"]) == 65
        assert "numbers.parquet" in self.error(capsys, 65)["message"]

    def test_75_locked(self, arguments, name, tmp_path, capsys):
        # A process that lives, and is not this one.
        card = {"host": "elsewhere", "pid": 1, "started": "today", "machine": "another", "process_start": "1"}
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / ("LOCK" if name == "fit" else "_LOCK")).write_text(json.dumps(card))
        assert main([*arguments, "--log-format", "json"]) == 75
        assert "process 1 on elsewhere" in self.error(capsys, 75)["message"]

    def test_75_no_scheduler_and_the_file_says_why(self, arguments, name, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("nmf_dask.cluster.existing.CONNECT_SECONDS", 1)
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{nobody.getsockname()[1]}"
            assert main([*arguments, "--scheduler", address, "--log-format", "json"]) == 75
        error = self.error(capsys, 75)
        told = self.told(tmp_path, name)
        assert address in error["message"]
        assert told["status"] == "failed"
        assert told["error"] == error["message"]
        assert error["run_id"] == told["run_id"]

    def test_1_a_bug_and_the_file_says_which(self, arguments, name, tmp_path, capsys, monkeypatch):
        def broken(*_):
            raise KeyError("zzz")

        monkeypatch.setattr("nmf_dask.threads.ThreadCluster.introduce", broken)
        assert main([*arguments, "--log-format", "json"]) == 1
        assert "KeyError: 'zzz'" in self.error(capsys, 1)["message"]
        assert self.told(tmp_path, name)["error"] == "KeyError: 'zzz'"
        assert main([*arguments, "--log-format", "json", "-v"]) == 1
        last = json.loads(capsys.readouterr().err.splitlines()[-1])
        assert "in broken" in last["traceback"]


def lines_of(log: str) -> list[dict]:
    lines = [json.loads(line) for line in log.splitlines()]
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"])
        assert line["level"] in ("info", "warning", "error")
        assert {"event", "run_id", "stage", "workers", "memory"} <= line.keys(), line
        assert line["memory"] > 2**20
    return lines


def stages_of(lines: list[dict]) -> list[str]:
    """Names of stages in the order they began; each ends before the next begins."""
    told = [(line["event"], line["stage"]) for line in lines if line["event"] in ("stage", "stage_done")]
    for begun, done in zip(told[::2], told[1::2], strict=True):
        assert (begun[0], done[0], begun[1]) == ("stage", "stage_done", done[1])
    return [stage for event, stage in told if event == "stage"]


# Preloaded by worker processes.
WORKER_WARNS = """
import warnings
from nmf_dask.staging import Stage

table = Stage.table

def warned(self, partition, table=table):
    warnings.warn(f"partition {partition} of a worker", UserWarning, stacklevel=1)
    return table(self, partition)

Stage.table = warned
"""


class TestLogs:
    @pytest.mark.slow
    def test_of_a_fit_on_worker_processes(self, tmp_path, corpus):
        """Every line of stderr is an object, a worker's warnings and those of this process among them."""
        (tmp_path / "warns.py").write_text(WORKER_WARNS)
        done = run_command(
            *command("fit", corpus, tmp_path, tmp_path / "m"), "--workers", 2, "--log-format", "json",
            "--max-iter", 12, "--tol", 0,
            DASK_DISTRIBUTED__WORKER__PRELOAD=str(tmp_path / "warns.py"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = lines_of(done.stderr)
        result = json.loads(done.stdout)
        assert stages_of(lines) == ["plan", "count", "select", "weigh", "init", "fit", "write"]
        begun = [line["event"] for line in lines].index("connecting")
        assert {line["run_id"] for line in lines[begun:]} == {result["run_id"]}
        warned = [line["message"] for line in lines if line["level"] == "warning"]
        assert any("of a worker" in message for message in warned), warned
        [connected] = [line for line in lines if line["event"] == "connected"]
        assert (connected["workers"], connected["threads"] >= 2) == (2, True)
        passes = [line for line in lines if line["event"] == "pass"]
        assert [line["pass"] for line in passes] == list(range(1, 13))
        assert all(one["loss"] >= other["loss"] for one, other in pairwise(passes))
        assert all(line["seconds"] > 0 for line in passes)
        ends = {line["stage"]: line for line in lines if line["event"] == "stage_done"}
        n_bytes = sum(map(len, TEXTS))
        for stage in ("count", "weigh", "write"):
            assert ends[stage]["bytes"] >= n_bytes
            assert ends[stage]["partition"] == ends[stage]["total"] >= 1
        assert (ends["fit"]["pass"], ends["fit"]["loss"]) == (12, passes[-1]["loss"])
        assert result["status"] == "done"

    def test_of_a_transform(self, tmp_path, corpus, model, capsys, monkeypatch):
        import logging
        import warnings

        from nmf_dask.threads import ThreadCluster

        introduce = ThreadCluster.introduce

        def introduced(self, observer):
            logging.captureWarnings(True)  # pytest has put its own in place
            warnings.warn("of Python", stacklevel=1)
            logging.getLogger("distributed.scheduler").warning("of Dask\nin two lines")
            introduce(self, observer)

        monkeypatch.setattr(ThreadCluster, "introduce", introduced)
        monkeypatch.setattr(warnings, "filters", [("always", None, Warning, None, 0)])
        assert main([*command("transform", corpus, model, tmp_path / "w"), "--log-format", "json"]) == 0
        out, err = capsys.readouterr()
        lines, result = lines_of(err), json.loads(out)
        assert stages_of(lines) == ["plan", "transform"]
        assert result["run_id"] == (model / "LATEST").read_text().strip() == lines[-1]["run_id"]
        warned = [line["message"] for line in lines if line["level"] == "warning"]
        assert any("UserWarning: of Python" in message for message in warned)
        assert "distributed.scheduler: of Dask in two lines" in warned
        [end] = [line for line in lines if line["event"] == "stage_done" and line["stage"] == "transform"]
        assert end["partition"] == end["total"] == 2
        assert end["bytes"] >= sum(map(len, TEXTS))

    def test_an_observer_forgets_no_event(self):
        events = [name for name in vars(Observer) if not name.startswith("_")]
        heard = []

        class Hears(Observer):
            def __getattribute__(self, name):
                return lambda *arguments, **more: heard.append((name, arguments, more))

        both = Observers(Hears(), Hears())
        for name in events:
            getattr(both, name)(
                *"ab"[: 1 if name in ("connecting", "passed", "warn", "inform") else 2],
                *(["c"] if name == "connected" else []),
            )
        assert [name for name, _, _ in heard] == [name for name in events for _ in range(2)]


def scraped(port: int) -> dict[str, float]:
    """Samples by name and labels, of what a real server answers, read by Prometheus's own parser."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    return {
        sample.name + "".join(f"|{value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class TestMetrics:
    @pytest.mark.slow
    def test_of_a_running_job_that_is_then_stopped(self, tmp_path, corpus):
        """Scraped in its sixth pass, of ten minutes; what a SIGTERM leaves is as uniform as the rest."""
        begun, variables = slow_pass(tmp_path)
        report, log = tmp_path / "report.html", tmp_path / "log"
        with open(log, "w") as stderr:
            driver = Driver(
                "one", *command("fit", corpus, tmp_path, tmp_path / "m"), "--log-format", "json", "--max-iter", 12,
                "--tol", 0, "--metrics-port", 0, "--performance-report", report, stderr=stderr, **variables,
            )  # fmt: skip
            try:
                assert driver.until(begun), log.read_text()
                port = json.loads(log.read_text().splitlines()[0])["metrics_port"]
                found = scraped(port)
            finally:
                code, _, seconds = driver.stop(signal.SIGTERM)
        lines = lines_of(log.read_text())
        last = [line for line in lines if line["event"] == "pass"][-1]
        assert found["nmf_dask_stage|fit"] == 1
        assert sum(value for name, value in found.items() if name.startswith("nmf_dask_stage|")) == 1
        assert found["nmf_dask_stage|count"] == 0
        assert found["nmf_dask_pass"] == last["pass"] == 5
        assert found["nmf_dask_loss"] == last["loss"]
        assert (found["nmf_dask_stage_done"], found["nmf_dask_stage_total"]) == (5, 12)
        assert found["nmf_dask_stage_seconds"] > 0
        assert found["nmf_dask_documents"] == len(TEXTS)
        assert found["nmf_dask_bytes_total|count"] >= sum(map(len, TEXTS))
        assert (found["nmf_dask_workers"], found["nmf_dask_workers_lost"]) == (1, 0)
        assert (found["nmf_dask_warnings_total"], found["nmf_dask_errors_total"]) == (0, 0)
        assert found["process_resident_memory_bytes"] > 2**20
        assert any(name.startswith("nmf_dask_run_info|") and last["run_id"] in name for name in found)
        with pytest.raises(OSError, match="refused"):
            scraped(port)
        assert (code, seconds < 10) == (75, True)
        error = lines[-1]
        assert (error["exit_code"], error["stage"], error["run_id"]) == (75, "fit", last["run_id"])
        [run] = (tmp_path / "m").glob("runs/*/run.json")
        assert json.loads(run.read_text())["error"] == error["message"]
        assert "SIGTERM" in error["message"]
        assert "<title>Dask Performance Report</title>" in report.read_text()

    def test_a_worker_that_dies_and_a_warning_are_counted(self):
        from prometheus_client import CollectorRegistry

        from nmf_dask.cli.metrics import Metrics

        registry = CollectorRegistry()
        metrics = Metrics(registry)
        metrics.workers(4, 0)
        metrics.workers(3, 1)
        metrics.warn("a worker was lost")
        assert registry.get_sample_value("nmf_dask_workers") == 3
        assert registry.get_sample_value("nmf_dask_workers_lost") == 1
        assert registry.get_sample_value("nmf_dask_warnings_total") == 1

    def test_a_port_that_is_taken(self, tmp_path, corpus, capsys):
        with socket.socket() as taken:
            taken.bind(("0.0.0.0", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert main([*command("fit", corpus, tmp_path, tmp_path / "m"), "--metrics-port", str(port)]) == 2
        err = capsys.readouterr().err
        assert f"port {port}" in err
        assert "--metrics-port" in err
        assert not (tmp_path / "m").exists()

    def test_without_the_library(self, tmp_path, corpus, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        assert main([*command("fit", corpus, tmp_path, tmp_path / "m"), "--metrics-port", "0"]) == 2
        assert "pip install 'nmf-dask[metrics]'" in capsys.readouterr().err
        assert not (tmp_path / "m").exists()

    def test_a_failed_job_is_an_error_and_the_port_is_free_again(self, tmp_path, corpus, capsys):
        with socket.socket() as free:
            free.bind(("0.0.0.0", 0))
            port = str(free.getsockname()[1])
        for _ in range(2):
            wrong = [*command("fit", corpus, tmp_path, tmp_path / "m"), "--text-column", "no"]
            assert main([*wrong, "--metrics-port", port]) == 65
        assert "'no'" in capsys.readouterr().err


class TestReport:
    @pytest.fixture(autouse=True)
    def _needs_bokeh(self):
        pytest.importorskip("bokeh", reason="bokeh is not installed (extra dashboard)")

    def tasks_in(self, file: Path) -> str:
        page = file.read_text()
        assert "<title>Dask Performance Report</title>" in page
        return page

    def test_of_a_fit_and_of_one_that_fails(self, tmp_path, corpus, capsys):
        report = tmp_path / "report.html"
        arguments = [*command("fit", corpus, tmp_path, tmp_path / "m"), "--performance-report", str(report)]
        assert main([*arguments, "--min-df", "290"]) == 65
        assert "count" in self.tasks_in(report)
        report.unlink()
        assert main(arguments) == 0
        assert "write" in self.tasks_in(report)
        assert capsys.readouterr().err.count("warning") == 0

    @pytest.mark.slow
    def test_on_a_running_cluster(self, tmp_path, corpus, model, capsys):
        with dask_cluster(tmp_path, n_workers=1) as (file, _):
            done = run_command(
                *command("transform", corpus, model, tmp_path / "w"), "--scheduler", file,
                "--performance-report", tmp_path / "r.html",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        assert "transform" in self.tasks_in(tmp_path / "r.html")

    @pytest.mark.parametrize("path", ["no/folder/r.html", "s3://bucket/r.html", "."])
    def test_a_place_that_cannot_be(self, tmp_path, corpus, capsys, monkeypatch, path):
        monkeypatch.chdir(tmp_path)
        arguments = command("fit", corpus, tmp_path, tmp_path / "m")
        assert main([*arguments, "--performance-report", path]) == 2
        assert "--performance-report" in capsys.readouterr().err


def test_a_report_without_bokeh(tmp_path, corpus, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    arguments = command("fit", corpus, tmp_path, tmp_path / "m")
    assert main([*arguments, "--performance-report", str(tmp_path / "r.html")]) == 2
    assert "pip install 'nmf-dask[dashboard]'" in capsys.readouterr().err
    assert not list((tmp_path / "m").glob("runs/*/_work/counts/*"))


class TestRetention:
    @pytest.fixture
    def store(self, tmp_path, model):
        """Committed runs, of which the first in time is not the first by name; the fitted one is the newest."""
        shutil.copytree(model, tmp_path / "m")
        runs = tmp_path / "m" / "runs"
        [newest] = runs.iterdir()
        for day, name in enumerate(("f" * 16, "0" * 16, "a" * 16), 1):
            shutil.copytree(newest, runs / name)
            run = json.loads((newest / "run.json").read_text())
            run |= {"run_id": name, "written": f"2020-01-0{day}T00:00:00.000000+00:00"}
            (runs / name / "run.json").write_text(json.dumps(run))
        unfinished = runs / ("e" * 16)
        shutil.copytree(newest, unfinished)
        (unfinished / "_SUCCESS").unlink()
        return ModelFolder(str(tmp_path / "m"))

    def names(self, store):
        return {run.run_id[0] if len(set(run.run_id)) == 1 else "new" for run in store.runs()}

    def test_after_a_fit_the_oldest_go(self, store, corpus):
        settings = settings_of(corpus, Path(store.uri), model={"n_components": 4}, output={"keep_runs": 3})
        result = fit(settings)
        assert self.names(store) == {"a", "e", "new"}
        assert sum(run.is_committed() for run in store.runs()) == 3
        assert store.latest().run_id == result.run_id

    def test_what_latest_names_stays(self, store):
        (Path(store.uri) / "LATEST").write_text("f" * 16 + "\n")
        assert store.remove_old(1, pytest.fail) == ["0" * 16, "a" * 16]
        assert self.names(store) == {"f", "e", "new"}
        assert store.remove_old(1, pytest.fail) == []

    def test_what_cannot_go_is_a_warning_and_no_reader_takes_it_for_a_run(self, store, corpus, monkeypatch):
        delete, warned = Folder.delete, []

        def refused(self):
            if self.uri.endswith("f" * 16):
                raise InputDataError(f"cannot delete {self}: permission denied")
            delete(self)

        class Hears(Observer):
            def warn(self, message, **fields):
                warned.append(message)

        settings = settings_of(corpus, Path(store.uri), model={"n_components": 3}, output={"keep_runs": 1})
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "delete", refused)
            fit(settings, Hears())
        [message] = warned
        assert "f" * 16 in message
        assert "permission denied" in message
        assert self.names(store) == {"f", "e", "new"}
        assert not store.run("f" * 16).is_committed()
        assert store.remove_old(7, pytest.fail) == ["f" * 16]  # the removal that was cut off
        assert self.names(store) == {"e", "new"}

    def test_one_that_lost_its_lock_removes_nothing(self, store, corpus, monkeypatch):
        from nmf_dask.pipeline.retention import remove_old_runs
        from nmf_dask.store import ModelLock

        def taken(self):
            raise RetryableError("another has it")

        monkeypatch.setattr(ModelLock, "check", taken)
        warned = []
        observer = Observer()
        observer.warn = lambda message, **fields: warned.append(message)
        remove_old_runs(store.latest(), 1, store.lock(), observer)
        assert len(store.runs()) == 5
        assert "another has it" in warned[0]
