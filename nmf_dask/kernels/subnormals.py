"""Numbers of float32 below 1.2e-38, which Intel's processors take a hundred times as long for: zeros, for a while.

Inside compiled functions only, and of the thread that calls them. On processors other than x86 nothing happens. After
an edit of this file delete the `__pycache__` of this folder, as after one of `lanes.py`.
"""

# numba and llvmlite ship no types.
# mypy: disable-error-code="untyped-decorator,import-untyped,attr-defined"

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

# Of the register MXCSR: subnormal results are zeros (flush to zero), and subnormal operands are (denormals are zeros).
_FLUSH = 0x8000 | 0x0040
_WORD = ir.IntType(32)


def _has_switch() -> bool:
    return bool(llvm.get_process_triple().startswith(("x86_64", "i386", "i686")))


def _call(builder: Any, name: str, word: Any) -> None:
    """Store the register at `word`, or load it from there."""
    address = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [address]), f"llvm.x86.sse.{name}"
    )
    builder.call(function, [builder.bitcast(word, address)])


@intrinsic
def flush_subnormals(typing: Any) -> Any:
    """From here on subnormal numbers are zeros; returns what `restore` takes."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not _has_switch():
            return ir.Constant(_WORD, 0)
        word = cgutils.alloca_once(builder, _WORD)
        _call(builder, "stmxcsr", word)
        before = builder.load(word)
        builder.store(builder.or_(before, ir.Constant(_WORD, _FLUSH)), word)
        _call(builder, "ldmxcsr", word)
        return before

    return types.int32(), emit


@intrinsic
def restore(typing: Any, before: Any) -> Any:
    """From here on subnormal numbers are what they were before `flush_subnormals`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _has_switch():
            word = cgutils.alloca_once(builder, _WORD)
            builder.store(arguments[0], word)
            _call(builder, "ldmxcsr", word)
        return context.get_dummy_value()

    return types.void(types.int32), emit
