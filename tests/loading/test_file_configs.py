"""Our own configs only save an import; nothing of transformers' may be lost or added."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Mamba2Config, MambaConfig, PreTrainedConfig, Qwen2Config

from treesnake.loading.file_configs import config_of_transformers, file_config
from treesnake.models.transformer_config import TransformerConfig

LLAMA: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    "tie_word_embeddings": True,
    "dtype": torch.float16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def test_a_llama_of_a_file_is_that_of_transformers() -> None:
    ours, theirs = file_config("llama", LLAMA), LlamaConfig(**LLAMA)
    assert config_of_transformers(ours).to_dict() == theirs.to_dict()
    assert TransformerConfig.from_hf(ours) == TransformerConfig.from_hf(theirs)


@pytest.mark.parametrize(
    ("model_type", "theirs"), [("mamba", MambaConfig), ("mamba2", Mamba2Config)]
)
def test_a_recurrent_config_is_that_of_transformers(
    model_type: str, theirs: type[PreTrainedConfig]
) -> None:
    fields: dict[str, Any] = {"vocab_size": 100, "hidden_size": 32, "eos_token_id": 3}
    fields |= {"num_heads": 4, "head_dim": 16} if model_type == "mamba2" else {}
    ours = file_config(model_type, fields | {"dtype": "float16"})
    assert ours.vocab_size == 100
    assert ours.dtype == torch.float16
    whole = config_of_transformers(ours)
    assert isinstance(whole, theirs)
    assert whole.to_dict() == theirs(**fields, dtype=torch.float16).to_dict()


def test_other_families_have_the_class_of_transformers() -> None:
    config = file_config("qwen2", {"vocab_size": 100})
    assert isinstance(config, Qwen2Config)
    assert config_of_transformers(config) is config
