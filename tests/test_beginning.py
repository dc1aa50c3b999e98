"""The start with more topics than asked for: which of them go, where there are any, and what that is worth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from nmf_dask.beginning import begin, fit_of, strongest
from nmf_dask.blocks import LocalBlocks, Sizes, cut_strips
from nmf_dask.config import ModelSettings
from nmf_dask.factorization import Fit
from nmf_dask.initialization import start
from nmf_dask.kernels.matrices import from_scipy
from nmf_dask.schedule import first_components, start_passes, wide_passes

LARGE = Sizes(n_rows=40_000, n_features=5_000, nnz=2_000_000, n_components=50)


def test_a_topic_without_weights_and_one_that_another_repeats_go_first():
    rng = np.random.default_rng(0)
    W, H = rng.random((300, 6)), rng.random((6, 80))
    W[:, 2] = 0  # nobody has it
    H[5] = H[1]  # W could give all of one to the other
    kept = strongest(W.T @ W, H @ H.T, 4)
    assert 2 not in kept
    assert {0, 3, 4} < set(kept)
    assert len({1, 5} & set(kept)) == 1


def test_the_topic_that_goes_is_the_one_that_least_squares_misses_least():
    rng = np.random.default_rng(1)
    W, H = rng.random((200, 5)) ** 4, rng.random((5, 60)) ** 4
    X = W @ H

    def missed(t: int) -> float:
        others = [i for i in range(5) if i != t]
        by_W = X - X @ np.linalg.pinv(H[others]) @ H[others]
        by_H = X - W[:, others] @ np.linalg.pinv(W[:, others]) @ X
        return min(float((by_W**2).sum()), float((by_H**2).sum()))

    (gone,) = set(range(5)) - set(strongest(W.T @ W, H @ H.T, 4))
    assert gone == min(range(5), key=missed)


@pytest.mark.parametrize(
    ("settings", "sizes", "expected"),
    [
        ({}, LARGE, 80),
        ({}, LARGE._replace(n_features=60), 60),
        ({}, LARGE._replace(n_rows=39_999), 50),  # too few rows for all rounds
        ({"rounds": 1, "sweeps": 1}, LARGE, 50),
        ({"rounds": 20}, LARGE, 50),
        ({"beta_loss": "kullback-leibler"}, LARGE, 50),
        ({"solver": "cd"}, LARGE, 80),
    ],
)
def test_more_topics_where_passes_of_many_rounds_bring_them_to_rest(settings, sizes, expected):
    assert first_components(ModelSettings(n_components=50, **settings), sizes) == expected


def test_one_topic_has_no_others():
    model = ModelSettings(n_components=1)
    assert first_components(model, LARGE._replace(n_components=1)) == 1


@pytest.mark.parametrize(
    ("k", "expected"), [(50, [80, 72, 64, 56]), (20, [32, 24, 24, 20]), (2, [8, 2, 2, 2]), (8, [16, 8, 8, 8])]
)
def test_topics_go_a_few_at_a_time(k, expected):
    """Catches a width that the kernels would fill with zeros, and one of fewer topics than asked for."""
    model, sizes = ModelSettings(n_components=k), LARGE._replace(n_components=k)
    stages = wide_passes(model, sizes)
    assert [stage.n_components for stage in stages] == expected
    assert start_passes(model, sizes) == 5
    assert start_passes(model, sizes._replace(n_rows=39_999)) == 0


def test_the_topics_that_stay_keep_their_weights():
    rng = np.random.default_rng(4)
    csr = from_scipy(sp.random_array((50, 30), density=0.2, dtype=np.float32, rng=rng).tocsr())
    sizes = Sizes(50, 30, csr.nnz, 12)
    with LocalBlocks.of([csr], sizes, cut_strips([50], 3)) as blocks:
        for W in blocks.W:
            W[:, :12] = rng.random((len(W), 12))
        before = np.vstack(blocks.W)
        blocks.keep_topics([1, 3, 11])
        after = np.vstack(blocks.W)
    assert blocks.sizes.n_components == 3
    np.testing.assert_array_equal(after[:, :3], before[:, [1, 3, 11]])
    assert after.shape == (50, 8)
    assert not after[:, 3:].any()


@pytest.mark.slow
def test_fits_from_more_topics_end_lower():
    """40,000 rows of 150 planted topics and noise: a start that drops others than the weakest ends higher.

    1065.42 to 1065.56 with more topics first, 1065.61 to 1066.25 without.
    """
    rng = np.random.default_rng(2)
    topics = rng.dirichlet(np.full(1_000, 0.03), 150)
    rows = rng.dirichlet(np.full(150, 0.05), 40_000) @ topics
    csr = from_scipy(sp.csr_array(rng.poisson(30 * rows).astype(np.float32)))
    sizes = Sizes(csr.n_rows, csr.n_columns, csr.nnz, 60)
    strips, total = cut_strips([csr.n_rows], 8), float(csr.data.sum(dtype=np.float64))

    def loss(seed: int, wide: bool) -> float:
        model = ModelSettings(n_components=60, random_state=seed)
        scale = total / csr.nnz
        with LocalBlocks.of([csr], sizes, strips, 2) as blocks:
            if wide:
                fit, state = fit_of(sizes, model, scale), begin(blocks, model, total)
            else:
                fit = Fit.of(sizes, model, scale)
                HT = start(blocks, model.init, model.random_state, total / (csr.n_rows * csr.n_columns))
                state = fit.begin(HT)
            while state.stop_reason is None:
                state = fit.advance(blocks, state)
        return state.rows[-1].reconstruction_err

    assert np.median([loss(seed, True) for seed in range(3)]) < np.median(
        [loss(seed, False) for seed in range(3)]
    )
