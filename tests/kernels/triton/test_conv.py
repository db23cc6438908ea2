"""The convolution in Triton against its readable reference."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from treesnake.kernels.reference import conv as reference
from treesnake.kernels.tree_rows import TreeRows
from treesnake.states.tree_layout import RowsSize, tree_layout, tree_rows

CPU = torch.device("cpu")


def random_case(
    device: torch.device, *batch: int, channels: int = 20, conv_width: int = 4
) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    shapes = ((*batch, 7, channels), (channels, conv_width), (channels,))
    history = (*batch, conv_width - 1, channels)
    return tuple(torch.randn(shape, generator=random).to(device) for shape in (*shapes, history))


@pytest.mark.parametrize("conv_width", [2, 4])
@pytest.mark.parametrize("has_bias", [True, False])
def test_texts_equal_the_reference_and_so_do_their_gradients(
    conv: ModuleType, device: torch.device, conv_width: int, has_bias: bool
) -> None:
    inputs, weight, bias, history = random_case(device, 2, conv_width=conv_width)
    leaves = [inputs, weight, *([bias] if has_bias else []), history]
    for leaf in leaves:
        leaf.requires_grad_()
    outputs, grads = [], []
    for form in (conv, reference):
        output = form.causal_conv(inputs, weight, bias if has_bias else None, history)
        outputs.append(output)
        grads.append(torch.autograd.grad(output.square().sum(), leaves))
    torch.testing.assert_close(*outputs)
    for grad, expected in zip(*grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [5, 128, 200])
def test_trees_equal_the_reference(conv: ModuleType, device: torch.device, channels: int) -> None:
    """Two trees in three slots, of which one has fewer new nodes than the other."""
    inputs, weight, bias, history = random_case(device, 3, channels=channels)
    layouts = [tree_layout(parents, 4, CPU) for parents in ((-1, 0, 0, 1, 1, 2), (-1, 0, 1))]
    new = tree_rows(layouts, [4, 2], [2, 0], RowsSize(trees=2, new=4, nodes=6), spare_row=6)
    new = TreeRows(**{name: rows.to(device) for name, rows in vars(new).items()})
    for kernel in ("tree_conv", "tree_filter"):
        results = [
            getattr(form, kernel)(inputs, weight, bias, history, new) for form in (conv, reference)
        ]
        torch.testing.assert_close(*results)


def test_a_text_without_an_activation_equals_the_reference(
    conv: ModuleType, device: torch.device
) -> None:
    case = random_case(device)
    torch.testing.assert_close(conv.causal_filter(*case), reference.causal_filter(*case))
