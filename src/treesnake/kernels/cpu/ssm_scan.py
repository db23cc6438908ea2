"""The selective scan of Mamba-1 over batches of texts, forwards and backwards, compiled.

The backward pass runs the recurrence of a few channels again, keeps their states of all tokens in a
cache, and goes back over them:

    G_t = exp(dt_t+1 A) G_t+1 + C_t dy_t        the gradient of the state after token t
    dC_t = h_t dy_t      dB_t = dt_t x_t G_t      d(dt_t x_t) = G_t . B_t
    d(dt_t A) = G_t h_t-1 exp(dt_t A)

Axes are padded with zeros to whole vectors, as in `ssm_rows`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd import Function

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import inlined, kernel
from treesnake.kernels.cpu.linear import padded
from treesnake.kernels.cpu.ssm_rows import (
    CHANNELS_AT_ONCE,
    SsmSelection,
    advance_silently,
    cell_pointers,
    members,
    run_rows,
    steps_and_amounts,
)
from treesnake.kernels.cpu.steps import block_size
from treesnake.kernels.cpu.team import TEAM, enter, finish_unit, next_unit, together, wait

NO_PARENTS = np.empty(0, np.int64)


class TextGradients(NamedTuple):
    """Gradients of one text: of its outputs, and those that going back over a token changes.

    `state` is that of the state after a token, (channels at once, state_dim), and becomes that of
    the state before. `sums` (2, channels at once) gets those of dt * x, and of dt through the
    decays.
    """

    y: np.ndarray
    state: np.ndarray
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    sums: np.ndarray


class BatchGradients(NamedTuple):
    """Gradients of a whole batch: of `y` and of the last states, and those to be computed.

    Those of A have an entry a text; those of B and C have one a thread and text.
    """

    y: np.ndarray
    states: np.ndarray
    dt: np.ndarray
    x: np.ndarray
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray


class BatchInputs(NamedTuple):
    """What the scan of a batch of texts reads; states are those before the texts."""

    A: np.ndarray
    dt: np.ndarray
    x: np.ndarray
    B: np.ndarray
    C: np.ndarray
    states: np.ndarray


@intrinsic
def _retreat(typing_context, selection, grads, channel, row, states):
    """Goes one token back for some channels.

    `states` (tokens + 1, channels at once, state_dim) has the state before token `row` in its row
    of that number. Gradients of A, B and C are added to.
    """

    def generate(context, builder, signature, arguments):
        given = members(context, builder, signature.args[0], arguments[0])
        grads = members(context, builder, signature.args[1], arguments[1])
        channel, row = arguments[2], arguments[3]
        states = context.make_array(signature.args[4])(context, builder, arguments[4])
        width, number = cgutils.unpack_tuple(builder, given["A"].shape)[1], CHANNELS_AT_ONCE
        steps, amounts = steps_and_amounts(builder, given["dt"], given["x"], row, channel, number)
        before = builder.mul(row, simd.index(number))
        after = builder.add(before, simd.index(number))
        rates, d_rates, d_state, states_before, states_after = (
            cell_pointers(builder, array, cell, width, number)
            for array, cell in (
                (given["A"], channel),
                (grads["A"], channel),
                (grads["state"], simd.index(0)),
                (states, before),
                (states, after),
            )
        )
        directions, readers, d_directions, d_readers = (
            simd.row_pointer(builder, array, row)
            for array in (given["B"], given["C"], grads["B"], grads["C"])
        )
        d_outputs = builder.gep(simd.row_pointer(builder, grads["y"], row), [channel])
        d_output = [
            simd.splat(builder, builder.load(builder.gep(d_outputs, [simd.index(n)])))
            for n in range(number)
        ]

        def go_back(offset: Any, totals: Sequence[Any]) -> list[Any]:
            def load(pointer: Any) -> Any:
                return simd.load(builder, builder.gep(pointer, [offset]), types.float32)

            def store(vector: Any, pointer: Any) -> None:
                simd.store(builder, vector, builder.gep(pointer, [offset]), types.float32)

            def add_product(x: Any, y: Any, total: Any) -> Any:
                return simd.fused_multiply_add(builder, x, y, total)

            direction, reader = load(directions), load(readers)
            d_direction, d_reader = load(d_directions), load(d_readers)
            through_amounts, through_decays = list(totals[:number]), list(totals[number:])
            for n in range(number):
                rate = load(rates[n])
                decay = simd.exponential(builder, builder.fmul(steps[n], rate))
                grad = add_product(d_output[n], reader, load(d_state[n]))
                d_reader = add_product(d_output[n], load(states_after[n]), d_reader)
                d_direction = add_product(amounts[n], grad, d_direction)
                through_amounts[n] = add_product(grad, direction, through_amounts[n])
                kept = builder.fmul(grad, decay)
                d_exponent = builder.fmul(kept, load(states_before[n]))
                store(add_product(d_exponent, steps[n], load(d_rates[n])), d_rates[n])
                through_decays[n] = add_product(d_exponent, rate, through_decays[n])
                store(kept, d_state[n])
            store(d_direction, d_directions)
            store(d_reader, d_readers)
            return through_amounts + through_decays

        zeros = [simd.ZERO] * (2 * number)
        totals = simd.loop(builder, simd.index(0), width, simd.LANES, zeros, go_back)
        for n, total in enumerate(simd.add_lanes(builder, totals)):
            builder.store(total, builder.gep(grads["sums"].data, [simd.index(n)]))
        return context.get_dummy_value()

    at = types.intp
    return types.void(selection, grads, at, at, states), generate


@inlined
def _text_selection(inputs, text, y):
    dt, x, B, C = inputs.dt[text], inputs.x[text], inputs.B[text], inputs.C[text]
    return SsmSelection(inputs.A, dt, x, B, C, 0, y, 0)


@together
def _forward(barrier, inputs, no_parents, y):
    """Writes outputs, and moves the states along the texts."""
    batch, num_tokens, num_channels = inputs.x.shape
    block = block_size(num_channels, barrier)
    num_blocks = (num_channels + block - 1) // block
    unit = next_unit(barrier, 0)
    while unit < batch * num_blocks:
        text, number = divmod(unit, num_blocks)
        begin = number * block
        end = min(begin + block, num_channels)
        selection, state = _text_selection(inputs, text, y[text]), inputs.states[text]
        run_rows(selection, num_tokens, state, state, no_parents, begin, end)
        unit = finish_unit(barrier, 0)
    wait(barrier, 0, batch * num_blocks)


@together
def _backward(barrier, inputs, grads, scratch, sums):
    thread = enter(barrier)
    batch, _, num_channels = inputs.x.shape
    num_tiles = num_channels // CHANNELS_AT_ONCE
    unit = next_unit(barrier, 0)
    while unit < batch * num_tiles:
        text, number = divmod(unit, num_tiles)
        channel = number * CHANNELS_AT_ONCE
        _go_back(inputs, grads, text, thread, channel, scratch[thread], sums[thread])
        unit = finish_unit(barrier, 0)
    wait(barrier, 0, batch * num_tiles)


@kernel
def _go_back(inputs, grads, text, thread, channel, states, sums):
    selection, state = _text_selection(inputs, text, grads.y[text]), inputs.states[text]
    num_tokens, end = selection.dt.shape[0], channel + CHANNELS_AT_ONCE
    for n in range(CHANNELS_AT_ONCE):
        for column in range(state.shape[1]):
            states[0, n, column] = state[channel + n, column]
    for row in range(num_tokens):
        old = row * CHANNELS_AT_ONCE
        advance_silently(selection, channel, row, states, old, states, old + CHANNELS_AT_ONCE, 0)
    d_state = grads.states[text, channel:end]
    d_B, d_C = grads.B[thread, text], grads.C[thread, text]
    own = TextGradients(grads.y[text], d_state, grads.A[text], d_B, d_C, sums)
    for row in range(num_tokens - 1, -1, -1):
        _retreat(selection, own, channel, row, states)
        for n in range(CHANNELS_AT_ONCE):
            at = channel + n
            grads.x[text, row, at] = sums[0, n] * selection.dt[row, at]
            grads.dt[text, row, at] = sums[0, n] * selection.x[row, at] + sums[1, n]


class _Scan(Function):
    """The scan of padded batches, without the skip connection."""

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, *args: Any
    ) -> tuple[Tensor, Tensor]:
        x, dt, A, B, C, state = args
        ctx.save_for_backward(x, dt, A, B, C, state)
        last, y = state.clone(), torch.empty_like(x)
        inputs = BatchInputs(*(part.numpy() for part in (A, dt, x, B, C, last)))
        TEAM.run(_forward, 1, inputs, NO_PARENTS, y.numpy())
        return y, last

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, ...]:
        d_y, d_last = grad_outputs
        x, dt, A, B, C, state = ctx.saved_tensors
        batch, num_tokens, _ = x.shape
        threads, state_dim = torch.get_num_threads(), A.shape[1]
        d_x, d_dt, d_state = torch.empty_like(x), torch.empty_like(dt), d_last.clone()
        d_A = A.new_zeros(batch, *A.shape)
        # Threads that meet the same token add to gradients of their own.
        d_B, d_C = (A.new_zeros(threads, batch, num_tokens, state_dim) for _ in range(2))
        grads = (d_y.contiguous(), d_state, d_dt, d_x, d_A, d_B, d_C)
        scratch = np.empty((threads, num_tokens + 1, CHANNELS_AT_ONCE, state_dim), np.float32)
        sums = np.empty((threads, 2, CHANNELS_AT_ONCE), np.float32)
        inputs = BatchInputs(*(part.numpy() for part in (A, dt, x, B, C, state)))
        own = BatchGradients(*(grad.numpy() for grad in grads))
        TEAM.run(_backward, 1, inputs, own, scratch, sums)
        return d_x, d_dt, d_A.sum(0), d_B.sum(0), d_C.sum(0), d_state


def scan(
    x: Float[Tensor, "*batch tokens channels"],
    dt: Float[Tensor, "*batch tokens channels"],
    A: Float[Tensor, "channels state_dim"],
    B: Float[Tensor, "*batch tokens state_dim"],
    C: Float[Tensor, "*batch tokens state_dim"],
    D: Float[Tensor, " channels"],
    state: Float[Tensor, "*batch channels state_dim"],
) -> tuple[Float[Tensor, "*batch tokens channels"], Float[Tensor, "*batch channels state_dim"]]:
    """Returns the outputs of a text and the state after it; differentiable.

    Equal to `treesnake.kernels.reference.ssm.scan`; tokens after one another, channels at once.
    """
    batch = x.shape[:-2]
    texts = [_padded_batch(part, 1, num_batch_axes=len(batch)) for part in (x, dt, B, C)]
    padded_A = _padded_batch(A[None], 2, num_batch_axes=1)[0]
    states = _padded_batch(state, 2, num_batch_axes=len(batch))
    y, last = _Scan.apply(texts[0], texts[1], padded_A, texts[2], texts[3], states)
    y = y[..., : x.shape[-1]].reshape(x.shape)
    last = last[:, : state.shape[-2], : state.shape[-1]].reshape(state.shape)
    return (y + D * x).to(x.dtype), last


def _padded_batch(
    part: Float[Tensor, "*batch rows width"], axes: int, num_batch_axes: int
) -> Float[Tensor, "flat_batch rows padded_width"]:
    """Joins the batch axes and pads the last axes to whole vectors, in float32."""
    padding: list[int] = []
    for size in reversed(part.shape[-axes:]):
        padding += [0, padded(size) - size]
    part = part.float().reshape(-1, *part.shape[num_batch_axes:])
    return (F.pad(part, padding) if any(padding) else part).contiguous()
