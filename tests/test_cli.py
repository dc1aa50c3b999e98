"""The command line: flags to settings, results on stdout, everything else on stderr, exit codes."""

import csv
import gc
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from nmf_dask.cli import main
from nmf_dask.cli.options import FLAGS
from nmf_dask.config import Settings
from nmf_dask.errors import ConfigurationError, InputDataError, NmfDaskError, RetryableError
from nmf_dask.jobfile import KEYS, load_settings

TOPICS = [
    SimpleNamespace(topic=0, share=0.25, terms=(("god", 0.5), ("jesus", 0.25))),
    SimpleNamespace(topic=1, share=0.75, terms=(("käse", 1234.5), ("a,b", 0.001))),
]
JOB = ["--input", "in", "--output", "out"]


class FakePipeline:
    """Stands in for the pipeline: keeps what it was given, fails as it is told."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.error: BaseException | None = None

    def fit(self, settings, observer, since=None):
        self.settings = settings
        observer.connected(2, 4, "http://127.0.0.1:8787/status")
        observer.stage("count", 2)
        observer.advance(2, 1000)
        observer.warn("3 rows are null", rows=3)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(
            uri="s3://key:hush@bucket/m",
            run_id="abc",
            resumed=False,
            finished_before=False,
            run={
                "n_documents": 7,
                "n_features": 5,
                "n_iter": 3,
                "stop_reason": "tol",
                "reconstruction_err": 1.5,
            },
        )

    def plan(self, settings):
        self.settings = settings
        return SimpleNamespace(lines=lambda: ["2 partitions", "4 rows"], as_dict=lambda: {"partitions": 2})


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("NMF_DASK_"):
            monkeypatch.delenv(name)


@pytest.fixture
def pipeline(monkeypatch):
    fake = FakePipeline()
    monkeypatch.setitem(sys.modules, "nmf_dask.pipeline", SimpleNamespace(fit=fake.fit, plan=fake.plan))
    loaded = SimpleNamespace(topics=lambda n: TOPICS, run={"run_id": "abc"})
    model = SimpleNamespace(TopicModel=SimpleNamespace(load=lambda uri: loaded))
    monkeypatch.setitem(sys.modules, "nmf_dask.model", model)
    return fake


class TestHelp:
    @pytest.mark.parametrize("command", ["fit", "transform", "topics", "report", "demo"])
    def test_has_an_example(self, command, capsys):
        assert main([command, "--help"]) == 0
        assert f"Example:\n    nmf-dask {command}" in capsys.readouterr().out

    def test_fit_names_every_flag_with_key_and_default(self, capsys):
        main(["fit", "--help"])
        out = " ".join(capsys.readouterr().out.split())
        for key, names in FLAGS.items():
            assert f"({key})" in out
            for name in names:
                assert name in out
        assert "(model.n_components) [default: 10]" in out

    def test_flags_are_keys(self):
        assert FLAGS.keys() <= KEYS.keys()

    def test_nearest_command(self, capsys):
        assert main(["fti"]) == 2
        assert "did you mean fit?" in capsys.readouterr().err


class TestFlags:
    def test_each_reaches_its_setting(self, pipeline):
        flags = (
            "--text-column body --id-column key -k 5 --beta-loss kullback-leibler --solver mu --init random "
            "--max-iter 9 --tol 0 --random-state 3 --max-features none --min-df 10 --max-df 0.9 "
            "--stop-words a,b --ngram-range 1,2 --workers 2 --threads-per-worker 3 --memory-limit 2GiB "
            "--resume never --set run.checkpoint_every=7 --set output.n_top_terms=3"
        )
        assert main(["fit", "--input", "a", "--input", '["b", "c"]', "--output", "o", *flags.split()]) == 0
        assert pipeline.settings == Settings(
            corpus={"input": ("a", "b", "c"), "text_column": "body", "id_column": "key"},
            model={
                "solver": "mu",
                "n_components": 5,
                "beta_loss": "kullback-leibler",
                "init": "random",
                "max_iter": 9,
                "tol": 0,
                "random_state": 3,
            },
            vectorizer={
                "max_features": None,
                "min_df": 10,
                "max_df": 0.9,
                "stop_words": ("a", "b"),
                "ngram_range": (1, 2),
            },
            output={"output": "o", "n_top_terms": 3},
            cluster={"workers": 2, "threads_per_worker": 3, "memory_limit": "2GiB"},
            run={"resume": "never", "checkpoint_every": 7},
        )

    def test_scheduler(self, pipeline):
        assert main(["fit", *JOB, "--scheduler", "tcp://a:1"]) == 0
        assert pipeline.settings.cluster.scheduler == "tcp://a:1"

    def test_flag_before_environment_before_file(self, pipeline, tmp_path, monkeypatch):
        job = tmp_path / "job.toml"
        job.write_text("[model]\nn_components = 7\nmax_iter = 7\ntol = 0.7\n")
        monkeypatch.setenv("NMF_DASK_MODEL__N_COMPONENTS", "8")
        monkeypatch.setenv("NMF_DASK_MODEL__MAX_ITER", "8")
        assert main(["fit", str(job), *JOB, "-k", "9"]) == 0
        model = pipeline.settings.model
        assert (model.n_components, model.max_iter, model.tol) == (9, 8, 0.7)

    def test_errors_name_the_flag(self, pipeline, capsys, monkeypatch):
        monkeypatch.setenv("NMF_DASK_MODEL__TOL", "low")
        assert main(["fit", "-k", "ten", "--set", "model.sweps=2"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("nmf-dask: error: 5 settings are wrong\n")
        assert "--n-components: model.n_components" in err
        assert "NMF_DASK_MODEL__TOL: model.tol" in err
        assert "--set: there is no setting model.sweps; did you mean model.sweeps?" in err
        assert "corpus.input is missing: give --input" in err
        assert "output.output is missing: give --output" in err

    @pytest.mark.parametrize(
        "wrong",
        [
            ["--set", "model.tol"],
            ["--set", "=1"],
            ["--tol", "1", "--set", "model.tol=1"],
            ["--frob"],
            ["a", "b"],
            ["-k"],
            ["--dry-run=3"],
        ],
    )
    def test_usage(self, pipeline, capsys, wrong):
        assert main(["fit", *JOB, *wrong]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "nmf-dask: error: " in err

    def test_usage_is_shown_with_the_way_to_more(self, capsys):
        assert main(["fit", "--frob"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("Usage: nmf-dask fit")
        assert "nmf-dask fit --help says more" in err

    def test_a_pattern_that_the_shell_expanded(self, pipeline, capsys):
        assert main(["fit", "--output", "o", "--input", "a.parquet", "b.parquet", "c.parquet"]) == 2
        assert "quotes" in capsys.readouterr().err

    def test_last_set_wins(self, pipeline):
        assert main(["fit", *JOB, "--set", "model.tol=1", "--set", "model.tol = 2"]) == 0
        assert pipeline.settings.model.tol == 2

    def test_print_config_is_a_job_file(self, pipeline, capsys, tmp_path):
        assert main(["fit", "--input", "a", "-k", "5", "--max-features", "none", "--print-config"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "n_components = 5  # --n-components" in out
        (tmp_path / "job.toml").write_text(out)
        expected = Settings(
            corpus={"input": "a"}, model={"n_components": 5}, vectorizer={"max_features": None}
        )
        assert load_settings(tmp_path / "job.toml", {}) == expected
        assert pipeline.settings is None

    def test_dry_run(self, pipeline, capsys):
        assert main(["fit", *JOB, "--dry-run"]) == 0
        assert capsys.readouterr().out == "2 partitions\n4 rows\n"
        assert main(["fit", *JOB, "--dry-run", "--log-format", "json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"partitions": 2}


class TestResults:
    def test_fit_prints_topics_on_stdout_alone(self, pipeline, capsys):
        assert main(["fit", *JOB]) == 0
        out, err = capsys.readouterr()
        assert out == "#1  75.0 %  käse 1.23e+03  a,b 0.001\n#0  25.0 %  god 0.5  jesus 0.25\n"
        assert "warning: 3 rows are null" in err
        assert "dashboard http://127.0.0.1:8787/status" in err

    def test_fit_json_is_one_line_and_so_is_every_line_of_the_log(self, pipeline, capsys):
        assert main(["fit", *JOB, "--log-format", "json"]) == 0
        out, err = capsys.readouterr()
        assert out.count("\n") == 1
        result = json.loads(out)
        assert result["run_id"] == "abc"
        assert result["n_documents"] == 7
        assert result["topics"][1]["terms"][0] == {"term": "käse", "weight": 1234.5}
        assert "hush" not in out
        events = [json.loads(line) for line in err.splitlines()]
        assert [event["event"] for event in events] == ["connected", "stage", "warning", "info", "stage_done"]
        assert events[2]["rows"] == 3

    def test_quiet_keeps_warnings_and_result(self, pipeline, capsys):
        assert main(["fit", *JOB, "-q"]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("#1")
        assert err.count("\n") == 1
        assert "3 rows are null" in err

    def test_topics_csv(self, pipeline, capsys):
        assert main(["topics", "m", "--format", "csv"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [row["term"] for row in rows] == ["god", "jesus", "käse", "a,b"]
        assert rows[3] == {"topic": "1", "share": "0.75", "rank": "2", "term": "a,b", "weight": "0.001"}

    def test_topics_json(self, pipeline, capsys):
        assert main(["topics", "m", "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["topics"][0] == {
            "topic": 0,
            "share": 0.25,
            "terms": [{"term": "god", "weight": 0.5}, {"term": "jesus", "weight": 0.25}],
        }

    def test_dead_topic_is_shown(self, pipeline, capsys, monkeypatch):
        monkeypatch.setattr(sys.modules[__name__], "TOPICS", [SimpleNamespace(topic=0, share=0.0, terms=())])
        assert main(["topics", "m"]) == 0
        assert capsys.readouterr().out == "#0   0.0 %  (no terms)\n"

    def test_an_unknown_share_is_no_number(self, pipeline, capsys, monkeypatch):
        topic = SimpleNamespace(topic=0, share=float("nan"), terms=(("a", 1.0),))
        monkeypatch.setattr(sys.modules[__name__], "TOPICS", [topic, TOPICS[0]])
        outs = []
        for shape in ("text", "json", "csv"):
            assert main(["topics", "m", "--format", shape]) == 0
            outs.append(capsys.readouterr().out)
        assert outs[0].splitlines()[1] == "#0    ?    a 1"
        assert '"share": null' in outs[1]
        assert outs[2].splitlines()[1] == "0,,1,a,1.0"

    def test_zero_terms_are_refused(self, pipeline):
        assert main(["topics", "m", "-n", "0"]) == 2

    def test_long_lines_wrap_on_a_terminal_only(self):
        from nmf_dask.cli.results import lines_of

        topic = SimpleNamespace(topic=10, share=0.5, terms=tuple((f"term{i}", 0.1) for i in range(9)))
        whole, wrapped = lines_of([topic], None), lines_of([topic], 40)
        assert whole.count("\n") == 1
        assert all(len(line) <= 40 for line in wrapped.splitlines())
        assert wrapped.split() == whole.split()
        assert wrapped.splitlines()[1].startswith(" " * len("#10  50.0 %  ") + "term")

    def test_what_a_corpus_holds_ends_no_line_and_moves_no_cursor(self):
        from nmf_dask.cli import measures, results

        term = "a\nb\x1b[2Jc\u2028d"
        topic = SimpleNamespace(topic=0, share=1.0, similarity=0.0, state="new", terms=((term, 0.5),))
        moved = SimpleNamespace(
            now=topic, before=topic, similarity=0.0, state="new", terms_in=[term], terms_out=[]
        )
        for text in (results.lines_of([topic], None), results.lines_of_moved([moved], None)):
            assert text.splitlines() == [text.removesuffix("\n")]
            assert r"a\nb\x1b[2Jc\u2028d" in text
        told = {"overall": {}, "n_documents": 1, "topics": [{"topic": 0, "terms": [term]}],
                "labels": {"names": [term], "documents_by_topic": [[1]]}}  # fmt: skip
        text = results.in_lines(measures.lines_of(told))
        assert text.count(r"a\nb\x1b[2Jc\u2028d") == 2
        assert "\x1b" not in text

    def test_a_reader_that_has_had_enough_is_no_error(self):
        code = (
            "import sys; from nmf_dask.cli.results import write\n"
            "for _ in range(9): write('x' * 100_000 + '\\n')"
        )
        command = f'"{sys.executable}" -c "$CODE" | head -c 1 > /dev/null; echo ${{PIPESTATUS[0]}}'
        done = subprocess.run(
            ["bash", "-c", command],
            env={**os.environ, "CODE": code},
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == ("0\n", "")

    @pytest.mark.parametrize("closed", ["stdout", "stderr"])
    def test_closed_streams(self, pipeline, monkeypatch, closed):
        monkeypatch.setattr(sys, closed, None)
        assert main(["fit", *JOB]) == 0
        pipeline.error = InputDataError("x")
        assert main(["fit", *JOB]) == 65


class TestExitCodes:
    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (ConfigurationError("c"), 2, "error: c"),
            (InputDataError("i"), 65, "error: i"),
            (RetryableError("r"), 75, "error: r"),
            (KeyboardInterrupt(), 75, "interrupted; run the same command again"),
            (MemoryError(), 75, "out of memory"),
            (PermissionError(13, "Permission denied", "/x/y"), 65, "Permission denied (/x/y)"),
            (FileNotFoundError(2, "No such file or directory", "/x"), 65, "No such file or directory (/x)"),
            (OSError(28, "No space left on device"), 75, "make room"),
            (OSError("When reading s3://a:hush@b/c: timeout"), 75, "s3://***@b/c"),
            (KeyError("zzz"), 1, "KeyError: 'zzz'"),
            (AssertionError(), 1, "AssertionError"),
        ],
    )
    def test_one_message_no_traceback(self, pipeline, capsys, error, code, words):
        pipeline.error = error
        assert main(["fit", *JOB, "-q"]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert words in err
        assert "Traceback" not in err
        assert "hush" not in err
        assert err.count("nmf-dask: error: ") == 1

    def test_every_error_of_the_package_keeps_its_code(self, pipeline):
        for kind in NmfDaskError.__subclasses__():
            pipeline.error = kind("x")
            assert main(["fit", *JOB]) == kind.exit_code

    def test_a_bug_says_how_to_see_more(self, pipeline, capsys):
        pipeline.error = KeyError("zzz")
        assert main(["fit", *JOB]) == 1
        assert "run the command again with -v" in capsys.readouterr().err
        assert main(["fit", *JOB, "-v"]) == 1
        assert "Traceback" in capsys.readouterr().err

    @pytest.mark.parametrize("how", ["flag", "equals", "environment", "file"])
    def test_json_error(self, pipeline, capsys, monkeypatch, tmp_path, how):
        pipeline.error = InputDataError('no "text"\nat all')
        more = {"flag": ["--log-format", "json"], "equals": ["--log-format=json"]}.get(how, [])
        if how == "environment":
            monkeypatch.setenv("NMF_DASK_RUN__LOG_FORMAT", "json")
        if how == "file":
            (tmp_path / "job.toml").write_text("[run]\nlog_format = 'json'")
            more = [str(tmp_path / "job.toml")]
        assert main(["fit", *JOB, *more]) == 65
        last = json.loads(capsys.readouterr().err.splitlines()[-1])
        assert last["message"] == 'no "text"\nat all'
        assert (last["level"], last["exit_code"], last["kind"]) == ("error", 65, "InputDataError")

    def test_json_usage_error(self, pipeline, capsys):
        assert main(["fit", "--frobnicate", "--log-format", "json"]) == 2
        assert json.loads(capsys.readouterr().err)["exit_code"] == 2

    def test_sigterm(self, pipeline, capsys, monkeypatch):
        reached = []

        def wait(settings, observer, since):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
            try:
                time.sleep(10)
            finally:  # the checkpoint: another SIGTERM must not end it
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append("checkpoint")

        monkeypatch.setattr(sys.modules["nmf_dask.pipeline"], "fit", wait)
        before = signal.getsignal(signal.SIGTERM)
        assert main(["fit", *JOB]) == 75
        assert "SIGTERM" in capsys.readouterr().err
        assert reached == ["checkpoint"]
        assert signal.getsignal(signal.SIGTERM) is before

    def test_sigterm_where_python_drops_what_is_raised(self, pipeline, capsys, monkeypatch):
        """Dask looks on while garbage is collected; a signal that met it there was lost, and the job went on."""
        asked = []

        def look_on(phase, info):
            if not asked:
                asked.append(phase)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)  # the handler runs here

        def wait(settings, observer, since):
            gc.callbacks.append(look_on)
            try:
                gc.collect()
                time.sleep(10)
            finally:
                gc.callbacks.remove(look_on)

        monkeypatch.setattr(sys.modules["nmf_dask.pipeline"], "fit", wait)
        hook = sys.unraisablehook
        assert main(["fit", *JOB]) == 75
        said = capsys.readouterr().err
        assert "SIGTERM" in said
        assert "Traceback" not in said
        assert sys.unraisablehook is hook

    def test_outside_of_the_main_thread(self, pipeline):
        codes = []
        thread = threading.Thread(target=lambda: codes.append(main(["fit", *JOB])))
        thread.start()
        thread.join()
        assert codes == [0]
