"""Frobenius NMF of one block: products of a sparse block with W and H, and the multiplicative update.

Everything with a topic axis is padded to `kp`, the next multiple of 8 above k, so that a row is a whole number
of vector registers; the padding is zero and stays zero. H is kept transposed, `HT` (m, kp): the row of a term
is contiguous.
"""

# numba ships no types, and its float32 values are not what mypy takes them for.
# mypy: disable-error-code="untyped-decorator,assignment"

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmf_dask.kernels.compiled import compiled
from nmf_dask.kernels.lanes import add, at, broadcast, load, multiply, multiply_add, store

Floats = NDArray[np.float32]
Indices = NDArray[np.int32]
Offsets = NDArray[np.int64]


@compiled
def multiply_HT(
    indptr: Offsets, indices: Indices, data: Floats, start: int, stop: int, HT: Floats, out: Floats
) -> None:
    """Rows `start` to `stop` of X Hᵀ, into `out` (stop - start, kp)."""
    kp = HT.shape[1]
    assert kp % 8 == 0
    assert out.shape[1] == kp
    for i in range(start, stop):
        row = (i - start) * kp
        for t in range(0, kp, 8):
            store(out, row + t, broadcast(np.float32(0)))
        p = indptr[i]
        # Four nonzeros at a time: the row of `out` is loaded and stored once for four rows of H.
        while p + 4 <= indptr[i + 1]:
            h0, x0 = _term(indices, data, p, kp)
            h1, x1 = _term(indices, data, p + 1, kp)
            h2, x2 = _term(indices, data, p + 2, kp)
            h3, x3 = _term(indices, data, p + 3, kp)
            for t in range(0, kp, 8):
                a = multiply_add(x0, load(HT, h0 + t), load(out, row + t))
                b = multiply(x1, load(HT, h1 + t))
                a = multiply_add(x2, load(HT, h2 + t), a)
                b = multiply_add(x3, load(HT, h3 + t), b)
                store(out, row + t, add(a, b))
            p += 4
        while p < indptr[i + 1]:
            h0, x0 = _term(indices, data, p, kp)
            for t in range(0, kp, 8):
                store(out, row + t, multiply_add(x0, load(HT, h0 + t), load(out, row + t)))
            p += 1


@compiled(inline=True)
def _term(indices: Indices, data: Floats, p: int, kp: int) -> Any:
    """Where a nonzero's row of H begins, and its value in every lane."""
    return np.int64(at(indices, p)) * kp, broadcast(at(data, p))


@compiled
def add_XtW(
    indptr: Offsets, indices: Indices, data: Floats, start: int, stop: int, W: Floats, out: Floats
) -> None:
    """Add Xᵀ W of rows `start` to `stop` to `out` (m, kp); `W` holds those rows alone."""
    kp = W.shape[1]
    assert kp % 8 == 0
    assert out.shape[1] == kp
    assert W.shape[0] == stop - start
    for i in range(start, stop):
        row = (i - start) * kp
        for p in range(indptr[i], indptr[i + 1]):
            h, x = _term(indices, data, p, kp)
            for t in range(0, kp, 8):
                store(out, h + t, multiply_add(x, load(W, row + t), load(out, h + t)))


@compiled
def multiply_by_ratio(W: Floats, C: Floats, D: Floats, l1: float, l2: float, floor: float) -> None:
    """W ← W ∘ C / (D + l1 + l2 W), in place: Lee and Seung's update (NIPS 2000, equation 4) with penalties.

    What falls under 1e-30 becomes zero: a float32 that decays goes through the denormals, which cost a hundred
    times an ordinary product. No weight falls under `floor` that was not there before: no zero is made, then.
    """
    l1, l2, floor = np.float32(l1), np.float32(l2), np.float32(floor)
    tiny, nothing = np.float32(1e-30), np.float32(0)
    for i in range(W.shape[0]):
        w, c, d = W[i], C[i], D[i]
        for t in range(W.shape[1]):
            value = w[t] * c[t] / max(d[t] + l1 + l2 * w[t], tiny)
            w[t] = max(value if value > tiny else nothing, min(w[t], floor))
