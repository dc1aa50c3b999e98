"""Where W and H start, by scikit-learn's names: for matrices in this process, in the type of the input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import check_random_state
from sklearn.utils.extmath import randomized_svd

from nmf_dask.estimators.rows import Rows

Array = NDArray[Any]

ZERO = 1e-6  # NNDSVD's: what is smaller counts as zero


def started(X: Rows, k: int, init: str, random_state: Any) -> tuple[Array, Array]:
    """W (n, k) and H (k, m) by `init`: "random", "nndsvd", "nndsvda" or "nndsvdar".

    A seed as `random_state` is begun with again for what fills zeros, as in scikit-learn.
    """
    mean = X.total / (X.shape[0] * X.shape[1])
    rng = check_random_state(random_state)
    if init == "random":
        scale = np.sqrt(mean / k)
        H = np.abs(scale * rng.standard_normal((k, X.shape[1])))
        W = np.abs(scale * rng.standard_normal((X.shape[0], k)))
        return W.astype(X.dtype), H.astype(X.dtype)
    W, H = _nndsvd(_whole(X), k, rng)
    rng = check_random_state(random_state)
    for A in (W, H):
        small = A < ZERO
        A[small] = mean if init == "nndsvda" else 0.0
        if init == "nndsvdar":
            A[small] = np.abs(mean * rng.standard_normal(int(small.sum())) / 100)
    return W.astype(X.dtype, order="C"), H.astype(X.dtype, order="C")


def _whole(X: Rows) -> Any:
    if len(X.blocks) == 1:
        return X.blocks[0]
    return sparse.vstack(X.blocks, format="csr") if X.is_sparse else np.vstack(X.blocks)


def _nndsvd(X: Any, k: int, rng: np.random.RandomState) -> tuple[Array, Array]:
    """Boutsidis and Gallopoulos (Pattern Recognition 41, 2008), in scikit-learn's form."""
    U, S, Vt = randomized_svd(X, k, random_state=rng)
    W, H = np.zeros_like(U), np.zeros_like(Vt)
    W[:, 0], H[0] = np.sqrt(S[0]) * np.abs(U[:, 0]), np.sqrt(S[0]) * np.abs(Vt[0])
    for t in range(1, k):
        sides = [(np.maximum(s * U[:, t], 0), np.maximum(s * Vt[t], 0)) for s in (1, -1)]
        norms = [(np.linalg.norm(u), np.linalg.norm(v)) for u, v in sides]
        side = int(norms[1][0] * norms[1][1] > norms[0][0] * norms[0][1])
        (u, v), (u_norm, v_norm) = sides[side], norms[side]
        if u_norm * v_norm > 0:
            scale = np.sqrt(S[t] * u_norm * v_norm)
            W[:, t], H[t] = scale * u / u_norm, scale * v / v_norm
    return W, H
