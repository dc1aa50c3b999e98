"""The sparse matrix of a block, as kernels take it, and the few ways in and out of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array


# Of what a matrix holds: float32 ends at 3e38, and takes the squares of this over a hundred million documents. Beyond
# it sums are infinite, and factors NaN.
LARGEST = 1e15


class Csr(NamedTuple):
    """A block of n documents by `n_columns` features in compressed rows; rows are sorted by column."""

    indptr: NDArray[np.int64]
    """(n + 1,): row p is `indices[indptr[p]:indptr[p + 1]]`, and the same of `data`."""
    indices: NDArray[np.int32]
    """(nnz,): columns, ascending within a row, each at most once."""
    data: NDArray[np.float32]
    """(nnz,): weights."""
    n_columns: int

    @property
    def n_rows(self) -> int:
        """Documents of the block, empty ones too."""
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        """Stored entries."""
        return len(self.data)

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.indptr.nbytes + self.indices.nbytes + self.data.nbytes


def padded_width(n_components: int) -> int:
    """`n_components` rounded up to whole vector registers: kp."""
    return -(-n_components // 8) * 8


def zeros(*shape: int) -> NDArray[np.float32]:
    """A float32 array of zeros that begins on a cache line: with NumPy's own, every second load would cross one."""
    return _on_line(np.zeros, shape)


def unset(*shape: int) -> NDArray[np.float32]:
    """As `zeros`, of whatever memory holds: what is to be written as a whole needs no pass of zeros first."""
    return _on_line(np.empty, shape)


def _on_line(make: Callable[..., NDArray[np.float32]], shape: tuple[int, ...]) -> NDArray[np.float32]:
    n = math.prod(shape)
    buffer = make(n + 16, np.float32)
    first = -(buffer.ctypes.data // 4) % 16
    return buffer[first : first + n].reshape(shape)


def aligned(array: NDArray[Any]) -> NDArray[np.float32]:
    """`array` as float32 on a cache line (see `zeros`), in memory of its own."""
    own = unset(*array.shape)
    own[...] = array
    return own


def on_cache_line(array: NDArray[Any]) -> NDArray[np.float32]:
    """`array` as `aligned` gives it, copied only where it is not so already."""
    is_so = array.dtype == np.float32 and array.flags.c_contiguous and array.ctypes.data % 64 == 0
    return array if is_so else aligned(array)


def read_only(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Give `array` as an aligned, C-contiguous, read-only view; it is copied only where it is not so already.

    Numba compiles anew for writable, read-only and unaligned arrays, and what a worker receives over the
    network may be any of them: a kernel that is always called through this is compiled once.
    """
    view = np.require(array, dtype, ["C", "A"]).view()
    view.flags.writeable = False
    return view


def frozen(X: Csr) -> Csr:
    """X with its arrays as kernels are always called with them (see `read_only`)."""
    return Csr(
        read_only(X.indptr, np.int64),
        read_only(X.indices, np.int32),
        read_only(X.data, np.float32),
        X.n_columns,
    )


def rows_between(X: Csr, start: int, stop: int) -> Csr:
    """Rows `start` to under `stop` of X, whose entries are not copied; fewer where X ends before."""
    indptr = X.indptr[start : stop + 1]
    inside = slice(indptr[0], indptr[-1])
    return Csr(indptr - indptr[0], X.indices[inside], X.data[inside], X.n_columns)


def to_scipy(X: Csr) -> csr_array:
    """Give X as a SciPy array (n, m) that shares its memory where SciPy allows it."""
    from scipy.sparse import csr_array

    # Of one kind: SciPy would copy the indices to int64, which much of scikit-learn refuses.
    indptr = X.indptr.astype(np.int32) if X.nnz <= np.iinfo(np.int32).max else X.indptr
    matrix = csr_array((X.data, X.indices, indptr), shape=(X.n_rows, X.n_columns))
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix


def from_scipy(matrix: Any, order: NDArray[np.int64] | None = None) -> Csr:
    """Copy any SciPy sparse matrix or dense array (n, m), with sorted rows, in `order`, and duplicates summed."""
    from scipy.sparse import csr_array

    rows, copied = csr_array(matrix), order is not None
    if order is not None:  # of the smaller type: this is the copy
        data = rows.data.astype(np.float32, copy=False)
        rows = csr_array((data, rows.indices, rows.indptr), shape=rows.shape)[order]
    if not rows.has_canonical_format:
        rows, copied = rows if copied else rows.copy(), True
        rows.sum_duplicates()
    return Csr(
        rows.indptr.astype(np.int64),
        rows.indices.astype(np.int32, copy=not copied),
        rows.data.astype(np.float32, copy=not copied),
        int(rows.shape[1]),
    )
