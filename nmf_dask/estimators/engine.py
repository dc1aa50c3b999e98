"""Sparse rows by way of the job's own engine: float32, rounds first, then passes until the loss stands still."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from nmf_dask.blocks import Sizes
from nmf_dask.config import ModelSettings
from nmf_dask.estimators.dense import FOLD_ROWS
from nmf_dask.estimators.rows import Rows, as_csr
from nmf_dask.fixed import FixedH
from nmf_dask.in_memory import factorize
from nmf_dask.initialization import pad_H
from nmf_dask.kernels.matrices import Csr, rows_between
from nmf_dask.schedule import schedule

Array = NDArray[Any]


class EngineFit(NamedTuple):
    """H (k, m), passes made, why they ended, the error of the last one."""

    H: Array
    n_iter: int
    stop_reason: str
    reconstruction_err: float


def threads() -> int:
    """Threads that this process is to use: its cores, or fewer where the environment says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(told)) if told.isdecimal() and int(told) else cores


def fit_sparse(X: Rows, model: ModelSettings, W: Array | None = None, H: Array | None = None) -> EngineFit:
    """Factorize X, which starts at W and H where they are given."""
    n = X.shape[0]
    orders = [np.arange(block.shape[0]) for block in X.blocks]
    if takes_order_for_random(model, Sizes(n, X.shape[1], X.nnz, model.n_components)):
        orders = [
            np.random.default_rng([model.random_state, 4, i]).permutation(o) for i, o in enumerate(orders)
        ]
    lows = np.cumsum([0, *map(len, orders)])
    places = np.concatenate([low + order for low, order in zip(lows[:-1], orders, strict=True)])
    blocks = [as_csr(block, order) for block, order in zip(X.blocks, orders, strict=True)]
    with threadpool_limits(1, user_api="blas"):  # the engine has threads of its own
        fit = factorize(blocks, model, None if W is None else W[places], H, threads=threads())
    return EngineFit(fit.H, len(fit.rows), fit.stop_reason, fit.rows[-1].reconstruction_err)


def takes_order_for_random(model: ModelSettings, sizes: Sizes) -> bool:
    """Whether passes go in rounds, each over a share of the rows that is to say something of all of them."""
    return any(plan.rounds > 1 for plan in schedule(model, sizes)[0])


def fold(blocks: list[Csr], H: Array, model: ModelSettings) -> Array:
    """W (n, k) float32 of rows under a fixed H, each at its own minimum, on all threads."""
    fixed = FixedH.of(pad_H(H), model)
    parts = [rows_between(X, low, low + FOLD_ROWS) for X in blocks for low in range(0, X.n_rows, FOLD_ROWS)]
    with ThreadPoolExecutor(threads()) as pool:
        return np.concatenate(list(pool.map(fixed.weights, parts)))[:, : len(H)]
