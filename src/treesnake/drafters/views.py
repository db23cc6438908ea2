"""How drafters read a prompt with images: as it is, or with something else in their place.

The views of TABED (Lee et al. 2026): M is the whole prompt, T the text with a line break for each
image, C the text with captions, P the prompt with pooled images.
"""

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from treesnake.errors import InvalidInputError
from treesnake.models.tree_network import TreeNetwork, reads_inputs
from treesnake.prompt import Prompt, PromptInput

MARKS = re.compile(r"ima?g|vision|tile|row_\d+_col_\d+", re.IGNORECASE)
"""What the tokens around and between the placeholders of an image are called."""

MOST_CAPTIONS = 1024
"""Images whose captions are remembered."""

View = Callable[[Prompt], Prompt]
"""How a drafter reads a prompt. A longer prompt should be read as the same and more."""

Caption = Callable[[PromptInput], str]
"""Says in words what an image shows."""


def as_it_is(prompt: Prompt) -> Prompt:
    """Returns the prompt, images included (M)."""
    return prompt


def natural_view(network: TreeNetwork) -> View:
    """Returns how a network reads prompts if nothing was said: whole, or without placeholders."""
    return as_it_is if reads_inputs(network) else Prompt.without_inputs


@dataclass(frozen=True, eq=False)
class RetoldView:
    """The prompt with tokens of text in the place of each image (T, C).

    Attributes:
        retell: returns the tokens for an image.
        marks: tokens that stand around images and nowhere else; they are left out.
    """

    retell: Callable[[PromptInput], Sequence[int]]
    marks: Set[int] = frozenset()

    def __call__(self, prompt: Prompt) -> Prompt:
        """Returns the prompt as text; one without images as it is."""
        if not prompt.inputs:
            return prompt
        image_at = {each.start: each for each in prompt.inputs}
        placeholders = {index for each in prompt.inputs for index in range(each.start, each.end)}
        token_ids: list[int] = []
        lengths = [0]
        for index, token in enumerate(prompt.token_ids):
            if index in image_at:
                token_ids += self.retell(image_at[index])
            elif index not in placeholders and token not in self.marks:
                token_ids.append(token)
            lengths.append(len(token_ids))
        return Prompt(tuple(token_ids), borders=tuple(lengths[each] for each in prompt.borders))


class Captions:
    """The captions of images in tokens; each image is looked at once.

    Args:
        caption: says what an image shows.
        tokenizer: the target's.
    """

    def __init__(self, caption: Caption, tokenizer: PreTrainedTokenizerBase) -> None:
        self._caption = caption
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, image: PromptInput) -> tuple[int, ...]:
        """Returns the tokens of an image's caption."""
        if image.digest not in self._known:
            if len(self._known) >= MOST_CAPTIONS:
                self._known.clear()
            words = self._caption(image)
            self._known[image.digest] = tuple(
                self._tokenizer.encode(words, add_special_tokens=False)
            )
        return self._known[image.digest]


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
        """
        if letter == "T":
            return RetoldView(lambda _: self._line_break, self._marks)
        if letter == "C":
            if self.caption is None:
                raise InvalidInputError(
                    "the stream C reads captions, and nothing writes them; give load_drafter a "
                    "function as caption, which returns the text for an image"
                )
            return RetoldView(Captions(self.caption, self.tokenizer), self._marks)
        if letter == "M":
            if not reads_inputs(network):
                raise InvalidInputError(
                    "the stream M reads images, and the drafter reads text alone; choose the "
                    "streams T or C, or a drafter that sees images"
                )
            return as_it_is
        raise InvalidInputError(
            f"there is no stream {letter!r}; choose of M (with images), T (text alone) and C (with "
            "captions)"
        )

    @property
    def _line_break(self) -> tuple[int, ...]:
        """The token of a line break; some tokenizers write a space before it."""
        return tuple(self.tokenizer.encode("\n", add_special_tokens=False)[-1:])

    @property
    def _marks(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder
        return frozenset(index for index, token in added.items() if MARKS.search(str(token)))
