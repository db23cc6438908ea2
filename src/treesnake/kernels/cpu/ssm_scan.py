"""The selective scan of Mamba-1 over batches of texts, forwards and backwards, compiled.

The backward pass runs the recurrence of a few channels again, keeps their states of all tokens in a
cache, and goes back over them:

    G_t = exp(dt_t+1 A) G_t+1 + C_t dy_t        the gradient of the state after token t
    dC_t = h_t dy_t      dB_t = dt_t x_t G_t      d(dt_t x_t) = G_t . B_t
    d(dt_t A) = G_t h_t-1 exp(dt_t A)

Axes are padded with zeros to whole vectors, as in `ssm_rows`.
"""

from collections.abc import Sequence
from typing import Any

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
from treesnake.kernels.cpu.jit import entry_point, kernel
from treesnake.kernels.cpu.linear import padded
from treesnake.kernels.cpu.ssm_rows import (
    CHANNELS_AT_ONCE,
    Selection,
    advance_silently,
    cell_pointers,
    run_rows,
    steps_and_amounts,
)
from treesnake.kernels.cpu.steps import block_size
from treesnake.kernels.cpu.team import TEAM, enter, finish_unit, next_unit, wait

NO_PARENTS = np.empty(0, np.int64)


@intrinsic
def _retreat(
    typing_context, rates, channel, dt, x, B, C, row, states, d_y, d_state, d_rates, d_B, d_C, sums
):
    """Goes one token back for some channels.

    `states` (tokens + 1, channels at once, state_dim) has the state before token `row` in its row
    of that number. `d_state` (channels at once, state_dim) is the gradient of the state after the
    token and becomes that of the state before. Gradients of rates, B and C are added to; `sums`
    (2, channels at once) gets those of dt * x, and of dt through the decays.
    """

    def generate(context, builder, signature, arguments):
        arrays = {
            place: context.make_array(kind)(context, builder, arguments[place])
            for place, kind in enumerate(signature.args)
            if place not in (1, 6)
        }
        channel, row = arguments[1], arguments[6]
        rates, dt, x, B, C, states, d_y, d_state, d_rates, d_B, d_C, sums = arrays.values()
        width, number = cgutils.unpack_tuple(builder, rates.shape)[1], CHANNELS_AT_ONCE
        steps, amounts = steps_and_amounts(builder, dt, x, row, channel, number)
        before = builder.mul(row, simd.index(number))
        after = builder.add(before, simd.index(number))
        rate_cells = cell_pointers(builder, rates, channel, width, number)
        d_rate_cells = cell_pointers(builder, d_rates, channel, width, number)
        d_state_cells = cell_pointers(builder, d_state, simd.index(0), width, number)
        states_before = cell_pointers(builder, states, before, width, number)
        states_after = cell_pointers(builder, states, after, width, number)
        directions, readers, d_directions, d_readers = (
            simd.row_pointer(builder, array, row) for array in (B, C, d_B, d_C)
        )
        d_outputs = builder.gep(simd.row_pointer(builder, d_y, row), [channel])
        d_output = [
            simd.splat(builder, builder.load(builder.gep(d_outputs, [simd.index(n)])))
            for n in range(number)
        ]

        def go_back(place: Any, totals: Sequence[Any]) -> list[Any]:
            def load(pointer: Any) -> Any:
                return simd.load(builder, builder.gep(pointer, [place]), types.float32)

            def store(vector: Any, pointer: Any) -> None:
                simd.store(builder, vector, builder.gep(pointer, [place]), types.float32)

            direction, reader = load(directions), load(readers)
            d_direction, d_reader = load(d_directions), load(d_readers)
            through_amounts, through_decays = list(totals[:number]), list(totals[number:])
            for n in range(number):
                rate = load(rate_cells[n])
                decay = simd.exponential(builder, builder.fmul(steps[n], rate))
                grad = simd.fused_multiply_add(builder, d_output[n], reader, load(d_state_cells[n]))
                d_reader = simd.fused_multiply_add(
                    builder, d_output[n], load(states_after[n]), d_reader
                )
                d_direction = simd.fused_multiply_add(builder, amounts[n], grad, d_direction)
                through_amounts[n] = simd.fused_multiply_add(
                    builder, grad, direction, through_amounts[n]
                )
                kept = builder.fmul(grad, decay)
                d_exponent = builder.fmul(kept, load(states_before[n]))
                d_rate = load(d_rate_cells[n])
                store(
                    simd.fused_multiply_add(builder, d_exponent, steps[n], d_rate), d_rate_cells[n]
                )
                through_decays[n] = simd.fused_multiply_add(
                    builder, d_exponent, rate, through_decays[n]
                )
                store(kept, d_state_cells[n])
            store(d_direction, d_directions)
            store(d_reader, d_readers)
            return through_amounts + through_decays

        zeros = [simd.ZERO] * (2 * number)
        totals = simd.loop(builder, simd.index(0), width, simd.LANES, zeros, go_back)
        for n, total in enumerate(simd.add_lanes(builder, totals)):
            builder.store(total, builder.gep(sums.data, [simd.index(n)]))
        return context.get_dummy_value()

    at = types.intp
    signature = types.void(
        rates, at, dt, x, B, C, at, states, d_y, d_state, d_rates, d_B, d_C, sums
    )
    return signature, generate


@entry_point
def _forward(barrier, rates, dt, x, B, C, states, no_parents, y):
    batch, num_tokens, num_channels = x.shape
    block = block_size(num_channels, barrier)
    num_blocks = (num_channels + block - 1) // block
    unit = next_unit(barrier, 0)
    while unit < batch * num_blocks:
        text, number = divmod(unit, num_blocks)
        begin = number * block
        end = min(begin + block, num_channels)
        selection = Selection(rates, dt[text], x[text], B[text], C[text], 0, y[text])
        state = states[text : text + 1]
        run_rows(selection, num_tokens, state, state, no_parents, begin, end)
        unit = finish_unit(barrier, 0)
    wait(barrier, 0, batch * num_blocks)


@entry_point
def _backward(barrier, rates, dt, x, B, C, states, grads, scratch, sums):
    """`grads` are those of y and of the last states, and those to add to; see `_go_back`."""
    thread = enter(barrier)
    batch, _, num_channels = x.shape
    unit = next_unit(barrier, 0)
    while unit < batch * (num_channels // CHANNELS_AT_ONCE):
        text, number = divmod(unit, num_channels // CHANNELS_AT_ONCE)
        inputs = (rates, dt[text], x[text], B[text], C[text], states[text])
        _go_back(
            inputs, grads, text, thread, number * CHANNELS_AT_ONCE, scratch[thread], sums[thread]
        )
        unit = finish_unit(barrier, 0)
    wait(barrier, 0, batch * (num_channels // CHANNELS_AT_ONCE))


@kernel
def _go_back(inputs, grads, text, thread, channel, states, sums):
    rates, dt, x, B, C, state = inputs
    d_y, d_states, d_dt, d_x, d_rates, d_B, d_C = grads
    num_tokens = dt.shape[0]
    for n in range(CHANNELS_AT_ONCE):
        for place in range(rates.shape[1]):
            states[0, n, place] = state[channel + n, place]
    for row in range(num_tokens):
        old = row * CHANNELS_AT_ONCE
        new = old + CHANNELS_AT_ONCE
        advance_silently(rates, channel, dt, x, B, row, states, old, states, new, B, 0, B, 0)
    d_state = d_states[text, channel : channel + CHANNELS_AT_ONCE]
    for row in range(num_tokens - 1, -1, -1):
        _retreat(
            rates,
            channel,
            dt,
            x,
            B,
            C,
            row,
            states,
            d_y[text],
            d_state,
            d_rates[text],
            d_B[thread, text],
            d_C[thread, text],
            sums,
        )
        for n in range(CHANNELS_AT_ONCE):
            at = channel + n
            d_x[text, row, at] = sums[0, n] * dt[row, at]
            d_dt[text, row, at] = sums[0, n] * x[row, at] + sums[1, n]


class _Scan(Function):
    """The scan of padded batches, without the skip connection."""

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, *args: Any
    ) -> tuple[Tensor, Tensor]:
        x, dt, A, B, C, state = args
        ctx.save_for_backward(x, dt, A, B, C, state)
        last, y = state.clone(), torch.empty_like(x)
        arrays = [part.numpy() for part in (A, dt, x, B, C, last)]
        TEAM.run(_forward, 1, *arrays, NO_PARENTS, y.numpy())
        return y, last

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, ...]:
        d_y, d_last = grad_outputs
        x, dt, A, B, C, state = ctx.saved_tensors
        batch, num_tokens, _ = x.shape
        threads, state_dim = torch.get_num_threads(), A.shape[1]
        d_x, d_dt, d_state = torch.empty_like(x), torch.empty_like(dt), d_last.clone()
        d_rates = A.new_zeros(batch, *A.shape)
        # Threads that meet the same token add to gradients of their own.
        d_B, d_C = (A.new_zeros(threads, batch, num_tokens, state_dim) for _ in range(2))
        grads = (d_y.contiguous(), d_state, d_dt, d_x, d_rates, d_B, d_C)
        scratch = np.empty((threads, num_tokens + 1, CHANNELS_AT_ONCE, state_dim), np.float32)
        sums = np.empty((threads, 2, CHANNELS_AT_ONCE), np.float32)
        inputs = [part.numpy() for part in (A, dt, x, B, C, state)]
        TEAM.run(_backward, 1, *inputs, tuple(grad.numpy() for grad in grads), scratch, sums)
        return d_x, d_dt, d_rates.sum(0), d_B.sum(0), d_C.sum(0), d_state


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
    rates = _padded_batch(A[None], 2, num_batch_axes=1)[0]
    states = _padded_batch(state, 2, num_batch_axes=len(batch))
    y, last = _Scan.apply(texts[0], texts[1], rates, texts[2], texts[3], states)
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
