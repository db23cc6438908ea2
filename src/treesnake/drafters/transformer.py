"""Transformers as drafters: the choice to compare with, whose cache grows with the text."""

from dataclasses import dataclass

from treesnake.drafters.model_drafter import ModelDrafter
from treesnake.drafters.vocabulary import VocabularyMap
from treesnake.drafters.window import WindowedDrafter
from treesnake.errors import InvalidInputError
from treesnake.models.attention_network import AttentionNetwork

MOST_ROOM = 64
"""Positions of the context that are kept free for trees, if it is long enough."""


@dataclass(frozen=True, eq=False)
class TransformerDrafterModel:
    """Makes drafter sessions over a Transformer, our own or one of transformers.

    A text longer than the drafter's context, or than `window`, is seen through a window on its end;
    see `WindowedDrafter`.

    Attributes:
        network: the weights.
        vocabulary: how its tokens relate to the target's; None if they are the same.
        window: how many tokens before the anchor it sees at most; None is all that its context
            holds.

    Raises:
        InvalidInputError: if the window is too small, or larger than the context.
    """

    network: AttentionNetwork
    vocabulary: VocabularyMap | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is None:
            return
        if self.window < 2:
            raise InvalidInputError(f"a drafter's window has at least 2 tokens, got {self.window}")
        largest = self.largest_window
        if largest is not None and self.window > largest:
            raise InvalidInputError(
                f"the drafter can look at {largest} tokens at most, got a window of {self.window}"
            )

    @property
    def max_depth(self) -> int | None:
        """How deep a tree may be, so that it fits into the context behind the window."""
        context_length = self.network.context_length
        return None if context_length is None else min(MOST_ROOM, context_length // 4)

    @property
    def largest_window(self) -> int | None:
        """How many tokens the context holds in front of a tree; None if it has no limit."""
        context_length, max_depth = self.network.context_length, self.max_depth
        if context_length is None or max_depth is None:
            return None
        return context_length - max_depth

    def new_session(self) -> ModelDrafter | WindowedDrafter:
        """Returns a session with an empty cache."""
        drafter = ModelDrafter(self.network.new_state(), self.vocabulary, self.max_depth)
        window = self.window or self.largest_window
        return drafter if window is None else WindowedDrafter(drafter, window)
