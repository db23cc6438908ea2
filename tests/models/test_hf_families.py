"""Every family that is trusted with trees agrees with plain forward passes of the same weights."""

import json
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from treesnake.models import hf_captured
from treesnake.models.cuda_graphs import GraphCache
from treesnake.models.hf_attention import HfAttention
from treesnake.models.hf_families import VERIFIED_FAMILIES, LimitedContext, context_length
from treesnake.models.tree_network import Part
from treesnake.prompt import Prompt
from treesnake.testing.hosted_gpu import hosted_gpu, on_hosted_gpu

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
ALTERNATING: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]
}
WINDOWED: dict[str, Any] = ALTERNATING | {"use_sliding_window": True}
SHARING: dict[str, Any] = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 61,
    "hidden_size_per_layer_input": 8,
}

MIXTURES = {
    *("deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "flex_olmo", "glm4_moe", "gpt_oss"),
    *("granitemoe", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe"),
}
"""Mixtures of experts, which call kernels on a GPU that a CPU lacks."""

LAUNCHED = {"diffllama", "falcon", "jetmoe", "llama4_text", "xglm"}
"""Families whose kernels are launched one by one on a GPU: three look at values, one counts rows,
and the parameters of DiffLlama are made on a CPU here."""

FAMILIES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "biogpt": {},
    "bitnet": {},
    "codegen": {"rotary_dim": 4},
    "cohere": {},
    "cohere2": ALTERNATING,
    "cwm": {"bos_token_id": 1, "eos_token_id": 2, **ALTERNATING},
    "deepseek_v2": LATENT | EXPERTS,
    "deepseek_v3": LATENT | EXPERTS,
    "diffllama": {},
    "dots1": EXPERTS | ALTERNATING,
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": ALTERNATING,
    "falcon": {},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": ALTERNATING,
    "gemma3n_text": SHARING
    | {"intermediate_size": [48] * 6, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 6},
    "gemma4_text": SHARING,
    "glm": {},
    "glm4": {},
    "glm4_moe": EXPERTS,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "granitemoe": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "internlm3": {},
    "jetmoe": {"kv_channels": 8},
    "llama": {},
    "llama4_text": {"num_hidden_layers": 4},
    "minicpm3": LATENT,
    "minimax_m2": {},
    "ministral": ALTERNATING,
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": ALTERNATING,
    "olmoe": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": WINDOWED,
    "qwen2_moe": WINDOWED | {"shared_expert_intermediate_size": 16},
    "qwen3": WINDOWED,
    "qwen3_moe": {"use_sliding_window": True},
    "seed_oss": {},
    "smollm3": WINDOWED,
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": ALTERNATING,
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 3, "attention_heads": 4},
}

TEXT = [7, 3, 58, 22, 41, 9, 35, 14, 50, 28, 3, 19, 44]
TOKENS = [30, 5, 47, 12, 5, 33, 21, 8, 47]
PARENTS = [-1, 0, 0, 1, 1, 2, 4, 4, 6]
LEAF = 8
AFTER = 17


def path(node):
    return [*path(PARENTS[node]), node] if node >= 0 else []


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_plain_passes_over_whole_paths(family, tiny_model):
    model = tiny_model(family, **FAMILIES[family])
    state = HfAttention(model).new_state()

    @torch.no_grad()
    def plain(token_ids):
        return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]

    def text_to(node):
        return TEXT + [TOKENS[step] for step in path(node)]

    state.prefill(Prompt.of([*TEXT, TOKENS[0]]))
    logits = state.extend(TOKENS, PARENTS)
    for node in (3, 5, 7, LEAF):
        expected = plain(text_to(node))[-len(path(node)) :]
        torch.testing.assert_close(logits[path(node)], expected, atol=1e-4, rtol=1e-4)

    state.commit(path(LEAF))
    after = state.extend([AFTER], [-1])
    expected = plain([*text_to(LEAF), AFTER])[-1:]
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_different_lengths_share_a_pass(family, tiny_model):
    network = HfAttention(tiny_model(family, **FAMILIES[family]))
    texts = [(TEXT, 9), (TEXT[:3], 1), ([], 4), (TEXT[5:], 2)]
    states = [network.new_state() for _ in texts]
    for state, (text, _) in zip(states, texts, strict=True):
        state.prefill(Prompt.of([*text, AFTER]))
    parts = [
        Part(state, TOKENS[:new], PARENTS[:new])
        for state, (_, new) in zip(states, texts, strict=True)
    ]
    for shared, part in zip(network.extend_all(parts), parts, strict=True):
        alone = network.new_state()
        alone.restore(part.state.snapshot())
        expected = alone.extend(part.token_ids, part.parents)
        torch.testing.assert_close(shared, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - MIXTURES))
def test_small_passes_on_a_gpu_are_captured(family, tiny_model, monkeypatch):
    monkeypatch.setattr(hf_captured, "LEAST_USES", 0)
    model = tiny_model(family, **FAMILIES[family])

    def scored(network):
        state = network.new_state()
        state.prefill(Prompt.of([*TEXT, TOKENS[0]]))
        return state.extend(TOKENS, PARENTS).cpu()

    expected = scored(HfAttention(model))
    with hosted_gpu() as gpu:
        network = HfAttention(on_hosted_gpu(model), lambda: GraphCache(gpu.capture))
        found = scored(network)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert network.captures == (family not in LAUNCHED)


def test_the_families_tested_here_are_the_trusted_ones():
    assert set(FAMILIES) == VERIFIED_FAMILIES


@pytest.mark.parametrize(
    ("rope", "length", "is_limited"),
    [
        ({"rope_type": "default"}, 64, False),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256, False),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64, False),
        ({"rope_type": "linear", "factor": 2.0}, 128, False),
        ({"rope_type": "dynamic", "factor": 2.0}, 64, True),
        ({"rope_type": "longrope", "original_max_position_embeddings": 32}, 32, True),
    ],
)
def test_the_context_is_what_rotary_scaling_allows(
    rope: dict[str, Any], length: int, is_limited: bool
) -> None:
    config = LlamaConfig(max_position_embeddings=64)
    config.rope_parameters = {"rope_theta": 1e4, **rope}
    found = context_length(config)
    assert found == length
    assert isinstance(found, LimitedContext) == is_limited
    assert f"{found}".startswith(str(length))
    assert (f"positions of type {rope['rope_type']} change" in f"{found}") == is_limited
    assert json.dumps(found) == json.dumps(length)
