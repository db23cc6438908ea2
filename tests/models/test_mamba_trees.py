"""Token trees on Mamba and Mamba-2: every node equals stepping its path from scratch."""

from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceNetwork
from treesnake.models.state_space_state import StateSpaceState
from treesnake.prompt import Prompt
from treesnake.states.branching import PathSums, StateCopies, StateShape

VOCAB = 53
ARCHITECTURES = ["mamba", "mamba2"]
BRANCHINGS = [StateCopies, PathSums]
Branching = type[StateCopies] | type[PathSums]

each_way = pytest.mark.parametrize("branching", BRANCHINGS)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@cache
def tiny_network(architecture: str) -> StateSpaceNetwork[Any]:
    """A network whose states matter: steps are large, so that decays are far from 1."""
    torch.manual_seed(0)
    if architecture == "mamba":
        config = MambaConfig(vocab_size=VOCAB, hidden_size=24, num_layers=2, state_dim=16)
        network: StateSpaceNetwork[Any] = Mamba(config)
    else:
        network = Mamba2(
            Mamba2Config(
                vocab_size=VOCAB,
                hidden_size=24,
                num_layers=2,
                num_heads=4,
                head_dim=12,
                num_groups=2,
                state_dim=16,
            )
        )
    for name, parameter in network.named_parameters():
        if name.endswith(("dt_bias", "dt_proj.bias")):
            parameter.data += 2
        elif name.endswith("weight") and parameter.ndim > 1:
            parameter.data *= 2
    return network.eval()


def text(length: int, seed: int) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (length,), generator=random).tolist()


def held(
    network: StateSpaceNetwork[Any], tokens: list[int], branching: Branching = StateCopies
) -> StateSpaceState:
    """A state that holds a text."""
    state = network.new_state(branching)
    state.prefill(Prompt.of([*tokens, 0]))
    return state


def twin_of(network: StateSpaceNetwork[Any], state: StateSpaceState) -> StateSpaceState:
    """Another state that holds the same text."""
    twin = network.new_state(StateCopies)
    twin.restore(state.snapshot())
    return twin


def stepped(
    network: StateSpaceNetwork[Any], tokens: list[int], state: StateSpaceState | None = None
) -> torch.Tensor:
    """The logits after a text that is run token by token, from an empty state or another."""
    state = state or network.new_state(StateCopies)
    logits = torch.empty(1, 0)
    for token in tokens:
        logits = state.extend([token], [-1])
        state.commit([0])
    return logits[0]


def path_to(node: int, parents: list[int]) -> list[int]:
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def grow(
    state: StateSpaceState, data: st.DataObject, max_nodes: int = 10
) -> tuple[list[int], list[int], torch.Tensor]:
    """Grows a random tree in random portions; returns tokens, parents and logits of its nodes."""
    num_nodes = data.draw(st.integers(1, max_nodes), label="nodes")
    parents = [-1] + [data.draw(st.integers(0, node - 1)) for node in range(1, num_nodes)]
    tokens = text(num_nodes, seed=num_nodes)
    rows, first = [], 0
    while first < num_nodes:
        end = data.draw(st.integers(first + 1, num_nodes))
        rows.append(state.extend(tokens[first:end], parents[first:end]))
        first = end
    return tokens, parents, torch.cat(rows)


@each_way
@each_architecture
@settings(max_examples=15)
@given(data=st.data(), prompt_length=st.integers(0, 60), num_rounds=st.integers(1, 3))
def test_every_node_equals_its_path_after_any_commits(
    architecture: str,
    branching: Branching,
    data: st.DataObject,
    prompt_length: int,
    num_rounds: int,
) -> None:
    network = tiny_network(architecture)
    context = text(prompt_length, seed=1)
    state = network.new_state(branching)
    borders = range(0, prompt_length, data.draw(st.integers(1, 64), label="chunk"))
    state.prefill(Prompt((*context, 0), borders=tuple(borders)))
    oracle = network.new_state(StateCopies)
    stepped(network, context, oracle)
    for _ in range(num_rounds):
        tokens, parents, logits = grow(state, data)
        for node in {0, len(tokens) // 2, len(tokens) - 1}:
            path = path_to(node, parents)
            expected = stepped(network, [tokens[step] for step in path], twin_of(network, oracle))
            torch.testing.assert_close(logits[node], expected, rtol=1e-4, atol=1e-4)
        path = path_to(data.draw(st.integers(0, len(tokens) - 1), label="accepted"), parents)
        state.commit(path)
        stepped(network, [tokens[step] for step in path], oracle)


@each_way
@each_architecture
@pytest.mark.parametrize("prompt_length", [1, 300, 2000])
def test_long_prompts_change_nothing(
    architecture: str, branching: Branching, prompt_length: int
) -> None:
    network = tiny_network(architecture)
    prompt, tokens = text(prompt_length, seed=2), text(5, seed=3)
    parents = [-1, 0, 0, 1, 1]
    state = held(network, prompt, branching)
    num_bytes = state.num_bytes
    logits = state.extend(tokens, parents)
    for node in (2, 4):
        path = [tokens[step] for step in path_to(node, parents)]
        expected = network(torch.tensor([prompt + path]))[0, -1]
        torch.testing.assert_close(logits[node], expected, rtol=1e-4, atol=1e-4)
    assert num_bytes == network.new_state(branching).num_bytes


@each_architecture
def test_both_ways_to_branch_commit_the_same_state(architecture: str) -> None:
    network = tiny_network(architecture)
    states = [held(network, text(20, seed=4), branching) for branching in BRANCHINGS]
    for state in states:
        state.extend(text(6, seed=5), [-1, 0, 1, 1, 3, 0])
        state.commit([0, 1, 3])
    first, second = (state.memory for state in states)
    torch.testing.assert_close(first.recurrent, second.recurrent, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.history, second.history)


@each_way
@each_architecture
def test_prefill_continues_as_one_text(architecture: str, branching: Branching) -> None:
    network = tiny_network(architecture)
    tokens = text(40, seed=6)
    state = held(network, tokens[:15], branching)
    state.extend(tokens[15:17], [-1, 0])
    state.commit([0])
    state.prefill(Prompt((*tokens, 0)))
    assert state.length == 40
    one, other = state.memory, held(network, tokens, branching).memory
    torch.testing.assert_close(one.recurrent, other.recurrent, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.history, other.history)


@each_way
@each_architecture
def test_a_restored_state_and_its_original_go_their_own_ways(
    architecture: str, branching: Branching
) -> None:
    network = tiny_network(architecture)
    state = held(network, text(10, seed=7), branching)
    state.extend([1, 2], [-1, 0])
    twin = twin_of(network, state)
    twin.extend([1, 2, 3], [-1, 0, 1])
    twin.commit([0, 1, 2])
    expected = stepped(network, [*text(10, seed=7), 1, 2, 4])
    torch.testing.assert_close(state.extend([4], [1])[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        twin.extend([5], [-1])[0],
        stepped(network, [*text(10, seed=7), 1, 2, 3, 5]),
        rtol=1e-4,
        atol=1e-4,
    )


@each_way
@each_architecture
def test_a_forgotten_tree_leaves_no_trace(architecture: str, branching: Branching) -> None:
    network = tiny_network(architecture)
    state = held(network, text(10, seed=8), branching)
    first = state.extend([1, 2, 3], [-1, 0, 0])
    state.commit([0])
    state.extend([4, 5], [-1, 0])
    state.commit([])
    logits = state.extend([4], [-1])
    expected = stepped(network, [*text(10, seed=8), 1, 4])
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-4)
    state.prefill(Prompt((*text(10, seed=8), 0)))
    torch.testing.assert_close(state.extend([1, 2, 3], [-1, 0, 0]), first)


@each_architecture
def test_a_draft_vocabulary_gives_the_logits_of_its_tokens(architecture: str) -> None:
    network = tiny_network(architecture)
    kept = torch.tensor([5, 3, 50, 0])
    whole = network.new_state().extend([1, 2], [-1, 0])
    network.restrict_output(kept)
    try:
        restricted = network.new_state().extend([1, 2], [-1, 0])
    finally:
        network.restrict_output(None)
    torch.testing.assert_close(restricted, whole[:, kept])
    with pytest.raises(InvalidInputError, match=f"within the network's {VOCAB} tokens"):
        network.restrict_output(torch.tensor([VOCAB]))


@each_way
@each_architecture
def test_what_is_no_tree_is_refused(architecture: str, branching: Branching) -> None:
    network = tiny_network(architecture)
    state = network.new_state(branching)
    with pytest.raises(InvalidInputError, match="at least one node"):
        state.extend([], [])
    with pytest.raises(InvalidInputError, match="node 1 cannot continue node 1"):
        state.extend([1, 2], [-1, 1])
    with pytest.raises(InvalidInputError, match="each needs a token and a parent"):
        state.extend([1, 2], [-1])
    state.extend([1, 2, 3], [-1, 0, 0])
    for path in ([1], [0, 1, 2], [0, 3], [-1]):
        with pytest.raises(InvalidInputError, match="not a path"):
            state.commit(path)
    state.commit([0, 2])


def branching_bytes(branching: Branching, shape: StateShape) -> int:
    """The bytes of one node, without its inputs to the convolutions."""
    sums = prod(shape.x) + prod(shape.dt) + prod(shape.B)
    return 4 * shape.num_layers * (prod(shape.state) if branching is StateCopies else sums)


def test_bytes_of_both_ways_to_branch_are_what_they_allocate() -> None:
    for network in (tiny_network("mamba"), tiny_network("mamba2")):
        for branching in BRANCHINGS:
            state = network.new_state(branching)
            shape = state.memory.shape
            history = (shape.conv_width - 1) * shape.conv_channels
            committed = 4 * shape.num_layers * (history + prod(shape.state))
            assert state.num_bytes == committed
            state.extend([1] * 7, [-1, 0, 0, 0, 1, 1, 1])
            conv_bytes = 4 * shape.num_layers * shape.conv_channels
            per_node = branching_bytes(branching, shape) + conv_bytes
            assert state.num_bytes == committed + 7 * per_node


def test_path_sums_need_a_fraction_of_the_bytes_in_the_published_sizes() -> None:
    mamba, mamba2 = MambaConfig().state_shape, Mamba2Config().state_shape
    larger = replace(Mamba2Config(), hidden_size=2560, num_heads=80, num_layers=64).state_shape
    assert branching_bytes(StateCopies, mamba) == 24 * 1536 * 16 * 4
    assert branching_bytes(PathSums, mamba) * 7 < branching_bytes(StateCopies, mamba)
    assert branching_bytes(PathSums, mamba2) * 100 < branching_bytes(StateCopies, mamba2)
    assert 13 * branching_bytes(StateCopies, larger) > 2**30
