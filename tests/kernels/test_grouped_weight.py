"""Grouped weights: rounding of floats, padding and the reference of their products."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from treesnake.kernels.grouped_weight import GroupedWeight
from treesnake.kernels.matrices import below_each_other, in_floats, round_to_groups
from treesnake.kernels.reference.grouped_linear import (
    fused_multiply_add,
    grouped_linear,
    round_rows,
)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("bits", "step"), [(8, 2 / 254), (4, 2.2 / 15)])
def test_rounding_is_off_by_about_half_a_step_at_most(bits: int, step: float) -> None:
    weight = normal(7, 70)
    rounded = round_to_groups(weight, bits)
    padded = torch.zeros(7, 96)
    padded[:, :70] = weight
    groups = padded.unflatten(1, (3, 32))
    span = groups.amax(2) - groups.amin(2) if bits == 4 else 2 * groups.abs().amax(2)
    bound = (0.51 * span * step + 2e-3).repeat_interleave(32, 1)
    assert (torch.from_numpy(rounded.to_floats()) - padded).abs().le(bound).all()


def test_four_bits_have_less_squared_error_than_those_from_smallest_to_largest() -> None:
    weight = normal(40, 320)
    groups = weight.unflatten(1, (-1, 32))
    lowest = groups.amin(2, keepdim=True)
    scale = (groups.amax(2, keepdim=True) - lowest) / 15
    plain = ((groups - lowest) / scale).round() * scale + lowest
    fitted = torch.from_numpy(round_to_groups(weight, 4).to_floats())
    error, bound = (fitted - weight).square().mean(), (plain.flatten(1) - weight).square().mean()
    assert error < 0.97 * bound


def test_groups_of_one_number_keep_it() -> None:
    weight = torch.full((1, 64), -0.75)
    assert np.array_equal(round_to_groups(weight, 4).to_floats(), weight.numpy())


@pytest.mark.parametrize("widths", [(4, 4), (8, 8), (4, 8), (None, 4), (None, None)], ids=str)
def test_matrices_below_each_other_keep_groups_of_one_form(widths: tuple[int | None, ...]) -> None:
    floats = [normal(rows, 64) for rows in (3, 5)]
    parts = [
        matrix if bits is None else round_to_groups(matrix, bits)
        for matrix, bits in zip(floats, widths, strict=True)
    ]
    joined = below_each_other(parts)
    assert in_floats(joined).equal(torch.cat([in_floats(part) for part in parts]))
    assert isinstance(joined, GroupedWeight) == (widths in ((4, 4), (8, 8)))


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_zeros_stay_zeros_and_broken_numbers_stay_visible(bits: int) -> None:
    weight = torch.zeros(2, 64)
    weight[1, 40] = math.nan
    floats = round_to_groups(weight, bits).to_floats()
    assert (floats[0] == 0).all()
    assert (floats[1, :32] == 0).all()
    assert np.isnan(floats[1, 40])


@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_are_chosen_and_padded_like_those_of_the_matrix(bits: int) -> None:
    weight = round_to_groups(normal(5, 64), bits)
    floats = weight.to_floats()
    assert np.array_equal(weight[1:3].to_floats(), floats[1:3])
    spread = weight[:4].pad_outputs(2, 3).to_floats()
    assert np.array_equal(spread[[0, 1, 3, 4]], floats[:4])
    assert not spread[[2, 5]].any()


@pytest.mark.parametrize("bits", [4, 8])
def test_products_are_those_of_the_floats_within_the_rounding_of_activations(bits: int) -> None:
    weight, x = round_to_groups(normal(9, 256), bits), normal(6, 256).numpy()
    exact = x.astype(np.float64) @ weight.to_floats().T.astype(np.float64)
    result = grouped_linear(round_rows(x), weight)
    assert np.abs(result - exact).max() < 0.01 * np.abs(exact).max()


def test_groups_of_sixteen_have_scales_of_their_own() -> None:
    values = np.resize(np.arange(-32, 32, dtype=np.int8), (2, 64))
    scales = np.arange(1, 9, dtype=np.float16).reshape(2, 4)
    weight = GroupedWeight(6, values, scales)
    assert weight.group_size == 16
    x = np.zeros((1, 64), np.float32)
    x[0, [3, 20, 50]] = 127
    expected = weight.to_floats()[:, [3, 20, 50]].sum(1) * 127
    assert np.array_equal(grouped_linear(round_rows(x), weight)[0], expected)


def test_rows_without_a_normal_scale_become_zeros_and_infinities_stay_visible() -> None:
    x = np.zeros((3, 32), np.float32)
    x[0] = 1e-37
    x[1, 5], x[2, 5] = np.inf, np.nan
    rounded = round_rows(x)
    assert not rounded.values.any()
    assert rounded.scales[0, 0] == 0
    assert rounded.scales[1, 0] == np.inf
    assert np.isnan(rounded.scales[2, 0])


def test_multiply_and_add_round_once() -> None:
    random = np.random.default_rng(0)
    x, y, z = (
        (random.standard_normal(4000) * 2.0 ** random.integers(-30, 30, 4000)).astype(np.float32)
        for _ in range(3)
    )
    z[:2000] = -x[:2000] * y[:2000]  # cancels
    result = fused_multiply_add(x, y, z)
    for a, b, c, total in zip(x, y, z, result, strict=True):
        exact = fraction(a) * fraction(b) + fraction(c)
        assert total == nearest(exact)


def fraction(value: np.float32) -> Fraction:
    return Fraction(float(value))


def nearest(exact: Fraction) -> np.float32:
    below = np.float32(float(exact))
    candidates = [below, np.nextafter(below, np.float32(np.inf)), np.nextafter(below, -np.inf)]
    return min(
        map(np.float32, candidates),
        key=lambda c: (abs(fraction(c) - exact), int(c.view(np.int32)) % 2),
    )
