"""Root mean square norms, rotary position embeddings and the gate of an MLP: one row at a time."""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import kernel

TANH_SLOPE, TANH_CUBE = math.sqrt(2 / math.pi), 0.044715
"""GELU is about x * (1 + tanh(slope * (x + cube * x**3))) / 2 (Hendrycks and Gimpel 2016)."""

LARGEST_SQUARE = 1e30
"""Squares of gates are bounded, so that no infinity is multiplied with 0."""


@intrinsic
def sum_of_squares(typing_context, x, row, begin, end):
    """Sums the squares of `x[row, begin:end]`; the range is a multiple of `simd.PADDING` long."""

    def generate(context, builder, signature, arguments):
        array, row, begin, end = arguments
        start = simd.row_pointer(
            builder, context.make_array(signature.args[0])(context, builder, array), row
        )

        def add_square(column: Any, totals: Any) -> Any:
            values = simd.load(builder, builder.gep(start, [column]), types.float32)
            return [simd.fused_multiply_add(builder, values, values, totals[0])]

        totals = simd.loop(builder, begin, end, simd.LANES, [simd.ZERO], add_square)
        return simd.add_lanes(builder, totals)[0]

    position = types.intp
    return types.float32(x, position, position, position), generate


@kernel
def inverse_rms(x, row, begin, end, width, epsilon):
    """Returns 1 / sqrt(mean square + epsilon) of the `width` values in `x[row, begin:end]`.

    The rest of the range is padding and zero.
    """
    mean = sum_of_squares(x, row, begin, end) / np.float32(width)
    return np.float32(1) / math.sqrt(mean + epsilon)


@kernel
def rms_norm_row(x, row, weight, epsilon, out):
    """Writes the norm of a row of `x`, whose padding is zero, to the same row of `out`."""
    width = weight.shape[0]
    inverse = inverse_rms(x, row, 0, x.shape[1], width, epsilon)
    for column in range(width):
        out[row, column] = weight[column] * (x[row, column] * inverse)


@kernel
def add_rms_norm_row(x, row, weight, epsilon, out):
    """The same, added to `out`."""
    width = weight.shape[0]
    inverse = inverse_rms(x, row, 0, x.shape[1], width, epsilon)
    for column in range(width):
        out[row, column] += weight[column] * (x[row, column] * inverse)


@kernel
def scale_range(x, row, begin, weight, factor):
    """Multiplies `x[row, begin : begin + len(weight)]` with `weight * factor`, in place."""
    for column in range(weight.shape[0]):
        x[row, begin + column] = weight[column] * (x[row, begin + column] * factor)


@kernel
def rotate_range(x, row, begin, cosines, sines):
    """Turns the pairs (i, i + half) of `x[row, begin : begin + 2 * half]`, in place.

    `cosines` and `sines` (half,) are those of the row's position times each frequency.
    """
    half = cosines.shape[0]
    for pair in range(half):
        first = x[row, begin + pair]
        second = x[row, begin + half + pair]
        x[row, begin + pair] = first * cosines[pair] - second * sines[pair]
        x[row, begin + half + pair] = second * cosines[pair] + first * sines[pair]


GATES = {"silu": (1.0, 0.0), "gelu_tanh": (2 * TANH_SLOPE, 2 * TANH_SLOPE * TANH_CUBE)}
"""The slope and cube of `gate_range` for each activation."""


@intrinsic
def gate_range(typing_context, gate_up, row, begin, end, width, slope, cube, out):
    """Writes activation(gate) * up to `out[row, begin:end]`, a multiple of `simd.PADDING` long.

    A row of `gate_up` holds the gate and, `width` further on, up. The activation of x is x *
    sigmoid(slope * x + cube * x**3). That is SiLU, or the GELU that is made of a hyperbolic
    tangent, since (1 + tanh(z)) / 2 = sigmoid(2 * z).
    """

    def generate(context, builder, signature, arguments):
        array, row, begin, end, width, slope, cube, out = arguments
        gate = simd.row_pointer(
            builder, context.make_array(signature.args[0])(context, builder, array), row
        )
        target = simd.row_pointer(
            builder, context.make_array(signature.args[7])(context, builder, out), row
        )
        up = builder.gep(gate, [width])
        one, largest = simd.constant(1.0), simd.constant(LARGEST_SQUARE)
        slope, cube = simd.splat(builder, slope), simd.splat(builder, cube)

        def write(column: Any, _: Any) -> list[Any]:
            x = simd.load(builder, builder.gep(gate, [column]), types.float32)
            y = simd.load(builder, builder.gep(up, [column]), types.float32)
            square = simd.smaller(builder, builder.fmul(x, x), largest)
            factor = simd.fused_multiply_add(builder, cube, square, slope)
            negated = builder.fsub(
                ir.Constant(simd.VECTOR, [-0.0] * simd.LANES), builder.fmul(x, factor)
            )
            sigmoid = builder.fdiv(one, builder.fadd(one, simd.exponential(builder, negated)))
            product = builder.fmul(builder.fmul(x, sigmoid), y)
            simd.store(builder, product, builder.gep(target, [column]), types.float32)
            return []

        simd.loop(builder, begin, end, simd.LANES, [], write)
        return context.get_dummy_value()

    position, number = types.intp, types.float32
    signature = types.void(gate_up, position, position, position, position, number, number, out)
    return signature, generate
