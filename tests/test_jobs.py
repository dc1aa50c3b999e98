"""The jobs as they are submitted: each script's main, on real Parquet, end to end."""

import csv
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmf_dask import Settings, load_settings
from tests.corpora import corpus_folder

JOBS = Path(__file__).parents[1] / "jobs"
# Three subjects that share no word: any topic model worth the name takes them apart.
SUBJECTS = (
    ["orbit", "launch", "moon", "rocket", "shuttle", "satellite", "mission", "nasa"],
    ["goalie", "hockey", "puck", "season", "coach", "playoff", "league", "team"],
    ["bible", "church", "faith", "prayer", "gospel", "christian", "scripture", "heaven"],
)


def job(name: str) -> ModuleType:
    """A job's script as a module."""
    spec = importlib.util.spec_from_file_location(f"job_{name}", JOBS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("NMF_DASK_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """300 documents of one subject each, in two files."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    for part in range(2):
        texts = [" ".join(random.choice(SUBJECTS[row % 3], 12)) for row in range(150)]
        ids = [f"{part}/{row}" for row in range(150)]
        pq.write_table(pa.table({"key": ids, "body": texts}), folder / f"{part}.parquet", row_group_size=40)
    return folder


@pytest.fixture(scope="module")
def job_file(tmp_path_factory, corpus) -> Path:
    path = tmp_path_factory.mktemp("job") / "job.toml"
    path.write_text(
        f"""
        [corpus]
        input = '{corpus}'
        text_column = "body"
        id_column = "key"
        [model]
        n_components = 3
        max_iter = 30
        """
    )
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory, job_file) -> Path:
    """The model folder that jobs/fit.py wrote."""
    folder = tmp_path_factory.mktemp("model") / "model"
    assert job("fit").main([str(job_file), "--output", str(folder), "-q"]) == 0
    return folder


def test_fit_takes_the_subjects_apart(model, capsys):
    assert job("topics").main([str(model), "--format", "json", "-n", "8"]) == 0
    topics = json.loads(capsys.readouterr().out)["topics"]
    found = sorted(sorted(term["term"] for term in topic["terms"]) for topic in topics)
    assert found == sorted(sorted(words) for words in SUBJECTS)
    assert [topic["share"] for topic in topics] == pytest.approx([1 / 3] * 3, abs=0.05)


def test_topics_agree_with_the_tables_that_were_written(model, capsys):
    assert job("topics").main([str(model), "--format", "csv", "-n", "4"]) == 0
    shown = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    run = model / "runs" / (model / "LATEST").read_text().strip()
    written = [row for row in pq.read_table(run / "topics.parquet").to_pylist() if row["rank"] <= 4]
    assert [(int(row["topic"]), int(row["rank"]), row["term"]) for row in shown] == [
        (row["topic"], row["rank"], row["term"]) for row in written
    ]
    np.testing.assert_allclose(
        [float(row["weight"]) for row in shown], [row["weight"] for row in written], rtol=1e-6
    )


def test_a_second_fit_has_nothing_to_do(model, job_file, capsys):
    arguments = [str(job_file), "--output", str(model), "--log-format", "json"]
    assert job("fit").main(arguments) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["run_id"] == (model / "LATEST").read_text().strip()
    assert result["finished_before"] is True
    assert result["n_documents"] == 300
    assert [json.loads(line) for line in err.splitlines()]


def test_an_update_takes_in_what_is_new_and_topics_tell_what_moved(model, job_file, corpus, tmp_path, capsys):
    """The job file is that of the fit; the corpus has a fourth subject in one more file."""
    grown, folder = tmp_path / "corpus", tmp_path / "model"
    shutil.copytree(corpus, grown)
    shutil.copytree(model, folder)
    base = (folder / "LATEST").read_text().strip()
    table = pa.table(
        {
            "key": [f"x{i}" for i in range(60)],
            "body": [f"anchor sail {SUBJECTS[i % 3][0]}" for i in range(60)],
        }
    )
    pq.write_table(table, grown / "zz-new.parquet")
    arguments = [str(job_file), "--model", str(folder), "--input", str(grown), "--log-format", "json"]
    assert job("update").main([*arguments, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["n_rows"] == 60
    assert job("update").main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["run_id"] == (folder / "LATEST").read_text().strip() != base
    assert result["n_documents"] == 60
    assert result["updated_from"]["run_id"] == base
    assert job("update").main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == result["run_id"]

    compared = ["--compare", base, "-n", "10"]
    assert job("topics").main([str(folder), *compared, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run_id"], told["compared_with"]) == (result["run_id"], base)
    assert [one["similarity"] for one in told["topics"]] == pytest.approx(
        result["updated_from"]["similarity"]
    )
    came = {term for one in told["topics"] for term in one["terms_in"]}
    assert {"anchor", "sail"} <= came
    assert job("topics").main([str(folder), *compared, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["terms_in"].split() for row in rows] == [one["terms_in"] for one in told["topics"]]
    assert job("topics").main([str(folder), *compared]) == 0
    text = capsys.readouterr().out
    assert "+anchor" in text
    assert all(f"#{topic} " in text for topic in range(3))
    for wrong in ("0123456789abcdef", base[:8]):
        assert job("topics").main([str(folder), "--compare", wrong]) == 65
        runs = min(base, result["run_id"])
        assert f"holds no run {wrong}; its runs are {runs}" in capsys.readouterr().err


def test_plan_names_the_rows(job_file, tmp_path, capsys):
    arguments = [str(job_file), "--output", str(tmp_path / "m"), "--dry-run"]
    assert job("fit").main(arguments) == 0
    assert "300" in capsys.readouterr().out
    assert not (tmp_path / "m").exists()


def test_wrong_column_is_input_data(job_file, tmp_path, capsys):
    assert job("fit").main([str(job_file), "--output", str(tmp_path / "m"), "--text-column", "bdy"]) == 65
    out, err = capsys.readouterr()
    assert out == ""
    assert "bdy" in err
    assert "body" in err
    assert "Traceback" not in err


def test_as_a_script_with_worker_processes(job_file, tmp_path):
    """Worker processes import the script: without its guard each of them would start the job again."""
    arguments = [str(JOBS / "fit.py"), str(job_file), "--output", str(tmp_path / "m"), "--workers", "2"]
    done = subprocess.run(
        [sys.executable, *arguments, "--log-format", "json"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_documents"] == 300
    for line in done.stderr.splitlines():
        json.loads(line)


def test_newsgroups_job_is_the_classic():
    settings = load_settings(JOBS / "newsgroups.toml", {})
    assert settings == Settings(
        vectorizer={"stop_words": "english", "min_df": 10, "max_features": 1500},
        model={"n_components": 10, "beta_loss": "frobenius", "solver": "mu"},
    )


def test_newsgroups_job_finds_the_subjects_that_everybody_finds(tmp_path, capsys):
    folder = corpus_folder("20newsgroups")
    arguments = [str(JOBS / "newsgroups.toml"), "--input", str(folder), "--output", str(tmp_path / "m")]
    assert job("fit").main([*arguments, "-q"]) == 0
    topics = [set(line.split()[3::2]) for line in capsys.readouterr().out.splitlines()]
    assert len(topics) == 10
    for words in ({"god", "jesus"}, {"windows", "dos"}, {"game", "team"}, {"key", "chip"}, {"drive", "scsi"}):
        assert any(words <= topic for topic in topics), (words, topics)


@pytest.mark.parametrize(
    "name", ["fit", "transform", "update", "nightly", "evaluate", "select_k", "topics", "report", "demo"]
)
def test_each_has_its_submission_line_and_guard(name):
    source = (JOBS / f"{name}.py").read_text()
    assert f"python jobs/{name}.py" in job(name).__doc__
    assert 'if __name__ == "__main__":' in source


def test_each_command_has_a_job():
    from nmf_dask.cli import COMMANDS

    # Python puts a script's folder first on its path: select.py would hide the standard library's module.
    scripts = {path.stem for path in JOBS.glob("*.py")}
    assert scripts & sys.stdlib_module_names == set()
    assert set(COMMANDS) == {name.removesuffix("_k") for name in scripts}
