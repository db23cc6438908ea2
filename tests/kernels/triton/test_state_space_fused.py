"""The layers of Mamba and Mamba-2 in fused kernels against those in plain torch."""

import copy
from importlib import import_module
from typing import Any

import pytest
import torch

from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceNetwork
from treesnake.models.tree_network import Part
from treesnake.prompt import Prompt

SIZES = {"vocab_size": 31, "hidden_size": 24, "num_layers": 2, "state_dim": 6}
PASSES = [([-1], [-1]), ([0, 0, 1], [0])], [([-1, 0, 1, 1], [-1, 0, 0])]
"""The parents of new nodes in two texts, for two trees; a node may follow one of its own pass."""


@pytest.fixture(params=["mamba", "mamba2"])
def network(request: pytest.FixtureRequest, device: torch.device) -> StateSpaceNetwork[Any]:
    torch.manual_seed(0)
    if request.param == "mamba":
        return Mamba(MambaConfig(**SIZES)).to(device).eval()
    return Mamba2(Mamba2Config(**SIZES, num_heads=6, head_dim=8)).to(device).eval()


def test_trees_have_the_logits_of_plain_layers(
    network: StateSpaceNetwork[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = copy.deepcopy(network)
    module = import_module("treesnake.models.state_space_fused")
    monkeypatch.setattr(fused, "_fused", lambda bank: module)
    monkeypatch.setattr(network, "_fused", lambda bank: None)
    both = [[each.new_state() for _ in range(2)] for each in (network, fused)]
    for states in both:
        for number, state in enumerate(states):
            state.prefill(Prompt.of(range(4 + 9 * number)))
        assert module.can_fuse(network.backbone.blocks, states[0].memory.bank)
    for step, passes in enumerate(PASSES):
        for parents in passes:
            expected, logits = (
                each.extend_all(
                    [
                        Part(state, [(7 * node + step) % 31 for node in range(len(own))], own)
                        for state, own in zip(states, parents, strict=True)
                    ]
                )
                for each, states in zip((network, fused), both, strict=True)
            )
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        for states in both:
            states[0].commit([0, 1, 3])
            states[1].commit([0])


def test_networks_with_biases_or_groups_are_not_fused(device: torch.device) -> None:
    module = import_module("treesnake.models.state_space_fused")
    for other in (
        Mamba(MambaConfig(**SIZES, use_bias=True)),
        Mamba2(Mamba2Config(**SIZES, num_heads=6, head_dim=8, num_groups=2)),
    ):
        bank = other.new_state().memory.bank
        assert not module.can_fuse(other.backbone.blocks, bank)
