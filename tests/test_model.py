"""TopicModel: read back whole or refused by file, and W of new documents as scikit-learn computes it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmf_dask import TopicModel
from nmf_dask.config import Settings
from nmf_dask.errors import InputDataError
from nmf_dask.kernels.matrices import to_scipy
from nmf_dask.store import ModelFolder, h_table
from nmf_dask.text import count_texts
from nmf_dask.vocabulary import TermTable, Vocabulary, select, weigh
from tests.corpora import corpus_folder
from tests.small_models import FIRST, VOCABULARY, H, first_and_second, reseal, run_json, write_run


@pytest.mark.parametrize("h_rows", [1, 2, 5])
def test_what_is_loaded_is_what_was_written(tmp_path: Path, h_rows: int) -> None:
    write_run(ModelFolder(str(tmp_path)).run(FIRST), h_rows=h_rows)
    model = TopicModel.load(str(tmp_path))
    np.testing.assert_array_equal(model.H, H)
    assert model.H.dtype == np.float32
    assert model.H.flags.c_contiguous
    assert not model.H.flags.writeable
    assert (model.n_components, model.reconstruction_err, model.run["run_id"]) == (3, 1.5, FIRST)
    assert model.vocabulary.to_table().equals(VOCABULARY.to_table())
    assert model.vocabulary.n_documents == 4


def test_topics_have_their_largest_terms_and_shares(tmp_path: Path) -> None:
    model = TopicModel.load(first_and_second(tmp_path).uri)
    assert [(one.topic, one.share, one.terms) for one in model.topics(2)] == [
        (0, 0.25, (("café", 2.0), ("quark", 1.0))),
        (1, 0.5, (("star", 3.0), ("gluon", 3.0))),
        (2, 0.25, ()),
    ]
    assert [len(one.terms) for one in model.topics()] == [2, 3, 0]


def test_share_that_is_not_told_is_nan(tmp_path: Path) -> None:
    write_run(ModelFolder(str(tmp_path)).run(FIRST), other={"topics": None})
    assert np.isnan([one.share for one in TopicModel.load(str(tmp_path)).topics()]).all()


def cut(part: Path) -> None:
    os.truncate(part, part.stat().st_size // 2)


def rewritten(part: Path, table: pa.Table) -> None:
    pq.write_table(table, part)


def with_weights(part: Path, values: list[float]) -> None:
    table = pq.read_table(part)
    rows = np.array([values] * table.num_rows, np.float32)
    weights = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), len(values))
    rewritten(part, table.drop("weights").append_column("weights", weights))


# A file that was written so: the manifest agrees with it.
MISWRITTEN: dict[str, tuple[Any, str]] = {
    "no Parquet": (cut, r"part-00000\.parquet: it is damaged"),
    "parts swapped": (
        lambda part: part.write_bytes(part.with_name("part-00001.parquet").read_bytes()),
        "hold 4 features where run.json tells of 5",
    ),
    "wrong order": (lambda part: rewritten(part, pq.read_table(part).take([1, 0, 2])), "not in order"),
    "wrong k": (lambda part: with_weights(part, [1, 2]), r"part-00000\.parquet .*\[2\] where .*\[3\]"),
    "no weights": (lambda part: rewritten(part, pq.read_table(part).drop("weights")), "no column weights"),
    "no idf": (lambda part: rewritten(part, pq.read_table(part).drop("idf")), r"part-00000\.parquet .*idf"),
    "not a number": (lambda part: with_weights(part, [1, np.nan, 2]), "part-00000.*not finite"),
    "negative": (lambda part: with_weights(part, [1, -1, 2]), "part-00000.*negative"),
}


@pytest.mark.parametrize("damage", MISWRITTEN)
def test_H_that_is_no_H_is_refused_by_its_file(tmp_path: Path, damage: str) -> None:
    run = write_run(ModelFolder(str(tmp_path)).run(FIRST))
    act, message = MISWRITTEN[damage]
    act(tmp_path / "runs" / FIRST / "H" / "part-00000.parquet")
    reseal(run)
    with pytest.raises(InputDataError, match=message):
        TopicModel.load(str(tmp_path))


def flip(file: Path) -> None:
    """One bit in the middle: Parquet itself would not notice it in a page."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "does not exist"),
        (cut, "bytes where .* were written: it was cut or replaced"),
        (lambda file: os.truncate(file, 0), "has 0 bytes where"),
        (flip, "is not what was written.*its content changed"),
        (lambda file: file.write_bytes(file.read_bytes() + b" "), "bytes where"),
    ],
    ids=["deleted", "cut", "empty", "flipped", "longer"],
)
@pytest.mark.parametrize("name", ["H/part-00001.parquet", "W/part-00001.parquet", "run.json"])
def test_damage_after_the_commit_is_noticed_by_file(
    tmp_path: Path, name: str, damage: Any, message: str
) -> None:
    write_run(ModelFolder(str(tmp_path)).run(FIRST))
    damage(tmp_path / "runs" / FIRST / name)
    if name == "run.json":
        message += "|is not JSON"  # what tells whether it is a run at all is read first
    with pytest.raises(InputDataError, match=f"(?s){name}.*({message})"):
        list(TopicModel.load(str(tmp_path)).W_parts())


@pytest.mark.parametrize("damage", [Path.unlink, cut, lambda file: file.write_text('{"files": {"x": 1}}')])
def test_damaged_manifest_is_noticed(tmp_path: Path, damage: Any) -> None:
    write_run(ModelFolder(str(tmp_path)).run(FIRST))
    damage(tmp_path / "runs" / FIRST / "manifest.json")
    with pytest.raises(InputDataError, match=r"manifest\.json"):
        TopicModel.load(str(tmp_path))


def test_manifest_is_what_sha256sum_says(tmp_path: Path) -> None:
    write_run(ModelFolder(str(tmp_path)).run(FIRST))
    folder = tmp_path / "runs" / FIRST
    told = json.loads((folder / "manifest.json").read_text())["files"]
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    assert told.keys() == files.keys() - {"manifest.json", "_SUCCESS"}
    for name, one in told.items():
        content = files[name].read_bytes()
        assert one == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_W_comes_by_partition_as_it_was_written(tmp_path: Path) -> None:
    write_run(ModelFolder(str(tmp_path)).run(FIRST))
    tables = list(TopicModel.load(str(tmp_path)).W_parts())
    assert [table["doc_id"].to_pylist() for table in tables] == [["d0", "d1", "d2"], ["d3"]]
    assert [table["topic"].to_pylist() for table in tables] == [[1, 0, None], [2]]


@pytest.mark.parametrize("key", ["config", "n_documents", "n_features"])
def test_run_json_that_lacks_something_is_refused(tmp_path: Path, key: str) -> None:
    run = write_run(ModelFolder(str(tmp_path)).run(FIRST))
    file = tmp_path / "runs" / FIRST / "run.json"
    told = json.loads(file.read_text())
    del told[key]
    file.write_text(json.dumps(told))
    reseal(run)
    with pytest.raises(InputDataError, match=rf"run\.json does not tell what a model needs.*{key}"):
        TopicModel.load(str(tmp_path))


def test_settings_of_an_unknown_key_are_refused(tmp_path: Path) -> None:
    config = Settings().model_dump(mode="json")
    config["vectorizer"]["stemmer"] = "porter"
    write_run(ModelFolder(str(tmp_path)).run(FIRST), other={"config": config})
    with pytest.raises(InputDataError, match="stemmer"):
        TopicModel.load(str(tmp_path))


def test_other_format_version_is_refused(tmp_path: Path) -> None:
    write_run(ModelFolder(str(tmp_path)).run(FIRST), other={"format_version": 2})
    with pytest.raises(InputDataError, match=r"format version 2.*reads version 1"):
        TopicModel.load(str(tmp_path))


ENGLISH = [
    "the star and the galaxy and the dust of the galaxy",
    "a quark, a gluon and another quark in the collider",
    "dust around a star; a star in a galaxy",
    "the collider saw a gluon and a quark",
    "voters elect a parliament, and parliament elects",
    "the parliament and its voters",
] * 3


def fitted(path: Path, texts: list[str], model: dict[str, Any], vectorizer: dict[str, Any]) -> Any:
    """A committed run whose H is scikit-learn's own, and the NMF that it comes from."""
    from sklearn.decomposition import NMF

    settings = Settings.model_validate({"model": model, "vectorizer": vectorizer})
    counts = count_texts(pa.array(texts), settings.vectorizer)
    vocabulary = select(TermTable.of(counts), settings.vectorizer)
    nmf = NMF(**model | {"max_iter": 60, "tol": 0}, init="nndsvda", random_state=0)
    nmf.fit(to_scipy(weigh(counts, vocabulary, settings.vectorizer)).astype(np.float64))
    nmf.set_params(max_iter=model["max_iter"], tol=model["tol"])
    # The numbers that are stored, in the type that scikit-learn insists on.
    nmf.components_ = nmf.components_.astype(np.float32).astype(np.float64)
    run = ModelFolder(str(path)).run(FIRST)
    told = run_json(settings, n_documents=len(texts), n_features=len(vocabulary))
    run.h_part(0).write_parquet(h_table(vocabulary, nmf.components_.astype(np.float32)))
    run.w_part(0).write_bytes(b"not looked at")
    run.write_run(told)
    run.commit()
    return nmf


def sklearn_tfidf(texts: list[str], vocabulary: Vocabulary, vectorizer: dict[str, Any]) -> Any:
    """The matrix of new texts by scikit-learn's hashing, in the buckets and with the idf of the model."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.preprocessing import normalize

    words = {key: vectorizer[key] for key in ("ngram_range", "stop_words") if key in vectorizer}
    hashing = HashingVectorizer(alternate_sign=False, norm=None, n_features=2**20, **words)
    counts = hashing.transform(texts).tocsc()[:, vocabulary.bucket].tocsr()
    X = normalize(counts.multiply(vocabulary.idf).tocsr())
    X.sort_indices()
    return X


def loss(X: Any, W: Any, H: Any, beta_loss: str) -> Any:
    """What W minimizes, of each document, written out (without penalties)."""
    X, WH = X.toarray(), np.maximum(W.astype(np.float64) @ H, 1e-7)
    if beta_loss == "frobenius":
        return 0.5 * ((X - WH) ** 2).sum(axis=1)
    return (np.where(X > 0, X * np.log(np.where(X > 0, X, 1) / WH), 0) - X + WH).sum(axis=1)


MODELS = [
    {"solver": "mu", "beta_loss": "frobenius"},
    {"solver": "cd", "beta_loss": "frobenius"},
    {"solver": "mu", "beta_loss": "kullback-leibler"},
    {"solver": "mu", "beta_loss": "frobenius", "alpha_W": 1e-5, "l1_ratio": 0.5},
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("model", MODELS)
def test_transform_is_that_of_scikit_learn(tmp_path: Path, model: dict[str, Any]) -> None:
    settings = {"n_components": 3, "max_iter": 2000, "tol": 1e-7, **model}
    vectorizer = {"min_df": 2, "stop_words": "english", "ngram_range": (1, 2)}
    nmf = fitted(tmp_path, ENGLISH, settings, vectorizer)
    topics = TopicModel.load(str(tmp_path))
    new = [
        "a star, a quark",
        "Parliament!",
        "",
        "nothing of the kind",
        "gluon collider gluon collider galaxy",
    ]
    W = topics.transform(new)
    assert W.dtype == np.float32
    expected = nmf.transform(sklearn_tfidf(new, topics.vocabulary, vectorizer))
    np.testing.assert_allclose(W, expected, atol=2e-3 * expected.max())
    assert not W[2:4].any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("model", MODELS[:3])
def test_transform_of_real_abstracts_is_that_of_scikit_learn(tmp_path: Path, model: dict[str, Any]) -> None:
    files = sorted(corpus_folder("arxiv-abstracts-demo").glob("*.parquet"))
    texts = pa.concat_tables([pq.read_table(file, columns=["text"]) for file in files])["text"].to_pylist()
    texts = texts[:: max(1, len(texts) // 1200)]
    settings = {"n_components": 12, "max_iter": 1000, "tol": 1e-6, **model}
    vectorizer = {"min_df": 5, "max_df": 0.5, "stop_words": "english"}
    nmf = fitted(tmp_path, texts[:800], settings, vectorizer)
    topics = TopicModel.load(str(tmp_path))
    W = topics.transform(texts[800:])
    X = sklearn_tfidf(texts[800:], topics.vocabulary, vectorizer)
    expected = nmf.transform(X)
    assert (W.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.99
    ours, theirs = (loss(X, one, nmf.components_, model["beta_loss"]) for one in (W, expected))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    # Where the loss is that flat, KL's updates are far from done after a thousand, theirs as ours.
    np.testing.assert_allclose(W, expected, atol=0.02 * expected.max())


def test_transform_takes_what_holds_strings_and_no_single_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"n_components": 3, "solver": "mu", "beta_loss": "frobenius", "max_iter": 100, "tol": 1e-4}
    fitted(tmp_path, ENGLISH, model, {})
    topics = TopicModel.load(str(tmp_path))
    texts = [*ENGLISH[:5], None]
    W = topics.transform(texts)
    assert W[:5].any(axis=1).all()
    assert not W[5].any()
    for form in (
        pa.array(texts),
        pa.chunked_array([texts[:2], texts[2:]]),
        pa.array(texts, pa.large_string()),
    ):
        np.testing.assert_array_equal(topics.transform(form), W)
    assert topics.transform([]).shape == (0, 3)
    with pytest.raises(TypeError, match="put it into a list"):
        topics.transform("star")
    monkeypatch.setattr("nmf_dask.model.SLICE_ROWS", 2)
    np.testing.assert_allclose(topics.transform(texts), W, rtol=1e-3, atol=1e-5)
