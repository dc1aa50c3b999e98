"""Updates: what is new is counted and fitted, what was there goes on from what the last run kept of it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from nmf_dask import TopicModel, fit, update
from nmf_dask.config import Settings
from nmf_dask.errors import ConfigurationError, InputDataError, RetryableError
from nmf_dask.kernels.matrices import to_scipy
from nmf_dask.pipeline import plan_update
from nmf_dask.store import Folder, Manifest, ModelFolder
from nmf_dask.store.history import InputFile
from nmf_dask.text import count_texts
from nmf_dask.vocabulary import weigh
from tests.small_corpora import (
    factors_of,
    files_of,
    generated_texts,
    h_bytes,
    loss,
    matrix_of,
    settings_of,
    w_table_of,
)
from tests.small_models import reseal, started

TEXTS = generated_texts(450)
N_OLD = 300


def night(corpus: Path, number: int, texts: list[str | None]) -> Path:
    """One more file of a corpus that grows."""
    corpus.mkdir(parents=True, exist_ok=True)
    file = corpus / f"night-{number:03d}.parquet"
    ids = [f"n{number}-{i}" for i in range(len(texts))]
    pq.write_table(pa.table({"doc_id": ids, "text": pa.array(texts, pa.string())}), file, row_group_size=50)
    return file


def job(corpus: Path, model: Path, history: str | None = None, /, **sections: Any) -> Settings:
    chosen = {} if history is None else {"history": history}
    return settings_of(corpus, model, update=chosen, **sections)


class Grown:
    """A model of a first file, and a second file beside that."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.corpus, self.model, self.sections = folder / "corpus", folder / "model", sections
        night(self.corpus, 0, TEXTS[:N_OLD])
        self.base = fit(settings_of(self.corpus, self.model, **sections))
        night(self.corpus, 1, TEXTS[N_OLD:])

    def copied(self, folder: Path) -> "Grown":
        """The same, where a test may do with it what it likes; the files keep their times."""
        other = object.__new__(Grown)
        other.corpus, other.model, other.sections = self.corpus, folder / "model", self.sections
        shutil.copytree(self.model, other.model)
        other.base = self.base
        return other

    def updated(self, history: str | None = None, **sections: Any) -> Any:
        return update(job(self.corpus, self.model, history, **{**self.sections, **sections}))


LOSSES = ("frobenius", "kullback-leibler")


@pytest.fixture(scope="module", params=LOSSES)
def shared(request, tmp_path_factory):
    return Grown(tmp_path_factory.mktemp("grown"), model={"beta_loss": request.param, "tol": 1e-6})


@pytest.fixture
def grown(shared, tmp_path):
    return shared.copied(tmp_path)


@pytest.fixture(scope="module")
def _plain(tmp_path_factory):
    return Grown(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def plain(_plain, tmp_path):
    """Of the default loss alone, for what does not depend on it."""
    return _plain.copied(tmp_path)


def matrix(model: TopicModel, texts: list[str]) -> sparse.csr_matrix:
    """X in the columns and the idf of a model, whose way from strings is tested elsewhere."""
    counts = count_texts(pa.array(texts), model.vectorizer_settings)
    return sparse.csr_matrix(to_scipy(weigh(counts, model.vocabulary, model.vectorizer_settings))).astype(
        np.float64
    )


def kept_of(uri: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """WᵀW (or the sums of W), WᵀX (or KL's numerators) by topics and features, and the numbers beside them."""
    history = Path(uri, "history")
    S = np.array(pq.read_table(history / "topics.parquet")["weights"].to_pylist())
    return (
        S,
        matrix_of(history / "features.parquet").T.astype(np.float64),
        json.loads((history / "numbers.json").read_text()),
    )


def sums_of(
    X: sparse.csr_matrix, W: np.ndarray, H: np.ndarray, beta_loss: str
) -> tuple[np.ndarray, np.ndarray]:
    """The same, written out."""
    if beta_loss == "frobenius":
        return W.T @ W, (X.T @ W).T
    dense = X.toarray()
    ratio = np.divide(dense, W @ H, out=np.zeros_like(dense), where=dense > 0)
    return W.sum(axis=0)[:, np.newaxis], H * (W.T @ ratio)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_terms_are_those_of_a_fit_of_everything_and_topics_keep_their_numbers(grown, tmp_path):
    before = TopicModel.load(grown.base.uri)
    result = grown.updated()
    whole = TopicModel.load(fit(settings_of(grown.corpus, tmp_path / "whole", **grown.sections)).uri)
    model = TopicModel.load(result.uri)
    # Frequencies of new text alone, or of old terms that no column had, would differ.
    assert model.vocabulary.to_table().equals(whole.vocabulary.to_table())
    assert model.vocabulary.n_documents == len(TEXTS)
    told = result.run["updated_from"]
    assert told["run_id"] == grown.base.run_id
    assert told["features_new"] == len(model.vocabulary) - len(before.vocabulary) > 0
    assert min(told["similarity"]) > 0.95
    assert told["topics_new"] == told["topics_gone"] == []
    # W is that of the new documents, under their ids, and gives the loss that is told.
    W, H = factors_of(result.uri)
    assert w_table_of(result.uri)["doc_id"].to_pylist() == [f"n1-{i}" for i in range(len(TEXTS) - N_OLD)]
    X, beta_loss = matrix(model, TEXTS[N_OLD:]), grown.sections["model"]["beta_loss"]
    np.testing.assert_allclose(loss(X, W, H, beta_loss), result.run["reconstruction_err"], rtol=1e-5)
    # As good as the fit of everything, on everything.
    X = matrix(model, TEXTS)
    losses = [
        loss(X, one.transform(TEXTS).astype(np.float64), one.H.astype(np.float64), beta_loss)
        for one in (model, whole)
    ]
    assert losses[0] < losses[1] * 1.002


def test_the_objective_falls_and_counts_the_old_documents(grown):
    result = grown.updated()
    errors = pq.read_table(Path(result.uri, "convergence.parquet"))["reconstruction_err"].to_numpy()
    assert (np.diff(errors) <= 1e-5 * errors[0]).all()
    base, own = grown.base.run["reconstruction_err"], result.run["reconstruction_err"]
    # About what both sets of documents lose, each by itself.
    assert errors[-1] == pytest.approx(np.hypot(base, own), rel=0.02)


@pytest.mark.parametrize("beta_loss", LOSSES)
@pytest.mark.parametrize("history", ["keep", "discount=0.25", "forget"])
def test_what_is_kept_is_the_weighted_sum_of_old_and_new(tmp_path, beta_loss, history):
    """Without idf and norm the old columns stay what they were, and the sums are exact."""
    sections = {
        "model": {"beta_loss": beta_loss, "normalize": True, "max_iter": 20},
        "vectorizer": {"use_idf": False, "norm": "none"},
    }
    grown = Grown(tmp_path, **sections)
    old = TopicModel.load(grown.base.uri)
    S, B, numbers = kept_of(grown.base.uri)
    W, H = factors_of(grown.base.uri)
    for found, expected in zip((S, B), sums_of(matrix(old, TEXTS[:N_OLD]), W, H, beta_loss), strict=True):
        close(found, expected)
    assert numbers["n_documents"] == numbers["n_rows"] == N_OLD

    result = grown.updated(history)
    new = TopicModel.load(result.uri)
    weight = {"keep": 1.0, "discount=0.25": 0.25, "forget": 0.0}[history]
    W, H = factors_of(result.uri)
    own_S, own_B = sums_of(matrix(new, TEXTS[N_OLD:]), W, H, beta_loss)
    places = {bucket: i for i, bucket in enumerate(new.vocabulary.bucket.tolist())}
    columns = [places[bucket] for bucket in old.vocabulary.bucket.tolist()]
    S_now, B_now, numbers = kept_of(result.uri)
    scale = np.sqrt(np.diag(S)) if beta_loss == "frobenius" else S[:, 0]
    # `normalize` scales each run's W by its own factor; a fit goes on from H as it was written, so sums agree.
    assert scale.shape == (5,)
    factor = factor_between(S_now - own_S, weight * S, beta_loss)
    if weight:
        close(S_now, own_S + weight * S * (factor * factor.T if beta_loss == "frobenius" else factor))
        close(B_now[:, columns], own_B[:, columns] + weight * B * (factor if beta_loss == "frobenius" else 1))
    else:
        close(S_now, own_S)
        close(B_now, own_B)
    assert numbers["n_documents"] == len(TEXTS)
    assert numbers["n_rows"] == pytest.approx(weight * N_OLD + len(TEXTS) - N_OLD)


def factor_between(found: np.ndarray, given: np.ndarray, beta_loss: str) -> np.ndarray:
    """What each topic's W was multiplied by, to make its H sum to 1 again: (k, 1)."""
    if not given.any():
        return np.ones((len(found), 1))
    ratio = np.diag(found) / np.diag(given) if beta_loss == "frobenius" else found[:, 0] / given[:, 0]
    return (np.sqrt(ratio) if beta_loss == "frobenius" else ratio)[:, np.newaxis]


def test_reread_fits_all_of_the_input_from_the_last_topics(grown):
    result = grown.updated("reread")
    assert result.run["n_documents"] == len(TEXTS) == w_table_of(result.uri).num_rows
    assert TopicModel.load(result.uri).vocabulary.n_documents == len(TEXTS)
    assert min(result.run["updated_from"]["similarity"]) > 0.95
    assert kept_of(result.uri)[2]["n_documents"] == len(TEXTS)
    assert grown.updated("reread").run_id == result.run_id
    # What it took in is not new to a later night.
    assert grown.updated().run_id == result.run_id


def test_nights_that_follow_each_other(plain, tmp_path):
    """Each night's files are taken in once, whoever took them in; the last model has seen them all."""
    plain.corpus = shutil.copytree(
        plain.corpus, tmp_path / "corpus"
    )  # its files' times are kept, its path is not
    first = plain.updated()
    assert first.run["updated_from"]["files_skipped"] == 1  # a copy under another path is the same file
    night(plain.corpus, 2, TEXTS[:40])
    second = plain.updated()
    assert second.run["updated_from"]["run_id"] == first.run_id
    assert second.run["updated_from"]["files_skipped"] == 2
    assert second.run["n_documents"] == 40
    assert TopicModel.load(second.uri).vocabulary.n_documents == len(TEXTS) + 40
    inputs = pq.read_table(Path(second.uri, "history", "inputs.parquet"))["name"].to_pylist()
    assert sorted(set(inputs)) == ["night-000.parquet", "night-001.parquet", "night-002.parquet"]
    assert (plain.model / "LATEST").read_text().strip() == second.run_id
    # From an older run, by its own folder: beside it, not on top of the last.
    third = update(settings_of(plain.corpus, plain.model, update={"base": first.uri, "history": "forget"}))
    assert third.run["updated_from"]["run_id"] == first.run_id
    assert third.run_id != second.run_id


class TestNothingNew:
    def test_the_same_command_again_writes_nothing(self, plain):
        planned = plan_update(job(plain.corpus, plain.model))
        result = plain.updated()
        assert planned.staging == f"{result.uri}/_work"
        before = files_of(plain.model)
        again = plain.updated()
        assert again.finished_before
        assert again.run_id == result.run_id
        assert files_of(plain.model) == before
        assert plan_update(job(plain.corpus, plain.model)).n_files == 0

    def test_files_that_were_touched_are_not_new(self, plain, tmp_path):
        plain.corpus = shutil.copytree(plain.corpus, tmp_path / "corpus")
        plain.updated()
        for file in plain.corpus.iterdir():
            os.utime(file)
        assert plain.updated().finished_before

    def test_files_that_were_touched_are_not_new_to_a_filter(self, tmp_path):
        night(tmp_path / "c", 0, TEXTS[:N_OLD])
        filtered = {"where": "doc_id != 'n0-7'"}
        fit(settings_of(tmp_path / "c", tmp_path / "m", corpus=filtered))
        os.utime(tmp_path / "c" / "night-000.parquet", ns=(1, 1))
        assert update(job(tmp_path / "c", tmp_path / "m", corpus=filtered)).finished_before

    @pytest.mark.parametrize("where", ["doc_id < 'n1'", "text != 'tea'"])
    def test_new_files_without_a_document_that_the_filter_takes(self, tmp_path, where):
        """By statistics, and once they are read. Catches a night that stops at a day without a match."""
        night(tmp_path / "c", 0, TEXTS[:N_OLD])
        filtered = {"where": where}
        base = fit(settings_of(tmp_path / "c", tmp_path / "m", corpus=filtered))
        night(tmp_path / "c", 1, ["tea", "tea", None])
        result = update(job(tmp_path / "c", tmp_path / "m", corpus=filtered))
        assert result.finished_before
        assert [run.name for run in (tmp_path / "m" / "runs").iterdir()] == [base.run_id]
        with pytest.raises(InputDataError, match="no document"):
            update(job(tmp_path / "c" / "night-001.parquet", tmp_path / "m", "reread", corpus=filtered))

    def test_new_files_without_rows(self, plain, tmp_path):
        plain.corpus = shutil.copytree(plain.corpus, tmp_path / "corpus")
        plain.updated()
        night(plain.corpus, 7, [])
        assert plain.updated().finished_before

    def test_what_an_update_that_was_killed_after_its_commit_left_is_cleared(self, plain):
        result = plain.updated()
        Path(result.uri, "_work", "blocks").mkdir(parents=True)
        assert plain.updated().finished_before
        assert not Path(result.uri, "_work").exists()

    def test_a_commit_that_was_cut_off_is_finished(self, plain):
        result = plain.updated()
        (plain.model / "LATEST").write_text(f"{plain.base.run_id}\n")
        Path(result.uri, "_work").mkdir()
        Path(result.uri, "_work", "COMMIT").touch()
        assert plain.updated().run_id == result.run_id
        assert (plain.model / "LATEST").read_text().strip() == result.run_id
        assert not Path(result.uri, "_work").exists()


def test_a_night_of_fewer_documents_than_topics_and_one_of_empty_ones(grown, tmp_path):
    grown.corpus = shutil.copytree(grown.corpus, tmp_path / "corpus")
    grown.updated()
    night(grown.corpus, 2, [TEXTS[0], "quite other words"])
    small = grown.updated()
    assert small.run["n_documents"] == 2
    night(grown.corpus, 3, ["", None, "!"])
    empty = grown.updated()
    assert empty.run["n_empty_documents"] == 3
    H, before = TopicModel.load(empty.uri).H, TopicModel.load(small.uri).H
    assert np.isfinite(H).all()
    # Nothing was said of the topics, beside what there being more documents does to idf.
    assert min(empty.run["updated_from"]["similarity"]) > 0.99
    assert H.sum() == pytest.approx(before.sum(), rel=0.05)
    night(grown.corpus, 4, ["few", "words"])
    with pytest.raises(InputDataError, match="2 documents cannot make 5 topics"):
        grown.updated("forget")


class TestBadInput:
    @pytest.mark.parametrize(
        ("sections", "message"),
        [
            ({"model": {"n_components": 6}}, "n_components is 6, but the model was fitted with 5"),
            ({"model": {"beta_loss": "kullback-leibler"}}, "beta_loss is kullback-leibler"),
            ({"vectorizer": {"min_df": 3}}, "min_df is 3, but the model was fitted with 2"),
            ({"vectorizer": {"ngram_range": [1, 2]}}, r"ngram_range is \(1, 2\)"),
            (
                {"output": {"output": "elsewhere"}, "update": {"base": "MODEL"}},
                "output.output is .*leave output out",
            ),
        ],
        ids=str,
    )
    def test_settings_that_an_update_cannot_change(self, plain, sections, message):
        sections = json.loads(json.dumps(sections).replace("MODEL", str(plain.model)))
        before = files_of(plain.model)
        with pytest.raises(ConfigurationError, match=message):
            update(settings_of(plain.corpus, plain.model, **sections))
        assert files_of(plain.model) == before

    def test_settings_that_agree_or_may_change(self, plain):
        result = plain.updated(
            model={"n_components": 5, "max_iter": 2, "solver": "mu"},
            vectorizer={"min_df": 2},
            output={"n_top_terms": 3},
        )
        assert result.run["n_iter"] <= 2
        assert result.run["config"]["model"]["solver"] == "mu"
        assert pq.read_table(Path(result.uri, "topics.parquet")).num_rows == 15

    def test_a_changed_file(self, plain, tmp_path):
        plain.corpus = shutil.copytree(plain.corpus, tmp_path / "corpus")
        base = fit(settings_of(plain.corpus, tmp_path / "m"))
        file = night(plain.corpus, 1, TEXTS[:77])
        with pytest.raises(InputDataError, match=f"changed since they were taken in.*{file.name}.*reread"):
            update(job(plain.corpus, tmp_path / "m"))
        assert (
            update(job(plain.corpus, tmp_path / "m", "reread")).run["updated_from"]["run_id"] == base.run_id
        )

    def test_a_missing_column_is_told_before_anything_is_written(self, plain, tmp_path):
        plain.corpus = shutil.copytree(plain.corpus, tmp_path / "corpus")
        pq.write_table(pa.table({"doc_id": ["a"], "body": ["b"]}), plain.corpus / "night-002.parquet")
        before = files_of(plain.model)
        with pytest.raises(InputDataError, match=r"night-002.*no column 'text'"):
            plain.updated()
        assert files_of(plain.model) == before

    def test_no_model(self, plain, tmp_path):
        with pytest.raises(InputDataError, match="there is no model"):
            update(job(plain.corpus, tmp_path / "nothing"))
        with pytest.raises(ConfigurationError, match="no model: give --model"):
            update(Settings.model_validate({"corpus": {"input": str(plain.corpus)}}))
        run = shutil.copytree(plain.base.uri, tmp_path / "0123456789abcdef")
        with pytest.raises(ConfigurationError, match="outside of a model folder"):
            update(
                Settings.model_validate(
                    {"corpus": {"input": str(plain.corpus)}, "update": {"base": str(run)}}
                )
            )

    @pytest.mark.parametrize(
        "text", ["discount", "discount=0", "discount=1.5", "discount=nan", "kept", "keep=1", ""]
    )
    def test_histories_that_are_none(self, text):
        with pytest.raises(ValueError, match=r"update\.history"):
            Settings.model_validate({"update": {"history": text}})


class TestDamage:
    FILES = ("terms.parquet", "features.parquet", "topics.parquet", "inputs.parquet", "numbers.json")

    @pytest.mark.parametrize("how", ["deleted", "cut", "changed"])
    @pytest.mark.parametrize("name", FILES)
    def test_a_kept_file(self, plain, name, how):
        file = Path(plain.model, "runs", plain.base.run_id, "history", name)
        content = file.read_bytes()
        if how == "deleted":
            file.unlink()
        elif how == "cut":
            file.write_bytes(content[:-7])
        else:
            file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(InputDataError, match=name.replace(".", r"\.")):
            plain.updated()
        assert (plain.model / "LATEST").read_text().strip() == plain.base.run_id

    @pytest.mark.parametrize("name", FILES)
    def test_a_kept_file_of_something_else_under_a_right_checksum(self, plain, name):
        run = ModelFolder(str(plain.model)).run(plain.base.run_id)
        file = Path(run.folder.path, "history", name)
        if name.endswith("json"):
            file.write_text('{"beta_loss": "frobenius", "n_documents": "many"}')
        else:
            pq.write_table(pa.table({"weights": [1.0]}), file)
        reseal(run)
        with pytest.raises(InputDataError, match="history is not what a run keeps"):
            plain.updated()

    def test_a_run_that_keeps_nothing(self, plain):
        run = ModelFolder(str(plain.model)).run(plain.base.run_id)
        shutil.rmtree(Path(run.folder.path, "history"))
        reseal(run)
        for history in ("keep", "forget"):
            with pytest.raises(
                InputDataError, match=r"keeps nothing that an update could go on from.*reread"
            ):
                plain.updated(history)
        result = plain.updated("reread")
        assert result.run["n_documents"] == len(TEXTS)
        assert result.run["updated_from"]["run_id"] == plain.base.run_id


def test_the_lock_of_another_job(plain):
    holder = """
import sys
from nmf_dask.store import ModelFolder
with ModelFolder(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""
    process = started(holder, str(plain.model))
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RetryableError, match=f"locked by process {process.pid} "):
        plain.updated()
    process.communicate(timeout=30)
    assert plain.updated().run["status"] == "done"


def test_credentials_are_not_kept():
    taken = InputFile.of(
        "s3://key:secret/with/slash@bucket/a.parquet?secret_key=abc", (1, 2), "a.parquet", 1, "d"
    )
    assert "secret/with" not in taken.uri
    assert "abc" not in taken.uri


def test_a_manifest_speaks_of_what_is_kept(plain):
    names = Manifest.load(Folder(plain.base.uri)).parts("history")
    assert names == sorted(f"history/{name}" for name in TestDamage.FILES)


def test_one_worker_and_two_make_the_same_bytes(plain, tmp_path):
    here = plain.updated()
    other = plain.copied(tmp_path / "other")
    there = other.updated(cluster={"workers": 2, "threads_per_worker": 1})
    assert there.run_id == here.run_id
    assert h_bytes(there.uri) == h_bytes(here.uri)
    assert kept_files(there.uri) == kept_files(here.uri)


def kept_files(uri: str) -> dict[str, bytes]:
    return {
        name: content
        for name, content in files_of(Path(uri)).items()
        if name.split("/")[0] in ("W", "H", "history")
    }


def test_nights_of_json_lines(tmp_path):
    """Files whose documents are known only when they are read: counted then, however few, and taken in once."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()

    def write(number: int, texts: list[str]) -> None:
        lines = (json.dumps({"doc_id": f"n{number}-{i}", "text": text}) for i, text in enumerate(texts))
        (corpus / f"night-{number}.jsonl").write_text("".join(f"{line}\n" for line in lines))

    write(0, TEXTS[:N_OLD])
    fit(settings_of(corpus, tmp_path / "m"))
    write(1, TEXTS[N_OLD : N_OLD + 3])
    result = update(job(corpus, tmp_path / "m"))
    assert result.run["n_documents"] == 3
    assert result.run["updated_from"]["n_documents"] == N_OLD
    assert w_table_of(result.uri)["doc_id"].to_pylist() == ["n1-0", "n1-1", "n1-2"]
    assert update(job(corpus, tmp_path / "m")).run_id == result.run_id
