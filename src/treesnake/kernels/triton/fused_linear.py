"""Linear layers for a few rows in Triton, with what stands before and behind them.

Functions are those of `treesnake.kernels.reference.fused_linear`. A few rows take as long as
reading the weights, so a program reads some outputs' weights once and multiplies them with all
rows. A norm divides each row by one number, which is known when the row has been read: so it is
applied to the product. What is gated before and added behind is never written in between.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.triton import products

BLOCK_OUTPUTS = 32
"""Few, so that there are programs for every core."""

BLOCK_BYTES = 256
"""Of an output's weights; more of them need more shared memory than there is."""

SMALLEST_ROWS, MOST_ROW_BYTES = 16, 128
"""Rows of a program are at least what a matrix product has; float32 takes twice the room."""


@triton.jit
def softplus(x):
    """log(1 + exp(x)), exact also where exp(x) is small."""
    small = tl.exp(tl.minimum(x, 20.0))
    sum_of_both = 1 + small
    # What rounding took from the sum is put right by the quotient.
    lost = sum_of_both - 1
    log = tl.where(lost == 0, small, tl.log(sum_of_both) * (small / tl.where(lost == 0, 1.0, lost)))
    return tl.where(x > 20.0, x, log)


@triton.jit
def _linear_kernel(
    x,
    gates,
    norm,
    weight,
    bias,
    residual,
    out,
    num_rows,
    num_inputs,
    num_outputs,
    x_stride,
    gates_stride,
    epsilon,
    HAS_GATES: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_POSITIVE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    """Some outputs of some rows; if they are gated, weights of as many outputs follow."""
    outputs = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    wanted, present = outputs < num_outputs, rows < num_rows
    total = tl.zeros([BLOCK_ROWS, BLOCK_OUTPUTS], tl.float32)
    second = tl.zeros([BLOCK_ROWS, BLOCK_OUTPUTS], tl.float32)
    squares = tl.zeros([BLOCK_ROWS], tl.float32)
    first_at = weight + outputs.to(tl.int64)[:, None] * num_inputs
    second_at = weight + (outputs.to(tl.int64) + num_outputs)[:, None] * num_inputs
    for begin in range(0, num_inputs, BLOCK_INPUTS):
        inputs = begin + tl.arange(0, BLOCK_INPUTS)
        inside = inputs < num_inputs
        shown = present[:, None] & inside[None, :]
        value = tl.load(x + rows[:, None] * x_stride + inputs[None, :], shown, 0.0)
        if HAS_GATES:
            gate_at = gates + rows[:, None] * gates_stride + inputs[None, :]
            opened = tl.load(gate_at, shown, 0.0).to(tl.float32)
            value = value.to(tl.float32) * opened / (1 + tl.exp(-opened))
        if HAS_NORM:
            exact = value.to(tl.float32)
            squares += tl.sum(exact * exact, axis=1)
            value = exact * tl.load(norm + inputs, inside, 0.0).to(tl.float32)[None, :]
        value = value.to(weight.dtype.element_ty)
        held = wanted[:, None] & inside[None, :]
        factors = tl.load(first_at + inputs[None, :], held, 0.0)
        total += tl.dot(value, tl.trans(factors), input_precision=PRECISION)
        if IS_GATED:
            factors = tl.load(second_at + inputs[None, :], held, 0.0)
            second += tl.dot(value, tl.trans(factors), input_precision=PRECISION)
    if HAS_NORM:
        scale = 1 / tl.sqrt(squares / num_inputs + epsilon)
        total = total * scale[:, None]
        second = second * scale[:, None]
    if HAS_BIAS:
        total += tl.load(bias + outputs, wanted, 0.0).to(tl.float32)[None, :]
    if IS_GATED:
        total = total / (1 + tl.exp(-total)) * second
    if IS_POSITIVE:
        total = softplus(total)
    out_at = rows[:, None] * num_outputs + outputs[None, :]
    stored = present[:, None] & wanted[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + out_at, stored, 0.0).to(tl.float32)
    tl.store(out + out_at, total, stored)


def linear(
    x: Float[Tensor, "rows inputs"], weight: Float[Tensor, "outputs inputs"]
) -> Float[Tensor, "rows outputs"]:
    """Projects rows."""
    return _project(x, weight)


def softplus_linear(
    x: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"],
) -> Float[Tensor, "rows outputs"]:
    """Projects rows and makes the numbers positive."""
    return _project(x, weight, bias=bias, is_positive=True)


def normed_linear(
    x: Float[Tensor, "rows inputs"],
    norm: Float[Tensor, " inputs"],
    epsilon: float,
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "rows outputs"]:
    """Projects rows behind a root mean square norm."""
    return _project(x, weight, norm=norm, epsilon=epsilon, bias=bias)


def normed_gate(
    x: Float[Tensor, "rows inputs"],
    norm: Float[Tensor, " inputs"],
    epsilon: float,
    gate_up: Float[Tensor, "twice_outputs inputs"],
) -> Float[Tensor, "rows outputs"]:
    """Projects rows behind a norm twice, and gates the second projection by SiLU of the first."""
    return _project(x, gate_up, norm=norm, epsilon=epsilon, is_gated=True)


def add_linear(
    residual: Float[Tensor, "rows outputs"],
    x: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
) -> Float[Tensor, "rows outputs"]:
    """Adds projected rows to others."""
    return _project(x, weight, residual=residual)


def add_gated_linear(
    residual: Float[Tensor, "rows outputs"],
    x: Float[Tensor, "rows inputs"],
    gates: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
) -> Float[Tensor, "rows outputs"]:
    """Gates rows by SiLU of others, projects them and adds the result."""
    return _project(x, weight, gates=gates, residual=residual)


def add_gated_normed_linear(
    residual: Float[Tensor, "rows outputs"],
    x: Float[Tensor, "rows inputs"],
    gates: Float[Tensor, "rows inputs"],
    norm: Float[Tensor, " inputs"],
    epsilon: float,
    weight: Float[Tensor, "outputs inputs"],
) -> Float[Tensor, "rows outputs"]:
    """Gates rows by SiLU of others, norms them, projects them and adds the result."""
    return _project(x, weight, gates=gates, norm=norm, epsilon=epsilon, residual=residual)


def _project(
    x: Tensor,
    weight: Tensor,
    *,
    gates: Tensor | None = None,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    is_gated: bool = False,
    is_positive: bool = False,
) -> Tensor:
    """Runs the kernel; rows may be parts of longer ones."""
    num_rows, num_inputs = x.shape
    num_outputs = len(weight) // (2 if is_gated else 1)
    like = x if residual is None else residual
    out = torch.empty(num_rows, num_outputs, dtype=like.dtype, device=x.device)
    for rows in (x, gates):
        assert rows is None or rows.stride(1) == 1, "rows lie in one piece"
    assert weight.is_contiguous(), "weights are not copied"
    most_rows = MOST_ROW_BYTES // weight.element_size()
    block_rows = min(max(triton.next_power_of_2(num_rows), SMALLEST_ROWS), most_rows)
    grid = (triton.cdiv(num_outputs, BLOCK_OUTPUTS), triton.cdiv(num_rows, block_rows))
    _linear_kernel[grid](
        x,
        x if gates is None else gates,
        weight if norm is None else norm,
        weight,
        weight if bias is None else bias,
        out if residual is None else residual.contiguous(),
        out,
        num_rows,
        num_inputs,
        num_outputs,
        x.stride(0),
        0 if gates is None else gates.stride(0),
        epsilon,
        HAS_GATES=gates is not None,
        HAS_NORM=norm is not None,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        IS_GATED=is_gated,
        IS_POSITIVE=is_positive,
        PRECISION=products.PRECISION,
        BLOCK_ROWS=block_rows,
        BLOCK_OUTPUTS=BLOCK_OUTPUTS,
        BLOCK_INPUTS=BLOCK_BYTES // weight.element_size(),
        num_stages=3,  # pyrefly: ignore[unexpected-keyword]
        num_warps=8 if block_rows == most_rows else 4,  # pyrefly: ignore[unexpected-keyword]
    )
    return out
