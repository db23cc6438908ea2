"""Writes a GGUF file of the SmolLM2 kind as a Hugging Face folder.

Matrices are stored in float16: half the size of float32, with a rounding of one part in 2048, far
below the one part in 15 that Q4_1 left of a block's range. Norm vectors stay in float32, as in the
source. So a float32 and a half-precision engine that load the folder have the same matrices.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig

from treesnake.errors import LoadError
from treesnake.loading.gguf_tokenizer import build_tokenizer
from treesnake.models.gguf import GgufFile
from treesnake.models.weights import SINGLE_FILE

# What this conversion was compared for; with other values it would silently give another model.
SUPPORTED = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
}

OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(source: Path, folder: Path) -> None:
    """Writes config, weights, tokenizer and chat template of a GGUF file into an empty folder.

    Raises:
        LoadError: if the file is broken or of another architecture or tokenizer.
    """
    gguf = GgufFile(source)
    _check_supported(gguf)
    config = build_config(gguf)
    config.save_pretrained(folder)
    end_ids = {
        key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    GenerationConfig(**end_ids).save_pretrained(folder)
    build_tokenizer(gguf.metadata).save_pretrained(folder)
    save_file(convert_weights(gguf), folder / SINGLE_FILE, metadata={"format": "pt"})
    # safetensors writes for the owner only, but a cache folder may be shared.
    (folder / SINGLE_FILE).chmod(0o644)


def build_config(gguf: GgufFile) -> LlamaConfig:
    """Translates the metadata of a GGUF file with the architecture "llama"."""
    metadata = gguf.metadata
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=metadata["llama.attention.head_count"],
        num_key_value_heads=metadata["llama.attention.head_count_kv"],
        head_dim=metadata["llama.rope.dimension_count"],
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=_shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _shortest(metadata["llama.rope.freq_base"]),
        },
        tie_word_embeddings="output.weight" not in gguf,
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=metadata["tokenizer.ggml.eos_token_id"],
        pad_token_id=metadata["tokenizer.ggml.padding_token_id"],
        dtype="float16",
    )


def convert_weights(gguf: GgufFile) -> dict[str, Float[Tensor, "..."]]:
    """Renames and rounds all tensors and undoes llama.cpp's order of query and key rows."""
    weights = {}
    for name in gguf:
        tensor = gguf[name]
        if name.endswith(".attn_q.weight"):
            tensor = split_rotary_halves(tensor, gguf.metadata["llama.attention.head_count"])
        elif name.endswith(".attn_k.weight"):
            tensor = split_rotary_halves(tensor, gguf.metadata["llama.attention.head_count_kv"])
        weights[hugging_face_name(name)] = tensor if tensor.ndim == 1 else tensor.half()
    return weights


def split_rotary_halves(
    weight: Float[Tensor, "rows width"], num_heads: int
) -> Float[Tensor, "rows width"]:
    """Reorders each head's rows from rotary pairs side by side to all firsts, then all seconds."""
    heads = weight.unflatten(0, (num_heads, -1, 2))
    return heads.transpose(1, 2).flatten(0, 2).contiguous()


def hugging_face_name(name: str) -> str:
    """Translates llama.cpp's name of a tensor, such as "blk.3.attn_q.weight"."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"
    raise LoadError(f"the GGUF file holds a tensor {name!r}, which a Llama model does not have")


def _check_supported(gguf: GgufFile) -> None:
    for key, supported in SUPPORTED.items():
        found = gguf.metadata.get(key)
        if found != supported:
            raise LoadError(
                f"{gguf.path} has {key} = {found!r}; this conversion is for {supported!r} only"
            )


def _shortest(value: float) -> float:
    """Returns the shortest decimal that rounds to the float32 stored in GGUF, such as 1e-05."""
    return float(str(np.float32(value)))
