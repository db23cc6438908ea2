"""Mamba and Mamba-2 on a CUDA device: captured levels give what the CPU gives."""

import copy
from typing import Any

import pytest
import torch

from treesnake.drafters.mamba import MambaDrafterModel
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceNetwork
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
    for network, state in zip((cpu, cuda), states, strict=True):
        network.prefill(range(100), state)
    for step in range(4):
        for parents in LEVELS:
            tokens = [(11 * step + 5 * index) % VOCAB for index in range(len(parents))]
            expected = cpu.extend(tokens, parents, states[0])
            result = cuda.extend(tokens, parents, states[1])
            torch.testing.assert_close(result.cpu(), expected, rtol=1e-3, atol=1e-3)
        for state in states:
            state.commit([0, 1, 4], pending=[7] if step == 1 else [])


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_a_mamba_with_captured_levels_is_a_drafter(architecture: str) -> None:
    check_drafter(MambaDrafterModel(networks(architecture)[1]), VOCAB, num_steps=1)
