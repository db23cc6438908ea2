"""Matrices of integers of 4 to 8 bits in groups, each with a scale of its own: quantised weights.

Files of quantised models hold such numbers, and `int8` and `int4` make them of floats. The type
here is plain and readable, one byte a number. Kernels read a packed form of it
(`treesnake.kernels.cpu.grouped`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float16, Int8
from torch import Tensor

INT4: torch.dtype = torch.int4  # pyrefly: ignore[missing-attribute]

GROUPED_BITS = {torch.int8: 8, INT4: 4}
"""The dtypes whose weights are integers in groups, and how many bits floats are rounded to."""

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


Matrix: TypeAlias = Tensor | GroupedWeight
"""A matrix as a checkpoint holds it: floats, or integers in groups."""


def in_floats(matrix: Matrix) -> Float[Tensor, "outputs inputs"]:
    """Returns a matrix of floats as it is, and one of groups as the floats it stands for."""
    return torch.from_numpy(matrix.to_floats()) if isinstance(matrix, GroupedWeight) else matrix


def below_each_other(parts: Sequence[Matrix]) -> Matrix:
    """Returns matrices of one width as one: grouped if all are of one form, else as floats."""
    weights = [part for part in parts if isinstance(part, GroupedWeight)]
    forms = {(weight.bits, weight.minimums is None) for weight in weights}
    if len(weights) < len(parts) or len(forms) > 1:
        return torch.cat([in_floats(part) for part in parts])
    minimums = [weight.minimums for weight in weights if weight.minimums is not None]
    return GroupedWeight(
        weights[0].bits,
        np.concatenate([weight.values for weight in weights]),
        np.concatenate([weight.scales for weight in weights]),
        np.concatenate(minimums) if minimums else None,
    )


def padded_to_groups(inputs: int) -> int:
    """Returns the inputs of a grouped weight for so many inputs."""
    return -(-inputs // GROUP) * GROUP


def round_to_groups(weight: Float[Tensor, "outputs inputs"], bits: int) -> GroupedWeight:
    """Rounds a float matrix to groups of 32, padded with zeros to whole groups.

    8 bits are symmetric: the largest magnitude of a group becomes 127. 4 bits have the scale and
    minimum of the least squared error. Groups with a value that is no finite number get such a
    scale, so that it stays visible.
    """
    outputs, inputs = weight.shape
    spacious = torch.zeros(outputs, padded_to_groups(inputs))
    spacious[:, :inputs] = weight
    groups = spacious.unflatten(1, (-1, GROUP))
    if bits == 8:
        scales = (groups.abs().amax(2) / LARGEST_BYTE).half()
        values = _nearest(groups, scales, -LARGEST_BYTE, LARGEST_BYTE)
        return GroupedWeight(8, values.to(torch.int8).flatten(1).numpy(), scales.numpy())
    lowest, highest = value_range(4, has_minimums=True)
    minimums = groups.amin(2).half()
    scales = ((groups.amax(2) - minimums) / highest).half()
    values = _nearest(groups - minimums[:, :, None], scales, lowest, highest)
    scales, minimums = _fit_line(groups, values, scales)
    values = _nearest(groups - minimums[:, :, None], scales, lowest, highest)
    integers = values.to(torch.int8).flatten(1).numpy()
    return GroupedWeight(4, integers, scales.numpy(), minimums.numpy())


def _nearest(
    groups: Float[Tensor, "outputs groups group"],
    scales: Float16[Tensor, "outputs groups"],
    lowest: int,
    highest: int,
) -> Float[Tensor, "outputs groups group"]:
    """Returns the multiples of a group's scale that are nearest to its numbers."""
    divisors = torch.where(scales == 0, torch.ones_like(scales), scales).float()
    return (groups / divisors[:, :, None]).nan_to_num_(0).round_().clamp_(lowest, highest)


def _fit_line(
    groups: Float[Tensor, "outputs groups group"],
    values: Float[Tensor, "outputs groups group"],
    scales: Float16[Tensor, "outputs groups"],
) -> tuple[Float16[Tensor, "outputs groups"], Float16[Tensor, "outputs groups"]]:
    """Returns the scales and minimums with which values come closest to the numbers of a group.

    That is linear regression. Groups whose values are all equal keep their scales.
    """
    mean, mean_value = groups.mean(2), values.mean(2)
    centred = values - mean_value[:, :, None]
    variance = centred.square().sum(2)
    slopes = (centred * groups).sum(2) / variance
    scales = torch.where(variance == 0, scales, slopes.half())
    return scales, (mean - scales * mean_value).half()
