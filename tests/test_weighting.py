import itertools

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from nmf_dask.config import VectorizerSettings
from nmf_dask.kernels.matrices import Csr, from_scipy, read_only, to_scipy
from nmf_dask.kernels.weighting import N_BINS, NORMS, expected_bins, weighed_rows
from nmf_dask.text import count_texts
from nmf_dask.vocabulary import TermTable, Vocabulary, merge, select, weigh
from tests.small_counts import zipf_documents

# The last one holds nothing but a word that min_df drops, the first nothing at all.
TEXTS = ["", *(" ".join(words) for words in zipf_documents(200, 400, 60, seed=3)), "solitary solitary"]


def sklearn_matrix(texts: list[str], vocabulary: Vocabulary, settings: VectorizerSettings) -> sp.csr_array:
    hashing = HashingVectorizer(n_features=settings.n_features, alternate_sign=False, norm=None)
    counts = sp.csr_array(hashing.transform(texts))[:, vocabulary.bucket]
    tfidf = TfidfTransformer(
        norm=settings.norm,
        use_idf=settings.use_idf,
        smooth_idf=settings.smooth_idf,
        sublinear_tf=settings.sublinear_tf,
    )
    return sp.csr_array(tfidf.fit_transform(counts))


def assert_same_entries(X: Csr, expected: sp.csr_array) -> None:
    assert (X.indptr.dtype, X.indices.dtype, X.data.dtype) == (np.int64, np.int32, np.float32)
    expected.sort_indices()
    np.testing.assert_array_equal(X.indptr, expected.indptr)
    np.testing.assert_array_equal(X.indices, expected.indices)
    # One rounding to float32 apart, and scikit-learn's own in float64.
    np.testing.assert_allclose(X.data, expected.data, rtol=6.1e-8)


@pytest.mark.parametrize("n_features", [2**20, 50], ids=["no-collision", "collisions"])
@pytest.mark.parametrize(
    ("use_idf", "smooth_idf", "sublinear_tf", "norm"),
    list(itertools.product([True, False], [True, False], [True, False], ["l1", "l2", None])),
)
def test_every_entry_is_scikit_learns(n_features, use_idf, smooth_idf, sublinear_tf, norm):
    settings = VectorizerSettings(
        n_features=n_features,
        min_df=2,
        max_df=0.6 if n_features == 2**20 else 1.0,
        use_idf=use_idf,
        smooth_idf=smooth_idf,
        sublinear_tf=sublinear_tf,
        norm=norm,
        max_features=30,
    )
    counts = count_texts(pa.array(TEXTS), settings)
    vocabulary = select(TermTable.of(counts), settings)
    X = weigh(counts, vocabulary, settings)
    assert X.n_columns == len(vocabulary) == 30
    assert_same_entries(X, sklearn_matrix(TEXTS, vocabulary, settings))


@pytest.mark.parametrize("most", [255, 256, 70_000])
def test_a_count_that_a_byte_does_not_hold(most):
    """Catches one that wraps around: 256 would be none, and the document of the other word alone."""
    texts = ["often " * most + "rarely", "rarely often"]
    settings = VectorizerSettings(min_df=1, max_df=1.0, norm=None)
    counts = count_texts(pa.array(texts), settings)
    assert counts.counts.max() == most
    assert counts.counts.dtype == (np.uint8 if most == 255 else np.int32)
    vocabulary = select(TermTable.of(counts), settings)
    assert_same_entries(weigh(counts, vocabulary, settings), sklearn_matrix(texts, vocabulary, settings))


@pytest.mark.parametrize("n_partitions", [1, 2, 7])
def test_a_partition_weighs_by_the_numbers_of_the_whole_corpus(n_partitions):
    settings = VectorizerSettings(min_df=2, max_df=1.0)
    cuts = np.linspace(0, len(TEXTS), n_partitions + 1).astype(int)
    parts = [count_texts(pa.array(TEXTS[a:b]), settings) for a, b in itertools.pairwise(cuts)]
    vocabulary = select(merge([TermTable.of(part) for part in parts]), settings)
    whole = sp.vstack([to_scipy(weigh(part, vocabulary, settings)) for part in parts], format="csr")
    assert_same_entries(from_scipy(whole), sklearn_matrix(TEXTS, vocabulary, settings))


def test_order_moves_rows_and_changes_nothing_else():
    settings = VectorizerSettings(min_df=2, max_df=1.0, sublinear_tf=True)
    counts = count_texts(pa.array(TEXTS), settings)
    vocabulary = select(TermTable.of(counts), settings)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    plain, moved = weigh(counts, vocabulary, settings), weigh(counts, vocabulary, settings, order)
    np.testing.assert_array_equal(to_scipy(moved).toarray(), to_scipy(plain).toarray()[order])


def test_documents_without_a_known_term_are_zero_rows():
    settings = VectorizerSettings(min_df=2, max_df=1.0)
    counts = count_texts(pa.array(["a1 b1", "b1 a1", "once", "", None]), settings)
    vocabulary = select(TermTable.of(counts), settings)
    X = to_scipy(weigh(counts, vocabulary, settings)).toarray()
    np.testing.assert_allclose(np.linalg.norm(X, axis=1), [1, 1, 0, 0, 0], rtol=1e-6)
    none_known = count_texts(pa.array(["else", ""]), settings)
    assert weigh(none_known, vocabulary, settings).nnz == 0
    assert weigh(count_texts(pa.array([], pa.string()), settings), vocabulary, settings).n_rows == 0


# No deadline: the first example may wait for a compiler.
@hypothesis_settings(deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.integers(0, 39), st.integers(1, 2**31 - 1), max_size=40), max_size=8),
    kept=st.permutations(range(40)),
    n_kept=st.integers(1, 40),
    sublinear_tf=st.booleans(),
    norm=st.sampled_from(list(NORMS)),
)
def test_kernel_does_what_ten_dense_lines_do(rows, kept, n_kept, sublinear_tf, norm):
    columns = np.full(40, -1, np.int32)
    columns[list(kept[:n_kept])] = np.arange(n_kept)
    idf = 1.0 + np.arange(n_kept) / 7
    dense = np.zeros((len(rows), n_kept))
    for row, counts in enumerate(rows):
        for bucket, count in counts.items():
            if columns[bucket] >= 0:
                tf = 1 + np.log(count) if sublinear_tf else count
                dense[row, columns[bucket]] = tf * idf[columns[bucket]]
    if norm is not None:
        sizes = np.linalg.norm(dense, ord=int(norm[1]), axis=1, keepdims=True)
        dense /= np.where(sizes > 0, sizes, 1)
    arrays = weigh_rows(rows, columns, idf, np.arange(40, 40 - n_kept, -1), sublinear_tf, norm)
    assert_same_entries(Csr(*arrays, n_kept), sp.csr_array(dense))


def weigh_rows(rows, columns, idf, document_frequency, sublinear_tf=False, norm=None):
    flat = [(bucket, count) for row in rows for bucket, count in row.items()]
    return weighed_rows(
        read_only(np.cumsum([0, *map(len, rows)]), np.int64),
        read_only(np.array([bucket for bucket, _ in flat]), np.int32),
        read_only(np.array([count for _, count in flat]), np.int32),
        read_only(np.arange(len(rows)), np.int64),
        read_only(columns, np.int32),
        read_only(idf, np.float64),
        read_only(expected_bins(document_frequency), np.uint8),
        sublinear_tf,
        NORMS[norm],
        False,
    )


def test_a_document_that_holds_everything_is_sorted():
    """Its row is long enough for the gaps of Shell's sort, and all but one column share the last bin."""
    m = 20_000
    buckets = np.random.default_rng(1).permutation(m)
    document_frequency = np.array([10**9, *[1] * (m - 1)])
    _, indices, data = weigh_rows(
        [dict.fromkeys(buckets.tolist(), 1)], np.arange(m), np.arange(m) + 1.0, document_frequency
    )
    np.testing.assert_array_equal(indices, np.arange(m))
    np.testing.assert_array_equal(data, np.arange(m) + 1.0)


def test_a_row_of_zero_weights_is_not_divided_by_its_norm():
    _, _, data = weigh_rows([{0: 3}], np.array([0]), np.zeros(1), np.array([1]), norm="l2")
    assert data.tolist() == [0.0]


def test_bins_ascend_and_share_the_document_frequency_evenly():
    document_frequency = np.sort((1e6 / np.arange(1, 50_001)).astype(np.int64))[::-1]
    bins = expected_bins(document_frequency)
    assert np.all(np.diff(bins.astype(int)) >= 0)
    assert bins.max() < N_BINS
    shares = np.bincount(bins, document_frequency, minlength=N_BINS) / document_frequency.sum()
    # The first columns are each worth many bins, which stay empty.
    assert shares[100:].min() > 0.5 / N_BINS
    assert shares.max() <= document_frequency[0] / document_frequency.sum() + 1 / N_BINS


def test_what_is_read_only_or_misaligned_compiles_nothing_new():
    """Arrays that came over the network are read-only, some unaligned: each would cost a compilation."""
    settings = VectorizerSettings(min_df=1, max_df=1.0)
    counts = count_texts(pa.array(TEXTS), settings)
    vocabulary = select(TermTable.of(counts), settings)
    expected = weigh(counts, vocabulary, settings)
    compilations = len(weighed_rows.signatures)
    for array in (counts.indptr, counts.indices, counts.counts):
        array.flags.writeable = False
    bytes_off_by_one = np.frombuffer(b"\0" + counts.indptr.tobytes(), np.uint8)[1:].view(np.int64)
    assert not bytes_off_by_one.flags.aligned
    object.__setattr__(counts, "indptr", bytes_off_by_one)
    again = weigh(counts, vocabulary, settings)
    np.testing.assert_array_equal(again.data, expected.data)
    # One for counts of a byte and one for those of four: of each kind that this process has met, no more than one.
    kinds = {signature[2].dtype for signature in weighed_rows.signatures}
    assert len(weighed_rows.signatures) == compilations == len(kinds)


def test_conversions_keep_every_entry():
    dense = np.array([[0, 2, 1], [0, 0, 0], [3, 0, 0]], np.float32)
    unsorted = sp.csr_array((np.float32([1, 2, 3]), [2, 1, 0], [0, 2, 2, 3]), shape=(3, 3))
    X = from_scipy(unsorted)
    assert (X.n_rows, X.n_columns, X.nnz, X.nbytes) == (3, 3, 3, 4 * 8 + 3 * 4 + 3 * 4)
    np.testing.assert_array_equal(X.indices, [1, 2, 0])
    np.testing.assert_array_equal(unsorted.indices, [2, 1, 0], err_msg="what was given has changed")
    np.testing.assert_array_equal(to_scipy(X).toarray(), dense)
    np.testing.assert_array_equal(to_scipy(from_scipy(dense)).toarray(), dense)
    twice = sp.csr_array((np.float64([1, 1, 1, 3]), [2, 1, 1, 0], [0, 3, 3, 4]), shape=(3, 3))
    for one in (twice, unsorted.astype(np.float64), dense, sp.csc_array(dense)):
        moved = from_scipy(one, np.array([2, 0, 1]))
        assert (moved.indices.dtype, moved.data.dtype) == (np.int32, np.float32)
        np.testing.assert_array_equal(moved.indices, [0, 1, 2])
        np.testing.assert_array_equal(to_scipy(moved).toarray(), dense[[2, 0, 1]])
    np.testing.assert_array_equal(twice.data, [1, 1, 1, 3], err_msg="what was given has changed")
