"""The Kullback-Leibler kernel against ten lines of dense NumPy, and scikit-learn over many iterations."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import NMF

from nmf_dask.kernels.kullback_leibler import update_rows

FLOOR = 1e-12


def dense_update_rows(X, W, H, sweeps, l1, l2):
    """W, Wᵀ(X/WH), and the sum over nonzeros of x log(x/WH) - x, both of the W that results."""
    for _ in range(sweeps):
        denominator = H.sum(axis=1) + l1 + l2 * W
        denominator[denominator == 0] = 1.0
        W = W * (X / np.maximum(W @ H, FLOOR) @ H.T) / denominator
    WH = np.maximum(W @ H, FLOOR)
    nonzero = X > 0
    loss = np.sum(X[nonzero] * np.log(X[nonzero] / WH[nonzero]) - X[nonzero])
    return W, W.T @ (X / WH), loss


def padded(A):
    """float32, with the components (columns) filled up to a multiple of eight."""
    return np.pad(A, ((0, 0), (0, -A.shape[1] % 8))).astype(np.float32, order="C")


def run(X, W, H, sweeps, l1=0.0, l2=0.0, start=0, stop=None, statistics=True):
    """update_rows on float64 factors: W, numerators (k, m) and loss; checks that the padding stays zero."""
    X = sp.csr_array(X)
    stop = X.shape[0] if stop is None else stop
    k = W.shape[1]
    w, HT = padded(W), padded(H.T)
    numerators = np.zeros_like(HT) if statistics else np.zeros((0, HT.shape[1]), np.float32)
    h_sums = HT.sum(axis=0, dtype=np.float64).astype(np.float32)
    data = X.data.astype(np.float32)
    loss = update_rows(
        X.indptr.astype(np.int64), X.indices.astype(np.int32), data, start, stop, w, HT, h_sums, sweeps,
        l1, l2, FLOOR, numerators,
    )  # fmt: skip
    assert not w[:, k:].any()
    assert not numerators[:, k:].any()
    return w[:, :k], numerators[:, :k].T, loss


def problem(n, m, k, density, seed):
    rng = np.random.default_rng(seed)
    X = sp.random_array((n, m), density=density, rng=rng).toarray()
    return X, rng.random((n, k)) + 0.01, rng.random((k, m)) + 0.01


@settings(deadline=None, max_examples=200)
@given(
    n=st.integers(1, 12),
    m=st.integers(1, 40),
    k=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    sweeps=st.integers(0, 3),
    l1=st.sampled_from([0.0, 0.3]),
    l2=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_dense_reference(n, m, k, density, sweeps, l1, l2, seed):
    X, W, H = problem(n, m, k, density, seed)
    expected_W, expected_numerators, expected_loss = dense_update_rows(X, W, H, sweeps, l1, l2)
    w, numerators, loss = run(X, W, H, sweeps, l1, l2)
    np.testing.assert_allclose(w, expected_W, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(numerators, expected_numerators, rtol=2e-5, atol=1e-6)
    assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-5)


def test_no_sweeps_leave_W_alone():
    X, W, H = problem(7, 30, 5, 0.3, 0)
    w, _, _ = run(X, W, H, 0)
    assert np.array_equal(w, W.astype(np.float32))


def test_statistics_can_be_left_out():
    X, W, H = problem(7, 30, 5, 0.3, 0)
    with_them, without = run(X, W, H, 2), run(X, W, H, 2, statistics=False)
    assert np.array_equal(with_them[0], without[0])
    assert np.array_equal(run(X, W, H, 0)[0], run(X, W, H, 0, statistics=False)[0])


def test_a_range_of_rows_is_those_rows():
    X, W, H = problem(9, 30, 5, 0.3, 0)
    whole = run(X[3:7], W[3:7], H, 2)
    part = run(X, W[3:7], H, 2, start=3, stop=7)
    for a, b in zip(whole, part, strict=True):
        assert np.array_equal(a, b)


def test_numerators_are_added_to():
    X, W, H = problem(9, 30, 5, 0.3, 0)
    csr = sp.csr_array(X.astype(np.float32))
    HT = padded(H.T)
    numerators = np.zeros_like(HT)
    for start, stop in ((0, 4), (4, 4), (4, 9)):
        update_rows(
            csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data, start, stop,
            padded(W[start:stop]), HT, HT.sum(axis=0), 1, 0.0, 0.0, FLOOR, numerators,
        )  # fmt: skip
    np.testing.assert_allclose(numerators[:, :5].T, run(X, W, H, 1)[1], rtol=1e-5)


def test_the_order_of_a_rows_nonzeros_does_not_matter():
    X, W, H = problem(1, 50, 5, 0.5, 0)
    order = np.random.default_rng(1).permutation(50)
    sorted_w, sorted_numerators, sorted_loss = run(X, W, H, 2)
    w, numerators, loss = run(X[:, order], W, H[:, order], 2)
    np.testing.assert_allclose(w, sorted_w, rtol=1e-5)
    np.testing.assert_allclose(numerators, sorted_numerators[:, order], rtol=1e-5)
    assert loss == pytest.approx(sorted_loss, rel=1e-6)


def test_an_empty_row_goes_to_zero_without_nan():
    X, W, H = problem(3, 10, 4, 0.5, 0)
    X[1] = 0
    w, numerators, loss = run(X, W, H, 1)
    assert not w[1].any()
    assert np.isfinite(numerators).all()
    assert np.isfinite(loss)


def test_stored_zeros_count_for_nothing():
    X, W, H = problem(3, 10, 4, 0.5, 0)
    stored = sp.csr_array((X.ravel(), np.tile(np.arange(10), 3), np.arange(0, 31, 10)), shape=X.shape)
    w, numerators, loss = run(stored, W, H, 2)
    expected_W, expected_numerators, expected_loss = run(X, W, H, 2)
    np.testing.assert_allclose(w, expected_W, rtol=1e-5)
    np.testing.assert_allclose(numerators, expected_numerators, rtol=1e-5)
    assert loss == pytest.approx(expected_loss, rel=1e-6)


def test_a_component_without_features_goes_to_zero_without_nan():
    X, W, H = problem(5, 10, 4, 0.5, 0)
    H[2] = 0
    w, numerators, loss = run(X, W, H, 2)
    assert not w[:, 2].any()
    assert np.isfinite(w).all()
    assert np.isfinite(numerators).all()
    assert np.isfinite(loss)


def test_WH_is_floored_where_H_is_zero():
    """A feature that no component holds: finite, and the loss says how bad that is."""
    X, W, H = problem(5, 10, 4, 0.5, 0)
    X[2, 7], H[:, 7] = 1.0, 0.0
    expected_W, expected_numerators, expected_loss = dense_update_rows(X, W, H, 1, 0.0, 0.0)
    w, numerators, loss = run(X, W, H, 1)
    np.testing.assert_allclose(w, expected_W, rtol=2e-5)
    np.testing.assert_allclose(numerators, expected_numerators, rtol=2e-5)
    assert loss == pytest.approx(expected_loss, rel=1e-6)


@pytest.mark.parametrize(
    ("W_shape", "HT_shape", "numerators_shape"),
    [
        ((3, 7), (9, 7), (9, 7)),
        ((3, 8), (9, 16), (9, 8)),
        ((3, 8), (9, 8), (9, 16)),
        ((2, 8), (9, 8), (9, 8)),
    ],
)
def test_wrong_shapes_are_refused_before_memory_is_written(W_shape, HT_shape, numerators_shape):
    W, HT, numerators = (np.zeros(shape, np.float32) for shape in (W_shape, HT_shape, numerators_shape))
    X = sp.csr_array(np.ones((3, 9), np.float32))
    with pytest.raises(AssertionError):
        update_rows(
            X.indptr.astype(np.int64), X.indices.astype(np.int32), X.data, 0, 3, W, HT,
            np.zeros(W_shape[1], np.float32), 1, 0.0, 0.0, FLOOR, numerators,
        )  # fmt: skip


def test_weights_do_not_become_denormal():
    X, W, H = problem(2, 10, 4, 0.5, 0)
    W[:, 1] = 1e-29
    H[1] *= 1e-8
    w, _, _ = run(X, W, H, 200, l1=50.0)
    assert not np.any((w > 0) & (w < np.finfo(np.float32).tiny))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_loss_falls_at_every_sweep(scale):
    """Also that the logarithm is right over many powers of two."""
    X, W, H = problem(20, 60, 6, 0.2, 3)
    X *= scale
    rest = H.sum(axis=1)
    losses = []
    for _ in range(20):
        new_W, _, loss = run(X, W, H, 1)
        losses.append(loss + np.sum(new_W @ rest))
        W = new_W.astype(np.float64)
    assert np.all(np.diff(losses) <= 1e-6 * abs(losses[0]))
    _, _, expected = dense_update_rows(X, W, H, 0, 0.0, 0.0)
    assert run(X, W, H, 0)[2] == pytest.approx(expected, rel=1e-6)


def test_long_rows():
    X, W, H = problem(2, 20_000, 3, 0.9, 0)
    expected_W, expected_numerators, expected_loss = dense_update_rows(X, W, H, 1, 0.0, 0.0)
    w, numerators, loss = run(X, W, H, 1)
    np.testing.assert_allclose(w, expected_W, rtol=2e-5)
    np.testing.assert_allclose(numerators, expected_numerators, rtol=2e-5)
    assert loss == pytest.approx(expected_loss, rel=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("iterations", [1, 2, 10, 50])
@pytest.mark.parametrize(("alpha", "l1_ratio"), [(0.0, 0.0), (0.002, 0.0), (0.002, 0.6), (0.002, 1.0)])
def test_equals_scikit_learn(iterations, alpha, l1_ratio):
    n, m, k = 60, 40, 5
    X, W, H = problem(n, m, k, 0.15, 11)
    model = NMF(
        k, solver="mu", beta_loss="kullback-leibler", init="custom", max_iter=iterations, tol=0,
        alpha_W=alpha, alpha_H=alpha, l1_ratio=l1_ratio,
    )  # fmt: skip
    expected_W = model.fit_transform(sp.csr_array(X), W=W.copy(), H=H.copy())
    l1_W, l2_W = alpha * m * l1_ratio, alpha * m * (1 - l1_ratio)
    l1_H, l2_H = alpha * n * l1_ratio, alpha * n * (1 - l1_ratio)
    for _ in range(iterations):
        W, numerators, _ = run(X, W, H, 1, l1_W, l2_W)
        H = H * numerators / (W.sum(axis=0)[:, np.newaxis] + l1_H + l2_H * H)
    np.testing.assert_allclose(W, expected_W, rtol=1e-5, atol=1e-5 * expected_W.max())
    np.testing.assert_allclose(H, model.components_, rtol=1e-5, atol=1e-5 * model.components_.max())
