"""The arithmetic of an evaluation: gensim's coherence, scikit-learn's scores, readable twins of what is compiled."""

import math
import tracemalloc
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from gensim.corpora import Dictionary
from gensim.models import CoherenceModel
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import normalized_mutual_info_score

from nmf_dask.config import ModelSettings, VectorizerSettings
from nmf_dask.errors import InputDataError
from nmf_dask.evaluation import (
    DOCUMENT,
    WINDOWS,
    Cooccurrence,
    Evidence,
    Loss,
    TopTerms,
    by_label,
    coherence,
    confusion,
    counted,
    diversity,
    exclusivity,
    halves,
    matched,
    normalized_mutual_information,
    purity,
)
from nmf_dask.fixed import FixedH
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.matrices import from_scipy
from nmf_dask.text import count_texts, occurrences
from tests.small_corpora import generated_texts
from tests.text_oracle import analyzer_options

# Documents shorter and longer than the windows, with words that come again and again within one, and empty ones.
TEXTS = [
    *generated_texts(60, length=8),
    *generated_texts(60, seed=1, length=160),
    *(text.replace("w00", "É0") for text in generated_texts(30, seed=2, length=300)),
    "",
    "?!",
]
RANDOM = np.random.default_rng(0)


def topics_of(texts, options, k=5, n=8):
    """Topics of frequent terms, which share some, the last one with fewer; none is unknown."""
    analyze = CountVectorizer(**options).build_analyzer()
    common = [term for term, _ in Counter(term for text in texts for term in analyze(text)).most_common(60)]
    topics = [list(RANDOM.choice(common, n, replace=False)) for _ in range(k)]
    return [*topics[:-1], topics[-1][: n - 3]]


def measured(texts, topics, vectorizer, windows=WINDOWS):
    top = TopTerms.of(topics)
    return coherence(top, counted(pa.array(texts), top, vectorizer, windows.values()), windows)


def gensims(texts, topics, name, options, **more):
    analyze = CountVectorizer(**options).build_analyzer()
    tokens = [analyze(text) for text in texts]
    dictionary = Dictionary(tokens)
    corpus = [dictionary.doc2bow(one) for one in tokens]
    model = CoherenceModel(
        topics=topics, texts=tokens, corpus=corpus, dictionary=dictionary, coherence=name, processes=1, **more
    )
    return model.get_coherence_per_topic()


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize(
    "vectorizer",
    [
        VectorizerSettings(),
        VectorizerSettings(stop_words=("w001", "w002"), strip_accents="unicode"),
        VectorizerSettings(ngram_range=(2, 2)),
        VectorizerSettings(token_pattern=r"w\d\d"),
    ],
    ids=["words", "stop words", "pairs", "a pattern of one's own"],
)
def test_coherence_is_gensims(name, vectorizer):
    options = analyzer_options(vectorizer)
    topics = topics_of(TEXTS, options)
    expected = gensims(TEXTS, topics, name, options)
    np.testing.assert_allclose(measured(TEXTS, topics, vectorizer)[name], expected, rtol=0, atol=1e-9)


def test_a_window_of_ones_own_and_terms_that_the_corpus_lacks():
    options = analyzer_options(VectorizerSettings())
    topics = topics_of(TEXTS, options)
    topics[1].insert(2, "unheard")
    expected = gensims(TEXTS, topics, "c_npmi", options, window_size=25)
    found = measured(TEXTS, [*topics, ["w003", "unheard"], []], VectorizerSettings(), {"c_npmi": 25})[
        "c_npmi"
    ]
    np.testing.assert_allclose(found[:-2], expected, rtol=0, atol=1e-9)
    assert np.isnan(found[-2:]).all()


def windows_as_gensim_counts(sequences, topics, window):
    """The readable twin: one window after the other, each a set of terms, as gensim's accumulator keeps it."""
    n, single, pairs = 0, Counter(), Counter()
    for sequence in sequences:
        for start in range(max(1, len(sequence) - window + 1)):
            if start == 0:
                here = {term for terms in sequence[:window] for term in terms}
            else:
                here = (here - set(sequence[start - 1])) | set(sequence[start + window - 1])
            n += 1
            single.update(here)
            pairs.update(
                (t, i, j)
                for t, topic in enumerate(topics)
                for i, a in enumerate(topic)
                for j, b in enumerate(topic)
                if i != j and a in here and b in here
            )
    return n, single, pairs


WORDS = ["aa", "bb", "cc", "dd", "ee", "ff", "aa bb", "bb cc", "cc aa"]


@given(
    st.lists(st.lists(st.sampled_from(WORDS[:6]), max_size=25), max_size=8),
    st.lists(st.lists(st.sampled_from(WORDS), unique=True, max_size=5), min_size=1, max_size=4),
    st.sampled_from([(1, 1), (1, 2), (2, 2), (1, 3)]),
    st.integers(1, 12) | st.just(DOCUMENT),
)
@settings(max_examples=150, deadline=None)
def test_counts_of_windows(documents, topics, ngram_range, window):
    """Of words and of n-grams, which stand where their first word does."""
    texts = [" ".join(words) for words in documents]
    top = TopTerms.of(topics)
    low, high = ngram_range
    sequences = [
        [
            [" ".join(words[i : i + n]) for n in range(low, high + 1) if i + n <= len(words)]
            for i in range(len(words) - low + 1)
        ]
        for words in documents
    ]
    n, single, pairs = windows_as_gensim_counts(sequences, topics, window)
    found = occurrences(pa.array(texts, pa.string()), top.names, VectorizerSettings(ngram_range=ngram_range))
    one = Cooccurrence.of(found, top, window)
    assert one.n_windows == n
    assert one.single.tolist() == [single[name] for name in top.names]
    for (t, i, j), number in np.ndenumerate(one.pairs):
        assert number == pairs[t, i, j], (t, i, j)


def test_occurrences_in_chunks_with_more_of_them_than_there_is_room_for():
    texts = pa.chunked_array([["a-a " * 3000, None, "B"], [], ["b a\u0130 ß", "a"]], pa.string())
    settings = VectorizerSettings(token_pattern=r"(?u)\b\w+\b")
    found = occurrences(texts, ["a", "b", "ss", "ß"], settings)
    assert found.lengths.tolist() == [6000, 0, 1, 3, 1]
    assert found.indptr.tolist() == [0, 6000, 6000, 6001, 6003, 6004]
    assert found.terms[6000:].tolist() == [1, 1, 3, 0]
    assert found.positions[[0, 5999, 6002]].tolist() == [0, 5999, 2]
    with pytest.raises(ValueError, match="sorted"):
        occurrences(texts, ["b", "a"], settings)


def test_evidence_of_parts_adds_up_to_that_of_the_whole():
    topics = topics_of(TEXTS, analyzer_options(VectorizerSettings()))
    top = TopTerms.of(topics)
    sizes = WINDOWS.values()
    whole = counted(pa.array(TEXTS), top, VectorizerSettings(), sizes)
    total = Evidence({})
    for low in range(0, len(TEXTS), 40):
        part = pa.array(TEXTS[low : low + 40])
        total.add(
            Evidence(
                counted(part, top, VectorizerSettings(), sizes),
                len(part),
                held_out={(0, low): Loss(1, low, 2)},
            )
        )
    assert total.n_documents == len(TEXTS)
    assert total.loss() == (4, 240.0, 8.0)
    for size in sizes:
        assert total.windows[size].n_windows == whole[size].n_windows
        assert np.array_equal(total.windows[size].pairs, whole[size].pairs)


def test_diversity_and_exclusivity():
    top = TopTerms.of([["a", "b"], ["b", "c"], ["d"], []])
    overall, of_topic = diversity(top)
    assert overall == 4 / 5
    np.testing.assert_array_equal(of_topic, [0.5, 0.5, 1.0, np.nan])
    H = np.array([[2, 2, 0, 0], [0, 1, 3, 0], [0, 0, 0, 0]], np.float32)
    shares = np.array([[0.5, 0.5, 0], [0, 0.25, 0.75]])
    expected = [(1 + 0.5 / 0.75) / 2, (0.25 / 0.75 + 1) / 2, np.nan]
    np.testing.assert_allclose(exclusivity(H, 2), expected)
    assert shares.sum(axis=1).tolist() == [1, 1]


def test_topics_of_two_runs_are_matched_by_their_terms():
    H = np.array([[3, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 5]], np.float32)
    terms = ["a", "b", "c", "d"]
    # The same topics in another order, other columns, and a term that only this run has.
    other = np.array([[0, 4, 0, 0, 0], [0, 0, 1, 3, 0]], np.float32)
    found = matched((H, terms), (other, ["x", "b", "c", "a", "y"]), 2)
    assert found.other.tolist() == [1, 0, -1]
    np.testing.assert_allclose(found.cosine, [1, 1, np.nan])
    np.testing.assert_allclose(found.jaccard, [1, 1, np.nan])
    other[0, 0] = 3
    np.testing.assert_allclose(matched((H, terms), (other, ["x", "b", "c", "a", "y"]), 2).cosine[1], 0.8)


def test_labels_are_scikit_learns_scores():
    random = np.random.default_rng(0)
    topics, labels = random.integers(0, 4, 500), random.choice(["x", "y", "z"], 500)
    labels[topics == 2] = "x"
    W = np.eye(4, dtype=np.float32)[topics]
    W[:7] = 0
    encoded = pa.chunked_array([pa.array([None, *labels[1:]]).dictionary_encode()])
    known = np.ones(500, bool)
    known[10] = False
    found, without = by_label(encoded, W, known)
    assert without == 8
    names, table = confusion(found, 4)
    used = [i for i in range(7, 500) if i != 10]
    assert names == ["x", "y", "z"]
    assert table.sum() == len(used)
    assert table[2].tolist() == [np.sum(topics[used] == 2), 0, 0]
    expected = normalized_mutual_info_score(labels[used], topics[used])
    assert normalized_mutual_information(table) == pytest.approx(expected, abs=1e-12)
    best = sum(Counter(labels[i] for i in used if topics[i] == t).most_common(1)[0][1] for t in range(4))
    assert purity(table) == best / len(used)
    assert math.isnan(purity(table[:, :0]))
    many = pa.chunked_array([pa.array([str(i) for i in range(2001)]).dictionary_encode()])
    with pytest.raises(InputDataError, match="more than 2,000 different values"):
        by_label(many, np.ones((2001, 2), np.float32), np.ones(2001, bool))


def test_labels_of_a_slice_take_no_room_for_those_of_its_partition():
    """A slice of a partition with a label a document, whose dictionary it shares."""
    n, k = 100_000, 400
    labels = pa.chunked_array([pa.array([str(i) for i in range(n)]).dictionary_encode()]).slice(5, 3)
    W = np.eye(k, dtype=np.float32)[[7, 0, 7]]
    tracemalloc.start()
    found, without = by_label(labels, W, np.ones(3, bool))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {label: row.nonzero()[0].tolist() for label, row in found.items()} == {
        "5": [7],
        "6": [0],
        "7": [7],
    }
    assert without == 0
    assert peak < n * k


def test_halves_of_a_document_are_its_occurrences_in_turn():
    texts = ["a b a c c c d", "", "e", "f f f f f g", "g f g"]
    settings = VectorizerSettings(token_pattern=r"\w+")
    counts = count_texts(pa.array(texts), settings)
    first, second = halves(counts)

    def words(one, d):
        row = slice(one.indptr[d], one.indptr[d + 1])
        names = dict(zip(one.terms["bucket"].to_pylist(), one.terms["term"].to_pylist(), strict=True))
        return {
            names[b]: n for b, n in zip(one.buckets[one.indices[row]], one.counts[row].tolist(), strict=True)
        }

    # a a b c c c d, in the order of first appearance: every second one from the first on, and from the second on.
    assert [words(first, d) for d in range(5)] == [
        {"a": 1, "b": 1, "c": 1, "d": 1},
        {},
        {"e": 1},
        {"f": 3},
        {"g": 1, "f": 1},
    ]
    assert [words(second, d) for d in range(5)] == [{"a": 1, "c": 2}, {}, {}, {"f": 2, "g": 1}, {"g": 1}]


@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
def test_loss_under_a_given_W_and_H(beta_loss):
    random = np.random.default_rng(0)
    X = sparse.random_array((30, 20), density=0.4, rng=random, dtype=np.float64).toarray()
    H, W = random.random((3, 20)).astype(np.float32), random.random((30, 3)).astype(np.float32)
    H[:, 0] = 0
    X[:, 0] = 0
    rows = random.random(30) < 0.7
    wide = pad_H(H)
    padded = np.zeros((30, wide.shape[1]), np.float32)
    padded[:, :3] = W
    fixed = FixedH.of(wide, ModelSettings(beta_loss=beta_loss))
    divergence, size = fixed.loss(from_scipy(X), padded, rows)
    dense, product = X[rows], (W @ H).astype(np.float64)[rows]
    if beta_loss == "frobenius":
        expected, whole = 0.5 * ((dense - product) ** 2).sum(), 0.5 * (dense**2).sum()
    else:
        some = dense > 0
        expected = (dense[some] * np.log(dense[some] / product[some])).sum() - dense.sum() + product.sum()
        whole = dense.sum()
    assert divergence == pytest.approx(expected, rel=1e-5)
    assert size == pytest.approx(whole, rel=1e-6)
