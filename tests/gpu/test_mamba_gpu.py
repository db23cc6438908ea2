"""Mamba and Mamba-2 on a CUDA device: captured levels give what the CPU gives."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceNetwork
from treesnake.models.state_space_state import StateSpaceState
from treesnake.models.tree_network import Part
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.shape import LevelWidths
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


@pytest.mark.parametrize("branching", [StateCopies, PathSums])
@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_texts_may_come_and_go_and_a_bank_may_grow(
    architecture: str, branching: type[StateCopies] | type[PathSums]
) -> None:
    """Passes have holes between their slots, and trees of several sizes in different stages."""
    cpu, cuda = networks(architecture)
    texts: dict[int, tuple[StateSpaceState, StateSpaceState]] = {}
    for step, (come, go) in enumerate([([0, 1], []), ([2, 3, 4], [1]), ([5], [0, 3]), ([], [4])]):
        for number in go:
            del texts[number]
        gc.collect()
        for number in come:
            texts[number] = cpu.new_state(branching), cuda.new_state(branching)
            for state in texts[number]:
                state.prefill(Prompt.of(range(5 + 30 * number)))
        for levels in LEVELS[: 2 + step % 3]:
            nodes = {number: levels[: 1 + (number + step) % len(levels)] for number in texts}
            tokens = {
                number: [(11 * step + 5 * node + number) % VOCAB for node in range(len(parents))]
                for number, parents in nodes.items()
            }
            grown = [number for number in texts if _can_grow(texts[number][0], nodes[number])]
            parts = [Part(texts[each][1], tokens[each], nodes[each]) for each in grown]
            for number, logits in zip(grown, cuda.extend_all(parts), strict=True):
                expected = texts[number][0].extend(tokens[number], nodes[number])
                torch.testing.assert_close(logits.cpu(), expected, rtol=1e-3, atol=1e-3)
        for pair in texts.values():
            for state in pair:
                state.commit([0, 1])


def _can_grow(state: StateSpaceState, parents: list[int]) -> bool:
    return max(parents) < len(state.held.tokens)


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_threads_may_share_a_network_and_capture(architecture: str) -> None:
    """A thread that reads its results back must not end the capture of another one."""
    network = networks(architecture)[1]

    def draft(network: StateSpaceNetwork[Any], seed: int) -> list[list[int]]:
        state, chosen = network.new_state(), [[seed]]
        for step in range(20):
            for parents in LEVELS[: 2 + (step + seed) % 3]:
                logits = state.extend([chosen[-1][0]] * len(parents), parents)
                chosen.append(logits.argmax(-1).tolist())
            state.commit([0, 1])
        return chosen

    alone = [draft(networks(architecture)[1], seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(draft, [network] * 4, range(4))) == alone


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_a_mamba_with_captured_levels_is_a_drafter(architecture: str) -> None:
    check_drafter(NetworkDrafterModel(networks(architecture)[1]), VOCAB, num_steps=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_a_whole_tree_in_one_graph_is_that_of_levels(
    architecture: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = networks(architecture)[1]
    sessions = [NetworkDrafterModel(network).new_session() for _ in range(2)]
    params, rng = SamplingParams(temperature=temperature), TorchRng(3)
    shape = LevelWidths((3, 2, 2, 1, 1), sampled=False)
    for session in sessions:
        session.prefill(Prompt.of(range(30)))
    for anchor in range(30, 36):
        trees = []
        for session, at_once in zip(sessions, (True, False), strict=True):
            monkeypatch.setattr(network, "can_grow_fixed", lambda shape, answer=at_once: answer)
            trees.append(session.draft(anchor, shape, params, rng).tree)
        assert trees[0] == trees[1]
        for session in sessions:
            session.commit([anchor, trees[0].tokens[1]])
        rng.advance(2)
