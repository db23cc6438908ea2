"""The families whose GGUF files are read here: their configs, and their tensors' names.

A file says what transformers' config of the model says, in llama.cpp's words. What is read here
needs no other package, and any engine runs it as if it had come in the Hugging Face layout. Files
of other architectures are read by transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from treesnake.errors import LoadError
from treesnake.loading.file_configs import file_config
from treesnake.models.gguf import GgufFile, GgufTensor
from treesnake.models.weights import Weights

ROPE_FACTORS = "rope_freqs.weight"
"""Divides the frequency of each rotary pair; how llama.cpp stores the scaling of Llama 3."""

LOCAL_PERIOD = 6
"""Every so many layers of Gemma 3 see all of the text, if a file does not state another number."""

LOCAL_BASE = 10000.0
"""The base of rotary positions of Gemma 3's other layers, if a file does not state another."""

LAYERS_OF_27B = 62
"""The number of layers of the model of Gemma 3 whose scores are not scaled by its heads' width."""

OUTER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class GgufFamily:
    """How the files of a family differ.

    Attributes:
        model_type: what transformers calls it.
        own_names: of the parts of a layer, where they differ from `LAYER_NAMES`.
        pairs_side_by_side: the rows of a rotary pair follow each other in queries and keys; in the
            Hugging Face layout all first rows of a head come before all second ones.
        has_window: all layers see no more than the window that a file states, if it does.
        rotates_part: only the first values of a head are rotated, as many as a file states.
        has_local_layers: most layers see the window alone and rotate heads by a base of their own.
        norms_around_one: norms are stored as what they multiply with, 1 more than in the Hugging
            Face layout.
        half_dtype: the dtype in half precision that activations fit into.
    """

    model_type: str
    own_names: dict[str, str] = field(default_factory=dict)
    pairs_side_by_side: bool = False
    has_window: bool = False
    rotates_part: bool = False
    has_local_layers: bool = False
    norms_around_one: bool = False
    half_dtype: torch.dtype = torch.float16


FAMILIES = {
    "gemma3": GgufFamily(
        "gemma3_text",
        {
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        has_local_layers=True,
        norms_around_one=True,
        half_dtype=torch.bfloat16,
    ),
    "llama": GgufFamily("llama", pairs_side_by_side=True),
    "mistral": GgufFamily("mistral", pairs_side_by_side=True, has_window=True),
    "olmo2": GgufFamily(
        "olmo2",
        {
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
    "phi3": GgufFamily(
        "phi3",
        {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
        has_window=True,
        rotates_part=True,
    ),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3"),
    "smollm3": GgufFamily("smollm3", pairs_side_by_side=True),
}
"""By llama.cpp's name of the architecture."""


def build_config(file: GgufFile, stated: Mapping[str, Any]) -> PreTrainedConfig:
    """Returns the config of a file of a known family.

    Args:
        file: the file.
        stated: what it says of its architecture.

    Raises:
        LoadError: if a size is missing, or differs by layer.
    """
    sizes = _Sizes(file, stated)
    num_heads, hidden = sizes["attention.head_count"], sizes["embedding_length"]
    if not num_heads:
        raise LoadError("it states attention.head_count = 0; fetch it again")
    metadata = file.metadata
    family = FAMILIES[metadata["general.architecture"]]
    per_head = hidden // num_heads
    rotary_dim = stated.get("rope.dimension_count", per_head)
    head_dim = stated.get("attention.key_length", per_head if family.rotates_part else rotary_dim)
    rope = {"rope_type": "default", "rope_theta": _shortest(stated.get("rope.freq_base", 10000.0))}
    differing: dict[str, Any] = {
        f"{name}_token_id": metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    if family.rotates_part and head_dim:
        rope["partial_rotary_factor"] = rotary_dim / head_dim
    if family.has_window:
        differing["sliding_window"] = stated.get("attention.sliding_window") or None
    fields: dict[str, Any] = {
        "vocab_size": stated.get("vocab_size", len(metadata.get("tokenizer.ggml.tokens", []))),
        "hidden_size": hidden,
        "intermediate_size": sizes["feed_forward_length"],
        "num_hidden_layers": sizes["block_count"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": sizes.get("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": sizes["context_length"],
        "rms_norm_eps": _shortest(sizes["attention.layer_norm_rms_epsilon"]),
        "rope_parameters": rope,
        "tie_word_embeddings": "output.weight" not in file,
        "dtype": _matrix_dtype(file, family.half_dtype),
    }
    if family.has_local_layers:
        differing |= _local_layers(stated, sizes, fields)
    return file_config(family.model_type, fields | differing)


def _local_layers(
    stated: Mapping[str, Any], sizes: "_Sizes", fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what configs of Gemma 3 say of layers, with what llama.cpp takes as given."""
    window, num_layers = stated.get("attention.sliding_window"), fields["num_hidden_layers"]
    period = sizes.get("attention.sliding_window_pattern", LOCAL_PERIOD) if window else 1
    if type(period) is not int or period < 1:
        raise LoadError(
            f"it states attention.sliding_window_pattern = {period!r:.40}; fetch it again"
        )
    local_base = _shortest(stated.get("rope.freq_base_swa", LOCAL_BASE))
    is_largest = num_layers == LAYERS_OF_27B
    per_head = fields["hidden_size"] // fields["num_attention_heads"]
    return {
        "sliding_window": window or None,
        "layer_types": [
            "sliding_attention" if number % period else "full_attention"
            for number in range(1, num_layers + 1)
        ],
        "rope_parameters": {
            "full_attention": fields["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local_base},
        },
        "query_pre_attn_scalar": per_head if is_largest else fields["head_dim"],
    }


def hugging_face_tensors(file: GgufFile, config: PreTrainedConfig) -> Weights:
    """Returns the tensors of a file by their names and in the order of the Hugging Face layout.

    Raises:
        LoadError: if it holds tensors that nothing here has a name for.
    """
    family = FAMILIES[file.metadata["general.architecture"]]
    text = config.get_text_config()
    num_heads = {"attn_q": text.num_attention_heads, "attn_k": text.num_key_value_heads}
    tensors: dict[str, GgufTensor] = {}
    unknown: list[str] = []
    for name, tensor in file.tensors.items():
        own, part = _own_name(name, family)
        if own is None:
            unknown.append(name)
        elif family.pairs_side_by_side and part in num_heads:
            tensors[own] = _halves_apart(tensor, num_heads[part])
        elif family.norms_around_one and part.endswith("_norm"):
            tensors[own] = replace(tensor, offset=-1.0)
        else:
            tensors[own] = tensor
    if unread := sorted(set(unknown) - {ROPE_FACTORS}):
        raise LoadError(
            f"{file.path} holds {len(unread)} tensors that no {family.model_type} model has, "
            f"{unread[0]} first; take a file in safetensors"
        )
    return Weights(tensors)


def _matrix_dtype(file: GgufFile, half_dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of the matrices, or what holds those that are packed nearly exactly."""
    kinds = {
        half_dtype if tensor.is_packed else tensor.dtype
        for tensor in file.tensors.values()
        if len(tensor.shape) > 1
    }
    return kinds.pop() if len(kinds) == 1 else torch.float32


def _own_name(name: str, family: GgufFamily) -> tuple[str | None, str]:
    """Returns the name of a tensor in the Hugging Face layout, and what part of a layer it is."""
    layer_names = LAYER_NAMES | family.own_names
    match name.split("."):
        case [part, kind] if part in OUTER_NAMES:
            return f"{OUTER_NAMES[part]}.{kind}", part
        case ["blk", layer, part, kind] if part in layer_names:
            return f"model.layers.{layer}.{layer_names[part]}.{kind}", part
    return None, ""


def _halves_apart(tensor: GgufTensor, num_heads: int) -> GgufTensor:
    """Returns a tensor whose heads have the first rows of all rotary pairs, then the second."""
    rows = tensor.shape[0]
    if not num_heads or rows % (2 * num_heads):
        return tensor  # of another shape than the config promises, which the gate for weights says
    heads = np.arange(rows).reshape(num_heads, -1, 2)
    return replace(tensor, order=heads.transpose(0, 2, 1).reshape(-1))


class _Sizes:
    """The sizes of a file; lists of one size for each layer are that size."""

    def __init__(self, file: GgufFile, stated: Mapping[str, Any]) -> None:
        self._file = file
        self._stated = stated

    def __getitem__(self, key: str) -> Any:
        value = self._stated.get(key)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise LoadError(f"its layers differ in {key}, which is not known here")
            return value[0]
        if value is None:
            raise LoadError(f"it does not state {key}; fetch it again")
        return value

    def get(self, key: str, default: int) -> Any:
        return self[key] if key in self._stated else default


def _shortest(value: float) -> float:
    """Returns the shortest decimal that rounds to the float32 stored in GGUF, such as 1e-05."""
    return float(str(np.float32(value)))
