"""Divergences against scikit-learn and SciPy, and what they say of wrong input."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import kl_div
from sklearn.decomposition._nmf import _beta_divergence

from nmf_dask.kernels.divergence import beta_divergence, frobenius_norm, kullback_leibler_divergence

LOSSES = ["frobenius", "kullback-leibler", 2, 1.0]


def factors(n, m, k, seed):
    rng = np.random.default_rng(seed)
    X = sp.random_array((n, m), density=0.3, format="csr", rng=rng)
    return X, rng.random((n, k)), rng.random((k, m))


def shuffled(X, seed):
    """The same matrix with the entries of each row in another order, as TfidfVectorizer may return it."""
    rng = np.random.default_rng(seed)
    order = np.concatenate(
        [rng.permutation(np.arange(a, b)) for a, b in zip(X.indptr, X.indptr[1:], strict=False)]
    )
    return sp.csr_array((X.data[order], X.indices[order], X.indptr), shape=X.shape)


@settings(deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from(LOSSES),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_equals_scikit_learn(n, m, k, beta_loss, square_root, seed):
    X, W, H = factors(n, m, k, seed)
    expected = _beta_divergence(X.toarray(), W, H, beta_loss, square_root)
    for given_X in (X, X.toarray(), X.tocsc(), sp.csr_matrix(X), shuffled(X, seed)):
        assert beta_divergence(given_X, W, H, beta_loss, square_root) == pytest.approx(
            expected, rel=1e-9, abs=1e-12
        )
    assert _beta_divergence(X, W, H, beta_loss, square_root) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_unsorted_indices_are_where_scikit_learn_errs():
    """Were this to fail because scikit-learn is right, the warning in our docstring has had its day."""
    X, W, H = factors(20, 30, 3, 0)
    unsorted = shuffled(X, 1)
    expected = _beta_divergence(X, W, H, 1)
    assert abs(_beta_divergence(unsorted, W, H, 1) - expected) > 1e-3 * expected
    before = unsorted.indices.copy()
    assert beta_divergence(unsorted, W, H, 1) == pytest.approx(expected, rel=1e-12)
    assert np.array_equal(unsorted.indices, before), "the caller's matrix was sorted in place"


def test_zeros_of_WH_are_floored_as_in_scikit_learn():
    X = sp.csr_array(np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 1e-9]]))
    W = np.array([[1.0], [0.0]])
    H = np.array([[0.0, 1.0, 0.5]])
    assert beta_divergence(X, W, H, 1) == pytest.approx(_beta_divergence(X, W, H, 1), rel=1e-12)
    assert np.isfinite(beta_divergence(X, W, H, 1))


def test_duplicates_of_a_sparse_matrix_are_one_value():
    X = sp.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(1, 2))
    W, H = np.array([[1.0]]), np.array([[0.5, 0.25]])
    for beta_loss in LOSSES:
        assert beta_divergence(X, W, H, beta_loss) == pytest.approx(
            beta_divergence(X.toarray(), W, H, beta_loss)
        )


def test_batches_of_nonzeros_join(monkeypatch):
    X, W, H = factors(15, 17, 3, 5)
    whole = beta_divergence(X, W, H, 1)
    monkeypatch.setattr("nmf_dask.kernels.divergence._BATCH", 7)
    assert beta_divergence(X, W, H, 1) == pytest.approx(whole, rel=1e-14)


def test_float32_is_summed_in_float64():
    """Half the squared norm of ten million ones is not a float32."""
    X = np.ones((1, 2**25 + 2), np.float32)
    assert frobenius_norm(X) ** 2 == pytest.approx(2**25 + 2, rel=1e-12)
    zero = np.zeros((1, 1), np.float32), np.zeros((1, X.shape[1]), np.float32)
    assert beta_divergence(X, *zero, "frobenius") == 2**24 + 1


@settings(deadline=None)
# SciPy's own terms are minus infinity where p / q is zero to a float: that has a test of its own.
@given(st.lists(st.tuples(*[st.floats(0, 1e3, allow_subnormal=False)] * 2), max_size=20))
def test_kullback_leibler_equals_scipy(pairs):
    p, q = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
    assert kullback_leibler_divergence(p, q) == pytest.approx(kl_div(p, q).sum(), rel=1e-12)


def test_kullback_leibler_at_zero():
    assert kullback_leibler_divergence([0.0, 1.0], [0.0, 1.0]) == 0.0
    assert kullback_leibler_divergence([0.0], [3.0]) == 3.0
    assert kullback_leibler_divergence([1.0], [0.0]) == np.inf


def test_frobenius_norm_equals_numpy_and_scipy():
    X, W, _ = factors(9, 8, 3, 3)
    assert frobenius_norm(W) == pytest.approx(np.linalg.norm(W), rel=1e-14)
    assert frobenius_norm(X) == pytest.approx(sp.linalg.norm(X), rel=1e-14)
    assert frobenius_norm(shuffled(X, 0).tocoo()) == pytest.approx(sp.linalg.norm(X), rel=1e-14)


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
def test_wrong_shapes_say_what_was_found(make):
    X = make(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"X has shape \(3, 4\).*W of shape \(3, 2\).*H of shape \(2, 5\)"):
        beta_divergence(X, np.ones((3, 2)), np.ones((2, 5)), 2)
    with pytest.raises(ValueError, match=r"W of shape \(3, 2\).*H of shape \(3, 4\)"):
        beta_divergence(X, np.ones((3, 2)), np.ones((3, 4)), 1)
    with pytest.raises(ValueError, match=r"must be matrices.*\(3,\)"):
        beta_divergence(X, np.ones(3), np.ones((1, 4)), 1)


def test_negative_values_are_named():
    X, W, H = factors(3, 4, 2, 0)
    with pytest.raises(ValueError, match=r"W holds -0\.5"):
        beta_divergence(X, W - W.min() - 0.5, H, 1)
    with pytest.raises(ValueError, match="X holds -1"):
        beta_divergence(-np.ones((3, 4)), W, H, 1)
    with pytest.raises(ValueError, match="q holds -2"):
        kullback_leibler_divergence([1.0], [-2.0])
    assert beta_divergence(-np.ones((3, 4)), W, H, 2) > 0


def test_kullback_leibler_needs_equal_shapes():
    with pytest.raises(ValueError, match=r"\(2,\).*\(1,\)"):
        kullback_leibler_divergence([1.0, 2.0], [1.0])


@pytest.mark.parametrize("beta_loss", ["itakura-saito", 0, "KL", 1.5])
def test_an_unknown_loss_is_refused_by_name(beta_loss):
    with pytest.raises(ValueError, match=f"{beta_loss!r}.*frobenius.*kullback-leibler"):
        beta_divergence(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), beta_loss)


def test_kullback_leibler_of_what_is_nearly_zero():
    """p log(p / q) tends to zero with p; SciPy's logarithm of a quotient that vanished does not."""
    assert kullback_leibler_divergence([5e-324, 1.0], [2.0, 1.0]) == 2.0
    assert kullback_leibler_divergence([5e-324, 1.0], [2.0, 0.0]) == np.inf
