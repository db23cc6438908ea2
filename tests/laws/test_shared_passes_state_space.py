"""A text has the same logits in a pass that it shares with other texts as in a pass of its own."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import CpuNetwork, to_cpu
from treesnake.models.state_space_state import StateSpaceState
from treesnake.models.tree_network import Part, TreeNetwork, TreeState
from treesnake.prompt import Prompt
from treesnake.states import branching, ssm
from treesnake.states.branching import BranchingKind, PathSums, StateCopies, grown
from treesnake.testing import check_network

VOCAB = 50
ARCHITECTURES = ["mamba", "mamba2"]
WAYS = {
    "copies": [StateCopies],
    "sums": [PathSums],
    "both ways": [StateCopies, PathSums],
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_way = pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS.keys())


@cache
def torch_network(architecture: str) -> Mamba | Mamba2:
    """No width is a multiple of a vector's, and everything has a bias."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 20, "num_layers": 2}
    sizes |= {"use_bias": True, "tie_embeddings": False}
    if architecture == "mamba":
        network: Mamba | Mamba2 = Mamba(MambaConfig(**sizes, state_dim=10, time_step_rank=3))
    else:
        heads = {"num_heads": 4, "head_dim": 10, "num_groups": 2}
        network = Mamba2(Mamba2Config(**sizes, **heads, state_dim=20))
    for name, parameter in network.named_parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
        if name.endswith(("dt_bias", "dt_proj.bias")):
            parameter.data += 2
    return network.eval()


@cache
def packed(architecture: str, dtype: torch.dtype) -> CpuNetwork:
    return to_cpu(torch_network(architecture), dtype)


@contextmanager
def threads(number: int) -> Iterator[None]:
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def random_tokens(data: st.DataObject, number: int) -> list[int]:
    return data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=number, max_size=number))


class Twins:
    """Two states of one text: the first shares its passes with others, the second is alone."""

    def __init__(self, network: Any, data: st.DataObject, branching: BranchingKind) -> None:
        self.shared: StateSpaceState = network.new_state(branching)
        self.alone: StateSpaceState = network.new_state(branching)
        self.parents: list[int] = []
        prompt = random_tokens(data, data.draw(st.integers(1, 40), label="prompt length"))
        for state in (self.shared, self.alone):
            state.prefill(Prompt.of(prompt))

    def draw_nodes(self, data: st.DataObject) -> tuple[list[int], list[int]]:
        """Draws new nodes below any of the tree, of each other, or of the text."""
        first = len(self.parents)
        number = data.draw(st.integers(1, 6), label="new nodes")
        parents = [data.draw(st.integers(-1, node - 1)) for node in range(first, first + number)]
        self.parents += parents
        return random_tokens(data, number), parents

    def extend_alone(self, data: st.DataObject) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, parents = self.draw_nodes(data)
        return self.shared.extend(tokens, parents), self.alone.extend(tokens, parents)

    def commit(self, data: st.DataObject) -> None:
        node = data.draw(st.integers(-1, len(self.parents) - 1), label="accepted")
        path: list[int] = []
        while node >= 0:
            path.insert(0, node)
            node = self.parents[node]
        for state in (self.shared, self.alone):
            state.commit(path)
        self.parents = []


def run_random_texts(
    network: Any, data: st.DataObject, ways: list[BranchingKind], check: Any
) -> None:
    """Grows and commits trees of random texts, in passes of several and of one."""
    number = data.draw(st.integers(1, 5), label="texts")
    texts = [Twins(network, data, data.draw(st.sampled_from(ways))) for _ in range(number)]
    for _ in range(data.draw(st.integers(1, 4), label="passes")):
        chosen = data.draw(st.permutations(texts))[: data.draw(st.integers(1, number))]
        nodes = [twins.draw_nodes(data) for twins in chosen]
        parts = [Part(twins.shared, *new) for twins, new in zip(chosen, nodes, strict=True)]
        together = network.extend_all(parts)
        assert len(together) == len(parts)
        for twins, new, logits in zip(chosen, nodes, together, strict=True):
            check(logits, twins.alone.extend(*new))
        for twins in texts:
            action = data.draw(st.sampled_from(["nothing", "extend alone", "commit"]))
            if action == "extend alone":
                check(*twins.extend_alone(data))
            elif action == "commit":
                twins.commit(data)
    for twins in texts:
        for state in (twins.shared, twins.alone):
            state.memory.settle()
        check(twins.shared.memory.recurrent, twins.alone.memory.recurrent)
        check(twins.shared.memory.history, twins.alone.memory.history)


def check_equal(first: torch.Tensor, second: torch.Tensor) -> None:
    assert torch.equal(first, second)


def check_close(first: torch.Tensor, second: torch.Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@each_architecture
@each_way
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_threads", [1, 2])
@settings(max_examples=20)
@given(data=st.data())
def test_packed_networks_give_each_text_the_bits_that_it_has_alone(
    architecture: str,
    ways: list[BranchingKind],
    dtype: torch.dtype,
    num_threads: int,
    data: st.DataObject,
) -> None:
    with threads(num_threads):
        run_random_texts(packed(architecture, dtype), data, ways, check_equal)


@each_architecture
@each_way
@settings(max_examples=20)
@given(data=st.data())
def test_torch_modules_give_each_text_what_it_has_alone(
    architecture: str, ways: list[BranchingKind], data: st.DataObject
) -> None:
    run_random_texts(torch_network(architecture), data, ways, check_close)


@each_architecture
@pytest.mark.parametrize("form", ["torch", "packed"])
def test_a_pass_with_a_part_that_cannot_be_changes_nothing(architecture: str, form: str) -> None:
    module = torch_network(architecture)
    network: Any = module if form == "torch" else packed(architecture, torch.float32)
    assert isinstance(network, TreeNetwork)
    assert network.extend_all([]) == []
    first, second = network.new_state(), network.new_state()
    assert isinstance(first, TreeState)
    good = Part(first, [1, 2], [-1, 0])
    for bad in ([3], [1]), ([VOCAB], [-1]), ([], []), ([3, 4], [-1]):
        with pytest.raises(InvalidInputError):
            network.extend_all([good, Part(second, *bad)])
    with pytest.raises(InvalidInputError, match="have the same state"):
        network.extend_all([good, Part(first, [3], [-1])])
    assert torch.equal(first.extend([1, 2], [-1, 0]), network.new_state().extend([1, 2], [-1, 0]))


@each_architecture
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_networks_keep_every_promise(architecture: str, dtype: torch.dtype) -> None:
    """A Mamba gives a node the bits of its path; a Mamba-2 sums in another order in a tree."""
    tolerance = 0 if architecture == "mamba" else 1e-4
    check_network(packed(architecture, dtype), num_trials=3, tolerance=tolerance)


@each_architecture
def test_torch_networks_keep_every_promise(architecture: str) -> None:
    check_network(torch_network(architecture), num_trials=3)


@each_architecture
@pytest.mark.parametrize("failing", range(6))
def test_memory_that_could_not_grow_can_grow_later(
    architecture: str, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays grow one after another; what was interrupted between two promises no room."""
    network = packed(architecture, torch.float32)
    prompt = Prompt.of([1, 2, 3, 4])
    state, expected = network.new_state(), network.new_state()
    state.prefill(prompt)
    expected.prefill(prompt)
    nodes = [5, 6, 7, 8, 9, 10], [-1, 0, 1, -1, 3, 4]
    calls = iter(range(100))

    def interrupted(*arguments: Any) -> torch.Tensor:
        if next(calls) == failing:
            raise KeyboardInterrupt
        return grown(*arguments)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        for module in (ssm, branching):
            patch.setattr(module, "grown", interrupted)
        state.extend(*nodes)
        state.commit([])
    assert torch.equal(state.extend(*nodes), expected.extend(*nodes))


@each_architecture
def test_states_and_snapshots_of_other_networks_are_refused(architecture: str) -> None:
    network, other = packed(architecture, torch.float32), packed(architecture, torch.int8)
    state = network.new_state()
    state.prefill(Prompt.of([1, 2, 3]))
    with pytest.raises(InvalidInputError, match="another network"):
        other.extend_all([Part(state, [1], [-1])])
    with pytest.raises(InvalidInputError, match="another network"):
        other.new_state().restore(state.snapshot())
    assert state.length == 2
