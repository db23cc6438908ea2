"""How drafters read a prompt with images: as it is, or with something else in their place."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from treesnake.models.tree_network import TreeNetwork, reads_inputs
from treesnake.prompt import Prompt, PromptInput, retell

View = Callable[[Prompt], Prompt]
"""How a drafter reads a prompt. A longer prompt should be read as the same and more."""


def as_it_is(prompt: Prompt) -> Prompt:
    """Returns the prompt, images included."""
    return prompt


def natural_view(network: TreeNetwork) -> View:
    """Returns how a network reads prompts if nothing was said: whole, or without placeholders."""
    return as_it_is if reads_inputs(network) else Prompt.without_inputs


@dataclass(frozen=True, eq=False)
class RetoldView:
    """The prompt with tokens of text in the place of each image.

    Attributes:
        tokens_for: returns the tokens for an image.
        marks: tokens that stand around images and nowhere else; they are left out.
    """

    tokens_for: Callable[[PromptInput], Sequence[int]]
    marks: Set[int] = frozenset()

    def __call__(self, prompt: Prompt) -> Prompt:
        """Returns the prompt as text; one without images as it is."""
        if not prompt.inputs:
            return prompt
        retold = retell(prompt, self.tokens_for, self.marks)
        return Prompt(retold.token_ids, borders=retold.borders)
