"""A lake that grows by a day a night: W of each, a model that is made once, and updated when it is due."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from sklearn.preprocessing import normalize

from nmf_dask import TopicModel, nightly
from nmf_dask.config import Settings
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.pipeline import NightResult
from nmf_dask.store import Folder, ModelFolder
from nmf_dask.store.nights import NightlyFolder
from tests.small_corpora import command, environment, files_of, hashed_tfidf, loss, run_command, settings_of

JOBS = Path(__file__).parents[1] / "jobs"
NIGHTLY = importlib.import_module("nmf_dask.pipeline.nightly")  # the package has the function under this name
SUBJECTS = [[f"{name}{i}" for i in range(30)] for name in ("star", "game", "soil")]
OTHERS = [[f"{name}{i}" for i in range(30)] for name in ("tide", "loom", "jazz")]


def texts_of(day: int, n: int, subjects: list[list[str]] = SUBJECTS, length: int = 12) -> list[str]:
    random = np.random.default_rng(day)
    return [" ".join(random.choice(subjects[i % len(subjects)], length)) for i in range(n)]


def drifted(day: int, n: int) -> list[str]:
    """Words that the model knows, in company that it does not."""
    words = [word for subject in SUBJECTS for word in subject]
    return texts_of(day, n, [words[i::3] for i in range(3)])


class Lake:
    """Dated partitions, the model, the weights, and what the documents are."""

    def __init__(self, folder: Path) -> None:
        self.corpus, self.model, self.weights = (folder / name for name in ("lake", "model", "weights"))
        self.texts: dict[int, list[str]] = {}

    def day(self, day: int, texts: list[str]) -> Path:
        folder = self.corpus / f"day=2026-11-{day:02d}"
        folder.mkdir(parents=True)
        ids = [f"{day}/{i}" for i in range(len(texts))]
        pq.write_table(pa.table({"doc_id": ids, "text": texts}), folder / "part-0.parquet")
        self.texts[day] = texts
        return folder / "part-0.parquet"

    def settings(self, every: int | None = None, loss_rise: float | None = None, **sections: Any) -> Settings:
        chosen = {"weights": str(self.weights), "every": every, "loss_rise": loss_rise}
        sections = {"model": {"n_components": 3}, "vectorizer": {"max_df": 1.0}, **sections}
        return settings_of(self.corpus, self.model, nightly=chosen, **sections)

    def night(self, every: int | None = None, loss_rise: float | None = None, **sections: Any) -> NightResult:
        return nightly(self.settings(every, loss_rise, **sections))

    def arguments(self, *more: str) -> list[str]:
        return [
            "--input", str(self.corpus), "--output", str(self.model), "--weights", str(self.weights), "-k", "3",
            "--id-column", "doc_id", "--max-df", "1.0", "--log-format", "json", *more,
        ]  # fmt: skip

    def latest(self) -> str:
        return ModelFolder(str(self.model)).latest().run_id

    def days(self, run_id: str) -> dict[str, list[str]]:
        """Ids of the documents that have W under a run, by the day that W says."""
        table = pa.concat_tables(NightlyFolder(Folder(str(self.weights))).output(run_id).tables())
        found: dict[str, list[str]] = {}
        for row in table.select(["doc_id", "day"]).to_pylist():
            found.setdefault(str(row["day"]), []).append(row["doc_id"])
        return found

    def ids(self, *days: int) -> dict[str, list[str]]:
        return {f"2026-11-{day:02d}": [f"{day}/{i}" for i in range(len(self.texts[day]))] for day in days}

    def relative(self, run_id: str, *days: int) -> float:
        """√(2D) / ‖X‖ by scikit-learn's matrix and the W that is written."""
        model = TopicModel.load(str(self.model / "runs" / run_id))
        table = pa.concat_tables(NightlyFolder(Folder(str(self.weights))).output(run_id).tables())
        W = {row["doc_id"]: row["weights"] for row in table.to_pylist()}
        ids = [one for some in self.ids(*days).values() for one in some]
        texts = [text for day in days for text in self.texts[day]]
        plain = Settings(vectorizer={"use_idf": False, "norm": None})
        X = hashed_tfidf(texts, plain, model.vocabulary.bucket) @ sparse.diags(model.vocabulary.idf)
        X = sparse.csr_matrix(normalize(X))  # the idf is the run's own, not that of these documents
        rows = np.array([W[one] for one in ids], np.float64)
        square = np.sqrt(X.power(2).sum())
        return float(loss(X, rows, model.H.astype(np.float64), model.model_settings.beta_loss) / square)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"job_{name}", JOBS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def _first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Path]:
    """A lake after its first night, and a copy of it."""
    lake = Lake(tmp_path_factory.mktemp("first") / "x")
    lake.day(1, texts_of(1, 90))
    lake.day(2, texts_of(2, 60))
    lake.night()
    saved = tmp_path_factory.mktemp("saved")
    return lake, Path(shutil.copytree(lake.corpus.parent, saved / "x"))


@pytest.fixture
def lake(_first: tuple[Lake, Path]) -> Lake:
    """After its first night, in the one place where its model knows the files."""
    lake, saved = _first
    shutil.rmtree(lake.corpus.parent)
    shutil.copytree(saved, lake.corpus.parent)
    lake.texts = {day: lake.texts[day] for day in (1, 2)}
    return lake


@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
def test_nights_of_a_lake(tmp_path, beta_loss):
    """The first fits, the second transforms, a drift updates by loss, and the second night after it by number."""
    lake, model = Lake(tmp_path), {"model": {"n_components": 3, "beta_loss": beta_loss}}
    lake.day(1, texts_of(1, 90))
    lake.day(2, texts_of(2, 60))
    first = lake.night(2, 0.1, **model).told
    base = lake.latest()
    assert (first["did"], first["run_id"], first["n_documents"]) == (["fit", "transform"], base, 150)
    assert (first["relative_loss"], first["rise"], first["nights"]) == (None, None, 0)
    assert lake.days(base) == lake.ids(1, 2)
    assert (lake.weights / "LATEST").read_text() == f"{base}\n"

    lake.day(3, texts_of(3, 40))
    second = lake.night(2, 0.1, **model)
    told = second.told
    assert (told["did"], told["run_id"], told["n_documents"], told["files_new"]) == (
        ["transform"],
        base,
        40,
        1,
    )
    assert lake.days(base) == lake.ids(1, 2, 3)
    assert told["relative_loss"] == pytest.approx(lake.relative(base, 3), rel=1e-5)
    assert told["reference_loss"] == pytest.approx(lake.relative(base, 1, 2), rel=1e-5)
    assert told["rise"] == pytest.approx(told["relative_loss"] / told["reference_loss"] - 1)
    assert abs(told["rise"]) < 0.1
    assert (told["nights"], told["reason"], second.moved) == (1, None, [])

    lake.day(4, drifted(4, 80))
    third = lake.night(9, 0.1, **model)
    told, updated = third.told, lake.latest()
    assert (told["did"], told["reason"], told["nights"]) == (["transform", "update"], "loss", 2)
    assert told["relative_loss"] == pytest.approx(lake.relative(base, 4), rel=1e-5)
    assert told["rise"] > 0.1
    assert told["run_id"] == updated != base
    assert len(third.moved) == 3
    assert min(one.similarity for one in third.moved) < 0.999
    # What the update took in has W under the new run too; the rest keeps what it has.
    assert lake.days(updated) == lake.ids(3, 4)
    assert lake.days(base) == lake.ids(1, 2, 3, 4)
    assert (lake.weights / "LATEST").read_text() == f"{updated}\n"

    lake.day(5, texts_of(5, 30))
    fourth = lake.night(2, None, **model).told
    assert (fourth["did"], fourth["nights"], fourth["run_id"]) == (["transform"], 1, updated)
    assert fourth["reference_loss"] == pytest.approx(lake.relative(updated, 3, 4), rel=1e-5)
    before = files_of(lake.weights)
    assert lake.night(2, None, **model).told["status"] == "nothing new"
    assert files_of(lake.weights) == before, "a night without files counts, or writes"
    lake.day(6, texts_of(6, 30))
    fifth = lake.night(2, None, **model).told
    assert (fifth["did"], fifth["reason"], fifth["nights"]) == (["transform", "update"], "nights", 2)
    assert lake.days(lake.latest()) == lake.ids(5, 6)
    assert lake.days(updated) == lake.ids(3, 4, 5, 6)


class Killed(BaseException):
    """The end of a process, as far as files are concerned: nothing of the night runs after it."""


@pytest.mark.parametrize(
    ("step", "after"), [("transform", True), ("update", False), ("update", True), ("transform again", True)]
)
def test_a_night_that_was_killed_goes_on(lake, monkeypatch, step, after):
    lake.day(3, drifted(3, 60))
    base, calls = lake.latest(), []
    name = step.split()[0]
    real = getattr(NIGHTLY, name)

    def cut(*arguments: Any) -> Any:
        calls.append(name)
        if len(calls) < len(step.split()):
            return real(*arguments)
        if after:
            real(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(NIGHTLY, name, cut)
        with pytest.raises(Killed):
            lake.night(loss_rise=0.1)
    if step == "update" and after:
        lake.day(4, texts_of(4, 20))  # comes while nothing runs: no model has seen it
    result = lake.night(loss_rise=0.1)
    assert lake.latest() != base
    assert "update" in result.told["did"]
    assert (result.told["reason"], result.told["nights"], result.told["files_new"]) == ("loss", 1, 1)
    assert result.told["relative_loss"] == pytest.approx(lake.relative(base, 3), rel=1e-5)
    assert len(result.moved) == 3
    assert lake.days(base) == lake.ids(1, 2, 3)
    assert lake.days(lake.latest()) == lake.ids(*range(3, max(lake.texts) + 1))
    assert lake.night(loss_rise=0.1).told["status"] == "nothing new"


def test_a_first_night_that_was_killed_after_its_fit_goes_on(tmp_path, monkeypatch):
    lake = Lake(tmp_path)
    lake.day(1, texts_of(1, 60))
    with monkeypatch.context() as patch:
        patch.setattr(NIGHTLY, "transform", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            lake.night()
    base = lake.latest()
    lake.day(2, texts_of(2, 30))
    told = lake.night().told
    assert (told["run_id"], told["did"], told["n_documents"]) == (base, ["transform"], 30)
    assert told["relative_loss"] == pytest.approx(lake.relative(base, 2), rel=1e-5)
    assert told["reference_loss"] == pytest.approx(lake.relative(base, 1), rel=1e-5)
    assert lake.days(base) == lake.ids(1, 2)


def test_killed_at_any_moment_the_same_command_goes_on(lake):
    """SIGKILL to real processes, at moments from the start of the work to its end."""
    base = lake.latest()
    lake.day(3, drifted(3, 60))
    arguments = lake.arguments("--every", "1")
    random = np.random.default_rng()
    killed = 0
    for longest in (0.05, 0.5, 2.5):
        job = subprocess.Popen(
            command("nightly", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
        assert job.stderr is not None
        job.stderr.readline()  # at work
        time.sleep(random.uniform(0, longest))
        job.send_signal(signal.SIGKILL)
        job.communicate()
        killed += job.returncode == -signal.SIGKILL
    assert killed
    done = run_command("nightly", *arguments)
    assert done.returncode == 0, done.stderr
    assert lake.latest() != base
    assert lake.days(base) == lake.ids(1, 2, 3)
    assert lake.days(lake.latest()) == lake.ids(3)
    assert lake.night().told["status"] == "nothing new"


def test_the_job_as_a_process(lake):
    """jobs/nightly.py: the summary on stdout, JSON on stderr, one job at a time."""
    lake.day(3, texts_of(3, 20))
    line = [
        command()[0],
        str(JOBS / "nightly.py"),
        str(JOBS / "nightly.toml"),
        *lake.arguments("--loss-rise", "0.5"),
    ]
    with NightlyFolder(Folder(str(lake.weights))).lock():
        held = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=120)
    assert held.returncode == 75
    assert "_LOCK" in held.stderr or "lock" in held.stderr
    assert held.stdout == ""
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["status"], told["did"], told["n_documents"]) == ("done", ["transform"], 20)
    assert (told["topics_moved"], told["every"], told["loss_rise"]) == ([], 7, 0.5)
    assert told["weights"] == str(lake.weights / lake.latest())
    assert [json.loads(one) for one in done.stderr.splitlines()]
    # A reader needs no more than Arrow.
    days = ds.dataset(lake.weights / lake.latest() / "W").to_table(columns=["day"])["day"]
    assert sorted(map(str, days.unique().to_pylist())) == [f"2026-11-0{day}" for day in (1, 2, 3)]


def test_a_state_that_was_half_written_is_read_from_its_twin(lake):
    lake.day(3, texts_of(3, 20))
    lake.night()
    state = lake.weights / "nightly.json"
    for damage in (lambda: state.write_text('{"format_ver'), state.unlink):
        damage()
        assert lake.night().told["status"] == "nothing new"
    lake.day(4, texts_of(4, 20))
    assert lake.night().told["nights"] == 2
    assert state.read_text() == (lake.weights / "nightly.next.json").read_text()


def test_a_model_that_was_fitted_by_hand_is_taken_over(lake):
    """Its documents are the reference, and what came since is what no model has seen."""
    shutil.rmtree(lake.weights)
    lake.day(3, texts_of(3, 40))
    told = lake.night(loss_rise=0.5).told
    assert (told["did"], told["run_id"], told["files_new"]) == (["transform"], lake.latest(), 1)
    assert told["relative_loss"] == pytest.approx(lake.relative(lake.latest(), 3), rel=1e-5)
    assert told["reference_loss"] == pytest.approx(lake.relative(lake.latest(), 1, 2), rel=1e-5)


def test_a_file_that_changed_is_transformed_and_stops_an_update(lake):
    """Until someone decides: what a model took in cannot be taken back. Each night says so."""
    base = lake.latest()
    pq.write_table(
        pa.table({"doc_id": ["2/0"], "text": ["star0 star1"]}),
        lake.corpus / "day=2026-11-02" / "part-0.parquet",
    )
    for _ in range(2):
        with pytest.raises(InputDataError, match="changed since they were taken in"):
            lake.night(every=1)
    assert lake.days(base) == {**lake.ids(1), "2026-11-02": ["2/0"]}
    told = lake.night(every=1, update={"history": "reread"}).told
    assert told["did"] == ["update", "transform"]
    assert lake.days(lake.latest()) == {**lake.ids(1), "2026-11-02": ["2/0"]}


def test_what_cannot_be_done_is_refused_before_anything_is_written(lake, tmp_path):
    def refused(kind: type[Exception], text: str, **sections: Any) -> None:
        with pytest.raises(kind, match=text):
            nightly(
                lake.settings().model_copy(
                    update=Settings.model_validate(sections).__dict__
                    | {
                        name: value
                        for name, value in lake.settings().__dict__.items()
                        if name not in sections
                    }
                )
            )

    lake.day(3, texts_of(3, 20))
    before = files_of(lake.corpus.parent)
    refused(ConfigurationError, "needs output.output and nightly.weights", nightly={})
    refused(ConfigurationError, "one in the other", nightly={"weights": str(lake.model / "w")})
    refused(ConfigurationError, "is in the input", nightly={"weights": str(lake.corpus / "w")})
    (tmp_path / "photos").mkdir()
    refused(InputDataError, "holds photos", nightly={"weights": str(tmp_path)})
    assert files_of(lake.corpus.parent) == before
    for name in ("nightly.json", "nightly.next.json"):
        (lake.weights / name).write_text('{"format_version": 1, "run_id": 7}')
    refused(InputDataError, "nightly.json and its twin are not what a night writes")
    (lake.weights / "nightly.json").write_text("{")
    refused(InputDataError, "not JSON")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format_version": 1, "config": 7}', r"run\.json has \d+ bytes where"),
        ('{"format_version": 99}', "format version 99.*install a newer nmf-dask"),
    ],
)
def test_a_model_that_is_damaged_or_of_another_version_is_refused(lake, content, message):
    (lake.model / "runs" / lake.latest() / "run.json").write_text(content)
    lake.day(3, texts_of(3, 20))
    with pytest.raises(InputDataError, match=message):
        lake.night()


def test_a_plan_writes_nothing(lake, capsys):
    lake.day(3, texts_of(3, 20))
    before = files_of(lake.corpus.parent)
    assert script("nightly").main(lake.arguments("--dry-run")) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["n_rows"], told["n_files"], told["n_files_done"]) == (20, 1, 2)
    assert files_of(lake.corpus.parent) == before


def test_transform_and_update_jobs_on_the_lake(lake, tmp_path, capsys):
    """The keys of the folders come through to W, and only days that came are read."""
    run = str(lake.model / "runs" / lake.latest())
    common = ["--input", str(lake.corpus), "--id-column", "doc_id", "--log-format", "json"]
    line = [
        "--model",
        run,
        "--output",
        str(tmp_path / "w"),
        "--new-only",
        "--set",
        "transform.loss=true",
        *common,
    ]
    assert script("transform").main(line) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["files_new"], told["n_documents"]) == (2, 150)
    assert told["relative_loss"] == pytest.approx(lake.relative(lake.latest(), 1, 2), rel=1e-5)
    lake.day(3, texts_of(3, 20))
    assert script("transform").main(line) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["files_new"], told["files_skipped"], told["n_documents"]) == (1, 2, 20)
    found = ds.dataset(tmp_path / "w" / "W").to_table(columns=["doc_id", "day"]).to_pylist()
    assert sorted((str(one["day"]), one["doc_id"]) for one in found) == sorted(
        (day, one) for day, ids in lake.ids(1, 2, 3).items() for one in ids
    )

    assert script("update").main(["--model", str(lake.model), *common]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["n_documents"], told["updated_from"]["files_skipped"]) == (20, 2)
    found = ds.dataset(lake.model / "runs" / told["run_id"] / "W").to_table().to_pylist()
    assert [(str(one["day"]), one["doc_id"]) for one in found] == [
        ("2026-11-03", f"3/{i}") for i in range(20)
    ]


def test_weights_that_were_not_measured_are_not_compared_with(lake):
    """As those of a transform by hand, or of an earlier version: the first new documents are the reference."""
    base = lake.latest()
    manifest = lake.weights / base / "manifest.json"
    told = json.loads(manifest.read_text())
    for one in told["inputs"]:
        for part in one["parts"]:
            del part["loss"], part["squares"]
    manifest.write_text(json.dumps(told))
    for name in ("nightly.json", "nightly.next.json"):
        (lake.weights / name).unlink()
    lake.day(3, drifted(3, 20))
    told = lake.night(loss_rise=0.01).told
    assert told["did"] == ["transform"]
    assert told["relative_loss"] == told["reference_loss"] == pytest.approx(lake.relative(base, 3), rel=1e-5)
