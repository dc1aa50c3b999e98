"""Four or eight bytes of a buffer at once, from any position, little-endian on the machines that numba runs on."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

# Written as instructions, because a loop over bytes in numba costs seconds of compilation, and a call with an array
# counts its references, atomically, wherever numba cannot prove that it need not.


def _load(signature: Any, width: int) -> tuple[Any, Any]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.add(builder.ptrtoint(data, ir.IntType(64)), args[1])
        word = builder.load(builder.inttoptr(address, ir.IntType(width).as_pointer()))
        word.align = 1
        return word

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def load32(typing_context: Any, buffer: Any, position: Any) -> Any:
    """`buffer[position:position + 4]` as an unsigned number; it must lie within the buffer."""
    return _load(types.uint32(buffer, types.int64), 32)


@intrinsic  # type: ignore[untyped-decorator]
def load64(typing_context: Any, buffer: Any, position: Any) -> Any:
    """`buffer[position:position + 8]` as a signed number; it must lie within the buffer."""
    return _load(types.int64(buffer, types.int64), 64)
