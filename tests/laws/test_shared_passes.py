"""Texts that share a pass get what they get alone, and come back to earlier texts.

A network joins by a line in `NETWORKS`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.errors import InvalidInputError
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.tree_network import Part, TreeNetwork, TreeState
from treesnake.prompt import Prompt

VOCAB_SIZE = 31


def native_transformer(dtype: torch.dtype) -> TreeNetwork:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    tensors = {name: tensor * 5 for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    return Transformer(TransformerConfig.from_hf(config), tensors, dtype, torch.device("cpu"))


NETWORKS: dict[str, Callable[[], TreeNetwork]] = {
    "native transformer, float32": lambda: native_transformer(torch.float32),
    "native transformer, float16": lambda: native_transformer(torch.float16),
    "native transformer, bfloat16": lambda: native_transformer(torch.bfloat16),
    "native transformer, int8": lambda: native_transformer(torch.int8),
}
"""Networks of `VOCAB_SIZE` tokens that give equal bits; each is made once."""

EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)


@cache
def network_of(name: str) -> TreeNetwork:
    return NETWORKS[name]()


TOKENS = st.integers(0, VOCAB_SIZE - 1)
TEXTS = st.lists(TOKENS, max_size=40)


def holding(network: TreeNetwork, text: Sequence[int]) -> TreeState:
    state = network.new_state()
    state.prefill(Prompt.of([*text, 0]))
    return state


class Twins:
    """A text that shares passes with others, and the same text that never does."""

    def __init__(self, network: TreeNetwork, text: Sequence[int]) -> None:
        self.sharing = holding(network, text)
        self.alone = holding(network, text)
        self.parents: list[int] = []

    def draw_nodes(self, data: st.DataObject) -> tuple[list[int], list[int]]:
        """Draws nodes below the text or below earlier nodes, often a chain."""
        first = len(self.parents)
        parents = [
            data.draw(st.just(node - 1) | st.integers(-1, node - 1))
            for node in range(first, first + data.draw(st.integers(1, 6)))
        ]
        tokens = data.draw(st.lists(TOKENS, min_size=len(parents), max_size=len(parents)))
        self.parents += parents
        return tokens, parents

    def commit(self, data: st.DataObject) -> None:
        node = data.draw(st.integers(-1, len(self.parents) - 1))
        path: list[int] = []
        while node >= 0:
            path.insert(0, node)
            node = self.parents[node]
        self.sharing.commit(path)
        self.alone.commit(path)
        self.parents = []


def check_rounds(network: TreeNetwork, data: st.DataObject) -> None:
    """Grows trees on some texts in shared passes, and the same trees text by text."""
    texts = [Twins(network, text) for text in data.draw(st.lists(TEXTS, min_size=1, max_size=5))]
    for _ in range(data.draw(st.integers(1, 4))):
        members = data.draw(st.lists(st.sampled_from(texts), min_size=1, unique=True))
        nodes = [member.draw_nodes(data) for member in members]
        parts = [Part(member.sharing, *each) for member, each in zip(members, nodes, strict=True)]
        shared = network.extend_all(parts)
        for member, each, logits in zip(members, nodes, shared, strict=True):
            assert torch.equal(logits, member.alone.extend(*each))
        for member in data.draw(st.lists(st.sampled_from(texts), unique=True)):
            member.commit(data)
        for text in texts:
            assert text.sharing.length == text.alone.length


@EVERY_NETWORK
@settings(max_examples=25)
@given(data=st.data())
def test_each_text_gets_the_bits_that_it_gets_alone(name: str, data: st.DataObject) -> None:
    check_rounds(network_of(name), data)


@EVERY_NETWORK
@settings(max_examples=10)
@given(data=st.data())
def test_each_text_gets_them_from_several_threads(name: str, data: st.DataObject) -> None:
    with num_threads(2):
        check_rounds(network_of(name), data)


@contextmanager
def num_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@EVERY_NETWORK
@settings(max_examples=15)
@given(text=TEXTS, more=TEXTS, other=TEXTS)
def test_a_prompt_after_a_snapshot_is_as_if_it_had_been_read_anew(
    name: str, text: list[int], more: list[int], other: list[int]
) -> None:
    network = network_of(name)
    first = holding(network, text)
    snapshot = first.snapshot()
    first.extend([1, 2], [-1, -1])
    first.commit([0])
    probe = [3, 4, 5, 6], [-1, 0, -1, 1]
    expected = holding(network, [*text, *more]).extend(*probe)
    for state in (first, holding(network, other)):
        state.restore(snapshot)
        assert state.length == len(text)
        state.prefill(Prompt.of([*text, *more, 0]))
        assert torch.equal(state.extend(*probe), expected)


@EVERY_NETWORK
def test_a_text_takes_part_once(name: str) -> None:
    network = network_of(name)
    state = holding(network, [1, 2, 3])
    with pytest.raises(InvalidInputError, match="two parts of a pass have the same state"):
        network.extend_all([Part(state, [4], [-1]), Part(state, [5], [-1])])
    expected = holding(network, [1, 2, 3]).extend([4], [-1])
    assert torch.equal(state.extend([4], [-1]), expected)


def test_a_cache_that_could_not_grow_can_grow_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values grow one after the other; the first that is missing promises no room."""
    network = network_of("native transformer, float32")
    state, expected = holding(network, [1, 2, 3]), holding(network, [1, 2, 3])
    longer = Prompt.of([index % VOCAB_SIZE for index in range(200)] * 4)
    expected.prefill(longer)
    zeros, calls = torch.Tensor.new_zeros, iter(range(100))

    def failing(tensor: torch.Tensor, *sizes: int) -> torch.Tensor:
        if next(calls) == 1:
            raise MemoryError
        return zeros(tensor, *sizes)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "new_zeros", failing)
        with pytest.raises(MemoryError):
            state.prefill(longer)
    state.prefill(longer)
    assert torch.equal(state.extend([4, 5], [-1, 0]), expected.extend([4, 5], [-1, 0]))


def test_states_and_snapshots_of_other_networks_are_refused() -> None:
    network, other = (network_of(f"native transformer, {name}") for name in ("float32", "float16"))
    state = holding(network, [1, 2, 3])
    with pytest.raises(InvalidInputError, match="another network"):
        other.extend_all([Part(state, [1], [-1])])
    with pytest.raises(InvalidInputError, match="another network"):
        other.new_state().restore(state.snapshot())
    assert state.length == 3
