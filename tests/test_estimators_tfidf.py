"""`HashedTfidf` beside scikit-learn's TfidfVectorizer: any home of strings, the same matrix."""

from __future__ import annotations

import pickle
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import (
    check_estimator_cloneable,
    check_estimator_repr,
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
)

from nmf_dask import NMF, HashedTfidf
from nmf_dask.estimators import tfidf

WORDS = [
    "star",
    "galaxy",
    "dust",
    "quark",
    "gluon",
    "collider",
    "vote",
    "law",
    "café",
    "naïve",
    "data",
    "topic",
]
rng = np.random.default_rng(0)
TEXTS = [" ".join(rng.choice(WORDS, size=rng.integers(0, 12))) for _ in range(200)]
NEW = ["Star! star, dust", "", "nothing known", "A café; the galaxy"]


PARAMETERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "of all kinds": {"min_df": 2, "max_df": 0.9, "ngram_range": (1, 2), "sublinear_tf": True, "norm": "l1"},
    "few": {
        "max_features": 5,
        "stop_words": ["star", "law"],
        "strip_accents": "unicode",
        "smooth_idf": False,
    },
    "characters": {"analyzer": "char_wb", "ngram_range": (2, 3), "use_idf": False, "lowercase": False},
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_it_is_the_matrix_of_scikit_learn(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfidf, "SLICE_ROWS", 64)
    ours, theirs = HashedTfidf(**PARAMETERS[kind]), TfidfVectorizer(**PARAMETERS[kind])
    X, expected = ours.fit_transform(TEXTS), theirs.fit_transform(TEXTS)
    names = ours.get_feature_names_out()
    assert type(X) is type(expected)
    assert X.dtype == np.float32
    assert ours.collision_rate_ == pytest.approx(0)
    assert ours.n_documents_ == 200
    if kind != "few":  # which of equally frequent terms max_features keeps is left to a sort there
        assert sorted(names) == list(theirs.get_feature_names_out())
        places = [theirs.vocabulary_[name] for name in names]
        np.testing.assert_allclose(X.toarray(), expected.toarray()[:, places], rtol=1e-6)
        np.testing.assert_allclose(
            ours.transform(NEW).toarray(), theirs.transform(NEW).toarray()[:, places], rtol=1e-6
        )
        if "use_idf" not in PARAMETERS[kind]:
            np.testing.assert_allclose(ours.idf_, theirs.idf_[places])
    assert len(names) == X.shape[1] == (5 if kind == "few" else len(theirs.vocabulary_))
    assert [ours.vocabulary_[name] for name in names] == list(range(len(names)))
    np.testing.assert_array_equal(ours.transform(TEXTS).toarray(), X.toarray())


HOMES = {
    "iterator": iter,
    "bytes": lambda texts: [text.encode() for text in texts],
    "NumPy": np.array,
    "NumPy objects": lambda texts: np.array(texts, object),
    "NumPy strings": lambda texts: np.array(texts, np.dtypes.StringDType()),
    "Arrow": pa.array,
    "Arrow, large": lambda texts: pa.array(texts, pa.large_string()),
    "Arrow, views": lambda texts: pa.array(texts, pa.string_view()),
    "Arrow, dictionary": lambda texts: pa.array(texts).dictionary_encode(),
    "Arrow, chunked": lambda texts: pa.chunked_array([texts[:50], texts[50:]]),
    "Arrow, a slice": lambda texts: pa.array(["before", *texts, "after"]).slice(1, len(texts)),
    "pandas": pd.Series,
    "pandas objects": lambda texts: pd.Series(texts, dtype=object),
    "pandas, Arrow": lambda texts: pd.Series(texts, dtype="string[pyarrow]"),
    "pandas, categories": lambda texts: pd.Series(texts, dtype="category"),
    "pandas, an index": lambda texts: pd.Series(texts, index=[0] * len(texts)),
    "Polars": pl.Series,
    "Polars, categories": lambda texts: pl.Series(texts, dtype=pl.Categorical),
    "Dask array": lambda texts: da.from_array(np.array(texts, object), chunks=70),
    "Dask bag": lambda texts: db.from_sequence(texts, npartitions=3),
    "Dask DataFrame column": lambda texts: dd.from_pandas(pd.DataFrame({"text": texts}), npartitions=3)[
        "text"
    ],
}


@pytest.mark.parametrize("home", HOMES)
def test_any_home_of_strings_gives_the_same(home: str) -> None:
    expected = HashedTfidf(min_df=2).fit_transform(TEXTS)
    ours = HashedTfidf(min_df=2)
    X = ours.fit_transform(HOMES[home](TEXTS))
    if "Dask" in home:
        assert np.isnan(X.shape[0])
        assert X.numblocks[0] > 2
        assert sp.issparse(X._meta)
        X = sp.vstack([chunk.compute() for chunk in X.to_delayed().ravel()])
    np.testing.assert_array_equal(X.toarray(), expected.toarray())
    np.testing.assert_array_equal(ours.transform(TEXTS).toarray(), expected.toarray())


def test_nulls_are_empty_documents() -> None:
    ours = HashedTfidf().fit(TEXTS)
    for texts in (
        ["star", None],
        pd.Series(["star", np.nan]),
        pl.Series(["star", None]),
        pa.array(["star", None]),
    ):
        assert ours.transform(texts).getnnz(axis=1).tolist() == [1, 0]


def test_terms_that_meet_are_told_of() -> None:
    ours = HashedTfidf(n_features=4).fit(TEXTS)
    assert len(ours.get_feature_names_out()) == 4
    assert 0.3 < ours.collision_rate_ < 1


def test_from_texts_to_topics_in_a_pipeline_and_over_dask() -> None:
    pipeline = make_pipeline(HashedTfidf(), NMF(3, random_state=0, max_iter=300))
    W = pipeline.fit_transform(TEXTS)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(pipeline)).transform(TEXTS), W, atol=1e-6)
    assert clone(pipeline).get_params()["nmf__n_components"] == 3
    lazy = clone(pipeline).fit_transform(db.from_sequence(TEXTS, npartitions=4))
    assert lazy.compute().shape == (200, 3)


def test_the_matrix_is_what_classifiers_take() -> None:
    for texts in (TEXTS, TEXTS * 100):  # in one slice, and in two
        X = HashedTfidf().fit_transform(texts)
        assert X.indices.dtype == X.indptr.dtype == np.int32
    svc = make_pipeline(HashedTfidf(), LinearSVC()).fit(TEXTS, ["star" in text for text in TEXTS])
    assert svc.score(TEXTS, ["star" in text for text in TEXTS]) > 0.9


def test_what_is_lazy_stays_what_it_was() -> None:
    bag = db.from_sequence(TEXTS, npartitions=2)
    vectorizer = HashedTfidf(min_df=2)
    X = vectorizer.fit_transform(bag)
    expected = vectorizer.transform(TEXTS)
    assert len(vectorizer.set_params(max_features=3).fit(bag).get_feature_names_out()) == 3
    chunks = sp.vstack([chunk.compute() for chunk in X.to_delayed().ravel()])
    np.testing.assert_array_equal(chunks.toarray(), expected.toarray())


def test_halves_of_surrogate_pairs_are_no_letters() -> None:
    assert sorted(HashedTfidf().fit(["st\ud800 law", "star"]).get_feature_names_out()) == [
        "law",
        "st",
        "star",
    ]


@pytest.mark.parametrize(
    "check",
    [
        check_estimator_cloneable,
        check_estimator_repr,
        check_get_params_invariance,
        check_no_attributes_set_in_init,
        check_parameters_default_constructible,
        check_set_params,
        check_valid_tag_types,
    ],
)
def test_scikit_learn_accepts_it(check: Any) -> None:
    """Those of check_estimator that need no matrix: it leaves vectorizers of strings out."""
    check("HashedTfidf", HashedTfidf())


REFUSED: dict[str, tuple[Any, str]] = {
    "one string": ("star", "string object received"),
    "nothing": (None, "NoneType object received"),
    "NaN": (["star", np.nan], "nan is an invalid document"),
    "a dict": (["star", {"a": 1}], "not every document is a string"),
    "numbers": (pd.Series([1, 2]), "must hold strings"),
    "a frame": (pd.DataFrame({"text": TEXTS}), "are a DataFrame: give one of its columns"),
    "a Polars frame": (pl.DataFrame({"text": TEXTS}), "are a DataFrame: give one of its columns"),
    "a lazy frame": (pl.LazyFrame({"text": TEXTS}), "are a LazyFrame: give one of its columns"),
    "a table": (pa.table({"text": TEXTS}), "are a Table: give one of its columns"),
    "a matrix": (np.ones((2, 2)), "are a ndarray: give one of its columns"),
    "a Dask frame": (
        dd.from_pandas(pd.DataFrame({"text": TEXTS}), npartitions=1),
        "a Dask DataFrame; give a Dask bag, a column",
    ),
    "a Delayed": (dask.delayed(TEXTS), "give a Dask bag, a column"),
    "no documents": ([], "empty vocabulary: none of 0 documents"),
    "no term": (["", "!"], "empty vocabulary: none of 2 documents holds a term"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_documents_it_refuses(what: str) -> None:
    documents, told = REFUSED[what]
    with pytest.raises(ValueError, match=told):
        HashedTfidf().fit(documents)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too rare": ({"min_df": 150}, "no term is left"),
    "analyzer": (
        {"analyzer": "sentence"},
        "^analyzer='sentence': Input should be 'word', 'char' or 'char_wb'$",
    ),
    "min_df": ({"min_df": -1}, "^min_df=-1: a count is at least 1"),
    "both": ({"min_df": 3, "max_df": 2}, "^min_df=3 and max_df=2: no term can be"),
    "ngram_range": ({"ngram_range": 2}, "^ngram_range=2: Input should be a valid tuple$"),
    "stop_words": ({"stop_words": "french"}, "^stop_words names the file 'french'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_parameters_it_refuses(what: str) -> None:
    parameters, told = WRONG[what]
    with pytest.raises(ValueError, match=told):
        HashedTfidf(**parameters).fit(TEXTS)
