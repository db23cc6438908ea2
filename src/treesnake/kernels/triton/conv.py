"""Short causal convolution in Triton; functions are those of `treesnake.kernels.reference.conv`."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.reference import conv as reference
from treesnake.kernels.tree_rows import TreeRows
from treesnake.kernels.triton.gradients import with_gradient_of

BLOCK_CHANNELS = 128


@triton.jit
def _conv_kernel(
    inputs,
    history,
    slots,
    windows,
    weight,
    bias,
    out,
    num_inputs,
    num_outputs,
    num_channels,
    CONV_WIDTH: tl.constexpr,
    IS_TREE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One output row, some channels a program; rows of a window count the history first.

    The inputs and the history of a text are in its own index, those of a tree in the text's slot.
    """
    row, text = tl.program_id(0), tl.program_id(2)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < num_channels
    num_history = CONV_WIDTH - 1
    slot = text
    if IS_TREE:
        slot = tl.load(slots + text)
    total = tl.zeros([BLOCK], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + channels, inside, 0.0).to(tl.float32)
    for index in tl.static_range(CONV_WIDTH):
        source = row + index
        if IS_TREE:
            source = tl.load(windows + (text * num_outputs + row) * CONV_WIDTH + index).to(tl.int32)
        sources = source + tl.zeros([BLOCK], tl.int32)
        in_history, in_inputs = inside & (sources < num_history), inside & (sources >= num_history)
        old_row = slot * num_history + source
        new_row = slot * num_inputs + source - num_history
        values = tl.load(history + old_row * num_channels + channels, in_history, 0.0).to(
            tl.float32
        )
        values += tl.load(inputs + new_row * num_channels + channels, in_inputs, 0.0).to(tl.float32)
        factors = tl.load(weight + channels * CONV_WIDTH + index, inside, 0.0).to(tl.float32)
        total += values * factors
    if ACTIVATES:
        total = total / (1 + tl.exp(-total))
    start = (text * num_outputs + row) * num_channels
    tl.store(out + start + channels, total, inside)


def causal_conv(
    inputs: Float[Tensor, "*batch tokens channels"],
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "*batch history channels"],
) -> Float[Tensor, "*batch tokens channels"]:
    """Convolves a text: output t sees inputs t - K + 1 to t; differentiable."""
    return with_gradient_of(reference.causal_conv, _causal_conv, inputs, weight, bias, history)


def _causal_conv(inputs: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor) -> Tensor:
    return _convolve(inputs, weight, bias, history, None, activates=True)


def causal_filter(
    inputs: Float[Tensor, "*batch tokens channels"],
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "*batch history channels"],
) -> Float[Tensor, "*batch tokens channels"]:
    """Convolves a text, without what follows a convolution; for inference."""
    return _convolve(inputs, weight, bias, history, None, activates=False)


def tree_conv(
    inputs: Float[Tensor, "slots rows channels"],
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "slots history channels"],
    new: TreeRows,
) -> Float[Tensor, "trees new channels"]:
    """Convolves the new nodes of some trees: each sees the last K inputs on its own path."""
    assert inputs.is_contiguous(), "what all slots hold is not copied"
    return _convolve(inputs, weight, bias, history, new, activates=True)


def tree_filter(
    inputs: Float[Tensor, "slots rows channels"],
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "slots history channels"],
    new: TreeRows,
) -> Float[Tensor, "trees new channels"]:
    """Convolves the new nodes of some trees, without what follows a convolution."""
    return _convolve(inputs, weight, bias, history, new, activates=False)


def _convolve(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor,
    new: TreeRows | None,
    *,
    activates: bool,
) -> Tensor:
    inputs, history = inputs.contiguous(), history.contiguous()
    num_inputs, num_channels = inputs.shape[-2:]
    axes = inputs.shape[:-1] if new is None else new.rows.shape
    num_outputs, num_texts = axes[-1], axes[:-1].numel()
    dtype = torch.promote_types(inputs.dtype, history.dtype)
    out = inputs.new_empty(*axes, num_channels, dtype=dtype)
    grid = (num_outputs, triton.cdiv(num_channels, BLOCK_CHANNELS), num_texts)
    _conv_kernel[grid](
        inputs,
        history,
        inputs if new is None else new.slots,
        inputs if new is None else new.windows.contiguous(),
        weight.contiguous(),
        inputs if bias is None else bias,
        out,
        num_inputs,
        num_outputs,
        num_channels,
        CONV_WIDTH=weight.shape[1],
        IS_TREE=new is not None,
        HAS_BIAS=bias is not None,
        ACTIVATES=activates,
        BLOCK=BLOCK_CHANNELS,
    )
    return out
