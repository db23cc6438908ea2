"""The state of a text in our own decoder: what it holds is what a fresh one would."""

from collections.abc import Sequence

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.errors import InvalidInputError
from treesnake.models.transformer import SMALLEST_CAPACITY, Transformer, TransformerState
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_cpu import CPU_DTYPES
from treesnake.models.transformer_pass import NewNodes
from treesnake.models.tree_network import Part, TreeNetwork, TreeState
from treesnake.prompt import Prompt, PromptInput
from treesnake.testing import check_network

VOCAB_SIZE = 31
TEXT = [3, 1, 4, 1, 5, 9, 2, 6]


def build(dtype: torch.dtype) -> Transformer:
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
        TransformerConfig.from_hf(config), model.state_dict(), dtype, torch.device("cpu")
    )


@pytest.fixture(scope="module")
def network() -> Transformer:
    return build(torch.float32)


def after(state: TransformerState, token: int) -> torch.Tensor:
    """The logits after one more token, which is not kept."""
    logits = state.extend([token], [-1])
    state.commit([])
    return logits


def prompt_after(text: Sequence[int]) -> Prompt:
    """A prompt of which a state holds just the text."""
    return Prompt.of([*text, 0])


def fresh(network: Transformer, text: list[int]) -> TransformerState:
    state = network.new_state()
    state.prefill(prompt_after(text))
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
    state.prefill(prompt_after(text))
    assert state.length == len(text)
    assert torch.equal(after(state, 5), after(fresh(network, text), 5))


def test_a_prefill_runs_what_is_new_and_nothing_else(
    network: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = record_passes(network, monkeypatch)
    state = fresh(network, TEXT)
    state.prefill(prompt_after([*TEXT, 1, 2]))
    state.prefill(prompt_after([*TEXT[:5], 8]))
    state.prefill(prompt_after([*TEXT[:5], 8]))
    assert passes == [TEXT, [1, 2], [8]]


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


def record_passes(network: Transformer, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Returns the tokens of every pass to come."""
    passes: list[list[int]] = []
    forward_all = network._engine.forward_all

    def recording(parts: Sequence[NewNodes]) -> list[torch.Tensor]:
        passes.append([int(token) for part in parts for token in part.token_ids])
        return forward_all(parts)

    monkeypatch.setattr(network._engine, "forward_all", recording)
    return passes


def test_the_network_and_its_state_are_what_both_roles_ask_for(network: Transformer) -> None:
    assert isinstance(network, TreeNetwork)
    assert isinstance(network.new_state(), TreeState)


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
def test_it_keeps_the_promises_of_a_network_to_the_bit(dtype: torch.dtype) -> None:
    check_network(build(dtype), num_trials=5, tolerance=0)


def test_several_texts_share_one_pass(
    network: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [fresh(network, TEXT[:length]) for length in (0, 3, 8)]
    passes = record_passes(network, monkeypatch)
    trees = [([7], [-1]), ([8, 9], [-1, -1]), ([10, 11, 12], [-1, 0, 0])]
    logits = network.extend_all(
        [Part(state, *tree) for state, tree in zip(states, trees, strict=True)]
    )
    assert passes == [[7, 8, 9, 10, 11, 12]]
    for each, length, tree in zip(logits, (0, 3, 8), trees, strict=True):
        assert torch.equal(each, fresh(network, TEXT[:length]).extend(*tree))


def test_a_pass_of_no_text_is_nothing(network: Transformer) -> None:
    assert network.extend_all([]) == []


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_pass_that_fails_changes_no_state(
    network: Transformer, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    states = [fresh(network, TEXT), fresh(network, TEXT[:3])]
    states[0].extend([7], [-1])
    with monkeypatch.context() as patch:

        def fail(parts: Sequence[NewNodes]) -> list[torch.Tensor]:
            raise error

        patch.setattr(network._engine, "forward_all", fail)
        with pytest.raises(error):
            network.extend_all([Part(states[0], [8], [0]), Part(states[1], [9] * 600, [-1] * 600)])
    first, second = network.extend_all([Part(states[0], [5], [0]), Part(states[1], [5], [-1])])
    assert torch.equal(first, after(fresh(network, [*TEXT, 7]), 5))
    assert torch.equal(second, after(fresh(network, TEXT[:3]), 5))


@pytest.mark.parametrize(
    ("tokens", "parents", "message"),
    [
        ([], [], "at least one node"),
        ([7, 8], [-1], "2 tokens and 1 parents"),
        ([7], [1], "node 1 cannot continue node 1"),
        ([VOCAB_SIZE], [-1], f"token {VOCAB_SIZE} does not exist"),
    ],
)
def test_trees_that_cannot_be_are_refused(
    network: Transformer, tokens: list[int], parents: list[int], message: str
) -> None:
    state, other = fresh(network, TEXT), fresh(network, TEXT)
    state.extend([6], [-1])
    with pytest.raises(InvalidInputError, match=message):
        network.extend_all([Part(other, [5], [-1]), Part(state, tokens, parents)])
    assert torch.equal(state.extend([5], [0]), after(fresh(network, [*TEXT, 6]), 5))
    assert torch.equal(other.extend([5], [-1]), after(fresh(network, TEXT), 5))


def test_a_path_that_is_none_is_refused(network: Transformer) -> None:
    state = fresh(network, TEXT)
    state.extend([7, 8, 9], [-1, 0, 0])
    with pytest.raises(InvalidInputError, match=r"\[0, 2, 1\] is not a path"):
        state.commit([0, 2, 1])
    state.commit([0, 2])
    assert torch.equal(after(state, 5), after(fresh(network, [*TEXT, 7, 9]), 5))


def test_a_prompt_that_cannot_be_read_leaves_the_text(network: Transformer) -> None:
    state = fresh(network, TEXT)
    picture = PromptInput({"pixels": torch.ones(2)}, 0, 1)
    for prompt, message in (
        (Prompt((1, 2), (picture,)), "the prompt brings pixels"),
        (Prompt.of([9, VOCAB_SIZE, 0]), f"token {VOCAB_SIZE} does not exist"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            state.prefill(prompt)
    assert torch.equal(after(state, 5), after(fresh(network, TEXT), 5))


def test_a_snapshot_is_restored_into_a_state_of_any_capacity(network: Transformer) -> None:
    long = [index * 7 % VOCAB_SIZE for index in range(SMALLEST_CAPACITY + 20)]
    state = fresh(network, long)
    snapshot = state.snapshot()
    assert snapshot.num_bytes == state.num_bytes
    state.prefill(prompt_after(TEXT))
    small = state.snapshot()
    expected = after(fresh(network, long), 5)
    for other in (network.new_state(), fresh(network, TEXT), state):
        other.extend([3], [-1])
        other.restore(snapshot)
        assert torch.equal(after(other, 5), expected)
        other.restore(small)
        assert torch.equal(after(other, 5), after(fresh(network, TEXT), 5))
