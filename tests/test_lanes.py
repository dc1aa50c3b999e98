"""The vector operations one by one: what a kernel's test would find only as a small error of a sum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numba.core.errors import TypingError

from nmf_dask.kernels import lanes
from nmf_dask.kernels.compiled import compiled

eight = arrays(np.float32, 8, elements=st.floats(-1e3, 1e3, width=32))


@compiled
def apply_log(x, out):
    for p in range(0, x.size, 8):
        lanes.store(out, p, lanes.log(lanes.load(x, p)))


@compiled
def apply_totals(x, out):
    a, b, c, d = lanes.load(x, 0), lanes.load(x, 8), lanes.load(x, 16), lanes.load(x, 24)
    e, f, g, h = lanes.load(x, 32), lanes.load(x, 40), lanes.load(x, 48), lanes.load(x, 56)
    lanes.store(out, 0, lanes.totals(a, b, c, d, e, f, g, h))
    return lanes.total(a)


@compiled
def apply_transposed(x, out):
    a, b, c, d = lanes.load(x, 0), lanes.load(x, 8), lanes.load(x, 16), lanes.load(x, 24)
    e, f, g, h = lanes.load(x, 32), lanes.load(x, 40), lanes.load(x, 48), lanes.load(x, 56)
    a, b, c, d, e, f, g, h = lanes.transposed(a, b, c, d, e, f, g, h)
    lanes.store(out, 0, a)
    lanes.store(out, 8, b)
    lanes.store(out, 16, c)
    lanes.store(out, 24, d)
    lanes.store(out, 32, e)
    lanes.store(out, 40, f)
    lanes.store(out, 48, g)
    lanes.store(out, 56, h)


@compiled
def apply_elementwise(x, y, out):
    a, b = lanes.load(x, 0), lanes.load(y, 0)
    lanes.store(out, 0, lanes.maximum(a, b))
    lanes.store(out, 8, lanes.minimum(a, b))
    lanes.store(out, 16, lanes.zero_below(a, b))
    lanes.store(out, 24, lanes.multiply_add(a, b, lanes.broadcast(np.float32(2.5))))
    lanes.store(out, 32, lanes.divide(lanes.add(a, b), lanes.broadcast(np.float32(4.0))))


@compiled
def apply_to_doubles(x, y, out):
    a, b = lanes.load(x, 0), lanes.widened(lanes.load(y, 0))
    lanes.store(out, 0, lanes.multiply_add(a, b, lanes.broadcast(np.float64(2.5))))
    lanes.store(out, 8, lanes.maximum(lanes.multiply(a, b), lanes.divide(a, lanes.broadcast(np.float64(3)))))
    return lanes.total(a)


@compiled
def add_of_two_types(x, out):
    lanes.store(out, 0, lanes.add(lanes.load(x, 0), lanes.broadcast(np.float32(1))))


def test_log_over_all_normal_numbers():
    x = np.exp(np.linspace(np.log(1.2e-38), np.log(3.4e38), 80_000)).astype(np.float32)
    x = np.concatenate([x, (1 + np.linspace(-0.01, 0.01, 8_000)).astype(np.float32)])
    out = np.empty_like(x)
    apply_log(x, out)
    np.testing.assert_allclose(out, np.log(x.astype(np.float64)), rtol=3e-7, atol=1e-10)


def test_log_of_zero_is_finite():
    out = np.empty(8, np.float32)
    apply_log(np.zeros(8, np.float32), out)
    assert np.isfinite(out).all()


@settings(deadline=None)
@given(arrays(np.float32, (8, 8), elements=st.floats(-1e3, 1e3, width=32)))
def test_totals_are_in_order(x):
    out = np.empty(8, np.float32)
    first = apply_totals(x, out)
    np.testing.assert_allclose(out, x.sum(axis=1, dtype=np.float64), rtol=1e-6, atol=2e-3)
    assert first == pytest.approx(x[0].sum(dtype=np.float64), rel=1e-12, abs=1e-9)


def test_transposed_takes_every_number_to_its_place():
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    out = np.empty_like(x)
    apply_transposed(x, out)
    np.testing.assert_array_equal(out, x.T)


@settings(deadline=None)
@given(eight, eight)
def test_elementwise(x, y):
    out = np.empty((5, 8), np.float32)
    apply_elementwise(x, y, out)
    np.testing.assert_array_equal(out[0], np.maximum(x, y))
    np.testing.assert_array_equal(out[1], np.minimum(x, y))
    np.testing.assert_array_equal(out[2], np.where(x >= y, x, 0))
    np.testing.assert_allclose(out[3], x.astype(np.float64) * y + 2.5, rtol=1e-6, atol=1e-1)
    np.testing.assert_array_equal(out[4], (x + y) / np.float32(4))


@settings(deadline=None)
@given(arrays(np.float64, 8, elements=st.floats(-1e3, 1e3)), eight)
def test_doubles(x, y):
    out = np.empty((2, 8))
    total = apply_to_doubles(x, y, out)
    # Rounded as float64 is, and the product perhaps once with the sum.
    np.testing.assert_allclose(out[0], x * y + 2.5, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(out[1], np.maximum(x * y, x / 3))
    assert total == pytest.approx(x.sum(), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(
    "x", [np.zeros((8, 8), np.float32, order="F"), np.zeros(8, np.int32), np.zeros(16, np.float32)[::2]]
)
def test_arrays_that_are_not_rows_of_floats_do_not_compile(x):
    with pytest.raises(TypingError, match="C-contiguous float32 or float64"):
        apply_log(x, np.empty(64, np.float32))


def test_lanes_of_other_types_do_not_compile():
    with pytest.raises(TypingError, match="of one type"):
        add_of_two_types(np.zeros(8), np.zeros(8))
    with pytest.raises(TypingError, match="of float32"):
        apply_log(np.zeros(8), np.empty(8))
