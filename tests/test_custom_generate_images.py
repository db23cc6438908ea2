"""Images through `model.generate`: what transformers users have in hand is enough."""

from typing import Any

import pytest
import torch

from treesnake.custom_generate import custom_generate
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.models.hf_attention import HfAttention
from treesnake.testing.vision import TILED_FAMILIES, prompt_with, tiny_vision_model

FAMILIES = ["gemma3", "idefics3", "llava", "llava_next", "qwen2_5_vl", "qwen3_vl"]


def given(model: Any, *parts: Any) -> dict[str, Any]:
    """Returns what a processor returns."""
    prompt = prompt_with(model, *parts)
    axis = 1 if model.config.model_type in TILED_FAMILIES else 0
    tensors = {
        name: torch.cat(
            [each.tensors[name] for each in prompt.inputs],
            dim=axis if name == "pixel_values" else 0,
        )
        for name in prompt.inputs[0].tensors
    }
    images = HfAttention(model).images
    assert images is not None
    input_ids = torch.tensor([prompt.token_ids])
    types = images.token_types(prompt)
    return {"input_ids": input_ids, "attention_mask": input_ids * 0 + 1, **tensors, **types}


@pytest.mark.parametrize("family", FAMILIES)
def test_text_behind_images_is_that_of_transformers(family: str) -> None:
    model: Any = tiny_vision_model(family)
    inputs = given(model, [5, 17, 2], 0, [33, 8], 1, [41, 12])
    plain = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    drafter = NetworkDrafterModel(HfAttention(model))
    ours = model.generate(
        **inputs,
        max_new_tokens=12,
        do_sample=False,
        custom_generate=custom_generate,
        drafter=drafter,
        search="chain(3)",
    )
    assert torch.equal(ours, plain)
    text = {name: inputs[name][:, :3] for name in ("input_ids", "attention_mask")}
    options: dict[str, Any] = {**text, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(
        model.generate(**options, custom_generate=custom_generate), model.generate(**options)
    )


def test_what_the_model_would_be_told_otherwise_is_refused() -> None:
    model: Any = tiny_vision_model("qwen2_5_vl")
    inputs = given(model, [5, 17, 2], 0, [41, 12])
    other = tiny_vision_model("qwen2_5_vl", seed=1)
    drafter = NetworkDrafterModel(HfAttention(other))
    options: dict[str, Any] = {"max_new_tokens": 4, "custom_generate": custom_generate}
    for changes, expected in (
        ({"mm_token_type_ids": inputs["input_ids"] * 0}, "other tokens stand for images"),
        ({"drafter": drafter}, "features of another model"),
    ):
        with pytest.raises(InvalidInputError, match=expected):
            model.generate(**(inputs | changes), do_sample=False, **options)
