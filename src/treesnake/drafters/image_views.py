"""The views of TABED by their letters (Lee et al. 2026).

M is the whole prompt, T the text with a line break for each image, C the text with captions, P the
prompt with pooled images.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from transformers import PreTrainedTokenizerBase

from treesnake.drafters.views import RetoldView, View, as_it_is
from treesnake.errors import InvalidInputError
from treesnake.models.hf_attention import HfAttention
from treesnake.models.hf_pooling import check_can_pool, pooled_features, pooled_image
from treesnake.models.tree_network import TreeNetwork, reads_inputs
from treesnake.prompt import Prompt, PromptInput, retell

MARKS = re.compile(r"ima?g|vision|tile|row_\d+_col_\d+", re.IGNORECASE)
"""What the tokens around and between the placeholders of an image are called."""

MOST_CAPTIONS = 1024
"""Images whose captions are remembered."""

MOST_POOLED = 16
"""Images whose pooled features are remembered; they take some megabytes each."""

Caption = Callable[[PromptInput], str]
"""Says in words what an image shows."""

Made = TypeVar("Made")


class OnceForEachImage(Generic[Made]):
    """Remembers what was made of the last images.

    Args:
        make: makes something of an image.
        most: how many are remembered.
    """

    def __init__(self, make: Callable[[PromptInput], Made], most: int) -> None:
        self._make = make
        self._most = most
        self._made: dict[str, Made] = {}

    def __call__(self, image: PromptInput) -> Made:
        """Returns what was made of an image, or makes it."""
        if image.digest not in self._made:
            made = self._make(image)
            if len(self._made) >= self._most:
                self._made.clear()
            self._made[image.digest] = made
            return made
        return self._made[image.digest]


class PooledView:
    """The prompt with pooled images: a quarter of the placeholders.

    Args:
        network: the drafter's, whose vision tower makes the features of each image once.

    Raises:
        InvalidInputError: if it is no vision-language model of transformers.
        UnsupportedModelError: if its family cannot pool.
    """

    def __init__(self, network: TreeNetwork) -> None:
        images = network.images if isinstance(network, HfAttention) else None
        if not isinstance(network, HfAttention) or images is None:
            raise InvalidInputError(
                "the stream P pools what a vision-language model of transformers sees, and the "
                "drafter is none; choose the streams T or C"
            )
        check_can_pool(network.model)
        self._model = model = network.model
        self._token = images.token_id
        self._features = OnceForEachImage(
            lambda image: pooled_features(model, image.tensors), MOST_POOLED
        )

    def __call__(self, prompt: Prompt) -> Prompt:
        """Returns the prompt with features in the place of pixels."""
        features = [self._features(image) for image in prompt.inputs]
        numbers = iter(features)
        retold = retell(prompt, lambda _: [self._token] * len(next(numbers).rows))
        inputs = (
            pooled_image(self._model, rows, start)
            for start, rows in zip(retold.starts, features, strict=True)
        )
        return Prompt(retold.token_ids, tuple(inputs), retold.borders)


@dataclass(frozen=True, eq=False)
class Views:
    """The views of a target's prompts by their letters.

    Attributes:
        tokenizer: the target's.
        caption: says what an image shows; without it there is no view C.
    """

    tokenizer: PreTrainedTokenizerBase
    caption: Caption | None = None

    def of(self, letter: str, network: TreeNetwork) -> View:
        """Returns a view for a network that drafts.

        Raises:
            InvalidInputError: if there is no such view, or not for this network.
            UnsupportedModelError: if its family cannot pool images for P.
        """
        match letter:
            case "M":
                return self._whole(network)
            case "T":
                line_break = self._tokens("\n")[-1:]  # some tokenizers write a space before it
                return RetoldView(lambda _: line_break, self._marks)
            case "C":
                return self._captioned()
            case "P":
                return PooledView(network)
            case _:
                raise InvalidInputError(
                    f"there is no stream {letter!r}; choose of M (with images), T (text alone), "
                    "C (with captions) and P (with pooled images)"
                )

    def _whole(self, network: TreeNetwork) -> View:
        if not reads_inputs(network):
            raise InvalidInputError(
                "the stream M reads images, and the drafter reads text alone; choose the streams "
                "T or C, or a drafter that sees images"
            )
        return as_it_is

    def _captioned(self) -> View:
        caption = self.caption
        if caption is None:
            raise InvalidInputError(
                "the stream C reads captions, and nothing writes them; name a model that sees "
                "images as captions (--captions NAME), or give load_drafter a function as caption, "
                "which returns the text for an image"
            )
        tokens_for = OnceForEachImage(lambda image: self._tokens(caption(image)), MOST_CAPTIONS)
        return RetoldView(tokens_for, self._marks)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    @property
    def _marks(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder
        return frozenset(index for index, token in added.items() if MARKS.search(str(token)))
