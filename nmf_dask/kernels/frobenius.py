"""Frobenius NMF of one block: products of a sparse block with W and H, and the multiplicative update.

Everything with a topic axis is padded to `kp`, the next multiple of 8 above k, so that a row is a whole number
of vector registers; the padding is zero and stays zero. H is kept transposed, `HT` (m, kp): the row of a term
is contiguous.
"""

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled

Floats = NDArray[np.float32]
Indices = NDArray[np.int32]
Offsets = NDArray[np.int64]


@compiled
def multiply_HT(
    indptr: Offsets, indices: Indices, data: Floats, start: int, stop: int, HT: Floats, out: Floats
) -> None:
    """Rows `start` to `stop` of X Hᵀ, into `out` (stop - start, kp)."""
    kp = HT.shape[1]
    for i in range(start, stop):
        row = out[i - start]
        for t in range(kp):
            row[t] = 0.0
        p = indptr[i]
        # Four nonzeros at a time: the row of `out` is loaded and stored once for four rows of H.
        while p + 4 <= indptr[i + 1]:
            h0, h1 = HT[indices[p]], HT[indices[p + 1]]
            h2, h3 = HT[indices[p + 2]], HT[indices[p + 3]]
            x0, x1, x2, x3 = data[p], data[p + 1], data[p + 2], data[p + 3]
            for t in range(kp):
                row[t] += (x0 * h0[t] + x1 * h1[t]) + (x2 * h2[t] + x3 * h3[t])
            p += 4
        while p < indptr[i + 1]:
            h0, x0 = HT[indices[p]], data[p]
            for t in range(kp):
                row[t] += x0 * h0[t]
            p += 1


@compiled
def add_XtW(
    indptr: Offsets, indices: Indices, data: Floats, start: int, stop: int, W: Floats, out: Floats
) -> None:
    """Add Xᵀ W of rows `start` to `stop` to `out` (m, kp); `W` holds those rows alone."""
    kp = W.shape[1]
    for i in range(start, stop):
        w = W[i - start]
        for p in range(indptr[i], indptr[i + 1]):
            row, x = out[indices[p]], data[p]
            for t in range(kp):
                row[t] += x * w[t]


@compiled
def multiply_by_ratio(W: Floats, C: Floats, D: Floats, l1: float, l2: float, floor: float) -> None:
    """W ← W ∘ C / (D + l1 + l2 W), in place: Lee and Seung's update (NIPS 2000, equation 4) with penalties.

    Values below `floor` become `floor` where C allows any weight at all: a float32 that decays towards zero
    passes through the denormals, which cost a hundred times an ordinary product.
    """
    l1, l2, floor = np.float32(l1), np.float32(l2), np.float32(floor)
    for i in range(W.shape[0]):
        w, c, d = W[i], C[i], D[i]
        for t in range(W.shape[1]):
            value = w[t] * c[t] / max(d[t] + l1 + l2 * w[t], np.float32(1e-30))
            w[t] = value if value > floor else np.float32(0.0) if c[t] <= 0 else floor
