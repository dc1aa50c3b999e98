"""`NMF` beside scikit-learn's: what goes in, what comes out, and that both are the same arithmetic."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn import decomposition
from sklearn.base import clone
from sklearn.decomposition import MiniBatchNMF
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from nmf_dask import NMF, beta_divergence
from nmf_dask.estimators import dense
from nmf_dask.estimators.dense import Dense, Penalties
from nmf_dask.estimators.nmf import BETA
from nmf_dask.estimators.rows import Rows
from tests.matrices import text_like
from tests.small_corpora import environment

TheirNMF = decomposition.NMF
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


WITH_ARRAY_API = """
from sklearn.utils.estimator_checks import check_array_api_input
from nmf_dask import NMF

check_array_api_input("NMF", NMF(), array_namespace="numpy", expect_only_array_outputs=False)
"""


@parametrize_with_checks([NMF()])
def test_scikit_learn_accepts_it(estimator: Any, check: Any) -> None:
    if "check_array_api_input" in repr(check):
        # SciPy reads that variable when it is loaded. scikit-learn's start warns there of what it does without.
        done = subprocess.run([sys.executable, "-c", WITH_ARRAY_API], env=environment(SCIPY_ARRAY_API="1"))
        assert done.returncode == 0
        return
    check(estimator)


def planted(n: int = 300, m: int = 40, k: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.gamma(0.5, size=(n, k)) @ rng.gamma(0.5, size=(k, m)) + 0.05 * rng.random((n, m))


LOSSES = {
    "cd": {"solver": "cd"},
    "cd, penalties": {"solver": "cd", "alpha_W": 0.01, "alpha_H": 0.02, "l1_ratio": 0.3},
    "mu": {"solver": "mu"},
    "mu, penalties": {"solver": "mu", "alpha_W": 0.01, "l1_ratio": 0.5},
    "KL": {"solver": "mu", "beta_loss": "kullback-leibler"},
    "KL, penalties": {"solver": "mu", "beta_loss": 1, "alpha_W": 0.001, "alpha_H": 0.002, "l1_ratio": 0.5},
    "Itakura-Saito": {"solver": "mu", "beta_loss": "itakura-saito"},
    "beta 1.5": {"solver": "mu", "beta_loss": 1.5},
    "beta 3": {"solver": "mu", "beta_loss": 3.0},
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("loss", LOSSES)
def test_dense_passes_are_the_iterations_of_scikit_learn(loss: str, dtype: Any) -> None:
    X = planted().astype(dtype)
    rng = np.random.default_rng(1)
    start = {"W": rng.random((len(X), 5)).astype(dtype), "H": rng.random((5, X.shape[1])).astype(dtype)}
    held = {name: A.copy() for name, A in start.items()}
    parameters = {"n_components": 5, "init": "custom", "max_iter": 30, "tol": 1e-4, **LOSSES[loss]}
    theirs, ours = TheirNMF(**parameters), NMF(**parameters)
    theirs.fit(X, **{name: A.copy() for name, A in start.items()})
    ours.fit(X, **start)
    rtol = 1e-7 if dtype == np.float64 else 2e-3
    np.testing.assert_allclose(
        ours.components_, theirs.components_, rtol=rtol, atol=rtol * theirs.components_.max()
    )
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.reconstruction_err_ == pytest.approx(theirs.reconstruction_err_, rel=1e-4)
    for name, A in start.items():  # what the caller holds is not changed
        np.testing.assert_array_equal(A, held[name])


@pytest.mark.parametrize(("init", "shuffle"), [("nndsvdar", False), ("random", True), ("nndsvdar", True)])
def test_a_seed_draws_the_numbers_of_scikit_learn(init: str, shuffle: bool) -> None:
    """Which begins with it again for each thing that is drawn; of a stream it goes on."""
    X = planted()
    parameters = {"n_components": 5, "init": init, "shuffle": shuffle, "max_iter": 10, "tol": 0}
    for seed in (3, np.random.RandomState):
        ours, theirs = (
            kind(random_state=seed if seed == 3 else seed(7), **parameters).fit(X) for kind in (NMF, TheirNMF)
        )
        np.testing.assert_allclose(ours.components_, theirs.components_, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("beta", [0.5, 1.5])
def test_rows_without_entries_add_nothing_to_the_error(beta: float) -> None:
    X = planted()
    X[::3] = 0
    parameters = {"n_components": 5, "init": "random", "solver": "mu", "beta_loss": beta, "random_state": 0}
    ours, theirs = (kind(**parameters).fit(X) for kind in (NMF, TheirNMF))
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.reconstruction_err_ == pytest.approx(theirs.reconstruction_err_, rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_pieces_of_a_dense_matrix_and_threads_change_nothing(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, rng = planted(), np.random.default_rng(1)
    start = rng.random((len(X), 5)), rng.random((5, X.shape[1]))
    named = LOSSES[loss].get("beta_loss", 2)
    beta = float(BETA.get(named, named))
    penalties, solver = Penalties(0.1, 0.2, 0.3, 0.1), LOSSES[loss]["solver"]

    def fitted(threads: int) -> tuple[np.ndarray, ...]:
        with Dense([X[:100], X[100:]], beta, penalties, solver, threads) as one:
            fit = one.fit(*(A.copy() for A in start), 1e-9, 20)
            return np.array(len(one.pieces)), fit.W, fit.H, np.array(one.divergence(fit.W, fit.H))

    whole = fitted(3)
    monkeypatch.setattr(dense, "PIECE_NUMBERS", 1000)
    monkeypatch.setattr(dense, "PIECE_ROWS", 10)
    cut, shared = fitted(1), fitted(3)
    assert (whole[0], cut[0]) == (2, 12)
    for A, B, C in zip(whole[1:], cut[1:], shared[1:], strict=True):
        np.testing.assert_allclose(B, A, rtol=1e-8)
        np.testing.assert_array_equal(C, B)


@pytest.mark.parametrize("loss", ["cd", "cd, penalties", "KL"])
def test_transform_is_no_worse_than_scikit_learn_run_for_long(loss: str) -> None:
    X = planted()
    parameters = {"n_components": 5, "random_state": 0, "init": "nndsvda", **LOSSES[loss]}
    theirs = TheirNMF(**parameters).fit(X[:200])
    theirs.set_params(max_iter=5000, tol=1e-9)
    ours = NMF(**parameters).fit(X[:200])
    ours.components_ = theirs.components_
    ours.set_params(max_iter=5000, tol=1e-9)
    np.testing.assert_allclose(ours.transform(X[200:]), theirs.transform(X[200:]), atol=2e-3, rtol=2e-3)
    one = ours.transform(X[210:211])  # a row by itself, in either form
    np.testing.assert_allclose(one[0], ours.transform(X[200:])[10], rtol=1e-4)
    np.testing.assert_allclose(
        ours.transform(sp.csr_array(X[200:])), ours.transform(X[200:]), rtol=2e-3, atol=1e-4
    )


def large_sparse() -> sp.csr_array:
    return text_like(4500, 400, 6, 3)  # enough rows for rounds, and too sparse for BLAS


@pytest.fixture(scope="module")
def theirs_of_large() -> dict[str, Any]:
    X = sp.csr_matrix(large_sparse())
    cd = TheirNMF(6, init="nndsvda", random_state=0, max_iter=400).fit(X)
    kl = TheirNMF(6, init="nndsvda", random_state=0, max_iter=150, solver="mu", beta_loss=1).fit(X)
    return {"cd": cd, "KL": kl}


@pytest.mark.parametrize("loss", ["cd", "KL"])
def test_sparse_rows_reach_the_loss_of_scikit_learn(loss: str, theirs_of_large: dict[str, Any]) -> None:
    X = large_sparse()
    assert not Rows((X,), X.shape, X.dtype).better_dense()
    ours = NMF(6, random_state=0, **LOSSES[loss])
    W = ours.fit_transform(X)
    assert W.dtype == ours.components_.dtype == X.dtype
    assert ours.reconstruction_err_ <= 1.002 * theirs_of_large[loss].reconstruction_err_
    err = np.sqrt(2 * beta_divergence(X, W, ours.components_, ours.beta_loss))
    assert (
        0.99 * ours.reconstruction_err_ <= err <= (1 + 1e-5) * ours.reconstruction_err_
    )  # W is the best for H
    np.testing.assert_array_equal(ours.transform(X), W)


FORMS = {
    "csr_matrix": sp.csr_matrix,
    "csc_array": sp.csc_array,
    "blocks": lambda X: [X[:1000], X[1000:1001], X[1001:]],
    "blocks of either kind": lambda X: [X[:1000], X[1000:1100].toarray(), X[1100:].tocsc()],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_sparse_matrix_give_one_model(form: str) -> None:
    X = large_sparse()
    parameters = {"n_components": 4, "random_state": 0, "max_iter": 3, "tol": 0}
    whole, ours = NMF(**parameters).fit(X), NMF(**parameters)
    W = ours.fit_transform(FORMS[form](X))
    assert W.shape == (4500, 4)
    if "blocks" in form:  # rows are shuffled within blocks: another order, another way to the same topics
        assert ours.reconstruction_err_ == pytest.approx(whole.reconstruction_err_, rel=0.01)
        np.testing.assert_allclose(W, ours.transform(X), rtol=1e-7, atol=1e-12)
    else:
        np.testing.assert_array_equal(ours.components_, whole.components_)


@pytest.mark.parametrize("init", ["random", "nndsvda", "nndsvdar", "custom"])
def test_a_sparse_matrix_stays_as_it_was_given(init: str) -> None:
    X, rng = large_sparse(), np.random.default_rng(0)
    for row in range(X.shape[0]):
        rng.shuffle(X.indices[X.indptr[row] : X.indptr[row + 1]])
    X = sp.csr_array((X.data, X.indices, X.indptr), shape=X.shape)
    before = [array.copy() for array in (X.data, X.indices, X.indptr)]
    given = {"W": rng.random((4500, 3)), "H": rng.random((3, 400))} if init == "custom" else {}
    held = {name: A.copy() for name, A in given.items()}
    model = NMF(3, init=init, random_state=0, max_iter=2)
    model.fit(X, **given)
    model.transform(X)
    model.partial_fit(X)
    for array, was in zip((X.data, X.indices, X.indptr), before, strict=True):
        np.testing.assert_array_equal(array, was)
    for name, A in given.items():
        np.testing.assert_array_equal(A, held[name])


def test_dense_blocks_are_one_matrix() -> None:
    X = planted()
    parameters = {"n_components": 4, "random_state": 0, "max_iter": 20}
    whole, ours = NMF(**parameters), NMF(**parameters)
    expected = whole.fit_transform(X)
    W = ours.fit_transform([X[:7], X[7:250], X[250:]])
    np.testing.assert_allclose(W, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(ours.transform([X[:7], X[7:]]), whole.transform(X), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(ours.inverse_transform(W), W @ ours.components_)
    with pytest.raises(ValueError, match="39 features"):
        NMF(3).fit([X[:9], X[9:, :39]])
    # Blocks without rows are nothing.
    some = NMF(**parameters).fit([X[:0], X[:7], X[:0], X[7:]])
    np.testing.assert_allclose(some.components_, whole.components_, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="0 sample"):
        NMF(3).fit([X[:0], X[:0]])


@pytest.mark.parametrize("loss", ["cd", "mu", "KL"])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_batches_are_no_worse_than_those_of_scikit_learn(loss: str, form: Any) -> None:
    X = planted(1000)
    parameters = {"n_components": 5, "random_state": 0, "init": "nndsvda", **LOSSES[loss]}
    ours = NMF(**parameters)
    theirs = MiniBatchNMF(
        5, random_state=0, init="nndsvda", batch_size=100, beta_loss=LOSSES[loss].get("beta_loss", 2)
    )
    for _ in range(3):
        for low in range(0, 1000, 100):
            ours.partial_fit(form(X[low : low + 100]))
            theirs.partial_fit(X[low : low + 100])
    assert ours.n_steps_ == 30
    assert ours.n_features_in_ == 40
    ours_err, their_err = (
        beta_divergence(X, model.transform(X), model.components_, theirs.beta_loss)
        for model in (ours, theirs)
    )
    assert ours_err <= 1.1 * their_err


def test_batches_go_on_after_a_pickle() -> None:
    X = planted()
    straight = NMF(4, random_state=0).partial_fit(X[:150]).partial_fit(X[150:])
    stopped = pickle.loads(pickle.dumps(NMF(4, random_state=0).partial_fit(X[:150])))
    np.testing.assert_array_equal(stopped.partial_fit(X[150:]).components_, straight.components_)
    listed = NMF(4, random_state=0).partial_fit([X[:150], X[150:]])
    np.testing.assert_array_equal(listed.components_, straight.components_)
    # A fit begins anew, and batches after it go on from its H.
    again = straight.fit(X)
    fitted = again.components_.copy()
    assert not np.array_equal(again.partial_fit(X).components_, fitted)


def test_it_works_where_scikit_learn_composes() -> None:
    X, y = planted(120), np.arange(120) % 2
    search = GridSearchCV(
        make_pipeline(NMF(random_state=0, max_iter=50), LogisticRegression()),
        {"nmf__n_components": [2, 3], "nmf__solver": ["cd", "mu"]},
        cv=2,
        error_score="raise",
    ).fit(X, y)
    assert search.best_params_["nmf__n_components"] in {2, 3}
    frame = pd.DataFrame(X, columns=[f"c{j}" for j in range(40)])
    model = NMF(3, random_state=0).set_output(transform="pandas")
    out = model.fit_transform(frame)
    assert list(out.columns) == list(model.get_feature_names_out()) == ["nmf0", "nmf1", "nmf2"]
    assert list(model.feature_names_in_) == list(frame.columns)
    assert clone(model).get_params() == model.get_params()
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.transform(frame), model.transform(frame))
    assert set(TheirNMF().get_params()) == set(NMF().get_params()) - {"forget_factor"}
    ours, theirs = NMF().get_params(), TheirNMF().get_params()
    assert {name: ours[name] for name in theirs} == theirs


def test_what_it_refuses() -> None:
    X = planted(20)
    with pytest.raises(ValueError, match="does not handle beta_loss"):
        NMF(2, beta_loss="kullback-leibler").fit(X)
    with pytest.raises(ValueError, match="Negative values"):
        NMF(2).fit(-X)
    with pytest.raises(ValueError, match="give both to fit"):
        NMF(2, init="custom").fit(X)
    with pytest.raises(ValueError, match="partial_fit"):
        NMF(2, solver="mu", beta_loss=0.5).partial_fit(X)
    with pytest.raises(NotFittedError):
        NMF(2).transform(X)
    for size in (1e60, 1e20):
        with pytest.raises(ValueError, match="beyond float32"):
            NMF(2).fit(large_sparse().astype(np.float64) * size)
    kl = NMF(2, solver="mu", beta_loss="kullback-leibler").fit(X)
    with pytest.raises(ValueError, match="beyond float32"):
        kl.transform(X * 1e60)


def test_a_fit_that_was_cut_short_says_so() -> None:
    with pytest.warns(ConvergenceWarning, match="Maximum number of iterations 2"):
        NMF(4, max_iter=2).fit(planted())
    with pytest.warns(ConvergenceWarning, match="Maximum number of iterations 2"):
        NMF(4, max_iter=2, random_state=0).fit(large_sparse())
