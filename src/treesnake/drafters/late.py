"""A drafter that reads the prompt when it is first asked for a draft.

Where drafting is off, as on a busy server, many texts end before that, and the prompt is never
read.
"""

from collections.abc import Sequence

from treesnake.clock import reading
from treesnake.draft import Draft, Scored
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape, is_off


class LateDrafter:
    """A session whose drafter runs a network for the prompt, too.

    Attributes:
        inner: the drafter, a session that drafts nothing where drafting is off.
    """

    def __init__(self, inner: Drafter) -> None:
        self.inner = inner
        self._unread: Prompt | None = None
        self._tokens: list[int] = []

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory."""
        return getattr(self.inner, "num_bytes", 0)

    def prefill(self, prompt: Prompt) -> None:
        """Notes the prompt; the first draft reads it."""
        self._unread = prompt
        self._tokens = []

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Drafts as the drafter does, which reads first what it has not read.

        The time of reading is booked apart from that of drafting: it says nothing of what a draft
        takes.
        """
        if self._unread is not None:
            if is_off(shape):
                return Draft.nothing(anchor)
            with reading():
                self.inner.prefill(self._unread)
                if self._tokens:
                    self.inner.commit(self._tokens)
            self._unread = None
        return self.inner.draft(anchor, shape, params, rng)

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Takes tokens into the text."""
        if self._unread is None:
            self.inner.commit(token_ids, scored)
        else:
            self._tokens += token_ids
