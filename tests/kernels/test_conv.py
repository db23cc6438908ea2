"""Short causal convolutions against the definition, over texts and over trees.

Torch modules have this form alone on a CPU. The compiled convolution has no form on tensors: packed
networks run it, and tests/models/test_state_space_cpu.py compares them with the torch modules.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from treesnake.kernels.reference import conv as reference
from treesnake.states.topology import topology

CPU = torch.device("cpu")


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


@pytest.mark.parametrize("conv_width", [2, 3, 4])
@pytest.mark.parametrize("channels", [5, 16, 48])
@pytest.mark.parametrize("has_bias", [True, False])
def test_each_output_sees_the_last_inputs(conv_width: int, channels: int, has_bias: bool) -> None:
    inputs, weight, bias, history = random_case(9, channels, conv_width)
    bias = bias if has_bias else None
    outputs = reference.causal_conv(inputs, weight, bias, history)
    rows = torch.cat([history, inputs])
    for token in range(len(inputs)):
        expected = by_definition(rows[token : token + conv_width], weight, bias)
        torch.testing.assert_close(outputs[token], expected)


def test_batches_are_independent() -> None:
    inputs, weight, bias, history = random_case(12, 16, 4)
    batch = torch.stack([inputs, inputs.flip(0)])
    outputs = reference.causal_conv(batch, weight, bias, torch.stack([history, -history]))
    torch.testing.assert_close(outputs[0], reference.causal_conv(batch[0], weight, bias, history))
    torch.testing.assert_close(outputs[1], reference.causal_conv(batch[1], weight, bias, -history))


@given(data=st.data(), num_nodes=st.integers(1, 12), conv_width=st.integers(2, 4))
def test_a_node_sees_its_own_path(data: st.DataObject, num_nodes: int, conv_width: int) -> None:
    parents = tuple(data.draw(st.integers(-1, node - 1)) for node in range(num_nodes))
    num_new = data.draw(st.integers(1, num_nodes))
    inputs, weight, bias, history = random_case(num_nodes, 20, conv_width)
    windows = topology(parents, conv_width, CPU).windows[-num_new:]
    outputs = reference.tree_conv(inputs, weight, bias, history, windows)
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
    torch.testing.assert_close(following, torch.cat([history, inputs])[-3:])
