"""One way to compile a kernel: released GIL, cached on disk where the disk allows it."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F | None = None, *, inline: bool = False) -> Any:
    """Compile `function` with numba, without the GIL.

    The machine code is cached beside the package, in the user's cache folder where that is read-only, and not at
    all where neither can be written: numba refuses such an installation, and a slow start beats no start.
    `inline` is for what only other kernels call: it is copied into them.
    """

    def decorate(body: F) -> F:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
        if inline:
            return numba.njit(body, inline="always", **options)  # type: ignore[no-any-return]
        try:
            return numba.njit(body, cache=True, **options)  # type: ignore[no-any-return]
        except RuntimeError:
            return numba.njit(body, **options)  # type: ignore[no-any-return]

    return decorate if function is None else decorate(function)
