"""The main job against scikit-learn, end to end: the same matrix, as good a model, rows where they belong."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import NMF
from sklearn.feature_extraction.text import TfidfVectorizer

from nmf_dask import Settings, fit
from tests.corpora import corpus_folder
from tests.small_corpora import (
    assert_written_loss,
    factors_of,
    generated_texts,
    h_bytes,
    hashed_tfidf,
    loss,
    run_command,
    settings_of,
    w_table_of,
    write_corpus,
)

TEXTS = generated_texts()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS, 2)


def test_matrix_is_that_of_tfidf_vectorizer_and_the_model_as_good(tmp_path, corpus):
    settings = settings_of(corpus, tmp_path / "m")
    result = fit(settings)
    H_table = pq.read_table(Path(result.uri, "H"))
    oracle = TfidfVectorizer(min_df=2, max_df=0.5)
    X = oracle.fit_transform(TEXTS)
    terms = H_table["term"].to_pylist()
    assert set(terms) == set(oracle.get_feature_names_out())
    columns = [oracle.vocabulary_[term] for term in terms]
    np.testing.assert_allclose(H_table["idf"].to_numpy(), oracle.idf_[columns], rtol=1e-12)
    X = X[:, columns]
    X.sort_indices()
    W, H = factors_of(result.uri)
    np.testing.assert_allclose(loss(X, W, H, "frobenius"), result.run["reconstruction_err"], rtol=1e-5)
    peer = NMF(5, init="nndsvda", solver="cd", max_iter=200, random_state=0).fit(X)
    assert result.run["reconstruction_err"] <= peer.reconstruction_err_ * (1 + 1e-4)


@pytest.mark.parametrize(
    "model",
    [
        {"solver": "mu", "init": "random"},
        {"solver": "mu", "init": "nndsvd"},
        {"solver": "cd", "init": "random"},
        {"solver": "cd", "init": "nndsvd"},
        {"beta_loss": "kullback-leibler", "init": "random"},
        {"beta_loss": "kullback-leibler", "init": "nndsvda"},
        {"alpha_W": 1e-4, "l1_ratio": 0.5},
        {"sweeps": 1, "rounds": 1, "solver": "mu"},
        {"max_iter": 1},
    ],
    ids=lambda model: "-".join(map(str, model.values())),
)
def test_every_loss_solver_and_init_writes_what_it_tells(tmp_path, corpus, model):
    settings = settings_of(corpus, tmp_path / "m", model=model)
    result = fit(settings)
    assert_written_loss(result.run, result.uri, TEXTS, settings)
    rows = pq.read_table(Path(result.uri, "convergence.parquet")).to_pylist()
    assert len(rows) == result.run["n_iter"] <= settings.model.max_iter
    assert rows[-1]["reconstruction_err"] == result.run["reconstruction_err"]
    assert rows[-1]["reconstruction_err"] <= rows[0]["reconstruction_err"]


@pytest.mark.parametrize(
    "vectorizer",
    [
        {"ngram_range": (1, 2)},
        {"analyzer": "char", "ngram_range": (2, 3)},
        {"analyzer": "char_wb", "ngram_range": (3, 3)},
        {"token_pattern": "w\\d\\d"},
        {"sublinear_tf": True, "norm": "l1", "smooth_idf": False},
        {"use_idf": False, "norm": None},
        {"n_features": 128, "max_df": 1.0},
        {"max_features": 50, "stop_words": ("w001", "w002")},
        {"min_df": 0.05, "max_df": 0.2},
    ],
    ids=lambda vectorizer: "-".join(map(str, vectorizer)),
)
def test_every_way_to_terms_goes_through_the_whole_job(tmp_path, corpus, vectorizer):
    vectorizer = {"max_df": 0.9, **vectorizer}
    settings = settings_of(corpus, tmp_path / "m", vectorizer=vectorizer, model={"n_components": 3})
    result = fit(settings)
    assert_written_loss(result.run, result.uri, TEXTS, settings)


def test_files_and_partitions_change_neither_vocabulary_nor_order(tmp_path):
    texts = [*TEXTS, None, "", *generated_texts(100, seed=1)]
    found = []
    for n_files, partition_bytes in ((1, 2**26), (2, 2**26), (7, 4000), (1, 3000)):
        corpus = write_corpus(tmp_path / f"{n_files}-{partition_bytes}", texts, n_files)
        sections = {"corpus": {"partition_bytes": partition_bytes}}
        settings = settings_of(corpus, tmp_path / f"m-{n_files}-{partition_bytes}", **sections)
        result = fit(settings)
        assert_written_loss(result.run, result.uri, texts, settings)
        W = w_table_of(result.uri)
        assert W["doc_id"].to_pylist() == [f"d{i:05d}" for i in range(len(texts))]
        assert result.run["n_null_texts"] == 1
        assert result.run["n_empty_documents"] == 2
        parts = len(list(Path(result.uri, "W").iterdir()))
        assert parts == result.run["input"]["n_partitions"]
        H = pa.concat_tables(pq.read_table(part) for part in sorted(Path(result.uri, "H").iterdir()))
        found.append((parts, H.drop_columns("weights"), result.run["reconstruction_err"]))
    assert sorted(parts for parts, _, _ in found)[-2] > 6  # it really was cut
    for _, H, err in found:
        assert H.equals(found[0][1])
        assert abs(err / found[0][2] - 1) < 2e-3


def test_normalized_topics_sum_to_one_and_the_product_stays(tmp_path, corpus):
    plain, scaled = (
        fit(settings_of(corpus, tmp_path / f"m{normalize}", model={"normalize": normalize}))
        for normalize in (False, "auto")
    )
    W, H = factors_of(plain.uri)
    W_scaled, H_scaled = factors_of(scaled.uri)
    np.testing.assert_allclose(H_scaled.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(W_scaled @ H_scaled, W @ H, rtol=1e-4, atol=1e-7)
    shares = [[topic["share"] for topic in result.run["topics"]] for result in (plain, scaled)]
    np.testing.assert_allclose(shares[0], shares[1], rtol=1e-5)
    # The topic of a document is the one that puts most into it.
    table = pa.concat_tables(pq.read_table(part) for part in sorted(Path(scaled.uri, "W").iterdir()))
    most = (W * H.sum(axis=1)).argmax(axis=1)
    found = np.array(table["topic"].fill_null(-1).to_pylist())
    assert (found[found >= 0] == most[found >= 0]).all()


def test_with_penalties_topics_are_not_scaled_unless_that_is_asked_for():
    """W under the H that is written is that of the fit: penalties of a scaled H would be others."""
    for given, scaled in (({}, False), ({"normalize": True}, True)):
        for penalty in ("alpha_W", "alpha_H"):
            assert Settings.model_validate({"model": {penalty: 0.1, **given}}).model.scaled is scaled
    assert Settings.model_validate({"model": {"alpha_H": 0.0}}).model.scaled
    assert not Settings.model_validate({"model": {"normalize": False}}).model.scaled


def test_the_command_writes_what_the_function_writes(tmp_path, corpus):
    done = run_command(
        "fit", "--input", corpus, "--output", tmp_path / "m", "-k", 5, "--id-column", "doc_id",
        "--log-format", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    result = fit(settings_of(corpus, tmp_path / "other"))
    assert told["run_id"] == result.run_id
    assert h_bytes(tmp_path / "m" / "runs" / result.run_id) == h_bytes(result.uri)
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "sections", "slack"),
    [
        ("20newsgroups", {"model": {"n_components": 10}}, 1e-3),
        ("arxiv-abstracts-demo", {"vectorizer": {"stop_words": "english"}}, 1e-3),
        ("udhr-articles", {"vectorizer": {"strip_accents": "unicode"}}, 1e-3),
        ("arxiv-abstracts-demo", {"model": {"beta_loss": "kullback-leibler", "max_iter": 60}}, 1e-3),
    ],
    ids=["20newsgroups", "arxiv-abstracts-demo", "udhr-articles", "arxiv-kl"],
)
def test_real_corpora(tmp_path, name, sections, slack):
    corpus = corpus_folder(name)
    settings = settings_of(corpus, tmp_path / "m", **sections)
    result = fit(settings)
    texts = pq.read_table(corpus)["text"].to_pylist()
    assert_written_loss(result.run, result.uri, texts, settings)
    assert w_table_of(result.uri)["doc_id"].equals(pq.read_table(corpus)["doc_id"])
    buckets = pq.read_table(Path(result.uri, "H"))["bucket"].to_numpy()
    X = hashed_tfidf(texts, settings, buckets).astype(np.float32)
    model = settings.model
    peer = NMF(
        model.n_components, init="nndsvda", solver=model.method, beta_loss=model.beta_loss,
        max_iter=60 if model.method == "cd" else 30, random_state=0, tol=1e-4,
    )  # fmt: skip
    with pytest.warns() if model.method == "mu" else _silent():
        peer.fit(X)
    assert result.run["reconstruction_err"] <= peer.reconstruction_err_ * (1 + slack)


def _silent():
    import warnings

    silent = warnings.catch_warnings()
    warnings.simplefilter("ignore")
    return silent
