"""Several drafters, one tree: prompt lookup beside a model costs nothing and wins on repetition.

Where a priced tree is asked for, each node of either must be worth its price, and the first drafter
is asked only where what the second leaves is worth a level of it. What the first has that needs no
network is kept where it pays: prompt lookup stays beside a memory that is sure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan, nan

from treesnake.draft import Draft, Scored
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

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory; a drafter that does not say holds next to nothing."""
        return sum(getattr(each, "num_bytes", 0) for each in (self._first, self._second))

    def prefill(self, prompt: Prompt) -> None:
        """Prefills both."""
        self._first.prefill(prompt)
        self._second.prefill(prompt)

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Drafts a tree of the shape with each, and returns the tree that holds both.

        Raises:
            InvalidInputError: if the second drafter sampled.
        """
        second = self._second.draft(anchor, shape, params, rng)
        if not second.is_chosen:
            raise InvalidInputError(
                "the second drafter of a composite must choose its tokens without chance, as "
                "prompt lookup does; give the one that samples first"
            )
        first = self._first.draft(anchor, _beside(second, shape), params, rng)
        if len(second.tree) == 1:
            return first
        if len(first.tree) == 1:
            return replace(
                second,
                num_expanded=first.num_expanded or (),
                stream_weights=first.stream_weights,
            )
        probs = second.node_probs or (nan,) * len(second.tree)
        tree, nodes = merge(first.tree, second.tree, partial(_pays, shape, probs))
        added = [prob for node, prob in zip(nodes, probs, strict=True) if node >= len(first.tree)]
        return Draft(
            tree,
            first.draft_probs,
            first.sampled_mask + (False,) * len(added),
            first.node_probs and (*first.node_probs, *added),
            first.tree.num_expanded if first.num_expanded is None else first.num_expanded,
            first.stream_weights,
        )

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Commits to both."""
        self._first.commit(token_ids, scored)
        self._second.commit(token_ids, scored)


def _beside(second: Draft, shape: Shape) -> Shape:
    """Returns what the first drafter is asked for: no network if too little is left to guess."""
    priced = shape.as_priced()
    if priced is not None and second.node_probs is not None and shape.depth > 0:
        guessed = sum(second.node_probs[child] for child in second.tree.children[0])
        if not priced.level_pays(0, 1 - guessed):
            return priced.without_levels()
    return shape


def _pays(shape: Shape, probs: Sequence[float], node: int, num_kept: int) -> bool:
    """Tells whether a node of the second drafter is kept; one of unknown probability always is."""
    return isnan(probs[node]) or shape.pays(probs[node], num_kept)
