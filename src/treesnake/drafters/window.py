"""A drafter that sees the end of the text only, so that its cost stays the same."""

from collections.abc import Sequence

from treesnake.draft import Draft, Scored
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape


class WindowedDrafter:
    """Lets a drafter see at most the last `window` tokens before the anchor.

    When these are exceeded, the older half is forgotten and the newer half is run again as a text
    of its own, whose first token has position 0. So positions stay in the range that the drafter
    was trained on, and its first tokens are never missing: a cache that is merely cut off in front
    loses what attention leans on (Xiao et al. 2023, "attention sinks"), and its deeper layers still
    hold what is forgotten. It costs a prefill of `window` / 2 tokens every `window` / 2 tokens.

    What is seen depends on the length of the text alone, not on how it came about.
    """

    def __init__(self, drafter: Drafter, window: int) -> None:
        if window < 2:
            raise InvalidInputError(f"a window has at least 2 tokens, got {window}")
        self._drafter = drafter
        self._window = window
        self._start = 0
        self._seen: list[int] = []

    def prefill(self, prompt: Prompt) -> None:
        """Makes the drafter hold the last tokens of the prompt but the very last."""
        self._start = first_seen(len(prompt) - 1, self._window)
        self._seen = list(prompt.token_ids[self._start : -1])
        self._drafter.prefill(_from_token(prompt, self._start))

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Drafts a tree, after having moved the window if the text outgrew it."""
        num_outgrown = first_seen(self._start + len(self._seen), self._window) - self._start
        if num_outgrown:
            del self._seen[:num_outgrown]
            self._start += num_outgrown
            self._drafter.prefill(Prompt.of([*self._seen, anchor]))
        return self._drafter.draft(anchor, shape, params, rng)

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Takes tokens into the state."""
        self._drafter.commit(token_ids, scored)
        self._seen += token_ids


def first_seen(num_tokens: int, window: int) -> int:
    """Returns the first token that is seen of so many; it moves by half a window at a time."""
    stride = -(-window // 2)
    return max(-(-(num_tokens - window) // stride) * stride, 0)


def _from_token(prompt: Prompt, start: int) -> Prompt:
    """Returns the prompt from a token on, as a text of its own."""
    borders = tuple(border - start for border in prompt.borders if border > start)
    return Prompt(prompt.token_ids[start:], borders=borders)
