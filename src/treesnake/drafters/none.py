"""The drafter that never drafts: plain decoding."""

from collections.abc import Sequence
from dataclasses import dataclass

from treesnake.draft import Draft, Scored
from treesnake.prompt import Prompt
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape


@dataclass(frozen=True)
class NoDrafterModel:
    """Makes sessions that draft nothing."""

    def new_session(self) -> "NoDrafter":
        """Returns a session."""
        return NoDrafter()


class NoDrafter:
    """Drafts the anchor alone, whatever the shape."""

    def prefill(self, prompt: Prompt) -> None:
        """Needs nothing of the prompt."""

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Returns the anchor."""
        return Draft.nothing(anchor)

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Needs nothing of the text."""
