"""States come back to earlier texts: the bits of a fresh prefill, and only what is new is run."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.errors import BrokenModelError, InvalidInputError
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import to_cpu
from treesnake.models.state_space_state import StateSpaceState
from treesnake.pauses import pausing
from treesnake.prompt import Prompt, PromptInput
from treesnake.states.branching import BranchingKind, PathSums, StateCopies
from treesnake.states.ssm import SsmState
from treesnake.testing import check_network

VOCAB = 50

each_network = pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
each_form = pytest.mark.parametrize("form", ["torch", "packed"])
each_way = pytest.mark.parametrize("branching", [StateCopies, PathSums])


@cache
def torch_network(architecture: str) -> Mamba | Mamba2:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_layers": 2, "state_dim": 8}
    if architecture == "mamba":
        network: Mamba | Mamba2 = Mamba(MambaConfig(**sizes))
    else:
        network = Mamba2(Mamba2Config(**sizes, num_heads=4, head_dim=8))
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data *= 3
    return network.eval()


@cache
def network_of(architecture: str, form: str) -> Any:
    module = torch_network(architecture)
    return module if form == "torch" else to_cpu(module)


class CountingNetwork:
    """A network that counts the tokens of texts that it runs."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.num_run = 0

    @property
    def vocab_size(self) -> int:
        return self.network.vocab_size

    def new_state(self, branching: BranchingKind | None = None) -> StateSpaceState:
        return StateSpaceState(self, self.network.new_state(branching).memory)

    def run_text(self, token_ids: Any, memory: SsmState) -> None:
        self.num_run += len(token_ids)
        self.network.run_text(token_ids, memory)

    def extend_all(self, parts: Any) -> Any:
        """Lends the states to the network that is counted, which takes none but its own."""
        for part in parts:
            part.state.network = self.network
        try:
            return self.network.extend_all(parts)
        finally:
            for part in parts:
                part.state.network = self

    def broken_model_error(self, token_ids: Any) -> BrokenModelError:
        return self.network.broken_model_error(token_ids)


class Branching:
    """A network whose states branch in one way."""

    def __init__(self, network: Any, kind: BranchingKind) -> None:
        self._network = network
        self._kind = kind
        self.vocab_size: int = network.vocab_size
        self.context_length: int | None = network.context_length

    def new_state(self) -> StateSpaceState:
        return self._network.new_state(self._kind)

    def extend_all(self, parts: Any) -> Any:
        return self._network.extend_all(parts)


def text(length: int, seed: int) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (length,), generator=random).tolist()


def answer(state: StateSpaceState, tokens: list[int]) -> None:
    """Grows the tokens as a chain with wrong branches, some at a time, and commits them."""
    for begin in range(0, len(tokens), 3):
        part = tokens[begin : begin + 3]
        state.extend([*part, 7], [*range(-1, len(part) - 1), -1])
        state.commit(range(len(part)))


def fresh(network: Any, branching: BranchingKind, prompt: Prompt) -> StateSpaceState:
    state = network.new_state(branching)
    state.prefill(prompt)
    return state


def assert_same_bits(state: StateSpaceState, expected: StateSpaceState) -> None:
    assert state.held.key == expected.held.key
    for each in (state, expected):
        each.memory.settle()
    assert torch.equal(state.memory.recurrent, expected.memory.recurrent)
    assert torch.equal(state.memory.history, expected.memory.history)
    nodes = ([1, 2, 3], [-1, 0, 0])
    assert torch.equal(state.extend(*nodes), expected.extend(*nodes))


@each_network
@each_form
@each_way
def test_a_repeated_turn_is_not_run_again(
    architecture: str, form: str, branching: BranchingKind
) -> None:
    network = CountingNetwork(network_of(architecture, form))
    state, prompt = network.new_state(branching), Prompt.of(text(30, seed=1))
    state.prefill(prompt)
    answer(state, text(9, seed=2))
    assert network.num_run == 29
    state.prefill(prompt)
    assert network.num_run == 29
    assert_same_bits(state, fresh(network_of(architecture, form), branching, prompt))


@each_network
@each_form
@each_way
def test_an_edited_turn_runs_from_the_border_before_it(
    architecture: str, form: str, branching: BranchingKind
) -> None:
    network = CountingNetwork(network_of(architecture, form))
    state, start = network.new_state(branching), text(30, seed=1)
    state.prefill(Prompt((*start, *text(12, seed=2)), borders=(30,)))
    answer(state, text(9, seed=3))
    network.num_run = 0
    edited = Prompt((*start, *text(15, seed=4)), borders=(30,))
    state.prefill(edited)
    assert network.num_run == 14
    assert_same_bits(state, fresh(network_of(architecture, form), branching, edited))


@each_network
@each_form
@each_way
def test_a_template_that_drops_earlier_thoughts_runs_from_the_end_of_the_prompt_before_them(
    architecture: str, form: str, branching: BranchingKind
) -> None:
    network = CountingNetwork(network_of(architecture, form))
    state, start = network.new_state(branching), text(30, seed=1)
    thoughts, said = text(12, seed=2), text(6, seed=3)
    state.prefill(Prompt.of(start))
    answer(state, [start[-1], *thoughts, *said])
    network.num_run = 0
    following = Prompt.of([*start, *said, *text(8, seed=4)])
    state.prefill(following)
    assert network.num_run == 6 + 8
    # In two parts, as the state has run it: sums of chunks round differently in torch.
    expected = fresh(network_of(architecture, form), branching, Prompt.of(start))
    expected.prefill(following)
    assert_same_bits(state, expected)


@each_network
@each_form
@each_way
def test_the_end_of_an_answer_can_be_come_back_to(
    architecture: str, form: str, branching: BranchingKind
) -> None:
    network = CountingNetwork(network_of(architecture, form))
    state, said = network.new_state(branching), text(9, seed=2)
    start = text(20, seed=1)
    state.prefill(Prompt.of(start))
    answer(state, [start[-1], *said])
    state.memory.settle()
    at_the_end = state.extend([5], [-1])
    conversation = [*start, *said]
    for follow_up in (text(8, seed=3), text(11, seed=4)):
        network.num_run = 0
        state.prefill(Prompt.of([*conversation, *follow_up]))
        assert network.num_run == len(follow_up) - 1
        answer(state, text(4, seed=5))
    state.prefill(Prompt.of([*conversation, 5]))
    assert torch.equal(state.extend([5], [-1]), at_the_end)


@each_network
@each_way
@settings(max_examples=20)
@given(data=st.data())
def test_any_sequence_of_prompts_leaves_what_a_fresh_prefill_leaves(
    architecture: str, branching: BranchingKind, data: st.DataObject
) -> None:
    """Of texts that were run as such, whose bits do not depend on the pieces on a CPU."""
    network = CountingNetwork(network_of(architecture, "packed"))
    state, start = network.new_state(branching), text(40, seed=1)
    for seed in range(data.draw(st.integers(1, 6), label="prompts")):
        kept = data.draw(st.integers(0, 40), label="kept")
        new = data.draw(st.integers(1, 20), label="new")
        borders = tuple(sorted(data.draw(st.sets(st.integers(0, kept + new), max_size=3))))
        prompt = Prompt((*start[:kept], *text(new, seed=seed)), borders=borders)
        state.prefill(prompt)
        assert state.length == len(prompt) - 1
        assert_same_bits(state, fresh(network.network, branching, prompt))
        state.commit([0])


@each_network
@each_form
def test_where_the_prompt_parts_from_the_text_is_logged(
    architecture: str, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    network, start = network_of(architecture, form), text(30, seed=1)
    state = network.new_state()
    with caplog.at_level(logging.INFO):
        state.prefill(Prompt(tuple(start), borders=(10,)))
        state.prefill(Prompt((*start, 3, 4)))
        assert not caplog.records
        state.prefill(Prompt((*start[:20], (start[20] + 1) % VOCAB, 1)))
    assert "parts from the text that is held at token 20 of 31" in caplog.text
    assert "from token 10 on" in caplog.text


@each_network
@each_form
def test_a_long_prompt_pauses_before_each_part(architecture: str, form: str) -> None:
    parts: list[int] = []
    with pausing(lambda: parts.append(1)):
        network_of(architecture, form).new_state().prefill(Prompt((*text(600, seed=1), 0)))
    assert len(parts) == (5 if form == "packed" else 2)


@each_network
@each_form
def test_a_prompt_with_inputs_is_refused_and_changes_nothing(architecture: str, form: str) -> None:
    network = network_of(architecture, form)
    state = fresh(network, StateCopies, Prompt((1, 2, 3)))
    picture = PromptInput({"pixel_values": torch.zeros(1)}, start=1, num_placeholders=1)
    with pytest.raises(InvalidInputError, match="pixel_values"):
        state.prefill(Prompt((4, 5, 6), (picture,)))
    assert_same_bits(state, fresh(network, StateCopies, Prompt((1, 2, 3))))


def move_along(state: StateSpaceState, path: Sequence[int]) -> None:
    state.commit(path)
    state.snapshot()  # it moves along nodes that are pending


@each_network
@each_form
@each_way
def test_an_interrupted_commit_is_forgotten(
    architecture: str, form: str, branching: BranchingKind
) -> None:
    network = network_of(architecture, form)
    state, prompt = network.new_state(branching), Prompt((1, 2, 3, 4))
    state.prefill(prompt)
    state.extend([4, 5], [-1, 0])
    commit_path = state.memory._commit_path

    def interrupted(memory: SsmState, path: Sequence[int]) -> None:
        commit_path(memory, path)
        raise KeyboardInterrupt

    state.memory._commit_path = interrupted
    with pytest.raises(KeyboardInterrupt):
        move_along(state, [0, 1])
    state.memory._commit_path = commit_path
    assert state.length == 0
    assert_same_bits(state, network.new_state(branching))
    state.prefill(prompt)  # from the snapshot at its end, which nothing has touched
    assert_same_bits(state, fresh(network, branching, prompt))


class InterruptedNetwork(CountingNetwork):
    """A network that is interrupted after it has run a text."""

    def run_text(self, token_ids: Any, memory: SsmState) -> None:
        super().run_text(token_ids, memory)
        raise KeyboardInterrupt


@each_network
@each_form
def test_an_interrupted_prefill_is_forgotten(architecture: str, form: str) -> None:
    network = network_of(architecture, form)
    state = InterruptedNetwork(network).new_state()
    with pytest.raises(KeyboardInterrupt):
        state.prefill(Prompt((1, 2, 3)))
    assert state.length == 0
    assert_same_bits(state, network.new_state())


@each_network
@each_form
def test_a_snapshot_belongs_to_a_network_and_not_to_a_state(architecture: str, form: str) -> None:
    network, prompt = network_of(architecture, form), Prompt.of(text(20, seed=1))
    first = fresh(network, StateCopies, prompt)
    snapshot = first.snapshot()
    first.extend([5, 6], [-1, 0])
    first.commit([0, 1])
    second = network.new_state(StateCopies)
    second.restore(snapshot)
    assert_same_bits(second, fresh(network, StateCopies, prompt))
    first.restore(snapshot)
    assert_same_bits(first, fresh(network, StateCopies, prompt))


@each_network
@each_form
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("backbone.embeddings.weight", "the embedding"),
        ("backbone.layers.1.mixer.out_proj.weight", "layer 1"),
        ("lm_head.weight", "the output layer"),
    ],
)
def test_a_broken_network_names_its_first_broken_part(
    architecture: str, form: str, part: str, name: str
) -> None:
    config = torch_network(architecture).config
    kind: Any = type(torch_network(architecture))
    module = kind(type(config)(**(vars(config) | {"tie_embeddings": False})))
    module.get_parameter(part).data[3] = float("nan")
    network = module if form == "torch" else to_cpu(module)
    error = network.new_state().broken_model_error([3, 4], [-1, 0])
    assert f"no numbers: {name} is the first part" in str(error)


@each_network
@each_way
def test_torch_modules_are_tree_networks(architecture: str, branching: BranchingKind) -> None:
    network = Branching(network_of(architecture, "torch"), branching)
    check_network(network, num_trials=6, tolerance=1e-3)


@each_way
def test_a_packed_mamba_is_a_tree_network_to_the_bit(branching: BranchingKind) -> None:
    network = Branching(network_of("mamba", "packed"), branching)
    check_network(network, num_trials=6, tolerance=0)


@each_way
def test_a_packed_mamba2_is_a_tree_network(branching: BranchingKind) -> None:
    """Not to the bit with sums: these are other sums than those of a text."""
    tolerance = 0 if branching is StateCopies else 1e-4
    network = Branching(network_of("mamba2", "packed"), branching)
    check_network(network, num_trials=6, tolerance=tolerance)
