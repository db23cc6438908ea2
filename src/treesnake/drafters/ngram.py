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
from treesnake.shape import LevelWidths, Shape
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
    occurrences as its first level is wide, joined where they agree.
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
        num_branches = shape.widths[0] if isinstance(shape, LevelWidths) and shape.widths else 1
        if shape.depth > 0:
            for start in self._continuations(anchor, num_branches):
                builder.add_path(self._tokens[start : start + shape.depth])
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
                if start not in found and start < len(self._tokens):
                    found.append(start)
                if len(found) == num_wanted:
                    return found
        return found

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
