"""Where W and H start, against scikit-learn's starts and exact singular vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition._nmf import _initialize_nmf

from nmf_dask.blocks import LocalBlocks, Sizes, cut_strips
from nmf_dask.initialization import _singular_vectors as singular_vectors
from nmf_dask.initialization import pad_H, start
from tests.matrices import split

Start = tuple[np.ndarray, np.ndarray]


def blocks_of(X: Any, k: int, n_strips: int = 2, block_rows: tuple[int, ...] = ()) -> LocalBlocks:
    X = sp.csr_array(X)
    rows = block_rows or (X.shape[0],)
    sizes = Sizes(*X.shape, X.nnz, k)
    return LocalBlocks.of(split(X, rows), sizes, cut_strips(rows, n_strips))


def started(X: Any, k: int, init: str, seed: int = 0, **blocks: Any) -> Start:
    """W (n, k) and H (k, m); checks that the padding is zero."""
    collection = blocks_of(X, k, **blocks)
    HT = start(collection, init, seed, float(X.mean()))
    W = np.concatenate(collection.W)
    assert not W[:, k:].any()
    assert not HT[:, k:].any()
    return W[:, :k], HT[:, :k].T


def with_clear_spectrum(n: int, m: int, rank: int, seed: int = 0) -> np.ndarray:
    """A dense matrix, not negative, whose singular values halve from one to the next."""
    rng = np.random.default_rng(seed)
    U, V = rng.random((n, rank)), rng.random((rank, m))
    for t in range(rank):  # each part in rows and columns of its own, and a little everywhere
        U[:, t] *= np.where(np.arange(n) % rank == t, 1.0, 0.05)
        V[t] *= np.where(np.arange(m) % rank == t, 1.0, 0.05)
    return (U * 0.5 ** np.arange(rank)) @ V


def test_a_random_start_has_the_scale_of_scikit_learn() -> None:
    X = np.random.default_rng(0).random((3000, 400)) * 3
    W, H = started(X, 7, "random")
    expected_W, expected_H = _initialize_nmf(X, 7, init="random", random_state=0)
    for own, expected in ((W, expected_W), (H, expected_H)):
        assert own.min() >= 0
        quantiles = [0.1, 0.5, 0.9, 0.99]
        np.testing.assert_allclose(np.quantile(own, quantiles), np.quantile(expected, quantiles), rtol=0.1)


def test_rows_and_topics_of_a_random_start_are_not_alike() -> None:
    """In several blocks and strips: equal streams would give equal documents, which updates keep equal."""
    X = sp.random_array((400, 50), density=0.3, rng=np.random.default_rng(0)).tocsr()
    W, H = started(X, 4, "random", n_strips=5, block_rows=(100, 100, 100, 100))
    assert len(np.unique(W, axis=0)) == 400
    assert np.abs(np.corrcoef(W.T) - np.eye(4)).max() < 0.3
    assert np.abs(np.corrcoef(H) - np.eye(4)).max() < 0.6


def test_blocks_of_the_same_shape_start_apart() -> None:
    """Dense blocks have the same rows, places and numbers of values."""
    X = np.random.default_rng(0).random((40, 6))
    W, _ = started(X, 3, "random", n_strips=4, block_rows=(10, 10, 10, 10))
    assert len(np.unique(W, axis=0)) == 40


@pytest.mark.parametrize("init", ["nndsvd", "nndsvda"])
@pytest.mark.parametrize(("n", "m"), [(60, 30), (40, 500), (700, 450)])
def test_nndsvd_is_that_of_scikit_learn(init: str, n: int, m: int) -> None:
    X = with_clear_spectrum(n, m, rank=6)
    W, H = started(X, 5, init)
    expected_W, expected_H = _initialize_nmf(X, 5, init=init, random_state=0)
    np.testing.assert_allclose(W, expected_W, atol=2e-4 * expected_W.max())
    np.testing.assert_allclose(H, expected_H, atol=2e-4 * expected_H.max())
    for factor in (W, H):
        assert bool((factor == 0).any()) is (init == "nndsvd")


def test_nndsvda_fills_zeros_with_the_mean() -> None:
    X = with_clear_spectrum(60, 30, rank=6)
    bare, filled = started(X, 5, "nndsvd"), started(X, 5, "nndsvda")
    for zeros, values in zip(bare, filled, strict=True):
        np.testing.assert_allclose(values[zeros == 0], X.mean(), rtol=1e-6)
        np.testing.assert_array_equal(values[zeros > 0], zeros[zeros > 0])


@pytest.mark.parametrize("init", ["nndsvd", "nndsvda"])
def test_counts_in_millions_start_as_those_in_thousands(init: str) -> None:
    """What is filled in grows with the vectors, where the mean of X would drown them."""
    X = with_clear_spectrum(60, 30, rank=6) * 1e3
    for one, other in zip(started(X, 5, init), started(X * 1e4, 5, init), strict=True):
        np.testing.assert_allclose(one * 1e2, other, rtol=1e-4, atol=1e-4 * other.max())
        assert (init == "nndsvd") is bool((other == 0).any())
        assert np.median(other) < 0.5 * other.max()


@pytest.mark.parametrize(("m", "rank"), [(30, 2), (500, 2), (500, 1), (500, 40)])
def test_singular_values_are_exact_whatever_the_rank(m: int, rank: int) -> None:
    """Also where the Krylov space is spanned long before the last pass, and what is left is noise."""
    X = with_clear_spectrum(90, m, rank) if rank < 40 else np.random.default_rng(0).random((90, m))
    sigma, V = singular_vectors(blocks_of(X, 8), seed=0)
    exact = np.linalg.svd(X, compute_uv=False)[:8]
    np.testing.assert_allclose(sigma, exact, rtol=1e-3, atol=2e-3 * exact[0])
    own = min(rank, 8)
    np.testing.assert_allclose((V.T @ V)[:own, :own], np.eye(own), atol=1e-4)


@pytest.mark.parametrize("init", ["random", "nndsvd", "nndsvda"])
def test_the_same_seed_gives_the_same_bytes(init: str) -> None:
    X = with_clear_spectrum(60, 300, rank=6)
    first, again, other = (started(X, 5, init, seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        assert a.tobytes() == b.tobytes()
        assert init != "random" or not np.array_equal(a, c)


@pytest.mark.parametrize("init", ["nndsvd", "nndsvda"])
def test_strips_and_blocks_do_not_move_nndsvd(init: str) -> None:
    X = with_clear_spectrum(700, 300, rank=6)
    one = started(X, 5, init, n_strips=1)
    many = started(X, 5, init, n_strips=9, block_rows=(50, 600, 0, 49, 1))
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * a.max())


@pytest.mark.parametrize("init", ["random", "nndsvd", "nndsvda"])
@pytest.mark.parametrize(
    ("n", "m", "k"), [(1, 1, 1), (3, 200, 6), (200, 3, 6), (5, 5, 5), (40, 9, 9), (2, 300, 20), (9, 64, 50)]
)
def test_fewer_rows_or_features_than_topics_and_oversampling(init: str, n: int, m: int, k: int) -> None:
    X = np.random.default_rng(0).random((n, m)) + 0.1
    W, H = started(X, k, init)
    for factor in (W, H):
        assert np.isfinite(factor).all()
        assert factor.min() >= 0
    if init != "random":
        U, S, Vt = np.linalg.svd(X, full_matrices=False)
        np.testing.assert_allclose(W[:, 0], np.sqrt(S[0]) * np.abs(U[:, 0]), rtol=1e-3)
        np.testing.assert_allclose(H[0], np.sqrt(S[0]) * np.abs(Vt[0]), rtol=1e-3)


@pytest.mark.parametrize("init", ["nndsvd", "nndsvda"])
def test_topics_beyond_the_rank_are_noise_at_most(init: str) -> None:
    """Singular vectors of zero are any vectors: divided by their norm, they would be as large as the others."""
    X = with_clear_spectrum(80, 400, rank=2)
    W, H = started(X, 6, init)
    fill_value = X.mean() if init == "nndsvda" else 0.0
    assert np.isfinite(W).all()
    for t in range(2, 6):
        product = np.outer(W[:, t] - fill_value, H[t] - fill_value)
        assert np.abs(product).max() < 0.02 * X.max()


def test_a_matrix_of_zeros_starts_at_zero() -> None:
    for init in ("random", "nndsvd", "nndsvda"):
        for factor in started(sp.csr_array((20, 300)), 4, init):
            assert not factor.any()


def test_pad_H_is_H_transposed_with_zeros() -> None:
    H = np.arange(6, dtype=float).reshape(3, 2)
    HT = pad_H(H)
    assert HT.shape == (2, 8)
    assert HT.dtype == np.float32
    np.testing.assert_array_equal(HT[:, :3], H.T)
    assert not HT[:, 3:].any()
