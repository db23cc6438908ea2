"""The state of a text in our own decoder: what it holds is what a fresh one would."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.models.transformer import SMALLEST_CAPACITY, Transformer, TransformerState
from treesnake.models.transformer_config import TransformerConfig

VOCAB_SIZE = 31
TEXT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def network() -> Transformer:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    return Transformer(
        TransformerConfig.from_hf(config), model.state_dict(), torch.float32, torch.device("cpu")
    )


def after(state: TransformerState, token: int) -> torch.Tensor:
    """The logits after one more token, which is not kept."""
    logits = state.extend([token], [-1])
    state.commit([])
    return logits


def fresh(network: Transformer, text: list[int]) -> TransformerState:
    state = TransformerState(network)
    state.prefill(text)
    return state


def test_a_tree_may_grow_in_several_calls(network: Transformer) -> None:
    tokens, parents = [7, 8, 9, 10, 11], [-1, 0, 0, 1, -1]
    at_once = fresh(network, TEXT).extend(tokens, parents)
    state = fresh(network, TEXT)
    parts = [state.extend(tokens[a:b], parents[a:b]) for a, b in ((0, 1), (1, 3), (3, 5))]
    assert torch.equal(torch.cat(parts), at_once)


def test_each_node_sees_its_own_path(network: Transformer) -> None:
    logits = fresh(network, TEXT).extend([7, 8, 9, 10], [-1, 0, 0, 2])
    assert torch.equal(logits[3:], after(fresh(network, [*TEXT, 7, 9]), 10))


def test_a_committed_path_is_as_if_it_had_been_the_text(network: Transformer) -> None:
    state = fresh(network, TEXT)
    state.extend([7, 8, 9, 10], [-1, 0, 0, 2])
    state.commit([0, 2, 3])
    assert torch.equal(after(state, 5), after(fresh(network, [*TEXT, 7, 9, 10]), 5))


def test_an_empty_path_forgets_the_tree(network: Transformer) -> None:
    state = fresh(network, TEXT)
    state.extend([7, 8], [-1, 0])
    state.commit([])
    assert torch.equal(after(state, 5), after(fresh(network, TEXT), 5))


@pytest.mark.parametrize("text", [TEXT[:3], [*TEXT, 1, 2], [*TEXT[:4], 8, 8], [9], []], ids=str)
def test_prefilling_again_is_as_prefilling_anew(network: Transformer, text: list[int]) -> None:
    state = fresh(network, TEXT)
    state.extend([7], [-1])
    state.prefill(text)
    assert torch.equal(after(state, 5), after(fresh(network, text), 5))


def test_a_text_longer_than_the_first_cache_is_kept(network: Transformer) -> None:
    text = [index * 7 % VOCAB_SIZE for index in range(SMALLEST_CAPACITY + 20)]
    state = fresh(network, text[:10])
    for start in range(10, len(text), 100):
        part = text[start : start + 100]
        state.extend(part, range(-1, len(part) - 1))
        state.commit(range(len(part)))
    assert torch.equal(after(state, 5), after(fresh(network, text), 5))


def test_a_tree_that_outgrows_the_cache_level_by_level_keeps_its_nodes(
    network: Transformer,
) -> None:
    text = [index * 7 % VOCAB_SIZE for index in range(SMALLEST_CAPACITY - 2)]
    tokens = [7, 8, 9, 10]
    at_once = fresh(network, text).extend(tokens, [-1, 0, 1, 2])
    state = fresh(network, text)
    levels = [state.extend([token], [depth - 1]) for depth, token in enumerate(tokens)]
    assert torch.equal(torch.cat(levels), at_once)


def test_a_state_takes_bytes_for_each_token_of_the_text(network: Transformer) -> None:
    assert fresh(network, TEXT * 3).num_bytes == 3 * fresh(network, TEXT).num_bytes > 0


def test_states_share_weights_and_nothing_else(network: Transformer) -> None:
    first, second = fresh(network, TEXT), fresh(network, TEXT[::-1])
    first.extend([7, 8], [-1, 0])
    second.extend([9], [-1])
    first.commit([0])
    second.commit([0])
    assert torch.equal(after(first, 5), after(fresh(network, [*TEXT, 7]), 5))
    assert torch.equal(after(second, 5), after(fresh(network, [*TEXT[::-1], 9]), 5))
