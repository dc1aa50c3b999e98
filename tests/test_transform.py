"""W of new documents, end to end: scikit-learn's transform run to its end, and the fit's own W on the fitted corpus."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import NMF
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.preprocessing import normalize

from nmf_dask import TopicModel, fit, transform
from nmf_dask.pipeline import plan_transform
from nmf_dask.pipeline.parts import PartTasks
from tests.corpora import corpus_folder
from tests.small_corpora import (
    factors_of,
    generated_texts,
    hashed_tfidf,
    loss,
    run_command,
    settings_of,
    w_table_of,
    write_corpus,
)
from tests.text_oracle import analyzer_options
from tests.transforms import job, parts_of, table_of, weights

TEXTS = generated_texts()
NEW = [*generated_texts(200, seed=1), None, "", "nothing that is known", "w001"]
MODELS = {
    "cd": {"solver": "cd"},
    "mu": {"solver": "mu"},
    "kl": {"beta_loss": "kullback-leibler", "max_iter": 60},
    "penalized": {"alpha_W": 1e-4, "l1_ratio": 0.5},
    "as it comes": {"normalize": False},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model folder by the name of its settings."""
    folder = tmp_path_factory.mktemp("models")
    corpus = write_corpus(folder / "corpus", TEXTS, 2)
    for name, model in MODELS.items():
        fit(settings_of(corpus, folder / name, model=model))
    return folder


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("new"), NEW, 3)


def their_W(X, H, model, **more):
    """scikit-learn's transform under an H that is given, run until it stands still."""
    nmf = NMF(
        len(H), solver=model.method, beta_loss=model.beta_loss, alpha_W=model.alpha_W, l1_ratio=model.l1_ratio,
        **{"tol": 1e-12, "max_iter": 20_000, **more},
    )  # fmt: skip
    nmf.n_components_, nmf.components_, nmf.n_features_in_ = len(H), H, H.shape[1]
    nmf._beta_loss, nmf._n_components = {"frobenius": 2, "kullback-leibler": 1}[model.beta_loss], len(H)
    return nmf.transform(X)


def hashed_rows(texts, model):
    """Rows of new texts by scikit-learn's hashing, in the buckets and with the idf of a model."""
    hashing = HashingVectorizer(
        alternate_sign=False, norm=None, n_features=2**20, **analyzer_options(model.vectorizer_settings)
    )
    counts = hashing.transform(texts).tocsc()[:, model.vocabulary.bucket].tocsr()
    X = normalize(counts.multiply(model.vocabulary.idf).tocsr())
    X.sort_indices()
    return X


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", MODELS)
def test_equals_scikit_learns_transform_run_to_its_end(tmp_path, models, new, name):
    result = transform(job(models / name, new, tmp_path / "w"))
    model = TopicModel.load(str(models / name))
    H = model.H.astype(np.float64)
    # idf is the model's: scikit-learn's hashing, weighed as TfidfTransformer does, by idf of the fitted corpus.
    texts = [text or "" for text in NEW]
    vectorizer = TfidfVectorizer(min_df=2, max_df=0.5).fit(TEXTS)
    X = vectorizer.transform(texts)[
        :, [vectorizer.vocabulary_[term] for term in model.vocabulary.term.to_pylist()]
    ]
    X.sort_indices()
    expected = their_W(X, H, model.model_settings)
    W = weights(tmp_path / "w")
    assert np.linalg.norm(W - expected) <= 1e-4 * np.linalg.norm(expected)
    if "alpha_W" not in MODELS[name]:
        ours, theirs = (
            loss(X[:200], one[:200].astype(np.float64), H, model.model_settings.beta_loss)
            for one in (W, expected)
        )
        assert ours <= theirs * (1 + 1e-6)
    table = table_of(tmp_path / "w")
    assert table["doc_id"].to_pylist() == [f"d{i:05d}" for i in range(len(NEW))]
    assert table["topic"].to_pylist()[200:203] == [None] * 3
    assert result.told["n_empty_documents"] == 3
    assert result.told["n_null_texts"] == 1
    assert result.told["n_documents"] == len(NEW)
    assert sum(topic["n_documents"] for topic in result.told["topics"]) == len(NEW) - 3
    assert sum(topic["share"] for topic in result.told["topics"]) == pytest.approx(1)
    assert model.transform([*NEW]).tobytes() == W.tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_on_the_fitted_corpus_it_is_the_fits_W(tmp_path, models, name):
    """To the bit; where H is scaled, which is after W was solved, to rounding."""
    transform(job(models / name, models / "corpus", tmp_path / "w"))
    model = TopicModel.load(str(models / name))
    W, H = factors_of(model.uri)
    found = weights(tmp_path / "w").astype(np.float64)
    assert table_of(tmp_path / "w")["doc_id"].equals(w_table_of(model.uri)["doc_id"])
    X = hashed_tfidf(TEXTS, settings_of(Path(), Path("x")), model.vocabulary.bucket)
    if "alpha_W" not in MODELS[name]:
        err = loss(X, found, H, model.model_settings.beta_loss)
        assert err == pytest.approx(model.reconstruction_err, rel=1e-6)
    if model.model_settings.scaled:
        assert np.linalg.norm(found - W) <= 1e-6 * np.linalg.norm(W)
    else:
        assert np.array_equal(found, W)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
def test_real_news(tmp_path, beta_loss):
    train, test = corpus_folder("20newsgroups"), corpus_folder("20newsgroups-test")
    words = {"stop_words": "english", "min_df": 10, "max_features": 1500}
    model = {"n_components": 10, "beta_loss": beta_loss, "max_iter": 40}
    column = {"id_column": None}
    fit(settings_of(train, tmp_path / "m", vectorizer=words, model=model, corpus=column))
    transform(job(tmp_path / "m", test, tmp_path / "w", corpus=column))
    fitted = TopicModel.load(str(tmp_path / "m"))
    news = [text or "" for text in pq.read_table(test, columns=["text"])["text"].to_pylist()]
    X = hashed_rows(news[:800], fitted)
    expected = their_W(X, fitted.H.astype(np.float64), fitted.model_settings, max_iter=3000)
    W = weights(tmp_path / "w")[:800]
    assert table_of(tmp_path / "w")["doc_id"].to_pylist() == list(range(len(news)))
    assert np.linalg.norm(W - expected) <= 1e-4 * np.linalg.norm(expected)


def test_files_partitions_slices_and_workers_change_no_weight(tmp_path, models, monkeypatch):
    found = []
    shapes = [(1, 2**26, {}), (3, 2000, {}), (5, 2**26, {"workers": 2, "threads_per_worker": 1})]
    for number, (n_files, partition_bytes, cluster) in enumerate(shapes):
        corpus = write_corpus(tmp_path / f"c{number}", NEW, n_files)
        output = tmp_path / f"w{number}"
        size = {"partition_bytes": partition_bytes}
        transform(job(models / "kl", corpus, output, corpus=size, cluster=cluster))
        found.append((table_of(output).combine_chunks(), len(parts_of(output))))
    monkeypatch.setattr("nmf_dask.pipeline.parts.SLICE_ROWS", 7)
    monkeypatch.setattr("nmf_dask.corpus.reading.MAX_BATCH_ROWS", 3)
    transform(job(models / "kl", tmp_path / "c0", tmp_path / "sliced"))
    found.append((table_of(tmp_path / "sliced").combine_chunks(), 1))
    assert [n_parts for _, n_parts in found[:3]] == [1, found[1][1], 5]
    assert found[1][1] > 5
    for table, _ in found[1:]:
        assert table.equals(found[0][0])


@pytest.mark.parametrize("id_column", ["doc_id", None])
def test_small_files_are_read_together_and_written_as_alone(tmp_path, models, monkeypatch, id_column):
    """One task for all of them, or one for each: the same files, byte for byte, whatever its ids are."""
    corpus = write_corpus(tmp_path / "c", NEW, 6, row_group_size=7)
    groups = []
    read = PartTasks._read
    monkeypatch.setattr(
        PartTasks, "_read", lambda self, group: groups.append(len(group)) or read(self, group)
    )
    kept = {"id_column": id_column}
    transform(job(models / "cd", corpus, tmp_path / "together", corpus=kept))
    with monkeypatch.context() as patch:
        patch.setattr("nmf_dask.pipeline.parts.MOST_PARTS", 1)
        transform(job(models / "cd", corpus, tmp_path / "alone", corpus=kept))
    assert groups == [6, 1, 1, 1, 1, 1, 1]
    assert parts_of(tmp_path / "together") == parts_of(tmp_path / "alone")
    assert len(parts_of(tmp_path / "alone")) == 6


def test_row_numbers_where_there_is_no_id_column(tmp_path, models, new):
    transform(job(models / "cd", new, tmp_path / "w", corpus={"id_column": None}))
    ids = table_of(tmp_path / "w")["doc_id"]
    assert ids.type == pa.int64()
    assert ids.to_pylist() == list(range(len(NEW)))


def test_the_plan_and_the_command(tmp_path, models, new):
    arguments = ("transform", "--model", models / "cd", "--input", new, "--id-column", "doc_id")
    other, arguments = (*arguments, "--output", tmp_path / "x"), (*arguments, "--output", tmp_path / "w")
    planned = run_command(*arguments, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert f"3 files, {len(NEW)} documents" in planned.stdout
    assert not (tmp_path / "w").exists()
    done = run_command(*arguments, "--log-format", "json", "--workers", 2)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["n_documents"], told["n_empty_documents"], told["partitions_done"]) == (len(NEW), 3, 3)
    for line in done.stderr.splitlines():
        json.loads(line)
    transform(job(models / "cd", new, tmp_path / "other"))
    assert parts_of(tmp_path / "w") == parts_of(tmp_path / "other")
    again = run_command(*arguments)
    assert again.returncode == 0
    assert "nothing new" in again.stderr
    assert "0 done, 3 skipped" in again.stdout
    refused = run_command(*other, "--set", "model.tol=1")
    assert refused.returncode == 2
    assert plan_transform(job(models / "cd", new, tmp_path / "w")).n_files == 0
