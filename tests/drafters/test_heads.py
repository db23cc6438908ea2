"""Drafting heads are told from models that draft."""

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from treesnake.drafters.heads import check_config_is_of_a_model, check_tensors_are_of_a_model
from treesnake.errors import UnsupportedModelError

HEADS: list[dict[str, Any]] = [
    {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama"},
    {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "draft_vocab_size": 32000},
    {"architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3"},
    {"medusa_num_heads": 5, "medusa_num_layers": 1, "base_model_name_or_path": "who/base"},
    {"architectures": ["MLPSpeculatorPreTrainedModel"], "model_type": "mlp_speculator"},
    {"architectures": ["MiMoMTPModel"], "model_type": "mimo_mtp"},
    {"architectures": ["Qwen3ForCausalLM"], "dflash_config": {"layers": [1]}},
]


@pytest.mark.parametrize("fields", HEADS)
def test_the_config_of_a_head_is_told(fields: dict[str, Any]) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"\./d is a drafting head, which reads the hid"
    ):
        check_config_is_of_a_model("./d", fields)


@pytest.mark.parametrize(
    "name",
    [
        "fc.weight",
        "model.fc.weight",
        "midlayer.mlp.up_proj.weight",
        "eh_proj.weight",
        "d2t",
        "medusa_head.0.0.linear.weight",
    ],
)
def test_a_tensor_of_a_head_is_told(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"it has a tensor {name}"):
        check_tensors_are_of_a_model("./d", ["model.layers.0.mlp.up_proj.weight", name])


def test_models_are_no_heads() -> None:
    for model_type in CONFIG_MAPPING:
        check_config_is_of_a_model("m", {"model_type": model_type, "architectures": None})
    names = [
        "model.layers.61.eh_proj.weight",
        "transformer.h.0.mlp.c_fc.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]
    check_tensors_are_of_a_model("m", [*names, "backbone.layers.0.mixer.in_proj.weight"])
