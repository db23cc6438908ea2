"""Texts that share a pass of an unmodified model get the logits that each gets alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.models.hf_attention import HfAttention
from treesnake.models.tree_network import Part
from treesnake.prompt import Prompt

FAMILIES: dict[str, dict[str, Any]] = {
    "biogpt": {},  # learned positions
    "falcon": {},
    "deepseek_v3": {  # keys and values of different widths, and experts
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "gemma3_text": {  # two masks
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]
    },
    "gemma4_text": {  # layers that look at the rows of others
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 61,
        "hidden_size_per_layer_input": 8,
    },
    "gpt2": {},
    "gpt_oss": {},  # a term in the softmax that is no row
    "llama": {},
    "llama4_text": {"num_hidden_layers": 4},  # chunks; one text after the other
    "mistral": {},  # windows
    "mixtral": {},  # experts
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
EAGER = ("llama", "gemma3_text")
TOKENS = st.integers(0, 60)


@pytest.fixture(scope="module", params=[*FAMILIES, *(f"{family} eager" for family in EAGER)])
def network(request, tiny_model) -> HfAttention:
    family, *attention = request.param.split()
    model = tiny_model(family, attention=attention[0] if attention else None, **FAMILIES[family])
    # Its norms of little enlarge what a batch rounds otherwise than one text.
    return HfAttention(model.double() if family == "gemma4_text" else model)


@st.composite
def growths(draw, num_nodes):
    """New nodes below a tree that has so many."""
    parents = [draw(st.integers(-1, node - 1)) for node in range(num_nodes, num_nodes + 4)]
    parents = parents[: draw(st.integers(1, 4))]
    return [draw(TOKENS) for _ in parents], parents


def path_to(parents, node):
    return [*path_to(parents, parents[node]), node] if node >= 0 else []


@settings(max_examples=15)
@given(data=st.data())
def test_texts_that_share_passes_get_what_each_gets_alone(network, data):
    prompts = data.draw(
        st.lists(st.lists(TOKENS, min_size=1, max_size=20), min_size=2, max_size=4), "prompts"
    )
    shared = [network.new_state() for _ in prompts]
    alone = [network.new_state() for _ in prompts]
    for states in (shared, alone):
        for state, prompt in zip(states, prompts, strict=True):
            state.prefill(Prompt.of(prompt))
    grown: list[list[int]] = [[] for _ in prompts]
    for _ in range(4):
        texts = data.draw(
            st.permutations(range(len(prompts))).flatmap(
                lambda order: st.integers(1, len(order)).map(lambda most: order[:most])
            ),
            "texts of the pass",
        )
        parts = {text: data.draw(growths(len(grown[text])), "growth") for text in texts}
        logits = network.extend_all([Part(shared[text], *parts[text]) for text in texts])
        for text, found in zip(texts, logits, strict=True):
            expected = alone[text].extend(*parts[text])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            grown[text] += parts[text][1]
        for text in texts:
            if data.draw(st.booleans(), "commit"):
                node = data.draw(st.integers(-1, len(grown[text]) - 1), "last node")
                path = path_to(grown[text], node)
                shared[text].commit(path)
                alone[text].commit(path)
                grown[text] = []
    assert [state.length for state in shared] == [state.length for state in alone]
