"""`HashedTfidf` beside scikit-learn's TfidfVectorizer: any home of strings, the same matrix."""

from __future__ import annotations

import pickle
from typing import Any

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
    "NumPy": np.array,
    "NumPy objects": lambda texts: np.array(texts, object),
    "Arrow": pa.array,
    "Arrow, chunked": lambda texts: pa.chunked_array([texts[:50], texts[50:]]),
    "pandas": pd.Series,
    "pandas objects": lambda texts: pd.Series(texts, dtype=object),
    "Polars": pl.Series,
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


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="string object received"):
        HashedTfidf().fit("star")
    with pytest.raises(ValueError, match="nan is an invalid document"):
        HashedTfidf().fit(["star", np.nan])
    with pytest.raises(ValueError, match="not every document is a string"):
        HashedTfidf().fit(["star", {"a": 1}])
    with pytest.raises(ValueError, match="must hold strings"):
        HashedTfidf().fit(pd.Series([1, 2]))
    with pytest.raises(ValueError, match="no term is left"):
        HashedTfidf(min_df=150).fit(TEXTS)
    with pytest.raises(ValueError, match="analyzer"):
        HashedTfidf(analyzer="sentence").fit(TEXTS)
