"""Mamba and Mamba-2 on a CUDA device: captured levels give what the CPU gives."""

import copy
from typing import Any

import pytest
import torch

from treesnake.drafters.network import NetworkDrafterModel
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceNetwork
from treesnake.models.tree_network import Part
from treesnake.prompt import Prompt
from treesnake.states.branching import PathSums, StateCopies
from treesnake.testing import check_drafter

pytestmark = pytest.mark.gpu

VOCAB = 500
LEVELS = [[-1], [0, 0, 0], [1, 1, 2, 2, 3, 3], [4, 5, 6, 7, 8, 9]]


def networks(architecture: str) -> tuple[StateSpaceNetwork[Any], StateSpaceNetwork[Any]]:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 64, "num_layers": 3, "state_dim": 16}
    if architecture == "mamba":
        network: StateSpaceNetwork[Any] = Mamba(MambaConfig(**sizes)).eval()
    else:
        network = Mamba2(Mamba2Config(**sizes, num_heads=4, head_dim=32)).eval()
    return network, copy.deepcopy(network).cuda()


@pytest.mark.parametrize("branching", [StateCopies, PathSums])
@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_captured_levels_give_the_logits_of_the_cpu(
    architecture: str, branching: type[StateCopies] | type[PathSums]
) -> None:
    cpu, cuda = networks(architecture)
    states = cpu.new_state(branching), cuda.new_state(branching)
    for state in states:
        state.prefill(Prompt.of(range(101)))
    for step in range(4):
        for parents in LEVELS:
            tokens = [(11 * step + 5 * index) % VOCAB for index in range(len(parents))]
            expected = states[0].extend(tokens, parents)
            result = states[1].extend(tokens, parents)
            torch.testing.assert_close(result.cpu(), expected, rtol=1e-3, atol=1e-3)
        for state in states:
            state.commit([0, 1, 4])


@pytest.mark.parametrize("branching", [StateCopies, PathSums])
@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_a_pass_for_several_texts_gives_each_what_it_has_alone(
    architecture: str, branching: type[StateCopies] | type[PathSums]
) -> None:
    _, network = networks(architecture)
    shared, alone = ([network.new_state(branching) for _ in range(3)] for _ in range(2))
    for state, length in zip([*shared, *alone], (5, 90, 33) * 2, strict=True):
        state.prefill(Prompt.of(range(length)))
    nodes = [([7, 8, 9], [-1, 0, 0]), ([1], [-1]), ([4, 5], [-1, -1])]
    for _ in range(3):
        parts = [Part(state, *new) for state, new in zip(shared, nodes, strict=True)]
        for logits, state, new in zip(network.extend_all(parts), alone, nodes, strict=True):
            torch.testing.assert_close(logits, state.extend(*new), rtol=1e-3, atol=1e-3)
        for state in (*shared, *alone):
            state.commit([0])


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_a_mamba_with_captured_levels_is_a_drafter(architecture: str) -> None:
    check_drafter(NetworkDrafterModel(networks(architecture)[1]), VOCAB, num_steps=1)
