"""What batches of rows say of H, in sums of the size of H: the memory of `NMF.partial_fit`.

Mairal, Bach, Ponce and Sapiro (JMLR 11, 2010) for Frobenius; Lefèvre, Bach and Févotte (WASPAA 2011) for the
divergences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nmf_dask.estimators.dense import EPSILON, Penalties
from nmf_dask.kernels.dense import sweep_rows

Array = NDArray[Any]

SWEEPS = 3
LEAST = 1e-9  # of the mean of H: what mu keeps of a weight that no batch has asked for yet


@dataclass
class History:
    """Decayed sums: Frobenius XᵀW (m, k) and WᵀW (k, k); Kullback-Leibler Hᵀ∘(X/WH)ᵀW (m, k) and ΣW (k,)."""

    above: Array
    below: Array
    n_rows: float
    beta: float
    solver: str

    @classmethod
    def of(cls, H: Array, beta: float, solver: str) -> History:
        """Of no rows."""
        k, m = H.shape
        below = np.zeros((k, k) if beta == 2 else k, H.dtype)
        return cls(np.zeros((m, k), H.dtype), below, 0.0, beta, solver)

    def add(self, X: Any, W: Array, H: Array, forget_factor: float) -> None:
        """Take in rows with their W under H; what was there weighs `forget_factor` as much as before."""
        W = W.astype(self.above.dtype, copy=False)
        self.above *= forget_factor
        self.below *= forget_factor
        self.n_rows = forget_factor * self.n_rows + X.shape[0]
        if self.beta == 2:
            above, below = X.T @ W, W.T @ W
        else:
            above, below = H.T * (_ratios(X, W, H).T @ W), W.sum(axis=0)
        if self.n_rows == X.shape[0]:
            # As if a batch before it had been content with H: a feature that the first one lacks would else lose all.
            self.above += H.T @ below if self.beta == 2 else H.T * below
            self.below += below
            self.n_rows *= 2
        self.above += above
        self.below += below

    def updated(self, H: Array, penalties: Penalties, n_rows: int) -> Array:
        """H (k, m) after these sums; `penalties` are those of a matrix of `n_rows` rows."""
        own = H.dtype.type
        l1, l2 = (own(each * self.n_rows / n_rows) for each in (penalties.l1_H, penalties.l2_H))
        HT = np.ascontiguousarray(H.T)
        if self.solver == "cd":
            sweep_rows(HT, self.above, self.below, l1, l2, np.arange(len(H)), SWEEPS)
        elif self.beta == 2:
            for _ in range(SWEEPS):
                below = np.maximum(HT @ self.below + l1 + l2 * HT, own(np.finfo(own).tiny))
                HT = np.maximum(HT * self.above / below, own(LEAST) * HT.mean())
        else:
            HT = self.above / np.maximum(self.below + l1 + l2 * HT, own(EPSILON))
            HT = np.maximum(HT, own(LEAST) * HT.mean())
        return np.ascontiguousarray(HT.T)


def _ratios(X: Any, W: Array, H: Array) -> Any:
    """X / WH where X is not zero."""
    if not sparse.issparse(X):
        return X / np.maximum(W @ H, EPSILON)
    X = X.tocsr()
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    WH = np.einsum("pk,pk->p", W[rows], np.ascontiguousarray(H.T)[X.indices])
    return sparse.csr_array((X.data / np.maximum(WH, EPSILON), X.indices, X.indptr), shape=X.shape)
