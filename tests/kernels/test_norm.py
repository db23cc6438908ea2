"""Norms, rotations and gates: the compiled form against the readable one."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import entry_point
from treesnake.kernels.cpu.norm import GATES, gate_range, rms_norm_row, rotate_range
from treesnake.kernels.reference import norm as reference

ACTIVATIONS = pytest.mark.parametrize("activation", sorted(GATES))


@entry_point
def _rms_norm(x, weight, epsilon, out):
    for row in range(x.shape[0]):
        rms_norm_row(x, row, weight, epsilon, out)


def rms_norm(
    x: Float[Tensor, "rows width"], weight: Float[Tensor, " width"], epsilon: float
) -> Float[Tensor, "rows width"]:
    inputs = _pad(x)
    out = np.zeros_like(inputs)
    _rms_norm(inputs, weight.numpy(), np.float32(epsilon), out)
    return torch.from_numpy(out[:, : x.shape[1]])


@entry_point
def _rotate(x, head_dim, cosines, sines):
    for row in range(x.shape[0]):
        for begin in range(0, x.shape[1], head_dim):
            rotate_range(x, row, begin, cosines[row], sines[row])


def rotate(
    x: Float[Tensor, "nodes heads head_dim"],
    cosines: Float[Tensor, "nodes pairs"],
    sines: Float[Tensor, "nodes pairs"],
) -> Float[Tensor, "nodes heads head_dim"]:
    out = x.flatten(1).clone()
    _rotate(out.numpy(), x.shape[2], cosines.numpy(), sines.numpy())
    return out.unflatten(1, x.shape[1:])


@entry_point
def _gate(gate_up, width, slope, cube, out):
    for row in range(gate_up.shape[0]):
        gate_range(gate_up, row, 0, width, width, slope, cube, out)


def gate(
    gate_up: Float[Tensor, "rows twice_width"], activation: str = "silu"
) -> Float[Tensor, "rows width"]:
    slope, cube = map(np.float32, GATES[activation])
    first, second = (_pad(half) for half in gate_up.chunk(2, dim=1))
    out = np.zeros_like(first)
    _gate(np.concatenate([first, second], axis=1), first.shape[1], slope, cube, out)
    return torch.from_numpy(out[:, : gate_up.shape[1] // 2])


def _pad(x: Float[Tensor, "rows width"]) -> np.ndarray:
    return F.pad(x, (0, -x.shape[1] % simd.PADDING)).numpy()


@pytest.mark.parametrize("width", [1, 16, 30, 576])
def test_rms_norms_agree(width: int) -> None:
    x, weight = torch.randn(5, width) * 3, torch.rand(width)
    expected = reference.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected)


def test_a_normed_row_has_mean_square_one() -> None:
    normed = reference.rms_norm(torch.randn(3, 64) * 100, torch.ones(64), 0.0)
    torch.testing.assert_close(normed.pow(2).mean(-1), torch.ones(3))


@pytest.mark.parametrize(("head_dim", "pairs"), [(16, 8), (64, 32), (24, 8)])
def test_rotations_agree(head_dim: int, pairs: int) -> None:
    x, frequencies = torch.randn(6, 3, head_dim), torch.rand(pairs)
    turns = reference.rotation(torch.arange(6) * 17, frequencies)
    torch.testing.assert_close(rotate(x, *turns), reference.rotate(x, *turns))


def test_rotated_products_depend_on_distance_only() -> None:
    query, key, frequencies = torch.randn(1, 1, 8), torch.randn(1, 1, 8), torch.rand(4)
    products = []
    for position in (0, 5, 90):
        turned = [
            reference.rotate(x, *reference.rotation(torch.tensor([place]), frequencies))
            for x, place in ((query, position + 3), (key, position))
        ]
        products.append((turned[0] * turned[1]).sum())
    torch.testing.assert_close(torch.stack(products), products[0].expand(3), rtol=1e-4, atol=1e-4)


@ACTIVATIONS
@pytest.mark.parametrize("width", [3, 16, 100])
def test_gates_agree(width: int, activation: Any) -> None:
    gate_up = torch.randn(4, 2 * width) * 5
    expected = reference.gate(gate_up, activation)
    # torch adds a tangent near -1 to 1 for a gate of GELU far below 0.
    smallest = 1e-6 if activation == "silu" else 1e-5
    torch.testing.assert_close(gate(gate_up, activation), expected, rtol=1e-5, atol=smallest)


def test_the_gelu_is_exact_where_its_tangent_is_not() -> None:
    gates = torch.linspace(-9, 9, 1001)
    slope, cube = (number / 2 for number in GATES["gelu_tanh"])
    z = slope * gates.double() + cube * gates.double() ** 3
    exact = gates.double() / (1 + torch.exp(-2 * z))
    result = gate(torch.cat([gates, torch.ones(1001)])[None], "gelu_tanh")[0]
    torch.testing.assert_close(result.double(), exact, rtol=2e-5, atol=0)


@ACTIVATIONS
def test_gates_are_right_where_exponentials_overflow(activation: Any) -> None:
    gates = torch.tensor([-1e30, -200.0, -88.5, -87.0, 0.0, 87.0, 200.0, 1e30, math.nan])
    gate_up = torch.cat([gates, torch.ones(9)])[None]
    result = gate(gate_up, activation)
    expected = reference.gate(gate_up, activation)
    torch.testing.assert_close(result, expected, equal_nan=True, atol=1e-30, rtol=1e-5)
