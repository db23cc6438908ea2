"""Matrices as checkpoints hold them: floats of torch, or grouped weights, which floats round to."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor

from treesnake.kernels.grouped_weight import GROUP, LARGEST_BYTE, GroupedWeight, value_range

INT4: torch.dtype = torch.int4  # pyrefly: ignore[missing-attribute]

GROUPED_BITS = {torch.int8: 8, INT4: 4}
"""The dtypes whose weights are integers in groups, and how many bits floats are rounded to."""

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
