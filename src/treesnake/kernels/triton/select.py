"""What stands between the first projection of a Mamba's layer and its recurrence, in one kernel.

A node's inputs are convolved along its path, and what later nodes need of them is written to the
rows of its slot. Nodes of the same pass see each other in the projection itself, since nobody waits
for what another program writes. The readable form is `run_nodes` of `treesnake.models.state_space`.
"""

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.tree_rows import TreeRows
from treesnake.kernels.triton.fused_linear import softplus

BLOCK_CHANNELS = 128


@triton.jit
def _select_kernel(
    projected,
    weight,
    bias,
    dt_bias,
    history,
    conv_inputs,
    slots,
    node_rows,
    windows,
    x,
    B,
    dt,
    out,
    num_new,
    num_rows,
    width,
    begin,
    num_channels,
    num_x,
    num_b,
    num_heads,
    CONV_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_DUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    """Some channels of one node; a row's history has negative numbers."""
    node = tl.program_id(0)
    tree = node // num_new
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < num_channels
    num_history = CONV_WIDTH - 1
    slot = tl.load(slots + tree).to(tl.int64)
    row = tl.load(node_rows + node)
    first_new = tl.load(node_rows + tree * num_new)
    total = tl.zeros([BLOCK], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + channels, inside, 0.0).to(tl.float32)
    for index in tl.static_range(CONV_WIDTH):
        source = tl.load(windows + node * CONV_WIDTH + index) - num_history
        sources = source + tl.zeros([BLOCK], tl.int64)
        is_new = inside & (sources >= first_new)
        is_old = inside & (sources < 0)
        is_held = inside & (sources >= 0) & (sources < first_new)
        old_at = (slot * num_history + source + num_history) * num_channels + channels
        held_at = (slot * num_rows + source) * num_channels + channels
        new_at = (tree * num_new + source - first_new) * width + begin + channels
        value = tl.load(history + old_at, is_old, 0.0).to(tl.float32)
        value += tl.load(conv_inputs + held_at, is_held, 0.0).to(tl.float32)
        value += tl.load(projected + new_at, is_new, 0.0).to(tl.float32)
        factors = tl.load(weight + channels * CONV_WIDTH + index, inside, 0.0).to(tl.float32)
        total += value * factors
    total = total / (1 + tl.exp(-total))
    own = tl.load(projected + node * width + begin + channels, inside, 0.0)
    place = slot * num_rows + row
    tl.store(conv_inputs + place * num_channels + channels, own, inside)
    if IS_DUAL:
        tl.store(x + place * num_x + channels, total, channels < num_x)
        is_b = (channels >= num_x) & (channels < num_x + num_b)
        tl.store(B + place * num_b + channels - num_x, total, is_b)
        is_c = inside & (channels >= num_x + num_b)
        tl.store(out + node * num_b + channels - num_x - num_b, total, is_c)
        if tl.program_id(1) == 0:
            heads = tl.arange(0, BLOCK_HEADS)
            there = heads < num_heads
            step_at = projected + node * width + begin + num_channels + heads
            step = tl.load(step_at, there, 0.0).to(tl.float32)
            step += tl.load(dt_bias + heads, there, 0.0).to(tl.float32)
            tl.store(dt + place * num_heads + heads, softplus(step), there)
    else:
        tl.store(out + node * num_channels + channels, total, inside)


def select(
    projected: Float[Tensor, "trees_new width"],
    begin: int,
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    history: Float[Tensor, "slots history channels"],
    conv_inputs: Float[Tensor, "slots rows channels"],
    new: TreeRows,
) -> Float[Tensor, "trees_new channels"]:
    """Convolves new nodes and keeps their inputs: for Mamba-1.

    Args:
        projected: rows in which the inputs of the convolution begin at `begin`.
        begin: where.
        weight: of the convolution.
        bias: of the convolution.
        history: the last inputs of each slot's text.
        conv_inputs: those of each slot's nodes; new ones are written.
        new: where the new nodes lie.
    """
    out = projected.new_empty(len(projected), conv_inputs.shape[2])
    _select(projected, begin, weight, bias, None, history, conv_inputs, new, (out, out, out), out)
    return out


def select_dual(
    projected: Float[Tensor, "trees_new width"],
    begin: int,
    weight: Float[Tensor, "channels conv_width"],
    bias: Float[Tensor, " channels"] | None,
    dt_bias: Float[Tensor, " heads"],
    history: Float[Tensor, "slots history channels"],
    conv_inputs: Float[Tensor, "slots rows channels"],
    new: TreeRows,
    kept: tuple[
        Float[Tensor, "slots rows heads head_dim"],
        Float[Tensor, "slots rows groups state_dim"],
        Float[Tensor, "slots rows heads"],
    ],
) -> Float[Tensor, "trees_new groups state_dim"]:
    """Convolves new nodes, keeps what moves the state and returns what reads it: for Mamba-2.

    Args:
        projected: rows in which the inputs of the convolution begin at `begin`; step sizes follow.
        begin: where.
        weight: of the convolution.
        bias: of the convolution.
        dt_bias: of the step sizes.
        history: the last inputs of each slot's text.
        conv_inputs: those of each slot's nodes; new ones are written.
        new: where the new nodes lie.
        kept: x, B and dt of each slot's nodes; new ones are written.
    """
    out = projected.new_empty(len(projected), *kept[1].shape[2:])
    _select(projected, begin, weight, bias, dt_bias, history, conv_inputs, new, kept, out)
    return out


def _select(
    projected: Tensor,
    begin: int,
    weight: Tensor,
    bias: Tensor | None,
    dt_bias: Tensor | None,
    history: Tensor,
    conv_inputs: Tensor,
    new: TreeRows,
    kept: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
) -> None:
    num_rows, num_channels = conv_inputs.shape[1:]
    x, B, dt = kept
    for part in (conv_inputs, *kept):
        assert part.is_contiguous(), "rows are written in place"
    num_heads = dt.shape[-1]
    _select_kernel[(len(projected), triton.cdiv(num_channels, BLOCK_CHANNELS))](
        projected,
        weight,
        weight if bias is None else bias,
        weight if dt_bias is None else dt_bias,
        history,
        conv_inputs,
        new.slots,
        new.rows,
        new.windows,
        x,
        B,
        dt,
        out,
        new.rows.shape[1],
        num_rows,
        projected.stride(0),
        begin,
        num_channels,
        x[0, 0].numel(),
        B[0, 0].numel(),
        num_heads,
        CONV_WIDTH=weight.shape[1],
        HAS_BIAS=bias is not None,
        IS_DUAL=dt_bias is not None,
        BLOCK=BLOCK_CHANNELS,
        BLOCK_HEADS=triton.next_power_of_2(num_heads) if dt_bias is not None else 1,
    )
