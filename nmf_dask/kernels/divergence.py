"""Divergences of a matrix and its factorization, in float64: to check and report with, not to iterate on."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Dense, or any matrix or array of scipy.sparse, which ships no types.
Matrix = Any

Doubles = NDArray[np.float64]

# scikit-learn's: the smallest WH, and the value of X up to which an entry counts as zero.
EPSILON = float(np.finfo(np.float32).eps)

# Nonzeros whose rows of W and H are in memory at a time: 64 MiB of float64 for fifty components.
_BATCH = 80_000

_BETA = {"frobenius": 2.0, "kullback-leibler": 1.0}


def beta_divergence(
    X: Matrix, W: ArrayLike, H: ArrayLike, beta_loss: str | float, square_root: bool = False
) -> float:
    """The beta-divergence of X, (n, m), and W H, with W (n, k) and H (k, m).

    "frobenius" or 2: half the squared Frobenius norm of X - WH. "kullback-leibler" or 1: the generalized
    Kullback-Leibler divergence, the sum of x log(x / wh) - x + wh. With `square_root` the root of twice that,
    scikit-learn's reconstruction error. X is dense or of any scipy.sparse format, indices in any order; for a
    sparse X neither WH nor anything of its size is made.

    The numbers are those of scikit-learn's private `_beta_divergence` (Févotte and Idier 2011, eq. 2 and 3),
    which for a sparse X with unsorted indices pairs values with the wrong columns. Under Kullback-Leibler,
    values of X up to EPSILON count as zero and WH as at least EPSILON, as there.

    Raises ValueError for shapes that do not fit, for negative values where the divergence has none, and for
    another `beta_loss`.
    """
    beta = _beta(beta_loss)
    W = np.asarray(W, dtype=np.float64)
    H = np.asarray(H, dtype=np.float64)
    X = _canonical(X) if _is_sparse(X) else np.asarray(X, dtype=np.float64)
    _check_shapes(X, W, H)
    if beta == 2.0:
        divergence = _half_squared_distance(X, W, H)
    else:
        for name, values in (("X", _values(X)), ("W", W), ("H", H)):
            _check_not_negative(name, values)
        divergence = _generalized_kullback_leibler(X, W, H)
    return float(np.sqrt(2.0 * max(divergence, 0.0))) if square_root else float(divergence)


def kullback_leibler_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """The sum of p log(p / q) - p + q over two arrays of one shape: generalized Kullback-Leibler.

    0 log 0 is 0, and the divergence is infinite where q is 0 and p is not: the sum of scipy.special.kl_div.
    For two probability distributions it is the ordinary Kullback-Leibler divergence. Raises ValueError for
    shapes that differ and for negative values.
    """
    p = np.asarray(p, dtype=np.float64)
    q = np.asarray(q, dtype=np.float64)
    if p.shape != q.shape:
        raise ValueError(f"p has shape {p.shape} and q has shape {q.shape}; they must be equal")
    _check_not_negative("p", p)
    _check_not_negative("q", q)
    from scipy.special import kl_div

    terms = kl_div(p, q)
    # No term is negative, but SciPy's is minus infinity where p / q is too small for a float: the limit is q.
    return float(np.where(terms == -np.inf, q, terms).sum())


def frobenius_norm(a: Matrix) -> float:
    """The square root of the sum of squares, of a dense array or a scipy.sparse matrix."""
    if _is_sparse(a):
        a = _canonical(a).data
    return float(np.linalg.norm(np.asarray(a, dtype=np.float64).ravel()))


def _beta(beta_loss: str | float) -> float:
    beta = _BETA.get(beta_loss) if isinstance(beta_loss, str) else float(beta_loss)
    if beta is None or beta not in _BETA.values():
        known = ", ".join(f'"{name}" ({value:g})' for name, value in _BETA.items())
        raise ValueError(f"beta_loss is {beta_loss!r}; it must be one of {known}")
    return beta


def _is_sparse(a: object) -> bool:
    # Only scipy's own matrices have both, so scipy need not be imported to tell a dense array.
    return hasattr(a, "tocsr") and hasattr(a, "nnz")


def _canonical(X: Any) -> Any:
    """CSR in float64 with sorted, distinct indices; what the caller holds is not changed."""
    X = X.tocsr().astype(np.float64)  # astype copies, also from float64
    X.sum_duplicates()
    return X


def _values(X: Any) -> Doubles:
    return X.data if _is_sparse(X) else X  # type: ignore[no-any-return]


def _check_shapes(X: Any, W: Doubles, H: Doubles) -> None:
    if len(X.shape) != 2 or W.ndim != 2 or H.ndim != 2:
        raise ValueError(f"X, W and H must be matrices; their shapes are {X.shape}, {W.shape} and {H.shape}")
    if W.shape[1] != H.shape[0] or X.shape != (W.shape[0], H.shape[1]):
        raise ValueError(
            f"X has shape {X.shape}, but W of shape {W.shape} and H of shape {H.shape} do not multiply to it"
        )


def _check_not_negative(name: str, values: Doubles) -> None:
    if values.size and values.min() < 0:
        raise ValueError(
            f"{name} holds {values.min():g}; the Kullback-Leibler divergence has no negative values"
        )


def _half_squared_distance(X: Any, W: Doubles, H: Doubles) -> float:
    if not _is_sparse(X):
        difference = (X - W @ H).ravel()
        return float(difference @ difference) / 2.0
    cross = float(np.sum((X @ H.T) * W))
    return (float(X.data @ X.data) - 2.0 * cross + float(np.sum((W.T @ W) * (H @ H.T)))) / 2.0


def _generalized_kullback_leibler(X: Any, W: Doubles, H: Doubles) -> float:
    if _is_sparse(X):
        rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
        x, WH = X.data, products_at(rows, X.indices, W, H)
    else:
        x, WH = X.ravel(), (W @ H).ravel()
    nonzero = x > EPSILON
    x = x[nonzero]
    WH = np.maximum(WH[nonzero], EPSILON)
    return float(x @ np.log(x / WH)) - float(x.sum()) + float(W.sum(axis=0) @ H.sum(axis=1))


def products_at(rows: NDArray[Any], columns: NDArray[Any], W: NDArray[Any], H: NDArray[Any]) -> Doubles:
    """Entries of W H, with W (n, k) and H (k, m), at places that are given by row and column, (p,) each; (p,)."""
    result = np.empty(len(rows))
    HT = np.ascontiguousarray(H.T)
    for first in range(0, len(rows), _BATCH):
        batch = slice(first, first + _BATCH)
        result[batch] = np.einsum("pk,pk->p", W[rows[batch]], HT[columns[batch]], dtype=np.float64)
    return result
