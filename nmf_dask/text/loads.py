"""Several bytes of a buffer at once, from any position, little-endian on the machines that numba runs on."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

# Written as instructions, because a loop over bytes in numba costs seconds of compilation.


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


@intrinsic  # type: ignore[untyped-decorator]
def store64(typing_context: Any, buffer: Any, position: Any, word: Any) -> Any:
    """Set `buffer[position:position + 8]`, which must lie within the buffer, to a number of 64 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.add(builder.ptrtoint(data, ir.IntType(64)), args[1])
        builder.store(args[2], builder.inttoptr(address, ir.IntType(64).as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(buffer, types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def trailing_zeros(typing_context: Any, bits: Any) -> Any:
    """Position of the lowest bit that is set in an unsigned number of 64 bits, 64 where none is."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def fold_ascii(typing_context: Any, data: Any, position: Any, buffer: Any, place: Any, case: Any) -> Any:
    """Copy 64 bytes from data to buffer, `case` (0x20 or 0) set in capitals; all must lie within both.

    Returns two unsigned numbers of 64 bits: which bytes are ASCII letters, digits or underscores, and which are
    not ASCII at all.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (
            _vector_at(context, builder, signature, args, 0),
            _vector_at(context, builder, signature, args, 2),
        )
        x = builder.load(source)
        x.align = 1
        words = builder.or_(
            _within(builder, builder.or_(x, _splat(0x20)), "a", "z"), _within(builder, x, "0", "9")
        )
        words = builder.or_(words, _within(builder, x, "_", "_"))
        beyond = builder.icmp_signed("<", x, _splat(0))
        spread = builder.insert_element(_splat(0), args[4], ir.Constant(ir.IntType(32), 0))
        spread = builder.shuffle_vector(
            spread, _splat(0), ir.Constant(ir.VectorType(ir.IntType(32), 64), None)
        )
        store = builder.store(
            builder.or_(x, builder.select(_within(builder, x, "A", "Z"), spread, _splat(0))), target
        )
        store.align = 1
        bits = [builder.bitcast(mask, ir.IntType(64)) for mask in (words, beyond)]
        return context.make_tuple(builder, signature.return_type, bits)

    return types.UniTuple(types.uint64, 2)(data, types.int64, buffer, types.int64, types.uint8), codegen


_BYTES = ir.VectorType(ir.IntType(8), 64)


def _splat(byte: int) -> Any:
    return ir.Constant(_BYTES, [byte] * 64)


def _within(builder: Any, x: Any, first: str, last: str) -> Any:
    return builder.icmp_unsigned("<=", builder.sub(x, _splat(ord(first))), _splat(ord(last) - ord(first)))


def _vector_at(context: Any, builder: Any, signature: Any, args: Any, which: int) -> Any:
    start = context.make_array(signature.args[which])(context, builder, args[which]).data
    address = builder.add(builder.ptrtoint(start, ir.IntType(64)), args[which + 1])
    return builder.inttoptr(address, _BYTES.as_pointer())
