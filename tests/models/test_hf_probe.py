"""A model that cannot score trees is refused, by what it says of itself or by what it does."""

import gc
import weakref
from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaModel,
)

from treesnake.errors import InvalidInputError, UnsupportedModelError
from treesnake.models.hf_attention import HfAttention
from treesnake.models.hf_families import VERIFIED_FAMILIES, check_supported, read_layout
from treesnake.models.hf_probe import check_scores

OUTSPOKEN: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({"n_layer": 2}, "distances from the order of rows in the cache"),
    "falcon": ({"alibi": True}, "distances from the order of rows in the cache"),
    "gemma3_text": ({"use_bidirectional_attention": True}, "looks ahead in the text"),
    "gpt_neo": (
        {"num_hidden_layers": 2, "attention_types": [[["global", "local"], 1]]},
        "local masks from the order of rows in the cache",
    ),
    "lfm2": (
        {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
        r'layer 0 of lfm2 \("conv"\) keeps a recurrent state, .* state space models',
    ),
    "mamba": ({}, "MambaForCausalLM keeps a recurrent state, .* state space models"),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "distances from the order of rows"),
    "rwkv": ({"attention_hidden_size": 32}, "RwkvForCausalLM keeps a recurrent state"),
}


@pytest.mark.parametrize("family", OUTSPOKEN)
def test_what_a_model_says_of_itself_is_believed(family, tiny_model):
    changes, reason = OUTSPOKEN[family]
    model = tiny_model(family, **changes)
    with pytest.raises(UnsupportedModelError, match=reason):
        HfAttention(model)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bert", "scores a token tree differently from its paths"),  # sees the whole text
        ("openai-gpt", "cannot score a token tree"),  # has no cache
        ("trocr", "scores a token tree differently from its paths"),  # counts positions by rows
    ],
)
def test_families_that_nobody_verified_are_tried(family, reason, tiny_model):
    model = tiny_model(family)
    with pytest.raises(UnsupportedModelError, match=reason):
        HfAttention(model)


def test_a_family_that_nobody_verified_may_pass(tiny_model):
    model = tiny_model("bert", is_decoder=True)
    assert model.config.model_type not in VERIFIED_FAMILIES
    HfAttention(model)


def test_a_model_is_tried_once_for_each_way_to_attend(tiny_model):
    model = tiny_model("bert", is_decoder=True)
    runs: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: runs.append(1))
    HfAttention(model)
    num_runs = len(runs)
    HfAttention(model)
    assert len(runs) == num_runs > 0
    model.set_attn_implementation("eager")
    HfAttention(model)
    assert len(runs) == 2 * num_runs


def test_a_model_that_was_tried_can_be_forgotten(tiny_model):
    model = tiny_model("bert", is_decoder=True)
    HfAttention(model)
    forgotten = weakref.ref(model)
    del model
    gc.collect()
    assert forgotten() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sound_models_pass_in_every_dtype(dtype, tiny_model):
    model = tiny_model("llama").to(dtype)
    check_scores(model, HfAttention(model).new_state())


def test_layers_with_more_than_keys_and_values_are_refused():
    with pytest.raises(UnsupportedModelError, match="more than each token's keys and values"):
        read_layout(CONFIG_MAPPING["glm_moe_dsa"]())


def test_windows_of_one_name_and_two_sizes_are_refused():
    config = CONFIG_MAPPING["mistral"](
        num_hidden_layers=2, per_layer_config={1: {"sliding_window": 7}}
    )
    with pytest.raises(UnsupportedModelError, match="look back 4096 positions and 7"):
        read_layout(config)


def test_an_encoder_is_refused():
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 61}
    model = BartForConditionalGeneration(BartConfig(**sizes)).eval()
    with pytest.raises(UnsupportedModelError, match="has an encoder"):
        check_supported(model)


def test_a_model_without_a_head_is_refused():
    model = LlamaModel(LlamaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1)).eval()
    with pytest.raises(UnsupportedModelError, match="load it with AutoModelForCausalLM"):
        check_supported(model)


def test_attention_that_takes_no_mask_is_refused(tiny_model):
    model = tiny_model("llama", attention="flex_attention")
    with pytest.raises(UnsupportedModelError, match=r'"flex_attention", .*set_attn_implementation'):
        HfAttention(model)


def test_a_model_in_training_is_refused(tiny_model):
    with pytest.raises(InvalidInputError, match=r"call model\.eval\(\)"):
        HfAttention(tiny_model("llama").train())
