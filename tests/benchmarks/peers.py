"""What others do with the same corpus, end to end: the scripts that people write with them.

Each is a child of its own, reads the Parquet files and keeps its model in memory; nothing is written. The terms are the
same for all: those of `token_pattern` and the settings given.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

TOKEN = r"\b\w\w+\b"


def scikit_learn(
    corpus: str, text_column: str, terms: dict[str, Any], k: int, max_iter: int, random_state: int
) -> dict[str, Any]:
    """A child: read, TfidfVectorizer (float32), NMF (mu, nndsvda, default tolerance)."""
    from sklearn.decomposition import NMF

    started = time.perf_counter()
    X = _tfidf(corpus, text_column, terms)[0]
    weighed = time.perf_counter()
    model = NMF(k, solver="mu", init="nndsvda", max_iter=max_iter, random_state=random_state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit_transform(X)
    return {
        "text_seconds": weighed - started,
        "fit_seconds": time.perf_counter() - weighed,
        "iterations": int(model.n_iter_),
        "loss": float(model.reconstruction_err_),
    }


def _tfidf(corpus: str, text_column: str, terms: dict[str, Any]) -> tuple[Any, list[str]]:
    import numpy as np
    import pyarrow.dataset as ds
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ds.dataset(corpus).to_table([text_column])[text_column].to_pylist()
    vectorizer = TfidfVectorizer(dtype=np.float32, token_pattern=TOKEN, **terms)
    X = vectorizer.fit_transform([text or "" for text in texts])
    # Else scikit-learn's Kullback-Leibler loss is wrong.
    X.sort_indices()
    return X, list(vectorizer.get_feature_names_out())


def gensim_nmf(corpus: str, text_column: str, terms: dict[str, Any], k: int) -> dict[str, Any]:
    """A child: the same matrix, one pass of gensim's Nmf."""
    import numpy as np
    from gensim.matutils import Sparse2Corpus
    from gensim.models.nmf import Nmf

    started = time.perf_counter()
    X, names = _tfidf(corpus, text_column, terms)
    weighed = time.perf_counter()
    documents = Sparse2Corpus(X.astype(np.float64), documents_columns=False)
    Nmf(documents, num_topics=k, id2word=dict(enumerate(names)), passes=1, random_state=0)
    return {"text_seconds": weighed - started, "fit_seconds": time.perf_counter() - weighed}


def spark_lda(
    corpus: str, text_column: str, terms: dict[str, Any], k: int, iterations: int, threads: int
) -> dict[str, Any]:
    """A child: Spark's tokenizer, counts and online LDA, in local mode."""
    from pyspark.ml import Pipeline
    from pyspark.ml.clustering import LDA
    from pyspark.ml.feature import CountVectorizer, RegexTokenizer, StopWordsRemover
    from pyspark.sql import SparkSession
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    started = time.perf_counter()
    builder = SparkSession.builder.master(f"local[{threads}]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.driver.memory", "4g").config("spark.driver.host", "127.0.0.1").getOrCreate()
    # \w of Java is ASCII unless told so.
    tokens = RegexTokenizer(inputCol=text_column, outputCol="all", pattern=f"(?U){TOKEN}", gaps=False)
    words = sorted(ENGLISH_STOP_WORDS) if terms["stop_words"] == "english" else [" "]
    stops = StopWordsRemover(inputCol="all", outputCol="tokens", stopWords=words)
    sizes = {"vocabSize": terms["max_features"] or 2**18, "minDF": terms["min_df"], "maxDF": terms["max_df"]}
    counts = CountVectorizer(inputCol="tokens", outputCol="features", **sizes)
    frame = spark.read.parquet(corpus).select(text_column)
    features = Pipeline(stages=[tokens, stops, counts]).fit(frame).transform(frame).select("features").cache()
    features.count()
    counted = time.perf_counter()
    LDA(k=k, optimizer="online", maxIter=iterations, seed=0).fit(features)
    fitted = time.perf_counter()
    spark.stop()
    return {"text_seconds": counted - started, "fit_seconds": fitted - counted}
