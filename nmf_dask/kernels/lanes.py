"""Eight float32 at a time: the few vector operations that the kernels are written in.

LLVM vectorises a plain loop over a row of fifty weights badly: it adds a remainder loop and overlap checks that
cost more than the row does. These operations say what is meant, compile faster than that search, and run on any
processor (LLVM splits the eight lanes where registers hold fewer). For use inside compiled functions only.

Arrays are C-contiguous float32 of any dimension (others do not compile); an offset counts elements from their
start and is not checked.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model

LANES = 8
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)


class _LanesType(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="Lanes")


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _FLOATS)


_LANES = _LanesType()


def _check_array(array: Any) -> None:
    if not isinstance(array, types.Array) or array.layout != "C" or array.dtype != types.float32:
        raise TypingError(f"lanes are read from C-contiguous float32 arrays, not from {array}")


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _FLOATS.as_pointer())


def _call(builder: Any, name: str, *operands: Any) -> Any:
    signature = ir.FunctionType(_FLOATS, [_FLOATS] * len(operands))
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), operands)


def _constant(vector_type: Any, value: float | int) -> Any:
    return ir.Constant(vector_type, [value] * LANES)


def _elementwise(emit: Callable[..., Any], n_operands: int) -> tuple[Any, Callable[..., Any]]:
    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return emit(builder, *operands)

    return _LANES(*[_LANES] * n_operands), generate


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """Eight neighbours of `array` from `offset` on."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *operands), align=4)

    _check_array(array)
    return _LANES(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, offset: Any, lanes: Any) -> Any:
    """Write `lanes` to `array` from `offset` on."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        builder.store(operands[2], _address(context, builder, signature.args[0], *operands[:2]), align=4)
        return context.get_dummy_value()

    _check_array(array)
    return types.void(array, types.intp, _LANES), generate


@intrinsic
def broadcast(typing: Any, value: Any) -> Any:
    """One number in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        lanes = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), operands[0], ir.IntType(32)(0))
        return builder.shuffle_vector(lanes, lanes, _constant(_INTS, 0))

    return _LANES(types.float32), generate


@intrinsic
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, fused where the processor can (`fma` would be a slow library call where it cannot)."""
    return _elementwise(lambda builder, *abc: _call(builder, "llvm.fmuladd.v8f32", *abc), 3)


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Any:
    """a + b."""
    return _elementwise(lambda builder, a, b: builder.fadd(a, b), 2)


@intrinsic
def multiply(typing: Any, a: Any, b: Any) -> Any:
    """a * b."""
    return _elementwise(lambda builder, a, b: builder.fmul(a, b), 2)


@intrinsic
def divide(typing: Any, a: Any, b: Any) -> Any:
    """a / b."""
    return _elementwise(lambda builder, a, b: builder.fdiv(a, b), 2)


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger of a and b, and b where a is not a number."""
    return _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b), 2)


@intrinsic
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """The smaller of a and b, and b where a is not a number."""
    return _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b), 2)


@intrinsic
def zero_below(typing: Any, a: Any, threshold: Any) -> Any:
    """a where a >= threshold, else 0."""

    def emit(builder: Any, a: Any, threshold: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">=", a, threshold), a, _constant(_FLOATS, 0.0))

    return _elementwise(emit, 2)


# The bits of sqrt(1/2): mantissas counted from there lie around 1, where a logarithm's polynomial is good.
_SQRT_HALF_BITS = 0x3F3504F3


@intrinsic
def exponent(typing: Any, a: Any) -> Any:
    """The e of a = 2**e * mantissa(a), as a float; a positive and normal. Of 0 some finite number."""

    def emit(builder: Any, a: Any) -> Any:
        bits = builder.sub(builder.bitcast(a, _INTS), _constant(_INTS, _SQRT_HALF_BITS))
        return builder.sitofp(builder.ashr(bits, _constant(_INTS, 23)), _FLOATS)

    return _elementwise(emit, 1)


@intrinsic
def mantissa(typing: Any, a: Any) -> Any:
    """The mantissa in [sqrt(1/2), sqrt(2)) that belongs to exponent(a)."""

    def emit(builder: Any, a: Any) -> Any:
        bits = builder.sub(builder.bitcast(a, _INTS), _constant(_INTS, _SQRT_HALF_BITS))
        bits = builder.and_(bits, _constant(_INTS, 0x007FFFFF))
        return builder.bitcast(builder.add(bits, _constant(_INTS, _SQRT_HALF_BITS)), _FLOATS)

    return _elementwise(emit, 1)


# Three rounds of "shuffle two apart, add" turn eight registers into the register of their eight sums.
_FOLDS = (
    ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)),
    ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)),
    ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)),
)


@intrinsic
def totals(typing: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """Lanes of the eight sums over the lanes of a, b, ... h."""

    def emit(builder: Any, *vectors: Any) -> Any:
        for masks in _FOLDS:
            halves = [
                [builder.shuffle_vector(x, y, ir.Constant(_INTS, mask)) for mask in masks]
                for x, y in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            vectors = tuple(builder.fadd(low, high) for low, high in halves)
        return vectors[0]

    return _elementwise(emit, 8)


@intrinsic
def total(typing: Any, a: Any) -> Any:
    """The sum over the lanes, added in float64."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        wide = builder.fpext(operands[0], ir.VectorType(ir.DoubleType(), LANES))
        result = ir.DoubleType()(0.0)
        for lane in range(LANES):
            result = builder.fadd(result, builder.extract_element(wide, ir.IntType(32)(lane)))
        return result

    return types.float64(_LANES), generate
