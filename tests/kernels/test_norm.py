"""Norms, rotations and gates: the compiled form against the readable one."""

import math

import pytest
import torch

from treesnake.kernels.cpu import norm as cpu
from treesnake.kernels.reference import norm as reference


@pytest.mark.parametrize("width", [1, 16, 30, 576])
def test_rms_norms_agree(width: int) -> None:
    x, weight = torch.randn(5, width) * 3, torch.rand(width)
    expected = reference.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(cpu.rms_norm(x, weight, 1e-5), expected)


def test_a_normed_row_has_mean_square_one() -> None:
    normed = reference.rms_norm(torch.randn(3, 64) * 100, torch.ones(64), 0.0)
    torch.testing.assert_close(normed.pow(2).mean(-1), torch.ones(3))


@pytest.mark.parametrize(("head_dim", "pairs"), [(16, 8), (64, 32), (24, 8)])
def test_rotations_agree(head_dim: int, pairs: int) -> None:
    x, frequencies = torch.randn(6, 3, head_dim), torch.rand(pairs)
    turns = reference.rotation(torch.arange(6) * 17, frequencies)
    torch.testing.assert_close(cpu.rotate(x, *turns), reference.rotate(x, *turns))


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


@pytest.mark.parametrize("width", [3, 16, 100])
def test_gates_agree(width: int) -> None:
    gate_up = torch.randn(4, 2 * width) * 5
    torch.testing.assert_close(cpu.gate(gate_up), reference.gate(gate_up), rtol=1e-5, atol=1e-6)


def test_gates_are_right_where_exponentials_overflow() -> None:
    gates = torch.tensor([-1e30, -200.0, -88.5, -87.0, 0.0, 87.0, 200.0, 1e30, math.nan])
    gate_up = torch.cat([gates, torch.ones(9)])[None]
    result = cpu.gate(gate_up)
    torch.testing.assert_close(
        result, reference.gate(gate_up), equal_nan=True, atol=1e-30, rtol=1e-5
    )
