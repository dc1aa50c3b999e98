"""What a fit goes on from: the bound that kept sums give, and an earlier H in other columns."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from nmf_dask.blocks import LocalBlocks, Sizes, cut_strips
from nmf_dask.config import ModelSettings
from nmf_dask.continuation import Earlier, Frequencies, carried_over, go_on, going_on
from nmf_dask.factorization import Fit
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.matrices import from_scipy, frozen
from nmf_dask.kernels.objective import Frobenius, KullbackLeibler, Objective, Sums
from nmf_dask.vocabulary import Vocabulary
from tests.small_corpora import loss

K = 3
OBJECTIVES = {"frobenius": Frobenius(solver="cd"), "kullback-leibler": KullbackLeibler()}


def vocabulary(buckets: list[int], idf: list[float]) -> Vocabulary:
    m = len(buckets)
    return Vocabulary(
        bucket=np.array(buckets, np.int64),
        term=pa.array([f"t{bucket}" for bucket in buckets]),
        document_frequency=np.full(m, 4, np.int64),
        idf=np.array(idf),
        term_share=np.ones(m, np.float32),
        n_documents=10,
    )


def problem(seed: int, n: int = 40, m: int = 25) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    W, H = random.gamma(0.5, size=(n, K)), random.gamma(0.3, size=(K, m)) + 1e-3
    X = sp.csr_matrix(random.poisson(2 * W @ H).astype(np.float64))
    X.sort_indices()
    return X, W.astype(np.float32), H.astype(np.float32)


def kept(objective: Objective, X: sp.csr_matrix, W: np.ndarray, H: np.ndarray) -> Sums:
    """Of rows whose W stays as it is."""
    HT = pad_H(H)
    factor, sums = objective.factor(HT), objective.empty(*HT.shape)
    objective.visit(frozen(from_scipy(X)), 0, X.shape[0], pad_H(W.T), factor, 0, sums)
    return objective.kept(objective.settled(sums, factor), factor)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_kept_sums_bound_the_loss_under_another_H(name: str, seed: int) -> None:
    objective, random = OBJECTIVES[name], np.random.default_rng(seed)
    X, W, H = problem(seed)
    more, W2, _ = problem(seed + 10)
    first, second = kept(objective, X, W, H), kept(objective, more, W2, H)
    for other in (H, H * random.uniform(0.5, 2, H.shape).astype(np.float32), H[::-1].copy()):
        factor = objective.factor(pad_H(other))
        exact = [
            loss(x, w.astype(float), other.astype(float), name) ** 2 / 2 for x, w in ((X, W), (more, W2))
        ]
        bounds = [objective.surrogate(one, factor) for one in (first, second)]
        for bound, due in zip(bounds, exact, strict=True):
            if other is H or name == "frobenius":
                assert bound == pytest.approx(due, rel=1e-4)
            else:
                assert bound >= due * (1 - 1e-4)
        assert objective.surrogate(first.plus(second.scaled(0.5)), factor) == pytest.approx(
            bounds[0] + 0.5 * bounds[1], rel=1e-4
        )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_H_is_at_rest_under_resting_sums(name: str) -> None:
    objective = OBJECTIVES[name]
    X, W, H = problem(1)
    sums, factor = kept(objective, X, W, H), objective.factor(pad_H(H))
    resting = replace(sums, XtW=objective.resting(factor.HT, sums.WtW))
    np.testing.assert_allclose(objective.update(factor, resting, 1).HT, factor.HT, rtol=1e-3, atol=1e-6)


def test_an_earlier_H_in_the_columns_of_now() -> None:
    """Columns are known by their buckets; a dropped one goes, a new one is the mean, idf scales."""
    before, now = vocabulary([5, 9, 2, 7], [1, 2, 1, 4]), vocabulary([7, 100, 5, 2], [2, 3, 1, 1.5])
    H = np.arange(1, 13, dtype=np.float32).reshape(K, 4)
    past = Sums(H.T * 10, np.eye(K), 5.0, 7.0)
    frequencies = Frequencies(np.array([1, 2, 1, 1]), 10, np.array([1, 1, 1, 1]), 20)
    earlier = carried_over(H, before, past, now, frequencies, square=True)
    expected = np.stack([H[:, 3] * 0.5, H.mean(axis=1), H[:, 0], H[:, 2] * 1.5])
    np.testing.assert_allclose(earlier.HT[:, :K], expected)
    assert not earlier.HT[:, K:].any()
    assert earlier.new.tolist() == [False, True, False, False]
    np.testing.assert_allclose(earlier.ratio, [0, 4, 0, 0])
    assert earlier.past is not None
    np.testing.assert_allclose(earlier.past.XtW[[0, 2, 3], :K], 10 * expected[[0, 2, 3]])
    assert not earlier.past.XtW[1].any()
    assert earlier.past.WtW.shape == (8, 8)
    assert earlier.past.WtW[:K, :K].tolist() == np.eye(K).tolist()
    again = Earlier.from_arrays(earlier.to_arrays())
    assert again.past is not None
    assert (again.past.loss, again.past.n_rows) == (5.0, 7.0)
    assert np.array_equal(again.HT, earlier.HT)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_new_column_gets_the_weights_that_documents_ask_for(name: str) -> None:
    """From an H that is right elsewhere: its weights come out as those that made the documents."""
    _, W, H = problem(2, n=400)
    X = sp.csr_matrix((W @ H).astype(np.float64))
    m = H.shape[1]
    before, now = vocabulary(list(range(m - 1)), [1.0] * (m - 1)), vocabulary(list(range(m)), [1.0] * m)
    held = np.zeros(m, np.int64)
    held[-1] = 200
    earlier = carried_over(
        H[:, :-1], before, kept(OBJECTIVES[name], X[:, :-1], W, H[:, :-1]), now,
        Frequencies(held, 400, np.full(m, 200), 400), square=name == "frobenius",
    )  # fmt: skip
    model = ModelSettings(n_components=K, beta_loss=name, max_iter=30, tol=0)
    sizes = Sizes(*X.shape, X.nnz, K)
    with LocalBlocks.of([from_scipy(X)], sizes, cut_strips([X.shape[0]], 2)) as blocks:
        fit = going_on(Fit.of(sizes, model, float(X.data.mean())))
        state = go_on(blocks, fit, earlier)
        while state.stop_reason is None:
            state = fit.advance(blocks, state)
        ended = fit.ended(blocks, state)
    np.testing.assert_allclose(state.outcome.HT[:, :K].T, H, rtol=0.1, atol=0.02 * H.max())
    assert ended.kept.n_rows == 800
    errors = [row.reconstruction_err for row in state.rows]
    assert max(np.diff(errors)) <= 1e-4 * errors[0]
