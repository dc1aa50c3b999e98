import pickle
from collections import Counter, defaultdict
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from nmf_dask import vocabulary as module
from nmf_dask.config import VectorizerSettings
from nmf_dask.errors import ConfigurationError, InputDataError
from nmf_dask.kernels.matrices import to_scipy
from nmf_dask.text import count_texts
from nmf_dask.vocabulary import TermTable, Vocabulary, merge, select, weigh
from tests.corpora import corpus_folder
from tests.small_counts import Documents, counts_of, zipf_documents

EVERYTHING = VectorizerSettings(min_df=1, max_df=1.0, max_features=None)
# Shared prefixes, lengths around 4 and 8, and two whose order in UTF-8 is not that in UTF-16.
TERMS = ["a", "ab", "abc", "abcd", "abcde", "abcdefgh", "abcdefghi", "é", "日本", "\ue000", "\U0001f600", "z"]
documents_strategy = st.lists(st.lists(st.sampled_from(TERMS), max_size=12), max_size=12)


def in_buckets(n: int):
    return lambda term: crc32(term.encode()) % n


def reference(documents: Documents, bucket_of) -> dict[int, tuple[int, int, str, float]]:
    """bucket -> document frequency, total count, name, the name's share: the definitions, word for word."""
    holders, totals, terms = Counter(), Counter(), defaultdict(Counter)
    for document in documents:
        holders.update({bucket_of(term) for term in document})
        totals.update(bucket_of(term) for term in document)
        for term in set(document):
            terms[bucket_of(term)][term] += 1
    found = {}
    for bucket, of_bucket in terms.items():
        name = min(of_bucket, key=lambda term: (-of_bucket[term], term.encode()))
        found[bucket] = (holders[bucket], totals[bucket], name, of_bucket[name] / holders[bucket])
    return found


# No deadline: the first example may wait for a compiler.
@hypothesis_settings(deadline=None)
@given(documents_strategy, st.integers(1, 6))
def test_columns_of_colliding_terms_are_what_a_dict_says(documents, n_buckets):
    expected = reference(documents, in_buckets(n_buckets))
    table = TermTable.of(counts_of(documents, in_buckets(n_buckets)))
    rows = dict(zip(table.buckets["bucket"].to_pylist(), table.buckets.to_pylist(), strict=True))
    assert {b: (r["document_frequency"], r["total_count"]) for b, r in rows.items()} == {
        bucket: numbers[:2] for bucket, numbers in expected.items()
    }
    if not expected:
        return
    vocabulary = select(table, EVERYTHING)
    order = sorted(expected, key=lambda bucket: (-expected[bucket][0], -expected[bucket][1], bucket))
    assert vocabulary.bucket.tolist() == order
    assert vocabulary.document_frequency.tolist() == [expected[bucket][0] for bucket in order]
    assert vocabulary.term.to_pylist() == [expected[bucket][2] for bucket in order]
    np.testing.assert_array_equal(
        vocabulary.term_share, np.float32([expected[bucket][3] for bucket in order])
    )
    held = sum(numbers[0] for numbers in expected.values())
    named = sum(round(numbers[0] * numbers[3]) for numbers in expected.values())
    assert vocabulary.collision_rate == pytest.approx(1 - named / held, abs=1e-7)


def merged_in_a_tree(tables: list[TermTable], cuts: list[int]) -> TermTable:
    """Merge runs of neighbours, then runs of the results, and so on, as `cuts` has it."""
    for cut in cuts:
        tables = [merge(tables[i : i + cut]) for i in range(0, len(tables), cut)]
    return merge(tables)


# No deadline: the first example may wait for a compiler.
@hypothesis_settings(deadline=None)
@given(documents_strategy, st.integers(1, 6), st.integers(1, 5), st.lists(st.integers(1, 4), max_size=4))
def test_every_tree_gives_the_table_of_the_whole(documents, n_buckets, part, cuts):
    bucket_of = in_buckets(n_buckets)
    parts = [documents[i : i + part] for i in range(0, len(documents), part)]
    tables = [TermTable.of(counts_of(documents, bucket_of)) for documents in parts]
    whole = TermTable.of(counts_of(documents, bucket_of))
    merged = merged_in_a_tree(tables, cuts)
    assert merged == whole
    rows = [(row["bucket"], row["term"].encode()) for row in merged.terms.to_pylist()]
    assert rows == sorted(set(rows))
    assert merge([merge([]), merged]) == merged
    assert reduce(lambda one, other: merge([one, other]), tables[::-1], merge([])) == merged
    assert merged.terms.schema == whole.terms.schema == module._TERMS
    assert merged.buckets.schema == whole.buckets.schema == module._BUCKETS


def test_a_table_travels_without_what_it_was_made_of():
    """A pickled Arrow slice once took the whole buffer along."""
    tables = [TermTable.of(counts_of([[f"t{i}", f"t{i + 1}"]], in_buckets(2**20))) for i in range(500)]
    merged = merge(tables)
    pickled = pickle.dumps(merged, protocol=5)
    assert pickle.loads(pickled) == merged
    assert len(pickled) < 1.2 * (merged.buckets.nbytes + merged.terms.nbytes) + 5000


@pytest.mark.parametrize("fan_in", [1, 2, 7])
def test_a_bound_on_terms_leaves_buckets_exact_and_names_right(monkeypatch, fan_in):
    documents = zipf_documents(700, 3000, 40, seed=5)
    bucket_of = in_buckets(150)
    parts = [documents[i::7] for i in range(7)]
    exact = merge([TermTable.of(counts_of(part, bucket_of)) for part in parts])
    monkeypatch.setattr(module, "MAX_TERMS", 600)
    bounded = merged_in_a_tree([TermTable.of(counts_of(part, bucket_of)) for part in parts], [fan_in])
    assert exact.terms.num_rows > 2000
    assert bounded.terms.num_rows <= 600
    assert bounded.buckets == exact.buckets
    ours, theirs = select(bounded, EVERYTHING), select(exact, EVERYTHING)
    assert ours.bucket.tolist() == theirs.bucket.tolist()
    # Where one term is most of its bucket: the buckets that min_df and max_features choose are such.
    leading = np.flatnonzero(theirs.term_share > 0.5)
    assert len(leading) > 20
    assert ours.term.take(leading) == theirs.term.take(leading)
    assert ours.collision_rate == pytest.approx(theirs.collision_rate, abs=0.05)


def test_the_bound_keeps_the_most_frequent_terms_of_each_bucket(monkeypatch):
    documents = [["a1", "a2", "a3", "b1"], ["a2", "a3", "b2"], ["a3", "b2"], ["b3", "c1"]]
    monkeypatch.setattr(module, "MAX_TERMS", 6)
    table = TermTable.of(counts_of(documents, lambda term: ord(term[0]) - ord("a")))
    kept = [(row["term"], row["document_frequency"]) for row in table.terms.to_pylist()]
    assert kept == [("a2", 2), ("a3", 3), ("b1", 1), ("b2", 2), ("c1", 1)]
    monkeypatch.setattr(module, "MAX_TERMS", 1)
    assert merge([table]).terms["term"].to_pylist() == ["a3", "b2", "c1"]


TEXTS = ["", *(" ".join(words) for words in zipf_documents(300, 500, 50, seed=11))]


@pytest.mark.parametrize(
    ("min_df", "max_df", "max_features"),
    [
        (1, 1.0, None),
        (2, 0.5, None),
        (0.1, 0.3, None),
        (30, 90, None),
        (1.0, 301, None),
        (10, 1.0, 23),
        (0.01, 0.99, 1),
    ],
)
@pytest.mark.parametrize("smooth_idf", [True, False])
def test_without_collision_it_is_tfidf_vectorizer(min_df, max_df, max_features, smooth_idf):
    texts = [f"{text} always" for text in TEXTS]
    shared = {"min_df": min_df, "max_df": max_df, "max_features": max_features, "smooth_idf": smooth_idf}
    settings = VectorizerSettings(n_features=2**31 - 1, **shared)
    counts = count_texts(pa.array(texts), settings)
    table = TermTable.of(counts)
    if max_features is not None:
        totals = np.sort(table.buckets["total_count"].to_numpy())[::-1]
        assert totals[max_features - 1] > totals[max_features], "scikit-learn breaks this tie as it likes"
    vocabulary = select(table, settings)
    vectorizer = TfidfVectorizer(**shared)
    theirs = vectorizer.fit_transform(texts).toarray()
    assert sorted(vocabulary.term.to_pylist()) == list(vectorizer.get_feature_names_out())
    columns = [vectorizer.vocabulary_[term] for term in vocabulary.term.to_pylist()]
    np.testing.assert_array_equal(vocabulary.idf, vectorizer.idf_[columns])
    np.testing.assert_allclose(
        to_scipy(weigh(counts, vocabulary, settings)).toarray(), theirs[:, columns], rtol=6.1e-8
    )
    assert vocabulary.collision_rate == 0.0
    assert np.all(vocabulary.term_share == 1.0)


@pytest.mark.parametrize("n_partitions", [1, 2, 7])
def test_a_real_corpus_is_cut_as_scikit_learn_cuts_it(n_partitions):
    path = corpus_folder("20newsgroups") / "part-00000.parquet"
    texts = pq.read_table(path, columns=["text"])["text"].combine_chunks().slice(0, 1500)
    settings = VectorizerSettings(n_features=2**31 - 1, min_df=3, max_df=0.4, max_features=None)
    cuts = np.linspace(0, len(texts), n_partitions + 1).astype(int)
    parts = [count_texts(texts.slice(a, b - a), settings) for a, b in pairwise(cuts)]
    vocabulary = select(merge([TermTable.of(part) for part in parts]), settings)
    vectorizer = CountVectorizer(min_df=3, max_df=0.4)
    frequency = vectorizer.fit_transform(texts.to_pylist()).astype(bool).sum(axis=0)
    theirs = dict(zip(vectorizer.get_feature_names_out(), np.asarray(frequency).ravel(), strict=True))
    ours = zip(vocabulary.term.to_pylist(), vocabulary.document_frequency, strict=True)
    assert dict(ours) == theirs
    assert vocabulary.n_documents == 1500


def test_an_int_counts_documents_and_a_float_is_a_share():
    table = TermTable.of(counts_of([["all", "one"], ["all"], ["all"]], in_buckets(2**20)))
    kept = [
        select(table, VectorizerSettings(min_df=low, max_df=high)).term.to_pylist()
        for low, high in [(1, 1), (1, 1.0), (1.0, 1.0), (1.0, 3)]
    ]
    assert kept == [["one"], ["all", "one"], ["all"], ["all"]]


def test_ties_of_max_features_go_by_document_frequency_then_by_the_terms_bytes():
    documents = [["x", "x", "é", "z"], ["é", "z"], ["y", "y", "most"], ["most", "most"]]
    # Buckets against the order of the terms, so that a tie that goes by bucket is seen.
    table = TermTable.of(counts_of(documents, {"x": 5, "y": 4, "z": 3, "é": 2, "most": 9}.__getitem__))
    chosen = [
        select(table, VectorizerSettings(min_df=1, max_df=1.0, max_features=n)).term.to_pylist()
        for n in range(1, 6)
    ]
    assert [set(terms) for terms in chosen] == [
        {"most"},
        {"most", "z"},
        {"most", "z", "é"},
        {"most", "z", "é", "x"},
        {"most", "z", "é", "x", "y"},
    ]
    # Columns: document frequency, then total count, then bucket.
    assert chosen[-1] == ["most", "é", "z", "y", "x"]


@hypothesis_settings(deadline=None)
@given(documents_strategy, st.integers(1, 12), st.booleans())
def test_columns_go_by_document_frequency_then_by_total_count_then_by_bucket(documents, most, given_numbers):
    """Catches an order that is not stable, and features that are numbered as they were picked."""
    table = TermTable.of(counts_of(documents, in_buckets(64)))
    if given_numbers:  # fractions, whose order whole numbers lose
        halves = table.buckets["total_count"].to_numpy() / 2
        table = replace(table, buckets=table.buckets.set_column(2, "total_count", pa.array(halves)))
    if table.buckets.num_rows == 0:
        return
    chosen = select(table, VectorizerSettings(min_df=1, max_df=1.0, max_features=most)).bucket.tolist()
    rows = {row["bucket"]: row for row in table.buckets.to_pylist()}
    by_numbers = sorted(chosen, key=lambda b: (-rows[b]["document_frequency"], -rows[b]["total_count"], b))
    assert chosen == by_numbers
    assert len(chosen) == min(most, len(rows))


def test_use_idf_false_weighs_every_column_by_one():
    table = TermTable.of(counts_of([["a"], ["a", "b"]], in_buckets(2**20)))
    idf = select(table, VectorizerSettings(min_df=1, max_df=1.0, use_idf=False)).idf
    assert idf.tolist() == [1.0, 1.0]
    assert idf.dtype == np.float64


@pytest.mark.parametrize(
    ("documents", "settings", "error", "parts"),
    [
        (
            [[f"t{i}" for i in range(1000)], ["a", "b"], ["a", "b"], ["a", "b"]],
            {"min_df": 2, "max_df": 0.5},
            InputDataError,
            [
                "1,002 buckets",
                "4 documents",
                "min_df=2 dropped 1,000",
                "max_df=0.5 dropped 2",
                "lower min_df",
            ],
        ),
        (
            [["a"]],
            {"min_df": 2, "max_df": 0.5},
            InputDataError,
            ["1 documents", "max_df=0.5", "min_df=2", "0.5 at"],
        ),
        (
            [[], []],
            {"min_df": 1, "max_df": 1.0},
            InputDataError,
            ["none of the 2 documents", "token_pattern"],
        ),
        ([], {"min_df": 1, "max_df": 1.0}, InputDataError, ["0 documents"]),
    ],
)
def test_nothing_left_is_explained_in_numbers(documents, settings, error, parts):
    table = TermTable.of(counts_of(documents, in_buckets(2**31 - 1)))
    with pytest.raises(error) as caught:
        select(table, VectorizerSettings(**settings))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(("min_df", "max_df"), [(5, 4), (0.5, 0.25)])
def test_limits_that_fit_no_corpus_are_a_wrong_configuration(min_df, max_df):
    """Settings are validated before, but `select` must not depend on it."""
    table = TermTable.of(counts_of([["a"]] * 8, in_buckets(2**20)))
    settings = VectorizerSettings.model_construct(min_df=min_df, max_df=max_df)
    with pytest.raises(ConfigurationError, match=f"max_df={max_df}.*min_df={min_df}"):
        select(table, settings)


@pytest.mark.parametrize("most_direct", [0, 2**22])
def test_the_column_of_any_bucket(monkeypatch, most_direct):
    """Catches a bucket beyond the largest chosen that gets a column, by array and by search."""
    monkeypatch.setattr(module, "MOST_DIRECT", most_direct)
    chosen = np.array([700, 3, 0, 41], np.int64)
    numbers = np.ones(4)
    columns = Vocabulary(
        chosen, pa.array(list("abcd")), numbers.astype(np.int64), numbers, numbers.astype("f4"), 9
    )
    asked = np.array([0, 1, 3, 4, 41, 699, 700, 701, 702, 2**30], np.int32)
    assert columns.columns_of(asked).tolist() == [2, -1, 1, -1, 3, -1, 0, -1, -1, -1]


def test_h_carries_the_vocabulary_there_and_back(tmp_path):
    documents = zipf_documents(100, 300, 30, seed=2)
    vocabulary = select(TermTable.of(counts_of(documents, in_buckets(100))), EVERYTHING)
    table = vocabulary.to_table()
    assert table.schema == pa.schema(
        [
            ("feature", pa.int32()),
            ("bucket", pa.int64()),
            ("term", pa.string()),
            ("document_frequency", pa.int64()),
            ("idf", pa.float64()),
            ("term_share", pa.float32()),
        ]
    )
    pq.write_table(
        table.append_column("weights", pa.nulls(len(table))), tmp_path / "H.parquet", row_group_size=7
    )
    shuffled = pq.read_table(tmp_path / "H.parquet").take(np.random.default_rng(0).permutation(len(table)))
    back = Vocabulary.from_table(shuffled, vocabulary.n_documents)
    assert back.to_table() == table
    assert back.n_documents == 100
    assert back.collision_rate == vocabulary.collision_rate > 0
    assert isinstance(back.term, pa.StringArray)
    assert isinstance(vocabulary.term, pa.StringArray)
