"""Weights of torch and numpy, written as compiled networks read them.

What those read is `linear` and `grouped`, which need no torch: the program that compiles kernels
starts in a quarter of the time without it.
"""

import numpy as np
import torch
from jaxtyping import Float, Int8, Shaped, UInt8
from torch import Tensor

from treesnake.kernels.cpu.grouped import BLOCK_OUTPUTS, FORMS, Form, form_of
from treesnake.kernels.cpu.integer_dots import SIGNED_BITS
from treesnake.kernels.grouped_weight import GROUP, HALF_GROUP, GroupedWeight

ROWS_AT_ONCE = 1024
"""Rows of a weight that are rounded at once: what bounds the memory that rounding takes."""

STORAGE = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.uint16),
    torch.bfloat16: np.dtype(np.int16),
}
"""The dtype under which numba sees an array of each kind of weight."""

BITS = {
    torch.float32: torch.float32,
    torch.float16: torch.uint16,
    torch.bfloat16: torch.int16,
}


def write_weight(
    weight: Float[Tensor, "outputs inputs"], dtype: torch.dtype, values: np.ndarray
) -> None:
    """Rounds a weight to `dtype` into an array of its shape, such as a slice of a stack."""
    for begin in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        values[rows] = weight[rows].to(dtype).contiguous().view(BITS[dtype]).numpy()


def pack_blocks(weight: GroupedWeight, blocks: UInt8[np.ndarray, "blocks groups bytes"]) -> None:
    """Writes the bytes of a weight's blocks; outputs that the last block lacks become zeros."""
    outputs, inputs = weight.values.shape
    values = weight.values.reshape(outputs, -1, GROUP)
    scales = weight.scales.reshape(outputs, inputs // GROUP, -1)
    seconds = [] if weight.minimums is None else [weight.minimums]
    begin = 0
    parts = *_split(values, FORMS[form_of(weight)]), *np.split(scales, scales.shape[2], 2)
    for part in (*parts, *seconds):
        columns = part.reshape(outputs, inputs // GROUP, -1)
        size = columns.shape[2] * columns.itemsize * BLOCK_OUTPUTS
        _interleave(torch.from_numpy(columns), torch.from_numpy(blocks)[:, :, begin : begin + size])
        begin += size


def _split(values: Int8[np.ndarray, "outputs groups group"], form: Form) -> list[np.ndarray]:
    """Returns values as a block has them, four bytes as an integer: pairs, then planes."""
    if form.bits == SIGNED_BITS:
        return [values.view(np.int32)]
    numbers = (values + np.int8(form.moved_by)).view(np.uint8)
    low = numbers & 15
    pairs = low[:, :, :HALF_GROUP] | low[:, :, HALF_GROUP:] << 4
    if not form.plane_bits:
        return [pairs.view(np.int32)]
    # Bits of four bytes at once: none moves beyond its byte.
    high = (numbers >> 4).view(np.uint32).reshape(*numbers.shape[:2], form.plane_bits, -1)
    planes = np.zeros(high.shape[:3], np.uint32)
    for slot in range(high.shape[3]):
        planes |= high[:, :, :, slot] << np.uint32(slot * form.plane_bits)
    return [pairs.view(np.int32), planes.view(np.int32)]


def _interleave(
    columns: Shaped[Tensor, "outputs groups columns"], out: UInt8[Tensor, "blocks groups bytes"]
) -> None:
    """Writes columns as (blocks, groups, columns, outputs of a block)."""
    outputs, groups, _ = columns.shape
    whole = outputs // BLOCK_OUTPUTS * BLOCK_OUTPUTS
    last = columns.new_zeros(BLOCK_OUTPUTS if whole < outputs else 0, *columns.shape[1:])
    last[: outputs - whole] = columns[whole:]
    for part, target in ((columns[:whole], out[: whole // BLOCK_OUTPUTS]), (last, out[-1:])):
        if len(part):
            blocks = part.unflatten(0, (-1, BLOCK_OUTPUTS)).permute(0, 2, 3, 1).contiguous()
            target.copy_(blocks.view(len(target), groups, -1).view(torch.uint8))
