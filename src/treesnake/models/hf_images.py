"""How vision-language models of transformers read the images of a prompt.

The placeholders of an image are a pass of their own, with the image's tensors beside them: the
model runs its own tower and puts the features in their place. So no image is ever cut, no two are
padded to each other, and an image that the cache holds is not run again. Whatever comes after it is
plain text, but for positions: some models give an image fewer of them than it has placeholders.

What such a model remembers of the last text that it saw (`rope_deltas`) is never read.
"""

import inspect
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from treesnake.errors import InvalidInputError, UnsupportedModelError
from treesnake.prompt import Prompt, PromptInput

# fmt: off
VERIFIED_VISION = frozenset({
    "aya_vision", "gemma3", "glm4v", "idefics3", "internvl", "llava", "llava_next",
    "llava_onevision", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm",
})
# fmt: on
"""Families, by `model_type`, that the tests compare with plain passes over texts with images."""

TWO_WAY_FAMILIES = ("gemma3",)
"""Families in which each placeholder of an image sees all others of that image."""

TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""How models call the argument that is 1 where a token stands for an image, and 0 elsewhere."""

Tensors = Mapping[str, Tensor]


def sees_images(model: PreTrainedModel) -> bool:
    """Tells whether a model puts features of images in the place of some token."""
    return _token_of(model) is not None and hasattr(model.base_model, "get_image_features")


@dataclass(frozen=True)
class Piece:
    """Tokens of a prompt that run in one pass.

    Attributes:
        start: the index of the first.
        end: the index of the token behind them.
        image: what they stand for; None for text.
    """

    start: int
    end: int
    image: PromptInput | None = None


def pieces(prompt: Prompt, start: int, part_size: int) -> Iterator[Piece]:
    """Yields a prompt from a token on, without its last token: images whole, text in parts."""
    for image in (*prompt.inputs, None):
        end = len(prompt) - 1 if image is None else image.start
        for part_start in range(start, end, part_size):
            yield Piece(part_start, min(part_start + part_size, end))
        if image is not None and image.start >= start:
            yield Piece(image.start, image.end, image)
        start = max(start, end if image is None else image.end)


def num_whole(prompt: Prompt, num_tokens: int) -> int:
    """Returns how many of the first tokens of a prompt there are if no image may be cut."""
    cut = (each.start for each in prompt.inputs if each.start < num_tokens < each.end)
    return next(cut, num_tokens)


class HfImages:
    """What a model wants to be told of an image.

    Args:
        model: one that sees images.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        token = _token_of(model)
        assert token is not None, "there is a token for images"
        self.token_id = token
        self.family: str = model.config.model_type
        self.is_two_way = self.family in TWO_WAY_FAMILIES
        self._model = model

    @property
    def is_verified(self) -> bool:
        """Whether the tests have a model of this family."""
        return self.family in VERIFIED_VISION

    def check_supported(self) -> None:
        """Checks what the model says of images.

        Raises:
            UnsupportedModelError: if it can tell tokens from each other in a way that nobody
                verified.
        """
        if not self.is_verified and "token_type_ids" in self._arguments:
            raise UnsupportedModelError(
                f"{type(self._model).__name__} reads types of tokens, by which some models see "
                f"ahead in a prompt; nobody verified what {self.family} makes of them, so it is "
                "given text only"
            )

    def check_prompt(self, prompt: Prompt) -> None:
        """Checks that the model can read the images of a prompt.

        Raises:
            InvalidInputError: if an input is no image of this model.
        """
        before = 0
        for each in prompt.inputs:
            unknown = each.tensors.keys() - self._arguments
            if unknown:
                raise InvalidInputError(
                    f"{type(self._model).__name__} takes no {', '.join(sorted(unknown))}; prepare "
                    "images with the processor of the model itself"
                )
            if self.token_id not in prompt.token_ids[each.start : each.end]:
                raise InvalidInputError(
                    f"an image has its placeholders at tokens {each.start} to {each.end - 1}, and "
                    f"none of these is the model's token {self.token_id} for images"
                )
            if self.is_two_way and before and each.start == before:
                raise InvalidInputError(
                    f"{type(self._model).__name__} would take two images for one that have no "
                    f"token between them, as at token {before}; write a line break there"
                )
            before = each.end

    def positions(self, image: PromptInput) -> Int[Tensor, "*rows 1 placeholders"]:
        """Returns where the placeholders of an image stand, from 0 on.

        Models with positions in time, height and width have three rows of them.
        """
        size = image.num_placeholders
        rope_index = getattr(self._model.base_model, "get_rope_index", None)
        if rope_index is None:
            return torch.arange(size)[None]
        named = inspect.signature(rope_index).parameters
        grids = {name: tensor for name, tensor in image.tensors.items() if name in named}
        placeholders = torch.full((1, size), self.token_id)
        positions, _ = rope_index(placeholders, mm_token_type_ids=placeholders * 0 + 1, **grids)
        return positions

    def token_types(self, prompt: Prompt) -> Tensors:
        """Returns what the model takes as types of tokens, by the name of its argument."""
        types = torch.zeros(1, len(prompt), dtype=torch.int64)
        for each in prompt.inputs:
            types[0, each.start : each.end] = 1
        types[torch.tensor([prompt.token_ids]) != self.token_id] = 0
        return {name: types for name in TOKEN_TYPES if name in self._arguments}

    @cached_property
    def _arguments(self) -> Set[str]:
        """The names of what the model takes."""
        takers: tuple[Any, ...] = (
            self._model.forward,
            self._model.base_model.forward,
            getattr(self._model.base_model, "get_image_features", None),
        )
        return {name for taker in takers if taker for name in inspect.signature(taker).parameters}


def _token_of(model: PreTrainedModel) -> int | None:
    token = getattr(model.config, "image_token_id", None)
    return token if type(token) is int else None
