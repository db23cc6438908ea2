"""The selective scan of Mamba-1 in Triton, forwards and backwards.

Forwards, a program goes along a text with some channels' states in registers, and keeps those at
the start of every chunk. Backwards it takes the chunks from the last one on: it runs a chunk again,
writes its states to scratch memory, and goes back over them. Gradients of B and C, which all
channels share, are summed over the programs afterwards, so that results do not vary from run to
run. Formulas are in `treesnake.kernels.cpu.ssm_scan`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

BLOCK_CHANNELS = 32
CHUNK = 64


@triton.jit
def _forward_kernel(
    x,
    dt,
    A,
    B,
    C,
    states,
    kept,
    y,
    num_tokens,
    num_chunks,
    num_channels,
    state_dim,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
):
    text = tl.program_id(0)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK_STATE)
    inside, real = channels < num_channels, columns < state_dim
    cells = channels[:, None] * state_dim + columns[None, :]
    valid = inside[:, None] & real[None, :]
    state_size = num_channels * state_dim
    rates = tl.load(A + cells, valid, 0.0)
    state = tl.load(states + text * state_size + cells, valid, 0.0)
    for token in range(num_tokens):
        if token % CHUNK == 0:
            chunk = text * num_chunks + token // CHUNK
            tl.store(kept + chunk * state_size + cells, state, valid)
        row = text * num_tokens + token
        step = tl.load(dt + row * num_channels + channels, inside, 0.0)
        value = tl.load(x + row * num_channels + channels, inside, 0.0)
        direction = tl.load(B + row * state_dim + columns, real, 0.0)
        reader = tl.load(C + row * state_dim + columns, real, 0.0)
        written = (step * value)[:, None] * direction[None, :]
        state = tl.exp(step[:, None] * rates) * state + written
        output = tl.sum(state * reader[None, :], axis=1)
        tl.store(y + row * num_channels + channels, output, inside)
    tl.store(states + text * state_size + cells, state, valid)


@triton.jit
def _backward_kernel(
    x,
    dt,
    A,
    B,
    C,
    kept,
    scratch,
    d_y,
    d_states,
    d_x,
    d_dt,
    d_rates,
    d_B,
    d_C,
    num_tokens,
    num_chunks,
    num_channels,
    state_dim,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
):
    """`scratch` has room for a chunk's states of every text, that before it included."""
    text, block = tl.program_id(0), tl.program_id(1)
    channels = block * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK_STATE)
    inside, real = channels < num_channels, columns < state_dim
    cells = channels[:, None] * state_dim + columns[None, :]
    valid = inside[:, None] & real[None, :]
    state_size = num_channels * state_dim
    rates = tl.load(A + cells, valid, 0.0)
    d_state = tl.load(d_states + text * state_size + cells, valid, 0.0)
    d_rate = tl.zeros([BLOCK, BLOCK_STATE], tl.float32)
    own_scratch = scratch + text * (CHUNK + 1) * state_size
    shared_rows = (block * tl.num_programs(0) + text) * num_tokens
    for back in range(num_chunks):
        chunk = num_chunks - 1 - back
        begin = chunk * CHUNK
        size = tl.minimum(CHUNK, num_tokens - begin)
        state = tl.load(kept + (text * num_chunks + chunk) * state_size + cells, valid, 0.0)
        tl.store(own_scratch + cells, state, valid)
        for index in range(size):
            row = text * num_tokens + begin + index
            step = tl.load(dt + row * num_channels + channels, inside, 0.0)
            value = tl.load(x + row * num_channels + channels, inside, 0.0)
            direction = tl.load(B + row * state_dim + columns, real, 0.0)
            written = (step * value)[:, None] * direction[None, :]
            state = tl.exp(step[:, None] * rates) * state + written
            tl.store(own_scratch + (index + 1) * state_size + cells, state, valid)
        tl.debug_barrier()
        for index_back in range(size):
            index = size - 1 - index_back
            row = text * num_tokens + begin + index
            step = tl.load(dt + row * num_channels + channels, inside, 0.0)
            value = tl.load(x + row * num_channels + channels, inside, 0.0)
            direction = tl.load(B + row * state_dim + columns, real, 0.0)
            reader = tl.load(C + row * state_dim + columns, real, 0.0)
            d_output = tl.load(d_y + row * num_channels + channels, inside, 0.0)
            after = tl.load(own_scratch + (index + 1) * state_size + cells, valid, 0.0)
            before = tl.load(own_scratch + index * state_size + cells, valid, 0.0)

            d_state += d_output[:, None] * reader[None, :]
            d_reader = tl.sum(d_output[:, None] * after, axis=0)
            d_direction = tl.sum((step * value)[:, None] * d_state, axis=0)
            d_amount = tl.sum(d_state * direction[None, :], axis=1)
            d_state = d_state * tl.exp(step[:, None] * rates)
            d_exponent = d_state * before
            d_rate += d_exponent * step[:, None]
            d_step = tl.sum(d_exponent * rates, axis=1) + d_amount * value

            tl.store(d_x + row * num_channels + channels, d_amount * step, inside)
            tl.store(d_dt + row * num_channels + channels, d_step, inside)
            shared = (shared_rows + begin + index) * state_dim
            tl.store(d_B + shared + columns, d_direction, real)
            tl.store(d_C + shared + columns, d_reader, real)
        tl.debug_barrier()
    tl.store(d_states + text * state_size + cells, d_state, valid)
    tl.store(d_rates + text * state_size + cells, d_rate, valid)


class _Scan(Function):
    """The scan of one batch axis in float32, without the skip connection."""

    @staticmethod
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, *args: Any
    ) -> tuple[Tensor, Tensor]:
        x, dt, A, B, C, state = args
        batch, num_tokens, num_channels = x.shape
        num_chunks = triton.cdiv(num_tokens, CHUNK)
        kept = A.new_empty(batch, num_chunks, *A.shape)
        last, y = state.clone(), torch.empty_like(x)
        grid = (batch, triton.cdiv(num_channels, BLOCK_CHANNELS))
        sizes = (num_tokens, num_chunks, num_channels, A.shape[1])
        _forward_kernel[grid](x, dt, A, B, C, last, kept, y, *sizes, **_blocks(A))
        ctx.save_for_backward(x, dt, A, B, C, kept)
        return y, last

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, ...]:
        d_y, d_last = grad_outputs
        x, dt, A, B, C, kept = ctx.saved_tensors
        batch, num_tokens, num_channels = x.shape
        grid = (batch, triton.cdiv(num_channels, BLOCK_CHANNELS))
        d_x, d_dt, d_state = torch.empty_like(x), torch.empty_like(dt), d_last.clone()
        d_rates = A.new_empty(batch, *A.shape)
        d_B, d_C = (A.new_empty(grid[1], *B.shape) for _ in range(2))
        scratch = A.new_empty(batch, CHUNK + 1, *A.shape)
        grads = (d_y.contiguous(), d_state, d_x, d_dt, d_rates, d_B, d_C)
        sizes = (num_tokens, kept.shape[1], num_channels, A.shape[1])
        _backward_kernel[grid](x, dt, A, B, C, kept, scratch, *grads, *sizes, **_blocks(A))
        return d_x, d_dt, d_rates.sum(0), d_B.sum(0), d_C.sum(0), d_state


def _blocks(A: Tensor) -> dict[str, int]:
    return {
        "CHUNK": CHUNK,
        "BLOCK": BLOCK_CHANNELS,
        "BLOCK_STATE": triton.next_power_of_2(A.shape[1]),
    }


def scan(
    x: Float[Tensor, "*batch tokens channels"],
    dt: Float[Tensor, "*batch tokens channels"],
    A: Float[Tensor, "channels state_dim"],
    B: Float[Tensor, "*batch tokens state_dim"],
    C: Float[Tensor, "*batch tokens state_dim"],
    D: Float[Tensor, " channels"],
    state: Float[Tensor, "*batch channels state_dim"],
) -> tuple[Float[Tensor, "*batch tokens channels"], Float[Tensor, "*batch channels state_dim"]]:
    """Returns the outputs of a text and the state after it; differentiable."""
    num_tokens = x.shape[-2]
    texts = [part.float().reshape(-1, num_tokens, part.shape[-1]) for part in (x, dt, B, C)]
    flat_x, flat_dt, flat_B, flat_C = (part.contiguous() for part in texts)
    states = state.reshape(-1, *A.shape).contiguous()
    y, last = _Scan.apply(flat_x, flat_dt, A.contiguous(), flat_B, flat_C, states)
    return (y.reshape(x.shape) + D * x).to(x.dtype), last.reshape(state.shape)
