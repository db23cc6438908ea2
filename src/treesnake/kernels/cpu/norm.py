"""Root mean square norms, rotary position embeddings and the gate of an MLP: one row at a time."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import entry_point, kernel


@intrinsic
def sum_of_squares(typing_context, x, row, begin, end):
    """Sums the squares of `x[row, begin:end]`; the range is a multiple of `simd.PADDING` long."""

    def generate(context, builder, signature, arguments):
        array, row, begin, end = arguments
        start = simd.row_pointer(
            builder, context.make_array(signature.args[0])(context, builder, array), row
        )

        def add_square(place: Any, totals: Any) -> Any:
            values = simd.load(builder, builder.gep(start, [place]), types.float32)
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
    for place in range(width):
        out[row, place] = weight[place] * (x[row, place] * inverse)


@kernel
def add_rms_norm_row(x, row, weight, epsilon, out):
    """The same, added to `out`."""
    width = weight.shape[0]
    inverse = inverse_rms(x, row, 0, x.shape[1], width, epsilon)
    for place in range(width):
        out[row, place] += weight[place] * (x[row, place] * inverse)


@kernel
def scale_range(x, row, begin, weight, factor):
    """Multiplies `x[row, begin : begin + len(weight)]` with `weight * factor`, in place."""
    for place in range(weight.shape[0]):
        x[row, begin + place] = weight[place] * (x[row, begin + place] * factor)


@kernel
def rotate_range(x, row, begin, cosines, sines):
    """Turns the pairs (i, i + half) of `x[row, begin : begin + 2 * half]`, in place.

    `cosines` and `sines` (half,) are those of the row's position times each frequency.
    """
    half = cosines.shape[0]
    for place in range(half):
        first = x[row, begin + place]
        second = x[row, begin + half + place]
        x[row, begin + place] = first * cosines[place] - second * sines[place]
        x[row, begin + half + place] = second * cosines[place] + first * sines[place]


@intrinsic
def gate_range(typing_context, gate_up, row, begin, end, width, out):
    """Writes silu(gate) * up to `out[row, begin:end]`, a multiple of `simd.PADDING` long.

    A row of `gate_up` holds the gate and, `width` further on, up.
    """

    def generate(context, builder, signature, arguments):
        array, row, begin, end, width, out = arguments
        gate = simd.row_pointer(
            builder, context.make_array(signature.args[0])(context, builder, array), row
        )
        target = simd.row_pointer(
            builder, context.make_array(signature.args[5])(context, builder, out), row
        )
        up = builder.gep(gate, [width])
        one = simd.constant(1.0)

        def write(place: Any, _: Any) -> list[Any]:
            x = simd.load(builder, builder.gep(gate, [place]), types.float32)
            y = simd.load(builder, builder.gep(up, [place]), types.float32)
            negated = builder.fsub(ir.Constant(simd.VECTOR, [-0.0] * simd.LANES), x)
            sigmoid = builder.fdiv(one, builder.fadd(one, simd.exponential(builder, negated)))
            product = builder.fmul(builder.fmul(x, sigmoid), y)
            simd.store(builder, product, builder.gep(target, [place]), types.float32)
            return []

        simd.loop(builder, begin, end, simd.LANES, [], write)
        return context.get_dummy_value()

    position = types.intp
    signature = types.void(gate_up, position, position, position, position, out)
    return signature, generate


@entry_point
def _rms_norm(x, weight, epsilon, out):
    for row in range(x.shape[0]):
        rms_norm_row(x, row, weight, epsilon, out)


def rms_norm(
    x: Float[Tensor, "rows width"], weight: Float[Tensor, " width"], epsilon: float
) -> Float[Tensor, "rows width"]:
    """Divides each row by its root mean square."""
    inputs = _pad(x)
    out = np.zeros_like(inputs)
    _rms_norm(inputs, weight.numpy(), np.float32(epsilon), out)
    return torch.from_numpy(out[:, : x.shape[1]])


@entry_point
def _rotate(x, head_dim, cosines, sines):
    for row in range(x.shape[0]):
        for begin in range(0, x.shape[1], head_dim):
            rotate_range(x, row, begin, cosines[row], sines[row])


def rotate(
    x: Float[Tensor, "nodes heads head_dim"],
    cosines: Float[Tensor, "nodes pairs"],
    sines: Float[Tensor, "nodes pairs"],
) -> Float[Tensor, "nodes heads head_dim"]:
    """Turns the pairs (i, i + pairs) of every head; what lies behind the pairs stays (RoPE)."""
    out = x.flatten(1).clone()
    _rotate(out.numpy(), x.shape[2], cosines.numpy(), sines.numpy())
    return out.unflatten(1, x.shape[1:])


@entry_point
def _gate(gate_up, width, out):
    for row in range(gate_up.shape[0]):
        gate_range(gate_up, row, 0, width, width, out)


def gate(gate_up: Float[Tensor, "rows twice_width"]) -> Float[Tensor, "rows width"]:
    """Multiplies the second half of each row with SiLU of the first."""
    first, second = (_pad(half) for half in gate_up.chunk(2, dim=1))
    out = np.zeros_like(first)
    _gate(np.concatenate([first, second], axis=1), first.shape[1], out)
    return torch.from_numpy(out[:, : gate_up.shape[1] // 2])


def _pad(x: Float[Tensor, "rows width"]) -> np.ndarray:
    return F.pad(x, (0, -x.shape[1] % simd.PADDING)).numpy()
