"""Coordinate descent against a naive loop, and against scikit-learn over many iterations."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import NMF

from nmf_dask.kernels.coordinate_descent import update_rows


def naive_update_rows(W, C, G, l1, l2, sweeps):
    """One coordinate at a time, in float64."""
    W = W.copy()
    G = G + l2 * np.eye(len(G))
    for _ in range(sweeps):
        for t in range(len(G)):
            if G[t, t] != 0:
                W[:, t] = np.maximum(W[:, t] - (W @ G[:, t] - C[:, t] + l1) / G[t, t], 0)
    return W


def padded(A, both=False):
    """float32, with the columns (and the rows, if `both`) filled up to a multiple of eight."""
    columns = (0, -A.shape[1] % 8)
    rows = (0, -A.shape[0] % 8 if both else 0)
    return np.pad(A, (rows, columns)).astype(np.float32, order="C")


def run(W, C, G, l1, l2, sweeps):
    k = W.shape[1]
    w = padded(W)
    update_rows(w, padded(C), padded(G, both=True), l1, l2, sweeps)
    assert not w[:, k:].any()
    return w[:, :k].astype(np.float64)


@settings(deadline=None, max_examples=200)
@given(
    n=st.one_of(st.integers(0, 12), st.integers(60, 140)),
    k=st.integers(1, 20),
    sweeps=st.integers(0, 3),
    l1=st.sampled_from([0.0, 0.3]),
    l2=st.sampled_from([0.0, 0.7]),
    dead=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_naive_loop(n, k, sweeps, l1, l2, dead, seed):
    rng = np.random.default_rng(seed)
    W, H = rng.random((n, k)), rng.random((k, k + 10))
    if dead:
        H[rng.integers(k)] = 0
    C = rng.random((n, k)) @ (H @ H.T) + rng.normal(size=(n, k))
    expected = naive_update_rows(W, C, H @ H.T, l1, l2, sweeps)
    np.testing.assert_allclose(run(W, C, H @ H.T, l1, l2, sweeps), expected, rtol=1e-4, atol=1e-4)


def test_a_coordinate_without_curvature_stays():
    W = np.array([[0.25, 0.5]])
    G = np.array([[0.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(run(W, np.array([[3.0, 2.0]]), G, 0.0, 0.0, 2), [[0.25, 2.0]])


def test_a_coordinate_with_next_to_no_curvature_stays():
    """Sums that decayed for 300 rounds without the topic: the inverse of what is left is infinite."""
    W = run(np.full((3, 2), 0.5), np.ones((3, 2)), np.array([[1.0, 0.0], [0.0, 1e-40]]), 0.0, 0.0, 1)
    assert np.array_equal(W, [[1.0, 0.5]] * 3)


def test_a_penalty_does_not_wake_the_padding():
    W, H = np.full((70, 3), 0.5), np.eye(3)
    w = run(W, W @ H, H @ H.T, 0.0, 5.0, 3)
    assert (w > 0).all()


def test_rows_do_not_see_their_neighbours():
    rng = np.random.default_rng(0)
    W, H = rng.random((200, 6)), rng.random((6, 30))
    C = rng.random((200, 6))
    whole = run(W, C, H @ H.T, 0.1, 0.1, 2)
    for row in (0, 63, 64, 199):
        alone = run(W[row : row + 1], C[row : row + 1], H @ H.T, 0.1, 0.1, 2)
        np.testing.assert_array_equal(alone[0], whole[row])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("iterations", [1, 2, 10, 50])
@pytest.mark.parametrize(("alpha", "l1_ratio"), [(0.0, 0.0), (0.002, 0.0), (0.002, 0.6), (0.002, 1.0)])
def test_equals_scikit_learn(iterations, alpha, l1_ratio):
    n, m, k = 60, 40, 5
    rng = np.random.default_rng(11)
    X = sp.random_array((n, m), density=0.15, rng=rng).toarray()
    # At scikit-learn's scale, so that no component dies: what comes back from 1e-16 has no digits to compare.
    scale = np.sqrt(X.mean() / k)
    W, H = scale * rng.random((n, k)), scale * rng.random((k, m))
    model = NMF(
        k, solver="cd", init="custom", max_iter=iterations, tol=0, shuffle=False,
        alpha_W=alpha, alpha_H=alpha, l1_ratio=l1_ratio,
    )  # fmt: skip
    expected_W = model.fit_transform(X, W=W.copy(), H=H.copy())
    l1_W, l2_W = alpha * m * l1_ratio, alpha * m * (1 - l1_ratio)
    l1_H, l2_H = alpha * n * l1_ratio, alpha * n * (1 - l1_ratio)
    for _ in range(iterations):
        W = run(W, X @ H.T, H @ H.T, l1_W, l2_W, 1)
        H = run(H.T, X.T @ W, W.T @ W, l1_H, l2_H, 1).T
    assert expected_W.max(axis=0).min() > 0.01
    np.testing.assert_allclose(W, expected_W, rtol=1e-5, atol=1e-5 * expected_W.max())
    np.testing.assert_allclose(H, model.components_, rtol=1e-5, atol=1e-5 * model.components_.max())
