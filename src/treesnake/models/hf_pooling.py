"""Pooled images (TABED's stream P, Lee et al. 2026): a quarter of the placeholders.

Means of 2 x 2 patches are taken between the vision tower and its projector.
"""

from collections.abc import Mapping
from copy import copy
from math import isqrt
from typing import Any

import torch
import transformers
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from treesnake.errors import InvalidInputError, UnsupportedModelError
from treesnake.models.hf_images import EncodedImages
from treesnake.models.hf_passes import at_home

POOLING_FAMILIES = frozenset({"llava"})
"""Families whose projector takes one patch at a time, so that means of patches can be projected."""

SIDE = 2
"""Patches on a side of the square of which the mean is taken."""


def pooled_image(
    model: "transformers.PreTrainedModel", features: Float[Tensor, "pooled hidden"], start: int
) -> EncodedImages:
    """Returns pooled features as an input of a prompt, in the place of pixels.

    Args:
        model: whose features they are.
        features: those of one image, see `pooled_features`.
        start: the index of its first placeholder.
    """
    outputs: Any = BaseModelOutputWithPooling
    encoded = {"image": outputs(pooler_output=[features])}
    return EncodedImages({"features": features}, start, len(features), model, encoded, None)


@torch.no_grad()
def pooled_features(
    model: "transformers.PreTrainedModel", tensors: Mapping[str, Shaped[Tensor, "..."]]
) -> Float[Tensor, "pooled hidden"]:
    """Returns the projected means of an image's patches.

    The model is left as it is, and may run elsewhere at the same time: the projector is replaced in
    a copy that shares all weights.

    Args:
        model: one of `POOLING_FAMILIES`.
        tensors: what the processor made of the image.

    Raises:
        UnsupportedModelError: if the model is of another family.
        InvalidInputError: if the patches are no square with an even side.
    """
    check_can_pool(model)
    reader: Any = copy(model.base_model)
    pooling = nn.Sequential(_Pooling(), reader.multi_modal_projector)
    reader.__dict__["_modules"] = {**reader._modules, "multi_modal_projector": pooling}
    found = reader.get_image_features(**at_home(tensors, model), return_dict=True)
    return torch.cat(list(found.pooler_output))


def check_can_pool(model: "transformers.PreTrainedModel") -> None:
    """Raises UnsupportedModelError unless the means of a model's patches can be projected."""
    family = model.config.model_type
    if family not in POOLING_FAMILIES:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no stream P: only of {', '.join(sorted(POOLING_FAMILIES))}"
            f" it is known that patches are projected one by one, not of {family}"
        )


def pool(patches: Float[Tensor, "images patches dim"]) -> Float[Tensor, "images pooled dim"]:
    """Returns the means of squares of patches.

    Raises:
        InvalidInputError: if the patches are no square with an even side.
    """
    side = isqrt(patches.shape[1])
    if side * side != patches.shape[1] or side % SIDE:
        raise InvalidInputError(
            f"an image of {patches.shape[1]} patches is no square with an even side, so its "
            "patches cannot be pooled for a stream P"
        )
    square = patches.unflatten(1, (side, side)).movedim(-1, 1)
    return nn.functional.avg_pool2d(square, SIDE).flatten(2).transpose(1, 2)


class _Pooling(nn.Module):
    def forward(self, patches: Tensor) -> Tensor:
        return pool(patches)
