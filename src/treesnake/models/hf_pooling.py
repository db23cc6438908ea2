"""Pooled images (TABED's stream P, Lee et al. 2026): about a quarter of the placeholders.

Means of 2 x 2 patches are taken between the vision tower and its projector.
"""

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
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

PROJECTORS: Mapping[str, str] = {
    "aya_vision": "multi_modal_projector",
    "cohere2_vision": "multi_modal_projector",
    "gemma3": "multi_modal_projector",
    "idefics3": "connector",
    "internvl": "multi_modal_projector",
    "llava": "multi_modal_projector",
    "llava_next": "multi_modal_projector",
    "llava_onevision": "multi_modal_projector",
    "smolvlm": "connector",
    "vipllava": "multi_modal_projector",
}
"""The projectors of families that take the patches of square tiles, so that means of patches can be
projected."""

POOLING_FAMILIES = ("gemma3",)
"""Families whose projectors take means of patches themselves, and know how many there are."""

PACKING_FAMILIES = ("llava_next", "llava_onevision")
"""Families that lay the features of tiles together by the size of a patch, behind the projector."""

SIDE = 2
"""Patches on a side of the square of which the mean is taken."""


@dataclass(frozen=True, eq=False)
class PooledFeatures:
    """What stands for an image.

    Attributes:
        made: the features as the model makes them, all at once or image by image.
    """

    made: Float[Tensor, "tiles pooled hidden"] | Sequence[Float[Tensor, "_ hidden"]]

    @property
    def rows(self) -> Float[Tensor, "features hidden"]:
        """One after the other."""
        return torch.cat([each.flatten(0, -2) for each in self.made])


def pooled_image(
    model: "transformers.PreTrainedModel", features: PooledFeatures, start: int
) -> EncodedImages:
    """Returns pooled features as an input of a prompt, in the place of pixels.

    Args:
        model: whose features they are.
        features: those of one image, see `pooled_features`.
        start: the index of its first placeholder.
    """
    outputs: Any = BaseModelOutputWithPooling
    encoded = {"image": outputs(pooler_output=features.made)}
    rows = features.rows
    return EncodedImages({"features": rows}, start, len(rows), model, encoded, None)


@torch.no_grad()
def pooled_features(
    model: "transformers.PreTrainedModel", tensors: Mapping[str, Shaped[Tensor, "..."]]
) -> PooledFeatures:
    """Returns the projected means of an image's patches.

    The model is left as it is, and may run elsewhere at the same time: the projector is replaced in
    a copy that shares all weights.

    Args:
        model: of one of the families of `PROJECTORS`.
        tensors: what the processor made of the image.

    Raises:
        UnsupportedModelError: if the model cannot pool.
        InvalidInputError: if the patches are no square with an even side.
    """
    check_can_pool(model)
    found = _pooling(model).get_image_features(**at_home(tensors, model), return_dict=True)
    return PooledFeatures(found.pooler_output)


def check_can_pool(model: "transformers.PreTrainedModel") -> None:
    """Checks that the means of a model's patches can be projected.

    Raises:
        UnsupportedModelError: if the family is another one, or an image has an odd number of
            features on a side.
    """
    family = model.config.model_type
    if family not in PROJECTORS:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no stream P: only of {', '.join(sorted(PROJECTORS))} it "
            f"is known that the patches of square tiles are projected, not of {family}; choose the "
            "streams M, T or C"
        )
    side = _features_on_a_side(model.config)
    if side % SIDE:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no stream P: its images have {side:g} x {side:g} "
            "features, and of an odd number no half is left; choose the streams M, T or C"
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
            "patches cannot be pooled for a stream P; choose the streams M, T or C"
        )
    square = patches.unflatten(1, (side, side)).movedim(-1, 1)
    return nn.functional.avg_pool2d(square, SIDE).flatten(2).transpose(1, 2)


def _pooling(model: "transformers.PreTrainedModel") -> Any:
    """Returns a copy of a model's reader of images whose projector is given means of patches."""
    family = model.config.model_type
    name = PROJECTORS[family]
    reader: Any = copy(model.base_model)
    projector = copy(getattr(reader, name))
    if family in POOLING_FAMILIES:
        projector.patches_per_image //= SIDE
    if family in PACKING_FAMILIES:
        reader.config = deepcopy(model.config)
        reader.config.vision_config.patch_size *= SIDE
    modules = {**reader._modules, name: nn.Sequential(_Pooling(), projector)}
    reader.__dict__["_modules"] = modules
    return reader


def _features_on_a_side(config: Any) -> float:
    """Returns how many features on a side a square tile has, by the config of the model."""
    if config.model_type in POOLING_FAMILIES:
        return isqrt(config.mm_tokens_per_image)
    vision = config.vision_config
    image, patch = (
        each if isinstance(each, int) else each[0]
        for each in (vision.image_size, vision.patch_size)
    )
    merged = getattr(config, "scale_factor", getattr(config, "downsample_factor", 1))
    return image // patch / merged * getattr(config, "downsample_ratio", 1)


class _Pooling(nn.Module):
    def forward(self, patches: Tensor) -> Tensor:
        return pool(patches)
