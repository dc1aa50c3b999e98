"""What an estimator may be given as a matrix, as row blocks of one type and one width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from nmf_dask.kernels.matrices import LARGEST, Csr, from_scipy, frozen

# A sparse matrix with this share of entries, or this small, is worked on as a dense one: BLAS is faster on it, and it
# then ends in the same numbers. At a fifth of the entries a dense float32 takes less than the sparse.
DENSE_SHARE = 0.2
SMALL = 1 << 16


class Rows(NamedTuple):
    """A matrix (n, m) in row blocks, NumPy or CSR, all float32 or all float64."""

    blocks: tuple[Any, ...]
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    @property
    def is_sparse(self) -> bool:
        """Whether any block is."""
        return any(map(sparse.issparse, self.blocks))

    @property
    def nnz(self) -> int:
        """Stored entries; of a dense block all."""
        return sum(X.nnz if sparse.issparse(X) else X.size for X in self.blocks)

    @property
    def total(self) -> float:
        """The sum of all entries."""
        entries = (
            X.data if sparse.issparse(X) else X for X in self.blocks
        )  # SciPy's own sum sorts what it is given
        return sum(float(one.sum(dtype=np.float64)) for one in entries)

    def as_dense(self) -> Rows:
        """The same with every block a NumPy array."""
        return self._replace(blocks=tuple(X.toarray() if sparse.issparse(X) else X for X in self.blocks))

    def better_dense(self) -> bool:
        """Whether to work on it as a dense matrix."""
        size = self.shape[0] * self.shape[1]
        return not self.is_sparse or size <= SMALL or self.nnz >= DENSE_SHARE * size

    def csr(self) -> list[Csr]:
        """The blocks as the kernels take them: float32."""
        return [as_csr(X) for X in self.blocks]


def is_dask(X: Any) -> bool:
    """Whether X is a collection of Dask's; Dask is not imported to find out."""
    return type(X).__module__.partition(".")[0] in {"dask", "dask_expr"}


def are_blocks(X: Any) -> bool:
    """Whether X is a list of matrices, one below the other; a list of lists is a matrix."""
    return isinstance(X, list | tuple) and bool(X) and all(_is_matrix(one) for one in X)


def as_scipy(X: Any) -> Any:
    """A matrix of the package sparse (COO, GCXS) as SciPy's; everything else as it is."""
    return X.to_scipy_sparse() if hasattr(X, "to_scipy_sparse") else X


def as_csr(X: Any, order: NDArray[np.int64] | None = None) -> Csr:
    """The rows of a matrix, in `order`, as the kernels take them; ValueError for values over LARGEST."""
    with np.errstate(over="ignore"):
        block = frozen(from_scipy(X, order))
    if not block.data.max(initial=0) <= LARGEST:
        raise ValueError(f"X holds values over {LARGEST:g}, whose sums are beyond float32; scale it first")
    return block


def _is_matrix(X: Any) -> bool:
    return getattr(X, "ndim", 0) == 2 and hasattr(X, "shape")


def validated(estimator: Any, X: Any, *, reset: bool) -> Rows:
    """X checked as scikit-learn checks it: finite, not negative, of the width that was fitted.

    An array-like, a SciPy sparse matrix or array (or one of the package sparse), a data frame, or a list of such row
    blocks, of which some may have no rows.
    """
    types: dict[str, Any] = {"accept_sparse": ("csr", "csc"), "dtype": [np.float64, np.float32]}
    given: Sequence[Any] = [X]
    if are_blocks(X):
        given = [block for block in X if block.shape[0]] or X[:1]
    blocks = []
    for number, block in enumerate(given):
        checked = validate_data(
            estimator, as_scipy(block), reset=reset and number == 0, ensure_non_negative=True, **types
        )
        blocks.append(checked.tocsr() if sparse.issparse(checked) else checked)
    dtype = np.result_type(*blocks)
    blocks = [block.astype(dtype, copy=False) for block in blocks]
    return Rows(tuple(blocks), (sum(b.shape[0] for b in blocks), blocks[0].shape[1]), dtype)


def checked_factor(A: Any, shape: tuple[int, int], whom: str) -> NDArray[Any]:
    """A start of W or H: scikit-learn's checks, and its words, since its users know them."""
    A = check_array(A, dtype=[np.float64, np.float32], ensure_non_negative=True, input_name=whom)
    for axis, name in enumerate(("first", "second")):
        if A.shape[axis] != shape[axis]:
            raise ValueError(
                f"Array with wrong {name} dimension passed to NMF (input {whom}). Expected {shape[axis]}, but got "
                f"{A.shape[axis]}."
            )
    if not A.any():
        raise ValueError(f"Array passed to NMF (input {whom}) is full of zeros.")
    return np.array(A, order="C")
