"""A model that drafts for itself: a copy of few bits on the target's own memory of the text.

Reading weights is what a token takes, so a copy of an eighth of the bits guesses several tokens in
the time that the model takes for one. It reads the keys and values, or the recurrent state, that
the model itself has made of the text: it has no prefill and no memory of its own, and nothing of
what it gets wrong stays.

Source: self-speculation with weights of 4 bits, as in QuantSpec (Tiwari et al. 2025) for
Transformers; here for recurrent states, too.
"""

from collections.abc import Sequence

from treesnake.draft import Draft, Scored
from treesnake.drafters.growing import grow
from treesnake.models.tree_network import TreeState
from treesnake.prompt import Prompt
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape


class SelfDrafter:
    """A drafter session on the text of a target's session.

    Args:
        state: of the copy, borrowed from the target's session.
    """

    def __init__(self, state: TreeState) -> None:
        self._state = state

    def prefill(self, prompt: Prompt) -> None:
        """Needs nothing: the target's session reads the prompt."""

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Grows a tree over `anchor`; the target's next pass overwrites what it leaves behind."""
        self._state.commit(())
        return grow(anchor, shape, params, rng, self._state.extend).draft

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Needs nothing: the target's session takes the tokens."""
