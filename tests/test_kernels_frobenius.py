"""The Frobenius kernels against dense NumPy."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from nmf_dask.kernels.frobenius import add_XtW, multiply_by_ratio, multiply_HT
from nmf_dask.kernels.matrices import from_scipy, frozen, read_only, zeros

TINY = np.finfo(np.float32).tiny  # what is smaller and not zero is a denormal


@st.composite
def matrices(draw):
    """X dense (n, m) and CSR, with rows of no, few and many nonzeros; kp; a range of its rows; a generator."""
    n, m = draw(st.integers(1, 9)), draw(st.sampled_from([1, 5, 40, 700]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.one_of(st.integers(0, 9), st.just(m)), min_size=n, max_size=n))
    X = np.zeros((n, m), np.float32)
    for row, length in zip(X, lengths, strict=True):
        row[rng.choice(m, min(length, m), replace=False)] = rng.random(min(length, m)) + 0.1
    start = draw(st.integers(0, n))
    stop = draw(st.integers(start, n))
    return X, frozen(from_scipy(sp.csr_array(X))), draw(st.sampled_from([8, 16, 24, 56])), start, stop, rng


def factor_rows(rng, rows, kp, padding):
    """Rows of a factor, the last `padding` columns zero."""
    factor = zeros(rows, kp)
    factor[:, : kp - padding] = rng.random((rows, kp - padding)) + 0.01
    return factor


@settings(deadline=None, max_examples=200)
@given(matrices(), st.integers(0, 7))
def test_multiply_HT_is_X_times_HT(problem, padding):
    X, csr, kp, start, stop, rng = problem
    HT = factor_rows(rng, X.shape[1], kp, padding)
    out = zeros(stop - start, kp)
    out[:] = np.nan  # what it held before must not matter
    multiply_HT(csr.indptr, csr.indices, csr.data, start, stop, read_only(HT, np.float32), out)
    np.testing.assert_allclose(out, X[start:stop].astype(float) @ HT, rtol=1e-5, atol=1e-6)
    assert not out[:, kp - padding :].any()


@settings(deadline=None, max_examples=200)
@given(matrices(), st.integers(0, 7))
def test_add_XtW_adds_the_rows_of_the_range_alone(problem, padding):
    X, csr, kp, start, stop, rng = problem
    W = factor_rows(rng, stop - start, kp, padding)
    before = factor_rows(rng, X.shape[1], kp, padding)
    out = zeros(*before.shape)
    out[:] = before
    add_XtW(csr.indptr, csr.indices, csr.data, start, stop, W, out)
    np.testing.assert_allclose(out, before + X[start:stop].T.astype(float) @ W, rtol=1e-5, atol=1e-6)
    assert not out[:, kp - padding :].any()
    untouched = ~X[start:stop].any(axis=0)
    assert np.array_equal(out[untouched], before[untouched])


@settings(deadline=None, max_examples=200)
@given(
    n=st.integers(0, 6),
    kp=st.sampled_from([8, 16, 56]),
    l1=st.sampled_from([0.0, 0.3]),
    l2=st.sampled_from([0.0, 0.7]),
    floor=st.sampled_from([0.0, 1e-20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_multiply_by_ratio_is_lee_and_seungs_update(n, kp, l1, l2, floor, seed):
    rng = np.random.default_rng(seed)
    W, C, D = (rng.random((n, kp)).astype(np.float32) + np.float32(0.01) for _ in range(3))
    W[rng.random(W.shape) < 0.2] = 0
    expected = W.astype(float) * C / (D + l1 + l2 * W.astype(float))
    multiply_by_ratio(W, read_only(C, np.float32), D, l1, l2, floor)
    np.testing.assert_allclose(W, expected, rtol=1e-6)
    assert np.array_equal(W == 0, expected == 0)


ANY_SIZE = st.one_of(
    st.just(0.0),
    st.floats(-45, 30).map(lambda exponent: 10.0**exponent),
)


@settings(deadline=None, max_examples=500)
@given(st.lists(st.tuples(ANY_SIZE, ANY_SIZE, ANY_SIZE), min_size=1, max_size=8))
def test_with_a_floor_no_weight_dies_and_none_is_born(weights):
    """Over all sizes that float32 has: a zero would be a term locked out of a topic for good."""
    W, C, D = (np.array([column], np.float32) for column in zip(*weights, strict=True))
    before = W.copy()
    with np.errstate(over="ignore"):
        multiply_by_ratio(W, C, D, 0.0, 0.0, 1e-20)
    assert np.array_equal(W == 0, before == 0)
    assert not np.isnan(W).any()
    fell = W < 1e-20
    assert (W[fell] >= before[fell]).all()  # nothing is pushed below the floor; what was there may only grow


@settings(deadline=None, max_examples=500)
@given(st.lists(st.tuples(ANY_SIZE, ANY_SIZE, ANY_SIZE), min_size=1, max_size=8))
def test_without_a_floor_no_weight_is_a_denormal(weights):
    W, C, D = (np.array([column], np.float32) for column in zip(*weights, strict=True))
    before = W.copy()
    multiply_by_ratio(W, C, D, 0.0, 0.0, 0.0)
    assert not W[before == 0].any()
    assert not ((W > 0) & (W < TINY)).any()
    assert not np.isnan(W).any()


def test_a_weight_that_decays_ends_at_zero_without_denormals():
    W = np.ones((1, 8), np.float32)
    half, one = np.full((1, 8), 0.01, np.float32), np.ones((1, 8), np.float32)
    seen = []
    for _ in range(30):
        multiply_by_ratio(W, half, one, 0.0, 0.0, 0.0)
        seen.append(float(W[0, 0]))
    assert seen[13] == pytest.approx(1e-28, rel=1e-4)
    assert seen[-1] == 0.0
    assert all(value == 0 or value >= TINY for value in seen)


def test_nothing_over_nothing_is_nothing():
    """The padding, and a document without terms: 0 · 0 / 0."""
    W = np.array([[0.0, 0.5] * 4], np.float32)
    nothing = np.zeros_like(W)
    multiply_by_ratio(W, nothing, nothing.copy(), 0.0, 0.0, 0.0)
    assert not W.any()


@pytest.mark.parametrize(("HT_columns", "out_columns"), [(7, 7), (8, 16), (16, 8)])
def test_widths_that_would_write_over_memory_are_refused(HT_columns, out_columns):
    csr = frozen(from_scipy(np.ones((3, 9))))
    HT, out = zeros(9, HT_columns), zeros(3, out_columns)
    with pytest.raises(AssertionError):
        multiply_HT(csr.indptr, csr.indices, csr.data, 0, 3, read_only(HT, np.float32), out)
    with pytest.raises(AssertionError):
        add_XtW(csr.indptr, csr.indices, csr.data, 0, 3, out, HT)


def test_W_of_other_rows_is_refused():
    csr = frozen(from_scipy(np.ones((3, 9))))
    with pytest.raises(AssertionError):
        add_XtW(csr.indptr, csr.indices, csr.data, 0, 3, zeros(2, 8), zeros(9, 8))
