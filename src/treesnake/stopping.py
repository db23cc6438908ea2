"""Where a text ends. Length is not among these: the loop drafts no deeper than the room left."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from treesnake.errors import InvalidInputError
from treesnake.outcome import FinishReason
from treesnake.text import Decode, Decoding, TextAssembler
from treesnake.utf8 import check_text


@dataclass(frozen=True)
class Cut:
    """The end of a text.

    Attributes:
        num_kept: how many of the emitted tokens belong to the text.
        reason: what ended it.
    """

    num_kept: int
    reason: FinishReason


StopRule = Callable[[Sequence[int], Sequence[int]], Cut | None]
"""Takes the tokens generated before a step and those emitted by it; returns a cut or None."""


@dataclass(frozen=True)
class EndTokens:
    """Ends the text after the first of some tokens, which is kept."""

    token_ids: Collection[int]

    def __call__(self, generated: Sequence[int], emitted: Sequence[int]) -> Cut | None:
        for index, token in enumerate(emitted):
            if token in self.token_ids:
                return Cut(index + 1, FinishReason.END_TOKEN)
        return None


class StopStrings:
    """Ends the text after the first token with which it contains one of some strings.

    The text is the one that a `TextAssembler` shows. The names of special tokens count as well.

    Args:
        strings: none of them empty.
        decode: turns token ids into text.
        prompt: what the text continues; strings are not looked for in it.

    Raises:
        InvalidInputError: if a string is empty, or is no text.
    """

    def __init__(
        self, strings: Sequence[str], decode: Decode | Decoding, prompt: Sequence[int] = ()
    ) -> None:
        for string in strings:
            check_text(string, "a stop string")
        if not all(strings):
            raise InvalidInputError("a stop string cannot be empty")
        self._new_text = partial(TextAssembler, decode, tuple(strings), tuple(prompt))
        self._text: TextAssembler | None = None
        self._generated: list[int] = []

    def __call__(self, generated: Sequence[int], emitted: Sequence[int]) -> Cut | None:
        text = self._read(generated)
        for num_kept in range(1, len(emitted) + 1):
            if text.is_ended_by(emitted[:num_kept]):
                return Cut(num_kept, FinishReason.STOP_STRING)
        return None

    def _read(self, generated: Sequence[int]) -> TextAssembler:
        """Reads what the last step emitted; another text is read from its beginning."""
        num_read = len(self._generated)
        if self._text is None or [*generated[:num_read]] != self._generated:
            self._text, num_read = self._new_text(), 0
            self._generated.clear()
        self._text.push(generated[num_read:])
        self._generated += generated[num_read:]
        return self._text


def first_cut(
    rules: Sequence[StopRule], generated: Sequence[int], emitted: Sequence[int]
) -> Cut | None:
    """Returns the earliest cut of several rules; the first rule wins a tie."""
    cuts = [cut for rule in rules if (cut := rule(generated, emitted)) is not None]
    return min(cuts, key=lambda cut: cut.num_kept, default=None)
