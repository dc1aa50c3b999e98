"""Eight numbers at a time, float32 or float64: the few vector operations that the kernels are written in.

LLVM vectorises a plain loop over a row of fifty weights badly: it adds a remainder loop and overlap checks
that cost more than the row does. These operations say what is meant, compile faster than that search, and run
on any processor (LLVM splits the eight lanes where registers hold fewer). Inside compiled functions only.

Arrays are C-contiguous of any dimension, and all operands of an operation have one type (others do not compile); an
offset counts elements from their start and is not checked. After an edit of this file delete the `__pycache__` of
this folder: numba looks for changes in the file of a compiled function alone, not in those it is built from.
"""

# numba and llvmlite ship no types.
# mypy: disable-error-code="untyped-decorator,import-untyped,attr-defined"

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model

LANES = 8
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)


class _LanesType(types.Type):
    def __init__(self, dtype: Any) -> None:
        super().__init__(name=f"Lanes({dtype})")
        self.dtype = dtype


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _VECTORS[numba_type.dtype])


_VECTORS = {types.float32: _FLOATS, types.float64: _DOUBLES}
_LANES = {dtype: _LanesType(dtype) for dtype in _VECTORS}


def _lanes_of(array: Any) -> Any:
    """The type of lanes that are read from an array."""
    if not isinstance(array, types.Array) or array.layout != "C" or array.dtype not in _LANES:
        raise TypingError(f"lanes are read from C-contiguous float32 or float64 arrays, not from {array}")
    return _LANES[array.dtype]


def _float32(lanes: Any) -> Any:
    """Their type, which has to be that of float32."""
    if lanes != _LANES[types.float32]:
        raise TypingError(f"lanes of float32 are needed, not {lanes}")
    return lanes


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _VECTORS[array_type.dtype].as_pointer())


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c. Not `fma`, which is a slow library call where the processor has no such instruction."""
    name = "llvm.fmuladd.v8f32" if a.type == _FLOATS else "llvm.fmuladd.v8f64"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, [a, b, c])


def _constant(vector_type: Any, value: float | int) -> Any:
    return ir.Constant(vector_type, [value] * LANES)


def _same(*operands: Any) -> Any:
    """The type of all operands, which have to be lanes of one."""
    if not isinstance(operands[0], _LanesType) or set(operands) != {operands[0]}:
        raise TypingError(f"lanes of one type are needed, not {operands}")
    return operands[0]


def _elementwise(emit: Callable[..., Any], *operands: Any) -> tuple[Any, Callable[..., Any]]:
    lanes = _same(*operands)

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return emit(builder, *operands)

    return lanes(*operands), generate


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """Eight neighbours of `array` from `offset` on."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *operands), align=4)

    return _lanes_of(array)(array, types.intp), generate


@intrinsic
def widened(typing: Any, lanes: Any) -> Any:
    """Lanes of float32 as float64."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return builder.fpext(operands[0], _DOUBLES)

    return _LANES[types.float64](_float32(lanes)), generate


@intrinsic
def at(typing: Any, array: Any, position: Any) -> Any:
    """array[position] of a one-dimensional array of any type, without the test for positions below zero."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, operands[0]).data
        return builder.load(builder.gep(data, [operands[1]]))

    return array.dtype(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, offset: Any, lanes: Any) -> Any:
    """Write `lanes` to `array` from `offset` on."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        builder.store(operands[2], _address(context, builder, signature.args[0], *operands[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _lanes_of(array)), generate


@intrinsic
def broadcast(typing: Any, value: Any) -> Any:
    """One number, float32 or float64, in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        nothing = ir.Constant(_VECTORS[value], ir.Undefined)
        lanes = builder.insert_element(nothing, operands[0], ir.IntType(32)(0))
        return builder.shuffle_vector(lanes, lanes, _constant(_INTS, 0))

    if value not in _LANES:
        raise TypingError(f"lanes hold float32 or float64, not {value}")
    return _LANES[value](value), generate


@intrinsic
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the processor can."""
    return _elementwise(_fused, a, b, c)


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Any:
    """a + b."""
    return _elementwise(lambda builder, a, b: builder.fadd(a, b), a, b)


@intrinsic
def multiply(typing: Any, a: Any, b: Any) -> Any:
    """a * b."""
    return _elementwise(lambda builder, a, b: builder.fmul(a, b), a, b)


@intrinsic
def divide(typing: Any, a: Any, b: Any) -> Any:
    """a / b."""
    return _elementwise(lambda builder, a, b: builder.fdiv(a, b), a, b)


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger of a and b, and b where a is not a number."""
    return _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b), a, b)


@intrinsic
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """The smaller of a and b, and b where a is not a number."""
    return _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b), a, b)


@intrinsic
def zero_below(typing: Any, a: Any, threshold: Any) -> Any:
    """a where a >= threshold, else 0."""

    def emit(builder: Any, a: Any, threshold: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">=", a, threshold), a, _constant(a.type, 0.0))

    return _elementwise(emit, a, threshold)


# The bits of sqrt(1/2): mantissas counted from there lie around 1, where a polynomial is good.
_SQRT_HALF_BITS = 0x3F3504F3
_LOG_2 = 0.6931471805599453

# log(1 + f) = f - f**2 / 2 + f**3 times this polynomial, the highest power first: that of `logf` in the
# Cephes library (Moshier). Errors are those of float32.
_LOG_COEFFICIENTS = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip


@intrinsic
def log(typing: Any, a: Any) -> Any:
    """The natural logarithm of what is positive and not denormal; of 0 some finite number."""

    def emit(builder: Any, a: Any) -> Any:
        bits = builder.sub(builder.bitcast(a, _INTS), _constant(_INTS, _SQRT_HALF_BITS))
        exponent = builder.sitofp(builder.ashr(bits, _constant(_INTS, 23)), _FLOATS)
        mantissa = builder.add(
            builder.and_(bits, _constant(_INTS, 0x007FFFFF)), _constant(_INTS, _SQRT_HALF_BITS)
        )
        f = builder.fadd(builder.bitcast(mantissa, _FLOATS), _constant(_FLOATS, -1.0))
        polynomial = _constant(_FLOATS, 0.0)
        for coefficient in (*_LOG_COEFFICIENTS, -0.5):
            polynomial = _fused(builder, polynomial, f, _constant(_FLOATS, coefficient))
        polynomial = _fused(builder, polynomial, builder.fmul(f, f), f)
        return _fused(builder, exponent, _constant(_FLOATS, _LOG_2), polynomial)

    return _elementwise(emit, _float32(a))


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

    return _elementwise(emit, a, b, c, d, e, f, g, h)


@intrinsic
def transposed(typing: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """The first numbers of a, b, ... h in lanes of their own, the second ones, and so on: a tuple of eight."""
    result = types.UniTuple(_same(a, b, c, d, e, f, g, h), LANES)

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        vectors = list(operands)
        for _ in range(3):  # each interleaves those that are four apart
            pairs = list(zip(vectors[:4], vectors[4:], strict=True))
            vectors = [
                builder.shuffle_vector(x, y, ir.Constant(_INTS, mask))
                for x, y in pairs
                for mask in _INTERLEAVED
            ]
        return context.make_tuple(builder, result, vectors)

    return result(a, b, c, d, e, f, g, h), generate


_INTERLEAVED = ((0, 8, 1, 9, 2, 10, 3, 11), (4, 12, 5, 13, 6, 14, 7, 15))


@intrinsic
def total(typing: Any, a: Any) -> Any:
    """The sum over the lanes, added in float64."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        result = operands[0] if operands[0].type == _DOUBLES else builder.fpext(operands[0], _DOUBLES)
        for width in (4, 2, 1):
            mask = ir.VectorType(ir.IntType(32), width)
            low = ir.Constant(mask, tuple(range(width)))
            high = ir.Constant(mask, tuple(range(width, 2 * width)))
            result = builder.fadd(
                builder.shuffle_vector(result, result, low), builder.shuffle_vector(result, result, high)
            )
        return builder.extract_element(result, ir.IntType(32)(0))

    if not isinstance(a, _LanesType):
        raise TypingError(f"lanes are needed, not {a}")
    return types.float64(a), generate
