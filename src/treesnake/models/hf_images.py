"""How vision-language models of transformers read the images of a prompt.

The placeholders of an image are a pass of their own, with the image's tensors beside them: the
model runs its own tower and puts the features in their place. So no image is ever cut, no two are
padded to each other, and an image that the cache holds is not run again. Whatever comes after it is
plain text, but for positions: some models give an image fewer of them than it has placeholders.

What such a model remembers of the last text that it saw (`rope_deltas`) is never read.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedConfig

from treesnake.errors import InvalidInputError, UnsupportedModelError
from treesnake.prompt import Prompt, PromptInput

# fmt: off
VERIFIED_VISION = frozenset({
    "aya_vision", "cohere2_vision", "gemma3", "glm4v", "idefics3", "internvl", "lfm2_vl", "llava",
    "llava_next", "llava_onevision", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_5",
    "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm", "vipllava",
})
# fmt: on
"""Families, by `model_type`, that the tests compare with plain passes over texts with images."""

TWO_WAY_FAMILIES = ("gemma3",)
"""Families in which each placeholder of an image sees all others of that image."""

TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""How models call the argument that is 1 where a token stands for an image, and 0 elsewhere."""

ENCODED = "mm_encoder_outputs"
"""How models call the argument with what their towers made."""

Tensors = Mapping[str, Tensor]


def sees_images(model: "transformers.PreTrainedModel") -> bool:
    """Tells whether a model puts features of images in the place of some token."""
    return image_token(model.config) is not None and hasattr(model.base_model, "get_image_features")


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


@dataclass(frozen=True, eq=False)
class EncodedImages(PromptInput):
    """Images that went through a model's tower already, as in `generate` of transformers.

    Attributes:
        model: whose tower it was; no other can use the features.
        outputs: of the tower, as the model's `mm_encoder_outputs`.
        positions: of the placeholders and what is between them, from 0 on; None for one after the
            other.
    """

    model: "transformers.PreTrainedModel"
    outputs: Mapping[str, Any]
    positions: Int[Tensor, "rows 1 tokens"] | None


class HfImages:
    """What a model wants to be told of an image.

    Args:
        model: one that sees images.
    """

    def __init__(self, model: "transformers.PreTrainedModel") -> None:
        token = image_token(model.config)
        assert token is not None, "there is a token for images"
        self.token_id = token
        self.family: str = model.config.model_type
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
            self._check_tensors(each)
            if self.token_id not in prompt.token_ids[each.start : each.end]:
                raise InvalidInputError(
                    f"an image has its placeholders at tokens {each.start} to {each.end - 1}, and "
                    f"none of these is the model's token {self.token_id} for images"
                )
            if self.family in TWO_WAY_FAMILIES and before and each.start == before:
                raise InvalidInputError(
                    f"{type(self._model).__name__} would take two images for one that have no "
                    f"token between them, as at token {before}; write a line break there"
                )
            before = each.end

    def _check_tensors(self, image: PromptInput) -> None:
        name = type(self._model).__name__
        if isinstance(image, EncodedImages):
            if image.model is not self._model:
                raise InvalidInputError(
                    f"the images come as features of another model, and this {name} needs them as "
                    "they are: choose a drafter that reads text alone, or a SpeculativeDecoder"
                )
            return
        unknown = image.tensors.keys() - self._arguments
        if unknown:
            raise InvalidInputError(
                f"{name} takes no {', '.join(sorted(unknown))}; prepare images with the processor "
                "of the model itself"
            )

    def options(self, image: PromptInput) -> Mapping[str, Any]:
        """Returns the arguments by which the model takes an image."""
        if isinstance(image, EncodedImages):
            return {ENCODED: dict(image.outputs)}
        return image.tensors

    def positions(
        self, image: PromptInput, token_ids: Sequence[int]
    ) -> Int[Tensor, "*rows 1 placeholders"]:
        """Returns where the placeholders of an image stand, from 0 on.

        Models with positions in time, height and width have three rows of them.

        Args:
            image: the image, or several with text between them.
            token_ids: its placeholders, and what is between them.
        """
        if isinstance(image, EncodedImages) and image.positions is not None:
            return image.positions
        rope_index = getattr(self._model.base_model, "get_rope_index", None)
        if rope_index is None:
            return torch.arange(len(token_ids))[None]
        named = inspect.signature(rope_index).parameters
        grids = {name: tensor for name, tensor in image.tensors.items() if name in named}
        tokens = torch.tensor([token_ids])
        types = (tokens == self.token_id).long()
        positions, _ = rope_index(tokens, mm_token_type_ids=types, **grids)
        return positions

    def visible(self, token_ids: Sequence[int]) -> Bool[Tensor, "tokens tokens"] | None:
        """Returns which of the placeholders of an image each sees; None for those before it."""
        if self.family not in TWO_WAY_FAMILIES:
            return None
        stands_for_image = torch.tensor(token_ids) == self.token_id
        begins = stands_for_image & ~torch.nn.functional.pad(stands_for_image, (1, -1))
        block = torch.where(stands_for_image, begins.cumsum(0), torch.zeros(()).long())
        in_block = (block[:, None] == block) & stands_for_image
        return torch.ones_like(in_block).tril() | in_block

    def whole_positions(self, prompt: Prompt) -> Int[Tensor, "rows 1 tokens"]:
        """Returns where each token of a prompt stands, in as many rows as the model has."""
        parts: list[Tensor] = []
        start = shift = 0
        for image in prompt.inputs:
            placeholders = prompt.token_ids[image.start : image.end]
            positions = self.positions(image, placeholders) + image.start + shift
            parts += [torch.arange(start, image.start)[None] + shift, positions]
            start, shift = image.end, int(positions.max()) + 1 - image.end
        parts.append(torch.arange(start, len(prompt))[None] + shift)
        num_rows = max((len(part) for part in parts if part.ndim == 3), default=1)
        rows = [part if part.ndim == 3 else part.expand(num_rows, 1, -1) for part in parts]
        return torch.cat(rows, dim=-1)

    def encoded(
        self, token_ids: Sequence[int], outputs: Mapping[str, Any], positions: Tensor | None
    ) -> EncodedImages:
        """Returns all images of a prompt as one input, with the text between them.

        Args:
            token_ids: the prompt.
            outputs: of the tower; see `EncodedImages`.
            positions: rows of positions of the whole prompt, if the model has them.

        Raises:
            InvalidInputError: if no token stands for an image.
        """
        places = [index for index, token in enumerate(token_ids) if token == self.token_id]
        if not places:
            raise InvalidInputError(
                f"there are images and no token {self.token_id}, which stands for one; prepare the "
                "prompt with the processor of the model itself"
            )
        start, end = places[0], places[-1] + 1
        own = None if positions is None else positions[..., start:end] - start
        tensors = dict(_named_tensors(outputs))
        return EncodedImages(tensors, start, end - start, self._model, outputs, own)

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


def _named_tensors(value: object, name: str = "features") -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors in the output of a tower, each with a name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _named_tensors(part, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from _named_tensors(part, f"{name}.{number}")


def image_token(config: PreTrainedConfig) -> int | None:
    """Returns the token that stands for a feature of an image; None if no token does."""
    token = getattr(config, "image_token_id", None)
    return token if type(token) is int else None
