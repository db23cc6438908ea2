"""Levels through buffers that stay where they are: what is captured, and that nothing is stale.

Here a capture is the pass itself, run again at every replay, so that all but CUDA is tested.
"""

import copy
import gc
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from treesnake.models.cuda_graphs import Pass
from treesnake.models.level_graphs import LevelGraphs
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceNetwork
from treesnake.models.state_space_state import StateSpaceState
from treesnake.prompt import Prompt
from treesnake.states.branching import PathSums, StateCopies
from treesnake.states.tree_layout import tree_layout

VOCAB = 53
TREES = {
    "chain": [[-1], [0], [1], [2]],
    "3x2": [[-1], [0, 0, 0], [1, 1, 2, 2, 3, 3]],
    "another tree of the same sizes": [[-1], [0, 0, 0], [1, 2, 2, 2, 3, 3]],
    "two children": [[-1, -1], [0, 1, 1]],
}
"""The parents of each level's nodes."""


@cache
def network(architecture: str) -> StateSpaceNetwork[Any]:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_layers": 2, "state_dim": 8}
    if architecture == "mamba":
        return Mamba(MambaConfig(**sizes)).eval()
    return Mamba2(Mamba2Config(**sizes, num_heads=4, head_dim=8)).eval()


class Recorder:
    """Captures passes by keeping them, and counts them."""

    def __init__(self) -> None:
        self.num_captured = 0

    def __call__(self, run: Pass, device: torch.device) -> Pass:
        self.num_captured += 1
        return run


@torch.no_grad()
def extend(
    graphs: LevelGraphs,
    network: StateSpaceNetwork[Any],
    token_ids: Sequence[int],
    parents: Sequence[int],
    state: StateSpaceState,
) -> torch.Tensor:
    """What `StateSpaceNetwork.extend_all` does with one text on a GPU."""
    state.held.append(token_ids, parents)
    state.memory.reserve(len(state.held.parents))
    layout = tree_layout(state.held.parents, state.memory.shape.conv_width, torch.device("cpu"))
    return graphs.run(network.run_level, torch.tensor(token_ids), layout, state.memory)


def tokens_for(parents: Sequence[int], step: int) -> list[int]:
    return [(7 * step + 3 * index + 1) % VOCAB for index in range(len(parents))]


@pytest.mark.parametrize("branching", [StateCopies, PathSums])
@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_levels_through_buffers_are_those_of_the_network(
    architecture: str, branching: type[StateCopies] | type[PathSums]
) -> None:
    model, graphs = network(architecture), LevelGraphs(Recorder())
    expected, state = model.new_state(branching), model.new_state(branching)
    for one in (expected, state):
        one.prefill(Prompt((5, 3, 8, 0)))
    for step, levels in enumerate([*TREES.values(), *TREES.values()]):
        for depth, parents in enumerate(levels):
            tokens = tokens_for(parents, step + depth)
            logits = extend(graphs, model, tokens, parents, state)
            torch.testing.assert_close(logits, expected.extend(tokens, parents))
        for one in (expected, state):
            one.commit([0])


def test_a_size_is_captured_once() -> None:
    model, recorder = network("mamba2"), Recorder()
    graphs, state = LevelGraphs(recorder), model.new_state()
    state.memory.reserve(20)  # room for twenty nodes, which then stays where it is
    counts = []
    for tree in ("3x2", "another tree of the same sizes", "chain", "3x2"):
        for parents in TREES[tree]:
            extend(graphs, model, tokens_for(parents, 1), parents, state)
        state.commit([])
        counts.append(recorder.num_captured)
    assert counts == [3, 3, 6, 6]


def test_a_tree_that_outgrows_its_room_is_captured_anew() -> None:
    model, recorder = network("mamba2"), Recorder()
    graphs, state = LevelGraphs(recorder), model.new_state()
    first = extend(graphs, model, [4], [-1], state)
    extend(graphs, model, [1] * 9, [0] * 9, state)
    state.commit([])
    assert torch.equal(extend(graphs, model, [4], [-1], state), first)
    assert recorder.num_captured == 3


def test_a_result_is_not_overwritten_by_the_next_one() -> None:
    model, graphs = network("mamba"), LevelGraphs(Recorder())
    state = model.new_state()
    first = extend(graphs, model, [4], [-1], state)
    kept = first.clone()
    state.commit([])
    extend(graphs, model, [9], [-1], state)
    assert torch.equal(first, kept)


def test_graphs_are_forgotten_with_their_state() -> None:
    """A graph of CUDA does not keep the pass that it was captured from, and no state with it."""
    model = network("mamba")
    graphs = LevelGraphs(lambda run, device: run().clone)
    state = model.new_state()
    extend(graphs, model, [4], [-1], state)
    forgotten = weakref.ref(state.memory)
    del state
    gc.collect()
    assert forgotten() is None


def test_a_copy_of_a_network_has_graphs_of_its_own() -> None:
    model, recorder = network("mamba"), Recorder()
    graphs, state = LevelGraphs(recorder), model.new_state()
    extend(graphs, model, [4], [-1], state)
    state.commit([])
    extend(copy.deepcopy(graphs), model, [4], [-1], state)
    assert recorder.num_captured == 2


def test_a_cpu_needs_no_graphs() -> None:
    memory = network("mamba").new_state().memory
    assert not LevelGraphs().can_run(memory, 1)
