"""Subnormal numbers are zeros while a kernel says so, and are what they were for whoever called it."""

import platform

import numba
import numpy as np
import pytest

from nmf_dask.kernels.kullback_leibler import update_rows
from nmf_dask.kernels.subnormals import flush_subnormals, restore

X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
SMALL = np.float32(1e-30)


@numba.njit
def products(a, b):
    """a * b while they are zeros, and when they are no longer."""
    before = flush_subnormals()
    flushed = a * b
    restore(before)
    return flushed, a * b


def product(a, b):
    return (np.array([a]) * np.array([b]))[0]


@pytest.mark.skipif(not X86, reason="the switch is that of x86")
def test_results_and_operands_are_zeros():
    flushed, kept = products(SMALL, np.float32(1e-10))
    assert flushed == 0
    assert kept == pytest.approx(1e-40, rel=1e-4)
    flushed, kept = products(np.float32(1e-40), np.float32(1e10))  # of a subnormal operand
    assert flushed == 0
    assert kept == pytest.approx(1e-30, rel=1e-4)


def test_a_kernel_leaves_its_caller_what_it_had():
    """Else numbers of the whole thread would be others from then on: NumPy's, and of the caller's own code."""
    indptr, indices, data = np.array([0, 2]), np.array([0, 1], np.int32), np.ones(2, np.float32)
    W, HT = np.full((1, 8), SMALL, np.float32), np.full((2, 8), SMALL, np.float32)
    loss = update_rows(
        indptr, indices, data, 0, 1, W, HT, HT.sum(axis=0), 1, 0.0, 0.0, 1e-12, np.empty((0, 8), np.float32)
    )
    assert np.isfinite(loss)
    assert product(SMALL, np.float32(1e-10)) != 0
