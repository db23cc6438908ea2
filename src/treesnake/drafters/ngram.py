"""Prompt lookup: what followed the last few tokens when they occurred before (Saxena 2023).

It costs next to nothing and guesses well where the output repeats the prompt or itself: summaries,
edits, code. Elsewhere it finds nothing, drafts nothing, and a step is one of plain decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from treesnake.draft import Draft
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt, missing_tokens
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import FixedTree, LevelWidths, Shape
from treesnake.tree import TreeBuilder


@dataclass(frozen=True)
class NgramDrafterModel:
    """Makes prompt lookup sessions; there are no weights.

    Attributes:
        longest: the longest run of tokens that is looked up.
        shortest: the shortest; shorter runs are found more often and mean less.
    """

    longest: int = 4
    shortest: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise InvalidInputError(
                "prompt lookup needs 1 <= shortest <= longest, got "
                f"{self.shortest} and {self.longest}"
            )

    def new_session(self) -> "NgramDrafter":
        """Returns a session that has seen no text."""
        return NgramDrafter(self)


class NgramDrafter:
    """Drafts what followed earlier occurrences of the text's end, the latest occurrence first.

    A chain takes the latest occurrence of the longest run that has one; a tree takes as many
    occurrences as it is wide, joined where they agree. What followed is copied as in LZ77: an
    occurrence that reaches the end of the text goes on with the copy, so that loops go on.
    """

    def __init__(self, model: NgramDrafterModel) -> None:
        self._model = model
        self._forget()

    def prefill(self, prompt: Prompt) -> None:
        """Reads the prompt but for its last token."""
        missing = missing_tokens(self._tokens, prompt.token_ids[:-1])
        if missing is None:
            self._forget()
            missing = list(prompt.token_ids[:-1])
        self._read(missing)

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Returns a chosen tree of at most the shape's depth and size, often just the anchor."""
        builder = TreeBuilder(anchor)
        if shape.depth > 0:
            for start in self._continuations(anchor, _width(shape)):
                room = shape.num_drafted - (len(builder.tokens) - 1)
                builder.add_path(self._copy(start, min(shape.depth, room), anchor))
        return Draft.chosen(builder.build())

    def commit(self, token_ids: Sequence[int]) -> None:
        """Reads the tokens."""
        self._read(token_ids)

    def _continuations(self, anchor: int, num_wanted: int) -> list[int]:
        """Returns where in the text the continuations of its end begin, best first."""
        recent = (*self._tokens[-self._model.longest :], anchor)
        found: list[int] = []
        for length in range(min(self._model.longest, len(recent)), self._model.shortest - 1, -1):
            for start in reversed(self._starts.get(recent[-length:], ())):
                if start not in found:
                    found.append(start)
                if len(found) == num_wanted:
                    return found
        return found

    def _copy(self, start: int, length: int, anchor: int) -> list[int]:
        """Returns the tokens from `start` on; beyond the end the copy itself is copied."""
        text = [*self._tokens[start : start + length], anchor]
        return [text[index % len(text)] for index in range(length)]

    def _read(self, token_ids: Sequence[int]) -> None:
        """Appends tokens to the text and notes what each run of them is followed by."""
        for token in token_ids:
            self._tokens.append(token)
            end = len(self._tokens)
            for length in range(self._model.shortest, min(self._model.longest, end) + 1):
                self._starts.setdefault(tuple(self._tokens[end - length :]), []).append(end)

    def _forget(self) -> None:
        self._tokens: list[int] = []
        self._starts: dict[tuple[int, ...], list[int]] = {}


def _width(shape: Shape) -> int:
    """Returns how many children the anchor may have."""
    if isinstance(shape, LevelWidths):
        return shape.widths[0]
    return len(shape.children[0]) if isinstance(shape, FixedTree) else shape.width
