"""Matrices of integers of 4 to 8 bits in groups, each with a scale of its own: quantised weights.

Files of quantised models hold such numbers, and `int8` and `int4` make them of floats. The type
here is plain and readable, one byte a number. Kernels read a packed form of it
(`treesnake.kernels.cpu.grouped`). `treesnake.kernels.matrices` rounds floats to them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float16, Int8

GROUP = 32
"""Numbers that share a scale."""

HALF_GROUP = 16
"""The smaller group that weights of 6 bits have."""

MAY_HAVE_MINIMUMS = {4: (True,), 5: (False, True), 6: (False,), 8: (False,)}
"""Whether weights of each width have minimums."""

LARGEST_BYTE = 127


def value_range(bits: int, has_minimums: bool) -> tuple[int, int]:
    """Returns the smallest and the largest value: from 0 on with minimums, else signed."""
    moved = 0 if has_minimums else 1 << (bits - 1)
    return -moved, (1 << bits) - 1 - moved


@dataclass(frozen=True, eq=False)
class GroupedWeight:
    """A matrix (outputs, inputs) of `scale * value + minimum`, with one of each for every group.

    Groups are consecutive inputs of one output: 32, or 16 where values have 6 bits. Fewer inputs
    than whole groups are padded by whoever makes this. Values of 4 bits have minimums, those of 5
    may have them, those of 6 and 8 have none.

    Attributes:
        bits: the width of the values, 4, 5, 6 or 8; see `value_range`.
        values: the integers, one a byte.
        scales: what the values of a group are multiplied with.
        minimums: what is added to each product, or None for nothing.
    """

    bits: int
    values: Int8[np.ndarray, "outputs inputs"]
    scales: Float16[np.ndarray, "outputs groups"]
    minimums: Float16[np.ndarray, "outputs groups"] | None = None

    def __post_init__(self) -> None:
        outputs, inputs = self.values.shape
        size = self.group_size
        assert self.scales.shape == (outputs, inputs // size), "groups do not fit the values"
        assert size == (HALF_GROUP if self.bits == 6 else GROUP)
        assert (self.minimums is not None) in MAY_HAVE_MINIMUMS[self.bits]
        assert inputs % GROUP == 0, "inputs are whole groups"
        assert self.minimums is None or self.minimums.shape == self.scales.shape

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of outputs and inputs."""
        return self.values.shape

    @property
    def group_size(self) -> int:
        """The number of values that share a scale."""
        return self.values.shape[1] // self.scales.shape[1]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | np.ndarray) -> "GroupedWeight":
        """Returns some outputs."""
        minimums = None if self.minimums is None else self.minimums[rows]
        return GroupedWeight(self.bits, self.values[rows], self.scales[rows], minimums)

    def pad_outputs(self, width: int, padded_width: int) -> "GroupedWeight":
        """Adds outputs of zeros behind each `width` outputs."""
        if width == padded_width:
            return self

        def pad(array: np.ndarray) -> np.ndarray:
            parts = array.reshape(-1, width, array.shape[1])
            spacious = np.zeros((len(parts), padded_width, array.shape[1]), array.dtype)
            spacious[:, :width] = parts
            return spacious.reshape(-1, array.shape[1])

        minimums = None if self.minimums is None else pad(self.minimums)
        return GroupedWeight(self.bits, pad(self.values), pad(self.scales), minimums)

    def to_floats(self) -> Float[np.ndarray, "outputs inputs"]:
        """Returns the matrix that this stands for, in float32."""
        outputs, inputs = self.values.shape
        groups = self.values.reshape(outputs, -1, self.group_size).astype(np.float32)
        groups *= self.scales.astype(np.float32)[:, :, None]
        if self.minimums is not None:
            groups += self.minimums.astype(np.float32)[:, :, None]
        return groups.reshape(outputs, inputs)
