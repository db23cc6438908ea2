"""States of unmodified transformers models: prompts in parts, trees that grow level by level."""

import random
from itertools import pairwise
from typing import Any

import pytest
import torch

from treesnake.errors import InvalidInputError
from treesnake.models import hf_passes
from treesnake.models.hf_attention import HfAttention, HfAttentionState
from treesnake.models.tree_network import Part
from treesnake.pauses import pausing
from treesnake.prompt import Prompt, PromptInput
from treesnake.testing import check_network

VOCAB_SIZE = 61
TEXT = (5, 17, 60, 2, 33, 8, 8, 41, 12, 27, 3)
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt2": {},
    "gpt_neox": {},
    "llama": {},
    "mistral": {},
}

TOKENS = [50, 1, 2, 3, 1, 9, 4, 30, 7]
PARENTS = [-1, 0, 0, 1, 1, 2, 3, 6, -1]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(params=FAMILIES)
def network(request, tiny_model) -> HfAttention:
    return HfAttention(tiny_model(request.param, **FAMILIES[request.param]))


def filled(network: HfAttention, token_ids=TEXT) -> HfAttentionState:
    state = network.new_state()
    state.prefill(Prompt.of([*token_ids, 0]))
    return state


def test_it_is_a_network(network):
    check_network(network)


@pytest.mark.parametrize("sizes", [(1,) * 9, (1, 2, 3, 3), (4, 5), (8, 1)], ids=str)
def test_a_tree_that_grows_is_the_tree_at_once(network, sizes):
    expected = filled(network).extend(TOKENS, PARENTS)
    growing = filled(network)
    starts = [sum(sizes[:level]) for level in range(len(sizes) + 1)]
    rows = [
        growing.extend(TOKENS[start:end], PARENTS[start:end]) for start, end in pairwise(starts)
    ]
    close(torch.cat(rows), expected)


def test_a_chain_that_grows_is_the_text(network):
    growing = filled(network)
    rows = torch.cat([growing.extend([token], [node - 1]) for node, token in enumerate(TOKENS)])
    whole = network.model(input_ids=torch.tensor([[*TEXT, *TOKENS]])).logits[0]
    close(rows, whole[-len(TOKENS) :])


def test_a_path_of_a_tree_that_grew_becomes_text(network):
    grown = filled(network)
    grown.extend(TOKENS[:3], PARENTS[:3])
    grown.extend(TOKENS[3:], PARENTS[3:])
    grown.commit((0, 1, 3, 6))
    assert grown.length == len(TEXT) + 4
    expected = filled(network, (*TEXT, 50, 1, 3, 4)).extend([6, 11], [-1, -1])
    close(grown.extend([6, 11], [-1, -1]), expected)


def test_growth_that_was_interrupted_can_be_repeated(tiny_model):
    model = tiny_model("llama")
    state = filled(HfAttention(model))
    state.extend(TOKENS[:3], PARENTS[:3])
    expected = filled(state.network).extend(TOKENS, PARENTS)[3:]

    def interrupt(module, inputs):
        raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        state.extend(TOKENS[3:], PARENTS[3:])
    handle.remove()
    close(state.extend(TOKENS[3:], PARENTS[3:]), expected)


def test_a_shared_pass_that_was_interrupted_leaves_every_text_as_it_was(tiny_model):
    model = tiny_model("llama")
    network = HfAttention(model)
    first, second = filled(network), filled(network, TEXT[:4])
    first.extend(TOKENS[:3], PARENTS[:3])
    kept = first.snapshot()
    expected = filled(network).extend(TOKENS, PARENTS)[3:]

    def interrupt(module, inputs):
        raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        network.extend_all([Part(second, [5], [-1]), Part(first, TOKENS[3:], PARENTS[3:])])
    handle.remove()
    assert (first.length, second.length) == (len(TEXT), 4)
    assert all(map(torch.equal, first.snapshot().tensors, kept.tensors))
    second.commit(())
    close(second.extend([6], [-1]), filled(network, TEXT[:4]).extend([6], [-1]))
    close(first.extend(TOKENS[3:], PARENTS[3:]), expected)


def test_a_part_that_cannot_grow_stops_the_others_before_they_run(network):
    first, second = filled(network), filled(network)
    with pytest.raises(InvalidInputError, match="node 0 cannot continue node 7"):
        network.extend_all([Part(first, [5], [-1]), Part(second, [5], [7])])
    with pytest.raises(InvalidInputError, match="same state"):
        network.extend_all([Part(first, [5], [-1]), Part(first, [5], [-1])])
    with pytest.raises(InvalidInputError, match="not a path"):
        first.commit((0,))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", [(3, 4)]),
        ("llama4_text", [(1, 1), (1, 4), (1, 2)]),  # reads the number of rows as well
        ("bert", [(1, 1), (1, 4), (1, 2)]),  # nobody verified what it reads
    ],
)
def test_texts_share_a_pass_where_the_model_reads_masks_and_positions_alone(
    family, expected, tiny_model
):
    changes = {"is_decoder": True} if family == "bert" else {}
    network = HfAttention(tiny_model(family, **changes))
    states = [filled(network), filled(network, TEXT[:1]), network.new_state()]
    shapes: list[torch.Size] = []
    network.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: shapes.append(output.shape[:2])
    )
    growths = zip(states, (1, 4, 2), strict=True)
    network.extend_all([Part(state, TOKENS[:new], PARENTS[:new]) for state, new in growths])
    assert shapes == expected


def test_one_text_in_a_shared_call_gets_the_bits_that_it_gets_alone(network):
    (shared,) = network.extend_all([Part(filled(network), TOKENS, PARENTS)])
    assert torch.equal(shared, filled(network).extend(TOKENS, PARENTS))


def test_a_snapshot_brings_a_text_back_bit_for_bit(network):
    state = filled(network)
    state.extend(TOKENS, PARENTS)
    snapshot = state.snapshot()
    assert snapshot.num_bytes == state.num_bytes > 0
    state.commit((0, 1))
    state.extend([9, 4], [-1, 0])
    expected = filled(network).extend(TOKENS, PARENTS)
    for each in (state, network.new_state()):
        each.restore(snapshot)
        assert each.length == len(TEXT)
        assert torch.equal(each.extend(TOKENS, PARENTS), expected)


def test_a_snapshot_of_nothing_brings_back_nothing(network):
    state = filled(network)
    state.restore(network.new_state().snapshot())
    assert (state.length, state.num_bytes) == (0, 0)
    close(state.extend([4], [-1]), network.new_state().extend([4], [-1]))


def test_a_prompt_with_inputs_is_refused(network):
    pixels = PromptInput({"pixel_values": torch.zeros(2)}, start=1, num_placeholders=2)
    with pytest.raises(InvalidInputError, match="pixel_values"):
        network.new_state().prefill(Prompt((5, 9, 9, 4), inputs=(pixels,)))


def test_a_long_prompt_in_parts_is_the_prompt_at_once(network, monkeypatch):
    token_ids = random.Random(0).choices(range(VOCAB_SIZE), k=70)
    at_once = filled(network, token_ids).extend([4], [-1])
    counts: list[int] = []
    embedding = network.model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, output: counts.append(output.shape[1]))
    monkeypatch.setattr(hf_passes, "PREFILL_BYTES", 0)
    pauses: list[int] = []
    with pausing(lambda: pauses.append(len(counts))):
        close(filled(network, token_ids).extend([4], [-1]), at_once)
    assert counts == [16, 16, 16, 16, 6, 1]
    assert pauses == [0, 1, 2, 3, 4], "others may go on before each part"


def test_parts_of_a_prompt_are_shorter_where_a_token_takes_more(tiny_model):
    narrow, wide = (
        HfAttention(tiny_model("llama")),
        HfAttention(tiny_model("llama", hidden_size=64)),
    )
    assert narrow.passes.part_size(100) > wide.passes.part_size(100)
    assert narrow.passes.part_size(100) > narrow.passes.part_size(100_000)
    eager = HfAttention(tiny_model("llama", attention="eager"))
    assert narrow.passes.part_size(100_000) > eager.passes.part_size(100_000)


def test_prefill_gives_no_logits_but_the_last(tiny_model):
    model = tiny_model("llama")
    shapes: list[torch.Size] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    filled(HfAttention(model))
    assert shapes == [(1, 1, VOCAB_SIZE)]
