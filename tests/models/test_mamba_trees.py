"""Token trees on Mamba and Mamba-2: every node equals stepping its path from scratch."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceNetwork
from treesnake.states.branching import PathSums, StateCopies
from treesnake.states.ssm import SsmState

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


def stepped(
    network: StateSpaceNetwork[Any], tokens: list[int], state: SsmState | None = None
) -> torch.Tensor:
    """The logits after a text that is run token by token, from an empty state or another."""
    state = state or network.new_state(StateCopies)
    logits = torch.empty(1, 0)
    for token in tokens:
        logits = network.extend([token], [-1], state)
        state.commit([0])
    return logits[0]


def path_to(node: int, parents: list[int]) -> list[int]:
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def grow(
    network: StateSpaceNetwork[Any], state: SsmState, data: st.DataObject, max_nodes: int = 10
) -> tuple[list[int], list[int], torch.Tensor]:
    """Grows a random tree in random portions; returns tokens, parents and logits of its nodes."""
    num_nodes = data.draw(st.integers(1, max_nodes), label="nodes")
    parents = [-1] + [data.draw(st.integers(0, node - 1)) for node in range(1, num_nodes)]
    tokens = text(num_nodes, seed=num_nodes)
    rows, first = [], 0
    while first < num_nodes:
        end = data.draw(st.integers(first + 1, num_nodes))
        rows.append(network.extend(tokens[first:end], parents[first:end], state))
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
    network.prefill(context, state, chunk=data.draw(st.integers(1, 64), label="chunk"))
    oracle = network.new_state(StateCopies)
    stepped(network, context, oracle)
    for _ in range(num_rounds):
        tokens, parents, logits = grow(network, state, data)
        for node in {0, len(tokens) // 2, len(tokens) - 1}:
            path = path_to(node, parents)
            expected = stepped(network, [tokens[step] for step in path], oracle.clone())
            torch.testing.assert_close(logits[node], expected, rtol=1e-4, atol=1e-4)
        path = path_to(data.draw(st.integers(0, len(tokens) - 1), label="accepted"), parents)
        pending = text(data.draw(st.integers(0, 2), label="pending"), seed=9)
        state.commit(path, pending)
        stepped(network, [tokens[step] for step in path] + pending, oracle)


@each_way
@each_architecture
@pytest.mark.parametrize("prompt_length", [1, 300, 2000])
def test_long_prompts_change_nothing(
    architecture: str, branching: Branching, prompt_length: int
) -> None:
    network = tiny_network(architecture)
    prompt, tokens = text(prompt_length, seed=2), text(5, seed=3)
    parents = [-1, 0, 0, 1, 1]
    state = network.new_state(branching)
    network.prefill(prompt, state)
    num_bytes = state.num_bytes
    logits = network.extend(tokens, parents, state)
    for node in (2, 4):
        path = [tokens[step] for step in path_to(node, parents)]
        expected = network(torch.tensor([prompt + path]))[0, -1]
        torch.testing.assert_close(logits[node], expected, rtol=1e-4, atol=1e-4)
    assert num_bytes == network.new_state(branching).num_bytes


@each_architecture
def test_both_ways_to_branch_commit_the_same_state(architecture: str) -> None:
    network = tiny_network(architecture)
    states = [network.new_state(branching) for branching in BRANCHINGS]
    for state in states:
        network.prefill(text(20, seed=4), state)
        network.extend(text(6, seed=5), [-1, 0, 1, 1, 3, 0], state)
        state.commit([0, 1, 3])
    torch.testing.assert_close(states[0].recurrent, states[1].recurrent, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[0].history, states[1].history)


@each_way
@each_architecture
def test_prefill_continues_as_one_text(architecture: str, branching: Branching) -> None:
    network = tiny_network(architecture)
    tokens = text(40, seed=6)
    state = network.new_state(branching)
    network.prefill(tokens[:15], state)
    network.extend(tokens[15:17], [-1, 0], state)
    state.commit([0], pending=[tokens[16]])
    network.prefill(tokens[17:], state)
    assert state.length == 40
    whole = network.new_state(branching)
    network.prefill(tokens, whole)
    torch.testing.assert_close(state.recurrent, whole.recurrent, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.history, whole.history)


@each_way
@each_architecture
def test_a_clone_and_its_original_go_their_own_ways(
    architecture: str, branching: Branching
) -> None:
    network = tiny_network(architecture)
    state = network.new_state(branching)
    network.prefill(text(10, seed=7), state)
    network.extend([1, 2], [-1, 0], state)
    twin = state.clone()
    network.extend([3], [1], twin)
    twin.commit([0, 1, 2])
    expected = stepped(network, [*text(10, seed=7), 1, 2, 4])
    torch.testing.assert_close(network.extend([4], [1], state)[0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        network.extend([5], [-1], twin)[0],
        stepped(network, [*text(10, seed=7), 1, 2, 3, 5]),
        rtol=1e-4,
        atol=1e-4,
    )


@each_way
@each_architecture
def test_a_cleared_tree_leaves_no_trace(architecture: str, branching: Branching) -> None:
    network = tiny_network(architecture)
    state = network.new_state(branching)
    network.prefill(text(10, seed=8), state)
    first = network.extend([1, 2, 3], [-1, 0, 0], state)
    state.commit([0], pending=[7])
    network.extend([4, 5], [-1, 0], state)
    state.clear_tree()
    assert state.num_nodes == 0
    logits = network.extend([4], [-1], state)
    expected = stepped(network, [*text(10, seed=8), 1, 7, 4])
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-4)
    state.reset()
    network.prefill(text(10, seed=8), state)
    torch.testing.assert_close(network.extend([1, 2, 3], [-1, 0, 0], state), first)


@each_architecture
def test_a_draft_vocabulary_gives_the_logits_of_its_tokens(architecture: str) -> None:
    network = tiny_network(architecture)
    kept = torch.tensor([5, 3, 50, 0])
    whole = network.extend([1, 2], [-1, 0], network.new_state())
    network.restrict_output(kept)
    try:
        restricted = network.extend([1, 2], [-1, 0], network.new_state())
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
        network.extend([], [], state)
    with pytest.raises(InvalidInputError, match="node 1 cannot continue node 1"):
        network.extend([1, 2], [-1, 1], state)
    with pytest.raises(InvalidInputError, match="a token and a parent each"):
        network.extend([1, 2], [-1], state)
    network.extend([1, 2, 3], [-1, 0, 0], state)
    for path in ([1], [0, 1, 2], [0, 3], [-1]):
        with pytest.raises(InvalidInputError, match="not a path"):
            state.commit(path)
    state.commit([0, 2])


def test_bytes_of_both_ways_to_branch_are_what_they_allocate() -> None:
    for network in (tiny_network("mamba"), tiny_network("mamba2")):
        for branching in BRANCHINGS:
            state = network.new_state(branching)
            shape = state.shape
            assert state.num_bytes == shape.committed_bytes
            network.extend([1] * 7, [-1, 0, 0, 0, 1, 1, 1], state)
            per_node = branching.bytes_per_node(shape) + shape.conv_bytes
            assert state.num_bytes == shape.committed_bytes + 7 * per_node


def test_path_sums_need_a_fraction_of_the_bytes_in_the_published_sizes() -> None:
    mamba, mamba2 = MambaConfig().state_shape, Mamba2Config().state_shape
    larger = replace(Mamba2Config(), hidden_size=2560, num_heads=80, num_layers=64).state_shape
    assert StateCopies.bytes_per_node(mamba) == 24 * 1536 * 16 * 4
    assert PathSums.bytes_per_node(mamba) * 7 < StateCopies.bytes_per_node(mamba)
    assert PathSums.bytes_per_node(mamba2) * 100 < StateCopies.bytes_per_node(mamba2)
    assert 13 * StateCopies.bytes_per_node(larger) > 2**30
