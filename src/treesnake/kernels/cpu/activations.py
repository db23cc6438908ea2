"""The smooth functions of state space models on ranges of a row: SiLU, softplus, the gate."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from treesnake.kernels.cpu import simd

LOG_TERMS = 8
"""Terms of the series of log(1 + x) for x up to 1: enough for float32."""


def silu(builder: Any, x: Any) -> Any:
    """Returns x / (1 + e**-x)."""
    one = simd.constant(1.0)
    negated = builder.fsub(ir.Constant(simd.VECTOR, [-0.0] * simd.LANES), x)
    sigmoid = builder.fdiv(one, builder.fadd(one, simd.exponential(builder, negated)))
    return builder.fmul(x, sigmoid)


def softplus(builder: Any, x: Any) -> Any:
    """Returns log(1 + e**x), as max(x, 0) + log(1 + e**-|x|)."""
    negated = builder.fsub(ir.Constant(simd.VECTOR, [-0.0] * simd.LANES), x)
    magnitude = simd.larger(builder, x, negated)
    small = simd.exponential(
        builder, builder.fsub(ir.Constant(simd.VECTOR, [-0.0] * simd.LANES), magnitude)
    )
    # log(1 + u) = 2 atanh(u / (2 + u)), whose series in odd powers of at most 1/3 is short.
    ratio = builder.fdiv(small, builder.fadd(small, simd.constant(2.0)))
    square = builder.fmul(ratio, ratio)
    series = simd.constant(2 / (2 * LOG_TERMS - 1))
    for term in reversed(range(LOG_TERMS - 1)):
        series = simd.fused_multiply_add(builder, series, square, simd.constant(2 / (2 * term + 1)))
    logarithm = builder.fmul(series, ratio)
    return builder.fadd(simd.larger(builder, x, simd.ZERO), logarithm)


@intrinsic
def silu_range(typing_context, x, row, begin, end):
    """Replaces `x[row, begin:end]`, a multiple of `simd.PADDING` long, by its SiLU."""

    def generate(context, builder, signature, arguments):
        array, row, begin, end = arguments
        array = context.make_array(signature.args[0])(context, builder, array)
        start = simd.row_pointer(builder, array, row)

        def replace(place: Any, _: Any) -> list[Any]:
            pointer = builder.gep(start, [place])
            values = simd.load(builder, pointer, types.float32)
            simd.store(builder, silu(builder, values), pointer, types.float32)
            return []

        simd.loop(builder, begin, end, simd.LANES, [], replace)
        return context.get_dummy_value()

    position = types.intp
    return types.void(x, position, position, position), generate


@intrinsic
def soften_range(typing_context, x, row, bias, begin, end):
    """Replaces `x[row, begin:end]` by softplus(x + bias); the range is whole vectors."""

    def generate(context, builder, signature, arguments):
        array, row, bias, begin, end = arguments
        array = context.make_array(signature.args[0])(context, builder, array)
        bias = context.make_array(signature.args[2])(context, builder, bias)
        start = simd.row_pointer(builder, array, row)

        def replace(place: Any, _: Any) -> list[Any]:
            pointer = builder.gep(start, [place])
            values = simd.load(builder, pointer, types.float32)
            addend = simd.load(builder, builder.gep(bias.data, [place]), types.float32)
            result = softplus(builder, builder.fadd(values, addend))
            simd.store(builder, result, pointer, types.float32)
            return []

        simd.loop(builder, begin, end, simd.LANES, [], replace)
        return context.get_dummy_value()

    position = types.intp
    return types.void(x, position, bias, position, position), generate


@intrinsic
def skip_gate_range(typing_context, y, D, x, gate, gate_column, row, begin, end):
    """Replaces `y[row, begin:end]` by (y + D * x) * silu(gate); the range is whole vectors.

    `D` has one axis; `gate` is read `gate_column` columns further on.
    """

    def generate(context, builder, signature, arguments):
        y, D, x, gate = (
            context.make_array(signature.args[place])(context, builder, arguments[place])
            for place in range(4)
        )
        gate_column, row, begin, end = arguments[4:]
        y_start, x_start = (simd.row_pointer(builder, array, row) for array in (y, x))
        gate_start = builder.gep(simd.row_pointer(builder, gate, row), [gate_column])

        def replace(place: Any, _: Any) -> list[Any]:
            output, weight, inputs, gates = (
                simd.load(builder, builder.gep(start, [place]), types.float32)
                for start in (y_start, D.data, x_start, gate_start)
            )
            total = simd.fused_multiply_add(builder, weight, inputs, output)
            product = builder.fmul(total, silu(builder, gates))
            simd.store(builder, product, builder.gep(y_start, [place]), types.float32)
            return []

        simd.loop(builder, begin, end, simd.LANES, [], replace)
        return context.get_dummy_value()

    position = types.intp
    signature = types.void(y, D, x, gate, position, position, position, position)
    return signature, generate
