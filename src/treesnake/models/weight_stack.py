"""Matrices as the compiled networks read them, those of all layers together.

Of floats they are padded arrays, of integers in groups tables of packed blocks.
"""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from treesnake.kernels.cpu.grouped import (
    BLOCK,
    BLOCK_OUTPUTS,
    GROUP_BYTES,
    PLAIN_BLOCK,
    PLAIN_FORMS,
    form_of,
)
from treesnake.kernels.cpu.linear import CACHE_LINE, padded
from treesnake.kernels.cpu.packing import STORAGE, pack_blocks, write_weight
from treesnake.kernels.grouped_weight import GROUP, GroupedWeight
from treesnake.kernels.matrices import GROUPED_BITS, Matrix, in_floats, round_to_groups

MATRIX_DTYPES = (*STORAGE, *GROUPED_BITS)
"""The dtypes that a stack can have."""


@runtime_checkable
class WeightStack(Protocol):
    """The same matrix of every layer, filled layer by layer."""

    @property
    def array(self) -> np.ndarray:
        """What kernels read: one entry for each layer."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What floats are rounded to."""
        ...

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory."""
        ...

    def write(self, layer: int, matrix: Matrix, begin: int = 0) -> None:
        """Writes the matrix of one layer, or some of its outputs from `begin` on."""
        ...


def new_stack(layers: int, outputs: int, inputs: int, dtype: torch.dtype) -> WeightStack:
    """Returns an empty stack whose weights are floats, or integers in groups, by the dtype."""
    if dtype in GROUPED_BITS:
        return GroupedStack(layers, outputs, inputs, GROUPED_BITS[dtype])
    return FloatStack(layers, outputs, inputs, dtype)


class FloatStack:
    """`array` is (layers, outputs, inputs), the inputs padded with zeros to whole vectors."""

    def __init__(self, layers: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._inputs = inputs
        self.array = np.zeros((layers, outputs, padded(inputs)), STORAGE[dtype])

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory."""
        return self.array.nbytes

    def write(self, layer: int, matrix: Matrix, begin: int = 0) -> None:
        """Rounds a matrix, or some of its outputs, to the dtype."""
        floats = in_floats(matrix)
        rows, columns = slice(begin, begin + len(floats)), slice(self._inputs)
        write_weight(floats[:, columns], self.dtype, self.array[layer, rows, columns])


class GroupedStack:
    """`array` is (layers, blocks) of `grouped.BLOCK`, or of `PLAIN_BLOCK` if all are plain.

    Floats are rounded to groups of so many bits. Grouped weights stay what they are, so blocks of
    different forms may stand in one table.

    The blocks of all layers lie in one array where they have one form: large arrays of numpy get
    huge pages from Linux, and reading these is some per cent faster.
    """

    def __init__(self, layers: int, outputs: int, inputs: int, bits: int) -> None:
        self.bits = bits
        self._groups = -(-inputs // GROUP)
        self._table = np.zeros((layers, -(-outputs // BLOCK_OUTPUTS)), BLOCK)
        self._parts: list[np.ndarray] = []  # keeps what the table gives the addresses of
        self._room = np.empty(0, np.uint8)

    @property
    def array(self) -> np.ndarray:
        """What kernels read: one entry for each layer."""
        is_plain = np.isin(self._table["form"], PLAIN_FORMS).all()
        return self._table.view(PLAIN_BLOCK) if is_plain else self._table

    @property
    def dtype(self) -> torch.dtype:
        """What floats are rounded to."""
        return next(dtype for dtype, bits in GROUPED_BITS.items() if bits == self.bits)

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory."""
        return sum(part.nbytes for part in self._parts)

    def write(self, layer: int, matrix: Matrix, begin: int = 0) -> None:
        """Packs a matrix, or some of its outputs; `begin` is that of a block."""
        assert begin % BLOCK_OUTPUTS == 0, "parts of a matrix begin with a block"
        is_grouped = isinstance(matrix, GroupedWeight)
        weight = matrix if is_grouped else round_to_groups(matrix.float(), self.bits)
        form, num_blocks = form_of(weight), -(-len(weight) // BLOCK_OUTPUTS)
        blocks = self._new_blocks(num_blocks, GROUP_BYTES[form])
        pack_blocks(weight, blocks)
        self._parts.append(blocks)
        table = self._table[layer, begin // BLOCK_OUTPUTS :][:num_blocks]
        table["address"] = blocks.ctypes.data + np.arange(num_blocks) * blocks.strides[0]
        table["form"] = form

    def _new_blocks(self, num_blocks: int, group_bytes: int) -> np.ndarray:
        """Returns memory for blocks, aligned to a cache line: blocks are whole lines."""
        block_bytes = self._groups * group_bytes
        if num_blocks * block_bytes > len(self._room):
            # What nothing is written to takes no memory.
            self._room = _aligned(max(num_blocks, self._table.size) * block_bytes)
        taken, self._room = np.split(self._room, [num_blocks * block_bytes])
        return taken.reshape(num_blocks, self._groups, group_bytes)


def _aligned(num_bytes: int) -> np.ndarray:
    """Returns bytes that begin with a cache line."""
    spacious = np.empty(num_bytes + CACHE_LINE, np.uint8)
    begin = -spacious.ctypes.data % CACHE_LINE
    return spacious[begin : begin + num_bytes]


def count_bytes(stacks: Iterable[WeightStack], arrays: Iterable[np.ndarray]) -> int:
    """Returns the bytes of stacks, and of arrays that are none of theirs; each counts once."""
    matrices = {stack.array.ctypes.data: stack.num_bytes for stack in stacks}
    others = {array.ctypes.data: array.nbytes for array in arrays}
    return sum((others | matrices).values())


def write_parts(stack: WeightStack, layer: int, parts: Iterable[Matrix]) -> None:
    """Writes matrices below each other."""
    begin = 0
    for part in parts:
        stack.write(layer, part, begin)
        begin += len(part)
