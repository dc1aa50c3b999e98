"""`NMF` in scikit-learn's manner, for any matrix in row blocks."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from nmf_dask.config import ModelSettings
from nmf_dask.estimators.dense import Dense, Penalties, exact_weights
from nmf_dask.estimators.engine import fit_sparse, fold, threads
from nmf_dask.estimators.minibatch import History
from nmf_dask.estimators.rows import Rows, are_blocks, checked_factor, is_dask, validated
from nmf_dask.estimators.starts import started

Array = NDArray[Any]

BETA = {"frobenius": 2.0, "kullback-leibler": 1.0, "itakura-saito": 0.0}
NAMES = {2.0: "frobenius", 1.0: "kullback-leibler"}
INITS = {"random", "nndsvd", "nndsvda", "nndsvdar", "custom"}

log = logging.getLogger(__name__)


class NMF(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Non-negative matrix factorization, X ≈ W H, with the parameters of `sklearn.decomposition.NMF`.

    X (n, m) is a NumPy array, a SciPy sparse matrix or array, a list of such row blocks, or a Dask array of dense or
    sparse chunks, whose row counts may be unknown. A Dask array is fitted by the workers of the current client, or in
    this process where there is none; `transform` and `fit_transform` of it give a lazy Dask array.

    Dense rows are worked on in their own type by scikit-learn's iterations. Sparse rows, and Dask's, are worked on in
    float32 by the engine of `nmf-dask fit`, whose passes are worth several iterations; `tol` is then the share of the
    first error that a pass has to bring, and for "frobenius" and "kullback-leibler" alone. Sparse matrices that are
    small, or have a fifth of their entries, are treated as dense.

    Parameters
    ----------
    n_components : int, "auto" or None
        Topics (k). "auto": of W or H where they are given, else as many as features. None: as many as features.
    init : None, "random", "nndsvd", "nndsvda", "nndsvdar" or "custom"
        How W and H start. None: "nndsvda" where k ≤ min(n, m), else "random". "custom": from W and H as given to `fit`.
    solver : "cd" or "mu"
        Coordinate descent, for Frobenius only, or multiplicative updates.
    beta_loss : float, "frobenius", "kullback-leibler" or "itakura-saito"
        What is minimized.
    tol, max_iter
        When to stop: tolerance, and passes over the data at most.
    random_state : int, RandomState or None
        Of the start and, on the engine, of the order of rows.
    alpha_W, alpha_H, l1_ratio
        Penalties, scaled as in scikit-learn: those of W by the features, those of H by the rows.
    verbose : int
        Above zero, the log of this module (level INFO) tells how a fit ended.
    shuffle : bool
        For "cd" and dense rows: coordinates in another order in every sweep. The engine's order is fixed.
    forget_factor : float
        Of `partial_fit`: what earlier batches weigh beside each new one; 1.0 forgets nothing (`MiniBatchNMF`'s).

    Attributes
    ----------
    components_ : ndarray (k, m)
        H, in the type of the input.
    reconstruction_err_ : float
        The square root of twice the beta-divergence of X and the W and H of the fit.
    n_components_, n_features_in_, n_iter_ : int
        Topics, features, passes.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012 - scikit-learn's own way
        "n_components": [Interval(Integral, 1, None, closed="left"), None, StrOptions({"auto"})],
        "init": [StrOptions(INITS), None],
        "solver": [StrOptions({"mu", "cd"})],
        "beta_loss": [StrOptions(set(BETA)), Real],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "alpha_W": [Interval(Real, 0, None, closed="left")],
        "alpha_H": [Interval(Real, 0, None, closed="left"), StrOptions({"same"})],
        "l1_ratio": [Interval(Real, 0, 1, closed="both")],
        "verbose": ["verbose"],
        "shuffle": ["boolean"],
        "forget_factor": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        n_components: int | str | None = "auto",
        *,
        init: str | None = None,
        solver: str = "cd",
        beta_loss: float | str = "frobenius",
        tol: float = 1e-4,
        max_iter: int = 200,
        random_state: Any = None,
        alpha_W: float = 0.0,
        alpha_H: float | str = "same",
        l1_ratio: float = 0.0,
        verbose: int = 0,
        shuffle: bool = False,
        forget_factor: float = 0.7,
    ) -> None:
        self.n_components = n_components
        self.init = init
        self.solver = solver
        self.beta_loss = beta_loss
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio
        self.verbose = verbose
        self.shuffle = shuffle
        self.forget_factor = forget_factor

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def fit(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> Self:
        """Learn H from X; `W` and `H` are the start where init="custom" (of a Dask array: H alone)."""
        if is_dask(X):
            self._fit_dask(X, W, H)
        else:
            self._fit(X, W, H)
        return self

    def fit_transform(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> Any:
        """Learn H from X; W (n, k), in the type of X.

        For Frobenius, and for sparse rows, it is what `transform` gives: the best W under the H that was learned; for
        other losses the W that the passes ended with. Of a Dask array it is a lazy one: nothing is gathered or kept.
        """
        if is_dask(X):
            return self._fit_dask(X, W, H).transform(X)
        W = self._fit(X, W, H, wanted=True)
        return self.transform(X) if W is None else W

    def transform(self, X: Any) -> Any:
        """W (n, k) of the rows of X under the H that was learned; of a Dask array a lazy one.

        Frobenius and Kullback-Leibler: each row at the minimum of its own convex problem, whatever the rows beside it.
        Other losses: multiplicative updates until `tol`.
        """
        check_is_fitted(self)
        if is_dask(X):
            from nmf_dask.estimators.on_dask import lazy_weights

            return lazy_weights(self, X)
        return self._weights(validated(self, X, reset=False))

    def inverse_transform(self, X: Any) -> Any:
        """X of W: the product with `components_`, dense; a lazy one of a Dask array."""
        check_is_fitted(self)
        return X @ self.components_

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any = None, W: Any = None, H: Any = None) -> Self:
        """Update H by one batch of rows, or by each block of a list or chunk of a Dask array in turn.

        Each batch's W is the best under the H so far (`W` is not looked at); what batches say of H adds up in sums of
        the size of H, in which earlier ones weigh less and less (Mairal et al., JMLR 11, 2010). The first batch starts
        H as `init` says ("custom": `H`), and should have at least as many rows as there are components.
        """
        if is_dask(X):
            from nmf_dask.estimators.on_dask import chunks_of

            X = chunks_of(X)
        several = are_blocks(X) or hasattr(X, "__next__")
        for batch in X if several else [X]:
            if not several or np.shape(batch)[0]:
                self._partial_fit(validated(self, batch, reset=not hasattr(self, "components_")), H)
        return self

    def _partial_fit(self, X: Rows, H: Any) -> None:
        if not hasattr(self, "components_"):
            k = self._resolved(X.shape, None, H)
            _, self.components_ = self._start(X, k, None, H)
            self.n_iter_ = 0
        if not hasattr(self, "_history"):  # batches may follow a fit, and go on from its H
            self._check_loss(NAMES)
            self._history = History.of(self.components_, self._beta, self.solver)
            self.n_steps_ = 0
        penalties = self._penalties(X.shape)
        W = self._weights(X)
        self._history.add(X.blocks[0], W, self.components_, float(self.forget_factor))
        self.components_ = self._history.updated(self.components_, penalties, X.shape[0])
        self.n_components_ = self._n_components = len(self.components_)
        self.n_steps_ += 1
        self.n_iter_ += 1

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def _fit(self, X: Any, W: Any, H: Any, wanted: bool = False) -> Array | None:
        """Set H; W, where it is `wanted` and is not that of `transform`."""
        rows = validated(self, X, reset=True)
        k = self._resolved(rows.shape, W, H)
        self._check_loss(None)
        if rows.better_dense() or self._beta not in NAMES:
            return self._fit_dense(rows.as_dense(), k, W, H, wanted)
        self._fit_sparse(rows, k, W, H)
        return None

    def _fit_dense(self, X: Rows, k: int, W: Any, H: Any, wanted: bool) -> Array:
        W, H = self._start(X, k, W, H)
        if self._beta <= 0 and min(block.min() for block in X.blocks) == 0:
            raise ValueError(
                "When beta_loss <= 0 and X contains zeros, the solver may diverge. Please add small values to X, or "
                "use a positive beta_loss."
            )
        tol, max_iter = float(self.tol), int(self.max_iter)
        order = check_random_state(self.random_state) if self.shuffle else None
        with Dense(X.blocks, self._beta, self._penalties(X.shape), self.solver, threads()) as dense:
            fit = dense.fit(W, H, tol, max_iter, order)
            err = float(np.sqrt(2 * dense.divergence(fit.W, fit.H)))
        self._ended(fit.H, fit.n_iter, err, "tol" if fit.converged else "max_iter")
        return dense.weights(fit.H, tol, max_iter) if wanted and self._beta == 2 else fit.W

    def _fit_sparse(self, X: Rows, k: int, W: Any, H: Any) -> None:
        init = self._init(X.shape, k)
        model = self.model_settings(k, init)
        if init in {"custom", "nndsvdar"}:
            W, H = self._start(X, k, W, H)
        else:
            self._warn_of_unused(W, H)
            W = H = None
        fit = fit_sparse(X, model, W, H)
        self._ended(fit.H.astype(X.dtype), fit.n_iter, fit.reconstruction_err, fit.stop_reason)

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def _fit_dask(self, X: Any, W: Any, H: Any) -> Self:
        from nmf_dask.estimators.on_dask import fit_chunks

        fit = fit_chunks(self, X, W, H)
        self._ended(fit.H, fit.n_iter, fit.reconstruction_err, fit.stop_reason)
        return self

    def _ended(self, H: Array, n_iter: int, err: float, stop_reason: str) -> None:
        self.components_ = H
        self.n_components_ = len(H)
        self.n_iter_ = n_iter
        self.reconstruction_err_ = err
        self.__dict__.pop("_history", None)
        if self.verbose:
            log.info("%d passes, reconstruction error %.6g, stopped by %s", n_iter, err, stop_reason)
        if stop_reason == "max_iter" and self.tol > 0:
            warnings.warn(
                f"Maximum number of iterations {self.max_iter} reached. Increase it to improve convergence.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _weights(self, X: Rows) -> Array:
        beta = BETA.get(self.beta_loss, self.beta_loss) if isinstance(self.beta_loss, str) else self.beta_loss
        H = self.components_
        if beta == 2:
            return exact_weights(X.blocks, H, self._penalties(X.shape), threads()).astype(X.dtype, copy=False)
        if beta == 1:
            model = self.model_settings(len(H), "random", seed=0)  # nothing is drawn
            return fold(X.csr(), H, model).astype(X.dtype)
        X = X.as_dense()
        with Dense(X.blocks, float(beta), self._penalties(X.shape), self.solver, threads()) as dense:
            return dense.weights(H.astype(X.dtype, copy=False), float(self.tol), int(self.max_iter))

    def _resolved(self, shape: tuple[float, int], W: Any, H: Any) -> int:
        """How many components, by the parameters and by what is given to start with."""
        k = self.n_components
        if k == "auto" and self.init == "custom":
            given = [np.shape(A)[side] for A, side in ((H, 0), (W, 1)) if A is not None and np.ndim(A) == 2]
            k = given[0] if given else k
        self._n_components = shape[1] if k in ("auto", None) else int(k)
        return self._n_components

    def _check_loss(self, known: dict[float, str] | None) -> None:
        """Set the loss as a number. `known` are those there are, where there are not all."""
        self._beta = BETA[self.beta_loss] if isinstance(self.beta_loss, str) else float(self.beta_loss)
        if self.solver == "cd" and self._beta != 2:
            raise ValueError(
                f"Invalid beta_loss parameter: solver {self.solver!r} does not handle beta_loss = {self.beta_loss!r}"
            )
        if known is not None and self._beta not in known:
            raise ValueError(
                f"beta_loss is {self.beta_loss!r}; partial_fit, and a Dask array, take 'frobenius' (2) and "
                "'kullback-leibler' (1) only"
            )
        if self.solver == "mu" and self.init == "nndsvd":
            warnings.warn(
                "The multiplicative update ('mu') solver cannot update zeros present in the initialization, and so "
                "leads to poorer results when used jointly with init='nndsvd'. You may try init='nndsvda' or "
                "init='nndsvdar' instead.",
                UserWarning,
                stacklevel=4,
            )

    def _init(self, shape: tuple[float, int], k: int) -> str:
        fits = k <= min(shape)
        if self.init is None:
            return "nndsvda" if fits else "random"
        if self.init.startswith("nndsvd") and not fits:
            raise ValueError(
                f"init = '{self.init}' can only be used when n_components <= min(n_samples, n_features)"
            )
        return self.init

    def _start(self, X: Rows, k: int, W: Any, H: Any) -> tuple[Array, Array]:
        init = self._init(X.shape, k)
        if init != "custom":
            self._warn_of_unused(W, H)
            return started(X, k, init, self.random_state)
        if H is None and W is None:
            raise ValueError('init="custom" starts from W and H: give both to fit')
        if H is None or W is None:
            # One of them says nothing of the other's size: that is the random start's.
            random_W, random_H = started(X, k, "random", self.random_state)
            W, H = random_W if W is None else W, random_H if H is None else H
        H = checked_factor(H, (k, X.shape[1]), "H")
        W = checked_factor(W, (X.shape[0], k), "W")
        if H.dtype != X.dtype or W.dtype != X.dtype:
            raise TypeError(
                f"H and W should have the same dtype as X. Got H.dtype = {H.dtype} and W.dtype = {W.dtype}."
            )
        return W, H

    def _warn_of_unused(self, W: Any, H: Any) -> None:
        if W is not None or H is not None:
            warnings.warn(
                "When init!='custom', provided W or H are ignored in favor of the selected initialization: "
                f"{self.init}",
                RuntimeWarning,
                stacklevel=5,
            )

    def _penalties(self, shape: tuple[float, int]) -> Penalties:
        alpha_H = self.alpha_W if self.alpha_H == "same" else float(self.alpha_H)
        n, m = shape
        l1, l2 = self.l1_ratio, 1 - self.l1_ratio
        return Penalties(
            m * self.alpha_W * l1, m * self.alpha_W * l2, float(n * alpha_H * l1), float(n * alpha_H * l2)
        )

    def model_settings(self, k: int, init: str, seed: int | None = None) -> ModelSettings:
        """These parameters as the engine takes them."""
        seed = self.random_state if seed is None else seed
        if not isinstance(seed, Integral):
            seed = check_random_state(seed).randint(2**31 - 1)
        beta = BETA[self.beta_loss] if isinstance(self.beta_loss, str) else float(self.beta_loss)
        return ModelSettings.of(
            {
                "n_components": int(k),
                "beta_loss": NAMES[beta],
                "solver": self.solver,
                "init": "random" if init in {"custom", "nndsvdar"} else init,
                "max_iter": int(self.max_iter),
                "tol": float(self.tol),
                "alpha_W": float(self.alpha_W),
                "alpha_H": "same" if self.alpha_H == "same" else float(self.alpha_H),
                "l1_ratio": float(self.l1_ratio),
                "random_state": int(seed),
            }
        )


def _left_lazy(wrapped: Callable[..., Any]) -> Callable[..., Any]:
    """A method without scikit-learn's `set_output` where X is of Dask's: a data frame would hold all of W."""
    plain = wrapped.__wrapped__  # type: ignore[attr-defined]

    @functools.wraps(wrapped)
    def method(self: NMF, X: Any, *args: Any, **named: Any) -> Any:
        return (plain if is_dask(X) else wrapped)(self, X, *args, **named)

    return method


NMF.transform = _left_lazy(NMF.transform)  # type: ignore[method-assign]
NMF.fit_transform = _left_lazy(NMF.fit_transform)  # type: ignore[method-assign]
