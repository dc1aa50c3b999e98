"""Ways out of a fitted model: scikit-learn, pyLDAvis, tables, and what its topics say of documents and of words."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nmf_dask.corpus import python_value
from nmf_dask.store import h_table, topics_table, weights_of
from nmf_dask.text.analysis import analysis_of

if TYPE_CHECKING:
    from nmf_dask.model import TopicModel

TABLES = ("topics", "info", "H", "W")
TRANSFORM_TOL, TRANSFORM_ITER = 1e-7, 5000  # of scikit-learn's NMF: its transform comes near the minimum then


def table_of(model: TopicModel, what: str) -> pa.Table:
    """One of TABLES; ValueError for another name."""
    if what == "topics":
        return topics_table(model.vocabulary, model.H, 50)
    if what == "info":
        return topic_info(model, 10)
    if what == "H":
        return h_table(model.vocabulary, model.H)
    if what == "W":
        return pa.concat_tables(model.W_parts())
    raise ValueError(f"there is no table {what!r}; it is one of {', '.join(TABLES)}")


def topic_info(model: TopicModel, n: int) -> pa.Table:
    """A row a topic: its name, share, documents and largest terms."""
    told = {int(one["topic"]): one for one in model.run.get("topics") or ()}
    rows = []
    for topic in model.topics(n):
        terms = [term for term, _ in topic.terms]
        rows.append(
            {
                "topic": topic.topic,
                "name": "_".join([str(topic.topic), *terms[:4]]),
                "share": topic.share,
                "n_documents": told.get(topic.topic, {}).get("n_documents"),
                "terms": terms,
            }
        )
    kinds = {"topic": pa.int32(), "name": pa.string(), "share": pa.float64(), "n_documents": pa.int64()}
    return pa.Table.from_pylist(rows, schema=pa.schema([*kinds.items(), ("terms", pa.list_(pa.string()))]))


def top_documents(model: TopicModel, topic: int, n: int) -> pa.Table:
    """The `n` documents of the largest weight in a topic: the id column and `weight`, the largest first."""
    if topic not in range(model.n_components):
        raise ValueError(f"there is no topic {topic}; they are 0 to {model.n_components - 1}")
    best: list[tuple[float, int, Any]] = []
    seen, name, kind = 0, "doc_id", pa.int64()
    for part in model.W_parts():
        name, kind = part.schema.names[0], part.schema.types[0]
        weight = weights_of(part, model.n_components)[:, topic]
        ids = part[name]
        # Of equal weights the first ones, as in a sort.
        for row in np.argsort(-weight, kind="stable")[:n].tolist():
            if weight[row] > 0:
                heapq.heappush(best, (float(weight[row]), -(seen + row), python_value(ids[row])))
                if len(best) > n:
                    heapq.heappop(best)
        seen += len(weight)
    best.sort(reverse=True)
    columns = [pa.array([one for _, _, one in best], kind), pa.array([w for w, _, _ in best], pa.float32())]
    return pa.table(columns, names=[name, "weight"])


def find_topics(model: TopicModel, query: str, n: int) -> list[tuple[int, float]]:
    """Topics that a query is made of, with their shares of its weight, the largest first; none for no known term."""
    sums = model.H.sum(axis=1, dtype=np.float64)
    document: Any = {query: 1.0} if model.of_counts else query
    explained = model.transform([document])[0] * sums  # what each topic puts into the query's row of WH
    total = explained.sum()
    order = np.argsort(-explained, kind="stable")[:n]
    return [(int(t), float(explained[t] / total)) for t in order if explained[t] > 0]


def to_sklearn(model: TopicModel) -> tuple[Any, Any]:
    """A vectorizer and an NMF of scikit-learn's own classes, fitted: their pickles ask for nothing else."""
    if model.of_counts:
        raise ValueError(
            "a model of counts has no vectorizer: take components_ from H, and its columns' names"
        )
    from scipy.sparse import csr_matrix
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import NMF
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import Pipeline

    words, settings = model.vectorizer_settings, model.model_settings
    stop_words = analysis_of(words).stop_words
    hashing = HashingVectorizer(
        alternate_sign=False, norm=None, n_features=words.n_features, analyzer=words.analyzer,
        token_pattern=words.token_pattern, lowercase=words.lowercase, strip_accents=words.strip_accents,
        stop_words=None if stop_words is None else sorted(stop_words), ngram_range=words.ngram_range,
    )  # fmt: skip
    kept = ColumnTransformer(
        [("kept", "passthrough", model.vocabulary.bucket.tolist())], sparse_threshold=1.0
    )
    kept.fit(csr_matrix((1, words.n_features)))
    weights = TfidfTransformer(
        norm=words.norm, use_idf=words.use_idf, smooth_idf=words.smooth_idf, sublinear_tf=words.sublinear_tf
    )
    weights.fit(csr_matrix((1, len(model.vocabulary))))
    if words.use_idf:
        weights.idf_ = model.vocabulary.idf.copy()
    nmf = NMF(
        model.n_components, solver=settings.method, beta_loss=settings.beta_loss, init="random",
        tol=TRANSFORM_TOL, max_iter=TRANSFORM_ITER, random_state=settings.random_state,
        alpha_W=settings.alpha_W, alpha_H=settings.alpha_H, l1_ratio=settings.l1_ratio,
    )  # fmt: skip
    nmf.components_ = model.H.astype(np.float64)
    nmf.n_components_, nmf.n_features_in_ = model.H.shape
    nmf.n_iter_, nmf.reconstruction_err_ = int(model.run.get("n_iter", 0)), model.reconstruction_err
    return Pipeline([("hashing", hashing), ("kept", kept), ("weights", weights)]), nmf


def to_pyldavis(model: TopicModel) -> dict[str, NDArray[Any] | list[str]]:
    """What `pyLDAvis.prepare` takes: of the whole corpus, whose W it reads into memory."""
    H = model.H.astype(np.float64)
    used = np.flatnonzero(
        H.any(axis=0)
    )  # a term that no topic has would be divided by its frequency, which is zero
    sums, k = H.sum(axis=1), len(H)
    W = np.concatenate(list(_weights(model))).astype(np.float64)
    explained = W * sums
    lengths = explained.sum(axis=1)
    told = lengths > 0  # the others are in no topic
    H = np.where(sums[:, np.newaxis] > 0, H, 1.0)[:, used]
    return {
        "topic_term_dists": H / H.sum(axis=1, keepdims=True),
        "doc_topic_dists": explained[told] / lengths[told, np.newaxis],
        "doc_lengths": lengths[told],
        "vocab": [model.vocabulary.term[int(j)].as_py() for j in used],
        "term_frequency": W.sum(axis=0) @ model.H[:, used].reshape(k, -1),
    }


def _weights(model: TopicModel) -> Iterator[NDArray[np.float32]]:
    for part in model.W_parts():
        yield weights_of(part, model.n_components)
