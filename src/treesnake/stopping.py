"""Where a text ends. Length is not among these: the loop drafts no deeper than the room left."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from treesnake.errors import InvalidInputError
from treesnake.outcome import FinishReason
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


@dataclass(frozen=True)
class StopStrings:
    """Ends the text after the first token with which it contains one of some strings.

    Attributes:
        strings: none of them empty.
        decode: turns token ids into text.
    """

    strings: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def __post_init__(self) -> None:
        for string in self.strings:
            check_text(string, "a stop string")
        if not all(self.strings):
            raise InvalidInputError("a stop string cannot be empty")

    def __call__(self, generated: Sequence[int], emitted: Sequence[int]) -> Cut | None:
        # A token is at least one byte, so a string cannot reach back further than its bytes. Some
        # tokenizers drop a space before the first token that they decode: hence the margin.
        margin = 8
        reach = max((len(string.encode()) for string in self.strings), default=0) + margin
        for num_kept in range(1, len(emitted) + 1):
            tail = [*generated, *emitted[:num_kept]][-reach:]
            text = self.decode(tail)
            if any(string in text for string in self.strings):
                return Cut(num_kept, FinishReason.STOP_STRING)
        return None


def first_cut(
    rules: Sequence[StopRule], generated: Sequence[int], emitted: Sequence[int]
) -> Cut | None:
    """Returns the earliest cut of several rules; the first rule wins a tie."""
    cuts = [cut for rule in rules if (cut := rule(generated, emitted)) is not None]
    return min(cuts, key=lambda cut: cut.num_kept, default=None)
