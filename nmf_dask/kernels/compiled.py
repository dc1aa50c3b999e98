"""One way to compile a kernel: released GIL, cached on disk where the disk allows it."""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.np import linalg

F = TypeVar("F", bound=Callable[..., Any])


def _load_arrays() -> None:
    """Load what every kernel needs of numba without scipy.linalg: a third of the time until the first one runs.

    numba imports it there only to see whether it is there, and does so again before it compiles a product of BLAS.
    """
    ensured = linalg.ensure_blas
    linalg.ensure_blas = lambda: None
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = ensured


_load_arrays()


def compiled(function: F | None = None, *, inline: bool = False, allocates: bool = False) -> Any:
    """Compile `function` with numba, without the GIL.

    The machine code is cached beside the package, in the user's cache folder where that is read-only, and not at
    all where neither can be written: numba refuses such an installation, and a slow start beats no start.
    `inline` is for what only other kernels call: it is copied into them.

    Kernels borrow their arrays from the caller. Only one that `allocates` makes or returns some, and counts references:
    numba does so around calls and in branches, by atomic instructions, which took a third of the time of counting
    words. Numba does not compile one that allocates and does not say so.
    """

    def decorate(body: F) -> F:
        # Said either way: what says nothing has it from the kernel that calls it first.
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": allocates}
        if inline:
            return numba.njit(body, inline="always", **options)  # type: ignore[no-any-return]
        try:
            return numba.njit(body, cache=True, **options)  # type: ignore[no-any-return]
        except RuntimeError:
            return numba.njit(body, **options)  # type: ignore[no-any-return]

    return decorate if function is None else decorate(function)
