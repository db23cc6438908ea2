"""Several drafters, one tree: prompt lookup beside a model costs nothing and wins on repetition."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch

from treesnake.draft import Draft
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, DrafterModel
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape
from treesnake.tree import merge


@dataclass(frozen=True)
class CompositeDrafterModel:
    """Joins the trees of two drafters.

    Attributes:
        first: any drafter.
        second: a drafter that chooses its nodes without chance, such as prompt lookup. Its nodes
            come after the siblings that `first` drew, as tree rejection needs it.
    """

    first: DrafterModel
    second: DrafterModel

    def new_session(self) -> "CompositeDrafter":
        """Returns a session of both."""
        return CompositeDrafter(self.first.new_session(), self.second.new_session())


class CompositeDrafter:
    """Two sessions that draft for one text; each is told every token that the text gains."""

    def __init__(self, first: Drafter, second: Drafter) -> None:
        self._first = first
        self._second = second

    def prefill(self, prompt: Prompt) -> None:
        """Prefills both."""
        self._first.prefill(prompt)
        self._second.prefill(prompt)

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Drafts a tree of the shape with each, and returns the tree that holds both.

        Raises:
            InvalidInputError: if the second drafter sampled.
        """
        first = self._first.draft(anchor, shape, params, rng)
        second = self._second.draft(anchor, shape, params, rng)
        if not second.is_chosen:
            raise InvalidInputError(
                "the second drafter of a composite must choose its tokens without chance, as "
                "prompt lookup does; give the one that samples first"
            )
        tree, _ = merge(first.tree, second.tree)
        num_chosen = len(tree) - len(first.tree)
        sampled_mask = torch.cat([first.sampled_mask, torch.zeros(num_chosen, dtype=torch.bool)])
        node_probs = first.node_probs and (*first.node_probs, *(nan,) * num_chosen)
        return Draft(tree, first.draft_probs, sampled_mask, node_probs)

    def commit(self, token_ids: Sequence[int]) -> None:
        """Commits to both."""
        self._first.commit(token_ids)
        self._second.commit(token_ids)
