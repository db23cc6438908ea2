"""A drafter that sees the end of the text only, so that its cost stays the same."""

from collections.abc import Sequence

from treesnake.draft import Draft, Scored
from treesnake.drafters.views import View
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt, PromptInput
from treesnake.protocols import Drafter
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape, is_off


class WindowedDrafter:
    """Lets a drafter see at most the last `window` tokens of a text.

    A prompt is seen from a multiple of `window` / 2 on, as a text of its own, whose first token has
    position 0. So two prompts of one conversation mostly begin at the same token, and what was read
    of the first is not read again.

    A window that slides is never exceeded by the answer either: the older half is forgotten and the
    newer half is run again. So positions stay in the range that the drafter was trained on, and its
    first tokens are never missing: a cache that is merely cut off in front loses what attention
    leans on (Xiao et al. 2023, "attention sinks"), and its deeper layers still hold what is
    forgotten. It costs a prefill of `window` / 2 tokens every `window` / 2 tokens. A recurrent
    state has one size and needs none of this.

    Args:
        drafter: what sees the window.
        window: how many tokens it sees at most.
        slides: whether it moves while the answer grows.
        view: how prompts with images are read. An image that the edge of the window would cut is
            left out.
    """

    def __init__(
        self,
        drafter: Drafter,
        window: int,
        view: View = Prompt.without_inputs,
        *,
        slides: bool = True,
    ) -> None:
        if window < 2:
            raise InvalidInputError(f"a window has at least 2 tokens, got {window}")
        self._drafter = drafter
        self._window = window
        self._view = view
        self._slides = slides
        self._start = 0
        self._seen: list[int] = []
        self._inputs: tuple[PromptInput, ...] = ()

    @property
    def num_bytes(self) -> int:
        """What the drafter holds of the text in memory."""
        return getattr(self._drafter, "num_bytes", 0)

    def prefill(self, prompt: Prompt) -> None:
        """Makes the drafter hold the last tokens of the prompt but the very last."""
        self._start = 0
        self._see(self._view(prompt))

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Drafts a tree, before which the window moves if the text outgrew it."""
        is_outgrown = first_seen(self._start + len(self._seen), self._window) > self._start
        if self._slides and is_outgrown and not is_off(shape):
            self._see(Prompt((*self._seen, anchor), self._inputs))
        return self._drafter.draft(anchor, shape, params, rng)

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Takes tokens into the state."""
        self._drafter.commit(token_ids, scored)
        self._seen += token_ids

    def _see(self, prompt: Prompt) -> None:
        """Moves the window to the end of a prompt, which begins where the window did."""
        start = first_seen(self._start + len(prompt) - 1, self._window) - self._start
        cut = (each.end for each in prompt.inputs if each.start < start < each.end)
        # A whole prompt also says which conversation it is.
        seen = prompt.behind(next(cut, start)) if start else prompt
        self._start += len(prompt) - len(seen)
        self._seen, self._inputs = list(seen.token_ids[:-1]), seen.inputs
        self._drafter.prefill(seen)


def first_seen(num_tokens: int, window: int) -> int:
    """Returns the first token that is seen of so many; it moves by half a window at a time."""
    stride = -(-window // 2)
    return max(-(-(num_tokens - window) // stride) * stride, 0)
