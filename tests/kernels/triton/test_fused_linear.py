"""Fused linear layers in Triton against their readable reference."""

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor

from treesnake.kernels.reference import fused_linear as reference

EPSILON = 1e-5


@pytest.fixture(scope="module")
def triton_form() -> ModuleType:
    return importlib.import_module("treesnake.kernels.triton.fused_linear")


def numbers(device: torch.device, *shape: int) -> Tensor:
    random = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(shape, generator=random).to(device)


@pytest.mark.parametrize("sizes", [(1, 40, 24), (5, 300, 70), (70, 33, 36)], ids=str)
def test_layers_equal_the_reference(
    triton_form: ModuleType, device: torch.device, sizes: tuple[int, int, int]
) -> None:
    """Rows are parts of longer ones, as those of a projection are."""
    rows, inputs, outputs = sizes
    longer = numbers(device, rows, 2 * inputs + 3)
    x, gates = longer[:, 3 : inputs + 3], longer[:, inputs + 3 :]
    norm, weight = numbers(device, inputs), numbers(device, outputs, inputs) * inputs**-0.5
    bias, residual = numbers(device, outputs), numbers(device, rows, outputs)
    for form, arguments in (
        ("linear", (x, weight)),
        ("softplus_linear", (x, weight, 3 * bias)),
        ("normed_linear", (x, norm, EPSILON, weight)),
        ("normed_linear", (x, norm, EPSILON, weight, bias)),
        ("normed_gate", (x, norm, EPSILON, weight)),
        ("add_linear", (residual, x, weight)),
        ("add_gated_linear", (residual, x, gates, weight)),
        ("add_gated_normed_linear", (residual, x, gates, norm, EPSILON, weight)),
    ):
        result, expected = (getattr(each, form)(*arguments) for each in (triton_form, reference))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4, msg=form)


def test_softplus_is_exact_for_small_and_large_numbers(
    triton_form: ModuleType, device: torch.device
) -> None:
    x = torch.tensor([[-60.0], [-17.0], [-7.0], [0.0], [7.0], [25.0], [90.0]], device=device)
    one, zero = torch.ones(1, 1, device=device), torch.zeros(1, device=device)
    result = triton_form.softplus_linear(x, one, zero)
    torch.testing.assert_close(result, torch.nn.functional.softplus(x), rtol=1e-5, atol=0)
