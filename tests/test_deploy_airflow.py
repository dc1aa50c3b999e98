"""deploy/airflow: parsed and run by a real Airflow, its tasks by what the command line exits with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.small_corpora import ROOT, environment, generated_texts, write_corpus

DAG = ROOT / "deploy" / "airflow" / "nmf_dask_nightly.py"
CACHED = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nmf-dask-airflow"
# The first call exits as a job does that lost its cluster.
COMMAND = """#!/bin/sh
echo "$@" >> {calls}
[ $(wc -l < {calls}) -gt {failures} ] || exit 75
exec {python} -m nmf_dask "$@"
"""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory) -> dict[str, str]:
    """A Python with Airflow, and the environment for it, with a database."""
    if "CI" not in os.environ and not (CACHED / "done").exists():
        pytest.skip("Airflow is not installed; .ci/airflow does it")
    python = subprocess.run(
        [ROOT / ".ci" / "airflow"], capture_output=True, text=True, check=True
    ).stdout.strip()
    home = tmp_path_factory.mktemp("airflow")
    variables = environment(AIRFLOW_HOME=str(home), AIRFLOW__CORE__LOAD_EXAMPLES="False")
    subprocess.run([python, "-m", "airflow", "db", "migrate"], env=variables, check=True, capture_output=True)
    return {"python": python, **variables}


def run(
    airflow: dict[str, str], folder: Path, corpus: str, failures: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """What came of a run of the DAG, its three lines changed, and the arguments of each call of the command."""
    command, job, dags, calls = (folder / name for name in ("nmf-dask", "job.toml", "dags", "calls"))
    command.write_text(COMMAND.format(calls=calls, failures=failures, python=sys.executable))
    command.chmod(0o755)
    job.write_text(f"[corpus]\ninput = '{corpus}'\n[model]\nn_components = 4\n")
    dags.mkdir()
    text = DAG.read_text("utf-8")
    for name, value in (("COMMAND", command), ("JOB", job), ("MODEL", folder / "model")):
        [line] = [line for line in text.splitlines() if line.startswith(f"{name} = ")]
        assert "# <--" in line
        text = text.replace(line, f"{name} = {str(value)!r}")
    (dags / DAG.name).write_text(text)
    told = folder / "told.json"
    done = subprocess.run(
        [airflow["python"], "-m", "tests.airflow_run", dags, told], cwd=ROOT, capture_output=True, text=True,
        timeout=200, env={**airflow, "AIRFLOW__CORE__DAGS_FOLDER": str(dags)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(told.read_text()), calls.read_text().splitlines()


@pytest.mark.slow
def test_again_after_75(airflow, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", generated_texts(200), 2)
    told, calls = run(airflow, tmp_path, str(corpus), failures=1)
    assert told["state"] == "success"
    assert told["states"] == {"fit": ["success", 2], "topics": ["success", 1], "wrong": ["skipped", 0]}
    assert [call.split()[0] for call in calls] == ["fit", "fit", "topics"]
    assert (tmp_path / "model" / "LATEST").exists()
    for name in ("fit", "topics"):
        task = told["tasks"][name]
        assert task["retries"] >= 3
        assert task["delay"] >= 60
        assert task["skipped"] == [2, 65]
        assert task["command"].startswith(f"exec {tmp_path}/nmf-dask {name} ")


@pytest.mark.slow
def test_never_again_after_wrong_input(airflow, tmp_path):
    """And the run is red all the same."""
    told, calls = run(airflow, tmp_path, str(tmp_path / "nowhere"))
    assert told["state"] == "failed"
    assert {name: state for name, (state, _) in told["states"].items()} == {
        "fit": "skipped", "topics": "skipped", "wrong": "failed",
    }  # fmt: skip
    assert [call.split()[0] for call in calls] == ["fit"]
