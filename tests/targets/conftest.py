"""Tiny transformers models with random weights, large enough for errors to show."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 96,
    "sliding_window": 5,
    "attention_chunk_size": 6,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}

TinyModel = Callable[..., PreTrainedModel]


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    default: Any = CONFIG_MAPPING[model_type]()
    names = {*default.to_dict(), *default.attribute_map}
    sizes = {name: size for name, size in SIZES.items() if name in names}
    return type(default)(**(sizes | changes))


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """Builds a model of a family; matrices are drawn ten times as wide as usual."""

    def build(
        model_type: str, *, attention: str | None = None, seed: int = 0, **changes: Any
    ) -> PreTrainedModel:
        config = tiny_config(model_type, **changes)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0, 0.3, generator=generator)
        return model.eval()

    return build
