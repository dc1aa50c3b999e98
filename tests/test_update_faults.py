"""Updates as commands of their own: killed at chosen moments, on one worker and on two, with the same end."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_command import Driver, checkpoints, slow_pass
from tests.small_corpora import files_of, generated_texts, run_command, write_corpus

TEXTS = generated_texts(1800, n_topics=5)
FIT = ("--id-column", "doc_id", "-k", 5, "--beta-loss", "kullback-leibler", "--max-iter", 6, "--tol", 0)
UPDATE = (
    "--max-iter",
    12,
    "--tol",
    0,
    "--set",
    "run.checkpoint_every=2",
    "--set",
    "corpus.partition_bytes=20000",
)
RESULTS = ("H", "W", "history")


class Model:
    """A fitted model, and a corpus that has more than it was fitted to."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.corpus, self.model, self.kind = folder / "corpus", folder / "model", kind

    def updating(self, *more: Any, **variables: str) -> Driver:
        return Driver(
            self.kind, "update", "--model", self.model, "--input", self.corpus, *UPDATE, *more, **variables
        )

    def copied(self, folder: Path) -> "Model":
        other = Model(folder, self.kind)
        other.corpus = self.corpus
        shutil.copytree(self.model, other.model)
        return other

    @property
    def run(self) -> Path:
        """The run of the update."""
        told = {path: json.loads((path / "run.json").read_text()) for path in (self.model / "runs").iterdir()}
        [run] = [path for path, one in told.items() if "updated_from" in one]
        return run

    def results(self) -> dict[str, bytes]:
        return {
            name: content for name, content in files_of(self.run).items() if name.split("/")[0] in RESULTS
        }


@pytest.fixture(scope="module", params=[pytest.param("one", marks=pytest.mark.slow), "many"])
def fitted(request, tmp_path_factory) -> Model:
    folder = tmp_path_factory.mktemp("fitted")
    model = Model(folder, request.param)
    write_corpus(model.corpus, TEXTS, 3)
    (model.corpus / "part-00002.parquet").rename(folder / "part-00002.parquet")
    Driver(model.kind, "fit", "--input", model.corpus, "--output", model.model, *FIT).done()
    (folder / "part-00002.parquet").rename(model.corpus / "part-00002.parquet")
    return model


@pytest.fixture(scope="module")
def undisturbed(fitted, tmp_path_factory) -> dict[str, bytes]:
    model = fitted.copied(tmp_path_factory.mktemp("undisturbed"))
    model.updating().done()
    return model.results()


@pytest.fixture
def model(fitted, tmp_path) -> Iterator[Model]:
    return fitted.copied(tmp_path)


def test_two_workers_make_the_same_bytes(model, undisturbed):
    model.updating("--workers", 2, "--threads-per-worker", 1).done()
    assert model.results() == undisturbed


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("counted", marks=pytest.mark.slow),
        pytest.param("past", marks=pytest.mark.slow),
        "checkpoint",
        pytest.param("written", marks=pytest.mark.slow),
    ],
)
def test_a_driver_killed_goes_on_to_the_same_bytes(model, undisturbed, moment):
    seen = {
        "counted": lambda: list(model.model.glob("runs/*/_work/counted.json")),
        "past": lambda: list(model.model.glob("runs/*/_work/past.arrow")),
        "checkpoint": lambda: checkpoints(model.model),
        "written": lambda: list(model.model.glob("runs/*/history/features.parquet"))[1:],
    }
    driver = model.updating()
    base = (model.model / "LATEST").read_text()
    assert driver.until(seen[moment]), "it was done before it could be killed"
    driver.kill()
    assert driver.left_nobody()
    committed = bool(list(model.model.glob("runs/*/_SUCCESS"))[1:])
    if not committed:
        assert (model.model / "LATEST").read_text() == base  # readers see the model of before
    log = model.updating().done()
    told = json.loads((model.run / "run.json").read_text())
    assert told["resumed_from"] is not None or committed, log
    assert model.results() == undisturbed
    assert (model.model / "LATEST").read_text().strip() == model.run.name
    assert not (model.run / "_work").exists()
    before = files_of(model.model)
    assert "nothing new" in model.updating().done()
    assert files_of(model.model) == before


@pytest.mark.slow
def test_a_damaged_past_has_the_fit_begin_again(model, undisturbed, tmp_path):
    """Its checkpoint is not whole without it."""
    entered, variables = slow_pass(tmp_path)
    driver = model.updating(**variables)
    assert driver.until(entered)
    driver.kill()
    driver.left_nobody()
    [past] = model.model.glob("runs/*/_work/past.arrow")
    past.write_bytes(past.read_bytes()[:-20])
    assert checkpoints(model.model)
    model.updating().done()
    assert json.loads((model.run / "run.json").read_text())["resumed_from"] == "select"
    assert model.results() == undisturbed


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint(model, undisturbed, tmp_path):
    entered, variables = slow_pass(tmp_path)
    driver = model.updating(**variables)
    assert driver.until(entered)
    code, log, seconds = driver.stop(15)
    assert code == 75, log
    assert seconds < 20
    [last] = checkpoints(model.model)[-1:]
    assert last == "pass-00005"
    model.updating().done()
    assert json.loads((model.run / "run.json").read_text())["resumed_from"] == last
    assert model.results() == undisturbed


def test_bad_usage_is_one_line_and_its_exit_code(model):
    start = time.monotonic()
    for arguments, code, words in (
        (("--set", "model.n_components=7"), 2, "model was fitted with 5"),
        (("--history", "discount=2"), 2, "discount=0.9"),
        (("--model", model.model / "runs"), 65, "not a model folder"),
    ):
        result = run_command("update", "--model", model.model, "--input", model.corpus, *arguments)
        assert result.returncode == code, result.stderr
        assert words in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
    assert time.monotonic() - start < 60
