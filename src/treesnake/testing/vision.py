"""Tiny vision-language models of transformers with random weights, and pictures for them.

A picture is given as the tensors that a processor would make of it, so that no processor and no
image library is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel

from treesnake.prompt import Prompt, PromptInput
from treesnake.testing.wide_matrices import with_wide_matrices

VOCAB_SIZE = 61
IMAGE_TOKEN = 60
MARK = 59
"""A token that some families have between the placeholders of one image."""

TEXT: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
TOWER: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
THREE_ROWS: Mapping[str, Any] = {
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
}
GRID_TOWER: Mapping[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}


@dataclass(frozen=True)
class VisionFamily:
    """What a tiny model of a family is made of, and what it is given for a picture.

    Attributes:
        text: changes to the sizes of its decoder; with "model_type" where the family has no own.
        tower: the sizes of its vision tower.
        model: what else its config has.
        tensors: random numbers of a seed as the tensors of a picture.
        tiles: how many runs of placeholders there are, each behind a mark; 0 is one without a mark.
    """

    text: Mapping[str, Any]
    tower: Mapping[str, Any]
    model: Mapping[str, Any]
    tensors: Callable[[torch.Generator], dict[str, Tensor]]
    tiles: int = 0


def _square(chance: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(1, 3, 16, 16, generator=chance)}


def _sized(chance: torch.Generator) -> dict[str, Tensor]:
    return {**_square(chance), "image_sizes": torch.tensor([[16, 16]])}


def _patches(chance: torch.Generator) -> dict[str, Tensor]:
    pixels = torch.rand(1, 3, 3, 16, 16, generator=chance)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[14, 30]])}


def _tiles(chance: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(1, 3, 3, 16, 16, generator=chance)}


def _crops(chance: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(3, 3, 16, 16, generator=chance)}


def _flat_patches(chance: torch.Generator) -> dict[str, Tensor]:
    """A picture of 4 by 4 patches in a row, and room for more of them."""
    return {
        "pixel_values": torch.rand(1, 20, 3 * 4 * 4, generator=chance),
        "spatial_shapes": torch.tensor([[4, 4]]),
        "pixel_attention_mask": (torch.arange(20) < 16).long()[None],
    }


def _grid(chance: torch.Generator) -> dict[str, Tensor]:
    pixels = torch.rand(4 * 6, 3 * 2 * 4 * 4, generator=chance)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 6]])}


_PINPOINTS = {"image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]}
_LLAMA = {"model_type": "llama"}
_CLIP = {**TOWER, "model_type": "clip_vision_model", "projection_dim": 16}
_SIGLIP = {**TOWER, "model_type": "siglip_vision_model", "vision_use_head": False}
_ALTERNATING = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 5,
}

_DEEP_TOWER = {
    **GRID_TOWER,
    "hidden_size": 16,
    "intermediate_size": 24,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}

_MERGED_TOWER = {key: value for key, value in _DEEP_TOWER.items() if "deepstack" not in key}
_DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": {**THREE_ROWS["rope_parameters"], "partial_rotary_factor": 1.0},
}
_CONV: dict[str, Any] = {
    "layer_types": ["conv", "full_attention", "conv"],
    "block_auto_adjust_ff_dim": False,
}
_EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}

FAMILIES: Mapping[str, VisionFamily] = {
    "aya_vision": VisionFamily(
        {"model_type": "cohere2"} | _ALTERNATING, _SIGLIP, {"downsample_factor": 2}, _square
    ),
    "cohere2_vision": VisionFamily(
        {"model_type": "cohere2"} | _ALTERNATING, _SIGLIP, {"downsample_factor": 2}, _square
    ),
    "gemma3": VisionFamily(_ALTERNATING, _SIGLIP, {"mm_tokens_per_image": 4}, _square),
    "glm4v": VisionFamily(
        THREE_ROWS,
        {
            **GRID_TOWER,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "image_size": 16,
        },
        {},
        _grid,
    ),
    "idefics3": VisionFamily(_LLAMA, TOWER, {"scale_factor": 2}, _tiles, tiles=3),
    "internvl": VisionFamily(
        {"model_type": "qwen2"}, {**TOWER, "image_size": [16, 16], "patch_size": [4, 4]}, {}, _crops
    ),
    "lfm2_vl": VisionFamily(
        {"model_type": "lfm2"} | _CONV,
        {**TOWER, "model_type": "siglip2_vision_model", "num_patches": 16},
        {"downsample_factor": 2, "projector_hidden_size": 24},
        _flat_patches,
    ),
    "llava": VisionFamily(_LLAMA, _CLIP, {}, _square),
    "llava_next": VisionFamily(_LLAMA, _CLIP, _PINPOINTS, _patches),
    "llava_onevision": VisionFamily(
        {"model_type": "qwen2"}, _SIGLIP, _PINPOINTS | {"vision_feature_layer": -1}, _patches
    ),
    "mistral3": VisionFamily(
        {"model_type": "mistral"},
        {**TOWER, "model_type": "pixtral", "head_dim": 8},
        {"spatial_merge_size": 2, "vision_feature_layer": -1},
        _sized,
    ),
    "paligemma": VisionFamily({"model_type": "gemma"}, _SIGLIP, {}, _square),
    "qwen2_5_vl": VisionFamily(
        THREE_ROWS,
        {
            **GRID_TOWER,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        {},
        _grid,
    ),
    "qwen2_vl": VisionFamily(
        THREE_ROWS, {**GRID_TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}, {}, _grid
    ),
    "qwen3_5": VisionFamily(_DELTA, _MERGED_TOWER, {}, _grid),
    "qwen3_5_moe": VisionFamily(_DELTA | _EXPERTS, _MERGED_TOWER, {}, _grid),
    "qwen3_vl": VisionFamily(THREE_ROWS, _DEEP_TOWER, {}, _grid),
    "qwen3_vl_moe": VisionFamily(
        {**THREE_ROWS, **_EXPERTS},
        _DEEP_TOWER,
        {},
        _grid,
    ),
    "smolvlm": VisionFamily(_LLAMA, TOWER, {"scale_factor": 2}, _tiles, tiles=3),
    "vipllava": VisionFamily(_LLAMA, _CLIP, {"vision_feature_layers": [-1, -2]}, _square),
}


def tiny_vision_model(
    family: str,
    *,
    seed: int = 0,
    attention: str | None = None,
    vocab_size: int = VOCAB_SIZE,
    image_token: int = IMAGE_TOKEN,
) -> PreTrainedModel:
    """Returns a model of a family, with matrices that are drawn wide enough for errors to show."""
    parts = FAMILIES[family]
    config_class: Any = CONFIG_MAPPING[family]
    config = config_class(
        text_config={**TEXT, **parts.text, "vocab_size": vocab_size},
        vision_config=dict(parts.tower),
        image_token_id=image_token,
        **parts.model,
    )
    model = AutoModelForImageTextToText.from_config(
        config, attn_implementation=attention, trust_remote_code=False
    )
    return with_wide_matrices(model, seed=seed)


def picture(model: PreTrainedModel, start: int, *, seed: int = 0) -> tuple[list[int], PromptInput]:
    """Returns the placeholders of a random picture, and the picture as an input from `start` on."""
    parts = FAMILIES[model.config.model_type]
    tensors = parts.tensors(torch.Generator().manual_seed(seed))
    reader: Any = model.base_model
    with torch.no_grad():
        features = reader.get_image_features(**tensors, return_dict=True).pooler_output
    num_features = sum(each[..., 0].numel() for each in features)
    placeholders = [IMAGE_TOKEN] * num_features
    if parts.tiles:
        placeholders = [MARK, *placeholders[: num_features // parts.tiles]] * parts.tiles
        placeholders = placeholders[1:]
    return placeholders, PromptInput(tensors, start, len(placeholders))


def prompt_with(model: PreTrainedModel, *parts: Sequence[int] | int) -> Prompt:
    """Returns a prompt of token ids and pictures; a picture is given by the seed of its numbers."""
    token_ids: list[int] = []
    inputs: list[PromptInput] = []
    for part in parts:
        if isinstance(part, int):
            placeholders, image = picture(model, len(token_ids), seed=part)
            token_ids += placeholders
            inputs.append(image)
        else:
            token_ids += part
    return Prompt(tuple(token_ids), inputs=tuple(inputs))


HYBRID_FAMILIES = ("lfm2_vl", "qwen3_5", "qwen3_5_moe")
"""Families with recurrent layers."""

TILED_FAMILIES = tuple(name for name, parts in FAMILIES.items() if parts.tiles)
"""Families that take all tiles of all pictures as one row of them."""
