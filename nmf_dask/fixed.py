"""H that is given, and what each row needs of it: W at the minimum of its own problem, and how far it is from X."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nmf_dask.config import ModelSettings
from nmf_dask.kernels.matrices import Csr, frozen, on_cache_line, read_only, unset, zeros
from nmf_dask.kernels.objective import Penalties
from nmf_dask.schedule import objective_of

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
FLOOR = 1e-8
"""Of products that a Kullback-Leibler loss of words unseen is taken of; entries of X are some hundredths or more."""
RUN_ROWS = 4096


@dataclass(frozen=True, eq=False)
class FixedH:
    """An H, with what every row needs of it. Picklable."""

    HT: Floats
    """(m, kp), padded."""
    gram: Doubles
    """Frobenius: H Hᵀ (kp, kp); Kullback-Leibler: the sums of H over the features (kp,)."""
    beta_loss: str
    penalties: Penalties
    """Of W, as scikit-learn's transform scales them: by the features."""

    @classmethod
    def of(cls, HT: Floats, model: ModelSettings) -> FixedH:
        """From `HT` (m, kp), and the loss and penalties that it was fitted with."""
        from nmf_dask.kernels.folding import gram  # compiling takes a while that a plan need not wait for

        HT = read_only(on_cache_line(HT), np.float32)
        is_frobenius = model.beta_loss == "frobenius"
        sums = gram(HT) if is_frobenius else HT.sum(axis=0, dtype=np.float64)
        return cls(HT, sums, model.beta_loss, objective_of(model, len(HT)).penalties)

    def weights(self, X: Csr) -> Floats:
        """W (n, kp) of the rows of X (n, m), each at the minimum of its own convex problem.

        No tolerance and no start decides the result, and no other row: a row gets the same bits in any company. A row
        without entries gets zeros.
        """
        W = zeros(X.n_rows, self.HT.shape[1])
        self.solve(X, 0, X.n_rows, W)
        return W

    def solve(self, X: Csr, start: int, stop: int, W: Floats) -> None:
        """Set W (stop - start, kp) to the `weights` of rows `start` to `stop` of X."""
        # Compiling takes a while that a plan need not wait for, nor one loss for the kernels of the other.
        if self.beta_loss == "frobenius":
            from nmf_dask.kernels.folding import fit_rows
        else:
            from nmf_dask.kernels.newton import fit_rows
        X = frozen(X)
        # As kernels are always called with them, wherever they come from: each is compiled once.
        HT, sums = read_only(on_cache_line(self.HT), np.float32), read_only(self.gram, np.float64)
        l1, l2 = float(self.penalties.l1_W), float(self.penalties.l2_W)
        fit_rows(X.indptr[start : stop + 1], X.indices, X.data, HT, sums, l1, l2, W)

    def loss(self, X: Csr, W: Floats, rows: NDArray[np.bool_]) -> tuple[float, float]:
        """The divergence of some rows of X (n, m) from W (n, kp) H, without penalties, and its size without topics.

        The size is ‖X‖²/2 for Frobenius, the sum of X for Kullback-Leibler, where a product of zero counts as `FLOOR`:
        a word that no topic of the document knows costs much, and not everything.
        """
        from nmf_dask.kernels import frobenius, kullback_leibler

        X, divergence, size = frozen(X), 0.0, 0.0
        HT, nothing = read_only(on_cache_line(self.HT), np.float32), np.empty((0, W.shape[1]), np.float32)
        for low, high in _runs(rows):
            values = X.data[X.indptr[low] : X.indptr[high]].astype(np.float64)
            w = on_cache_line(W[low:high])
            if self.beta_loss == "frobenius":
                C = unset(*w.shape)
                frobenius.multiply_HT(X.indptr, X.indices, X.data, low, high, HT, C)
                wide = w.astype(np.float64)
                size += 0.5 * float(values @ values)
                divergence += 0.5 * float(np.sum((wide @ self.gram) * wide)) - float(np.sum(C * wide))
            else:
                part = kullback_leibler.update_rows(
                    X.indptr, X.indices, X.data, low, high, w, HT, read_only(self.gram, np.float32), 0, 0.0, 0.0,
                    FLOOR, nothing,
                )  # fmt: skip
                size += float(values.sum())
                divergence += float(part) + float(w.sum(axis=0, dtype=np.float64) @ self.gram)
        return (divergence + size if self.beta_loss == "frobenius" else divergence), size

    def losses(self, X: Csr, W: Floats) -> tuple[float, float]:
        """Twice the beta-divergence of X (n, m) and WH, with W (n, k), and the sum of squares of X."""
        padded = zeros(X.n_rows, self.HT.shape[1])
        padded[:, : W.shape[1]] = W
        divergence, _ = self.loss(X, padded, np.ones(X.n_rows, np.bool_))
        return 2 * max(divergence, 0.0), float(np.einsum("p,p->", X.data, X.data, dtype=np.float64))


def _runs(rows: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where rows that are true follow each other, up to `RUN_ROWS` of them: from, to under."""
    edges = np.flatnonzero(np.diff(rows.astype(np.int8), prepend=0, append=0))
    return [
        (low, min(low + RUN_ROWS, stop))
        for first, stop in edges.reshape(-1, 2).tolist()
        for low in range(first, stop, RUN_ROWS)
    ]
