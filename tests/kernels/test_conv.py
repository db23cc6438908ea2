"""Short causal convolutions against the definition, over texts and over trees.

Over texts torch modules have the readable form on every device that has no Triton. The compiled
form is a range of channels of a tree, which a text is too.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from treesnake.kernels.cpu.conv import convolve_range, keep_history
from treesnake.kernels.cpu.jit import entry_point
from treesnake.kernels.cpu.linear import padded
from treesnake.kernels.reference import conv as reference
from treesnake.kernels.tree_rows import TreeRows
from treesnake.states.tree_layout import tree_layout

CPU = torch.device("cpu")


@entry_point
def run_convolve_range(inputs, history, windows, weight, bias, out):
    convolve_range(inputs, history, windows, weight, bias, 0, out.shape[1], out)


@entry_point
def run_keep_history(inputs, num_rows, history):
    keep_history(inputs, num_rows, history, 0, inputs.shape[1])


def padded_array(rows: torch.Tensor) -> np.ndarray:
    return F.pad(rows, (0, padded(rows.shape[-1]) - rows.shape[-1])).contiguous().numpy()


def compiled_tree_conv(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    history: torch.Tensor,
    windows: torch.Tensor,
) -> torch.Tensor:
    channels = inputs.shape[1]
    out = np.zeros((len(windows), padded(channels)), np.float32)
    bias = inputs.new_zeros(channels) if bias is None else bias
    arrays = (padded_array(part) for part in (weight.T, bias))
    run_convolve_range(padded_array(inputs), padded_array(history), windows.numpy(), *arrays, out)
    return torch.from_numpy(out)[:, :channels]


def compiled_causal_conv(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    history: torch.Tensor,
) -> torch.Tensor:
    windows = torch.arange(len(inputs))[:, None] + torch.arange(weight.shape[1])
    return compiled_tree_conv(inputs, weight, bias, history, windows)


def readable_tree_conv(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    history: torch.Tensor,
    windows: torch.Tensor,
) -> torch.Tensor:
    """The readable form, which runs trees in slots of shared memory, for a tree in slot 1 of 2."""
    nothing = torch.zeros(1, len(windows), dtype=torch.int64)
    new = TreeRows(torch.tensor([1]), nothing, nothing, nothing[..., None].bool(), windows[None])
    inputs, history = (torch.stack([-rows, rows]) for rows in (inputs, history))
    return reference.tree_conv(inputs, weight, bias, history, new)[0]


Form = Callable[..., torch.Tensor]
each_text_form = pytest.mark.parametrize(
    "causal_conv", [reference.causal_conv, compiled_causal_conv], ids=["reference", "cpu"]
)
each_tree_form = pytest.mark.parametrize(
    "tree_conv", [readable_tree_conv, compiled_tree_conv], ids=["reference", "cpu"]
)


def random_case(
    num_tokens: int, channels: int, conv_width: int, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_tokens, channels, generator=random)
    weight = torch.randn(channels, conv_width, generator=random)
    bias = torch.randn(channels, generator=random)
    history = torch.randn(conv_width - 1, channels, generator=random)
    return inputs, weight, bias, history


def by_definition(
    window: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    total = torch.zeros(weight.shape[0]) if bias is None else bias
    for tap in range(weight.shape[1]):
        total = total + window[tap] * weight[:, tap]
    return F.silu(total)


@each_text_form
@pytest.mark.parametrize("conv_width", [2, 3, 4])
@pytest.mark.parametrize("channels", [5, 16, 48])
@pytest.mark.parametrize("has_bias", [True, False])
def test_each_output_sees_the_last_inputs(
    causal_conv: Form, conv_width: int, channels: int, has_bias: bool
) -> None:
    inputs, weight, bias, history = random_case(9, channels, conv_width)
    bias = bias if has_bias else None
    outputs = causal_conv(inputs, weight, bias, history)
    rows = torch.cat([history, inputs])
    for token in range(len(inputs)):
        expected = by_definition(rows[token : token + conv_width], weight, bias)
        torch.testing.assert_close(outputs[token], expected)


def test_batches_are_independent() -> None:
    inputs, weight, bias, history = random_case(12, 16, 4)
    batch = torch.stack([inputs, inputs.flip(0)])
    causal_conv = reference.causal_conv
    outputs = causal_conv(batch, weight, bias, torch.stack([history, -history]))
    torch.testing.assert_close(outputs[0], causal_conv(batch[0], weight, bias, history))
    torch.testing.assert_close(outputs[1], causal_conv(batch[1], weight, bias, -history))


@each_tree_form
@given(data=st.data(), num_nodes=st.integers(1, 12), conv_width=st.integers(2, 4))
def test_a_node_sees_its_own_path(
    tree_conv: Form, data: st.DataObject, num_nodes: int, conv_width: int
) -> None:
    parents = tuple(data.draw(st.integers(-1, node - 1)) for node in range(num_nodes))
    num_new = data.draw(st.integers(1, num_nodes))
    inputs, weight, bias, history = random_case(num_nodes, 20, conv_width)
    windows = tree_layout(parents, conv_width, CPU).windows[-num_new:]
    outputs = tree_conv(inputs, weight, bias, history, windows)
    for output, node in zip(outputs, range(num_nodes - num_new, num_nodes), strict=True):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        window = torch.cat([history, inputs[path]])[-conv_width:]
        torch.testing.assert_close(output, by_definition(window, weight, bias))


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 7])
def test_the_history_of_what_follows_ends_with_the_last_inputs(num_tokens: int) -> None:
    inputs, _, _, history = random_case(num_tokens, 3, 4)
    following = reference.next_history(inputs, history)
    expected = torch.cat([history, inputs])[-3:]
    torch.testing.assert_close(following, expected)
    kept = padded_array(history)
    run_keep_history(padded_array(inputs), num_tokens, kept)
    assert torch.equal(torch.from_numpy(kept)[:, :3], expected)
