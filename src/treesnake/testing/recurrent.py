"""Tiny settings of recurrent and hybrid families of transformers, and their plain stepping.

Stepping is the definition of a target with a recurrent state: one token after the other, with the
cache of transformers. It is what trees, commits and prompts in parts are compared with.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from treesnake.models.hf_passes import CACHE_ARGUMENTS

_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"]
}
_DELTA: dict[str, Any] = _LINEAR | {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_LATENT: dict[str, Any] = _LINEAR | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
_DUAL: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
_CONV: dict[str, Any] = {"layer_types": ["conv", "full_attention", "conv"]}

RECURRENT_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "bailing_hybrid": _LATENT | {"first_k_dense_replace": 1},
    "bamba": _DUAL | {"attn_layer_indices": [1]},
    "falcon_h1": _DUAL | {"mamba_d_ssm": 64},
    "falcon_mamba": {"state_size": 8},
    "granitemoehybrid": _DUAL
    | {"layer_types": ["mamba", "attention", "mamba"], "shared_intermediate_size": 48},
    "jamba": {
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "kimi_linear": _LATENT | {"linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": _CONV | {"block_auto_adjust_ff_dim": False},
    "lfm2_moe": _CONV,
    "lfm3": {},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mamba"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 8,
        "chunk_size": 16,
    },
    "olmo_hybrid": _DELTA | {"linear_num_value_heads": 2},
    "qwen3_5_moe_text": _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA | {"shared_expert_intermediate_size": 16},
    "zamba": {
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "mamba_dt_rank": 4,
        "mamba_d_state": 8,
        "n_mamba_heads": 2,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "zamba2": {
        "num_key_value_heads": 4,
        "attention_head_dim": 16,
        "mamba_d_state": 8,
        "mamba_ngroups": 2,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "chunk_size": 16,
        "hybrid_layer_ids": [1],
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "num_mem_blocks": 1,
        "use_mem_rope": True,
    },
}
"""For each family what a tiny config of it needs beside the usual sizes."""


class Stepping:
    """A model that reads one token after the other, as it does when it decodes.

    Args:
        model: any decoder of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        arguments = inspect.signature(model.forward).parameters
        self._model = model
        self._takes_positions = "position_ids" in arguments
        self._cache_argument = next(name for name in CACHE_ARGUMENTS if name in arguments)

    def logits(self, token_ids: Sequence[int]) -> Float[Tensor, "tokens vocab"]:
        """Returns the logits after each token of a text."""
        cache = self.cache_of(())
        rows = [self.step(cache, token, place) for place, token in enumerate(token_ids)]
        return torch.stack(rows)

    def cache_of(self, token_ids: Sequence[int]) -> Cache:
        """Returns the cache after a text, token by token."""
        cache = DynamicCache(config=self._model.config.get_text_config(decoder=True))
        for position, token in enumerate(token_ids):
            self.step(cache, token, position)
        return cache

    @torch.no_grad()
    def step(self, cache: Cache, token: int, position: int) -> Float[Tensor, " vocab"]:
        """Reads one more token into a cache and returns the logits after it."""
        options: dict[str, Any] = {self._cache_argument: cache}
        if self._takes_positions:
            options["position_ids"] = torch.tensor([[position]])
        return self._model(torch.tensor([[token]]), use_cache=True, **options).logits[0, 0]
