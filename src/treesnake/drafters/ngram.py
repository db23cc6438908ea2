"""Prompt lookup: what followed the last few tokens when they occurred before (Saxena 2023).

It costs next to nothing and guesses well where the output repeats the prompt or itself: summaries,
edits, code. Elsewhere it finds nothing, drafts nothing, and a step is one of plain decoding.

How sure a guess is, the text tells: the more tokens before the two places agree, the more often the
next ones do. What was found so far is counted, so that a search can price these guesses as it does
those of a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from treesnake.draft import Draft, Scored
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt, num_shared
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape
from treesnake.tree import TreeBuilder

MOST_AGREEING = 32
"""Tokens in a row that are compared; what is more counts as so many."""

NUM_COMPARED = 8
"""Occurrences of the text's end, the latest ones, of which those that agree longest are taken."""

PRIOR_UNLIKE = 1.5
"""Against the tokens that agree, what speaks beforehand for another one next: what fits the answers
that the default drafter learned from (docs/log.md)."""

PRIOR_WEIGHT = 4.0
"""The observations that what is believed beforehand counts for."""

DISCOUNT = 0.99
"""What an observation counts after each later one of its kind."""


class AgreementRecord:
    """How often two places of a text go on alike, by how many tokens in front of them agree.

    Beforehand n tokens that agree are taken for n times that it went well.
    """

    def __init__(self) -> None:
        self._alike = [0.0] * (MOST_AGREEING + 1)
        self._seen = [0.0] * (MOST_AGREEING + 1)

    def observe(self, num_agreeing: int, *, is_alike: bool) -> None:
        """Takes note of one token."""
        count = min(num_agreeing, MOST_AGREEING)
        self._alike[count] = DISCOUNT * self._alike[count] + is_alike
        self._seen[count] = DISCOUNT * self._seen[count] + 1

    def probability(self, num_agreeing: int) -> float:
        """Returns how often the next tokens are believed to be alike."""
        count = min(num_agreeing, MOST_AGREEING)
        prior = count / (count + PRIOR_UNLIKE)
        return (self._alike[count] + PRIOR_WEIGHT * prior) / (self._seen[count] + PRIOR_WEIGHT)


@dataclass(frozen=True)
class NgramDrafterModel:
    """Makes prompt lookup sessions; there are no weights.

    Attributes:
        longest: the longest run of tokens that is looked up.
        shortest: the shortest; shorter runs are found more often and mean less.
        record: how often it was right, of all sessions.
    """

    longest: int = 4
    shortest: int = 2
    record: AgreementRecord = field(default_factory=AgreementRecord, compare=False, repr=False)

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
    """Drafts what followed earlier occurrences of the text's end.

    A chain takes the one of the latest occurrences that agrees with the end for the most tokens; a
    tree takes as many occurrences as it is wide, joined where they agree. What followed is copied
    as in LZ77: an occurrence that reaches the end of the text goes on with the copy, so that loops
    go on.
    """

    def __init__(self, model: NgramDrafterModel) -> None:
        self._model = model
        self._forget()

    def prefill(self, prompt: Prompt) -> None:
        """Reads the prompt but for its last token."""
        wanted = prompt.token_ids[:-1]
        if num_shared(self._tokens, wanted) < len(self._tokens):
            self._forget()
        self._read(wanted[len(self._tokens) :])

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Returns a chosen tree of at most the shape's depth and size, often just the anchor."""
        grown = _Grown(anchor)
        if shape.depth > 0:
            for num_agreeing, start in self._continuations([anchor])[: shape.widest]:
                room = shape.num_drafted - (len(grown.probs) - 1)
                tokens = self._copy(start, min(shape.depth, room), anchor)
                grown.add_path(tokens, num_agreeing, self._model.record, shape)
        return Draft.chosen(grown.builder.build(), node_probs=tuple(grown.probs))

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Reads the tokens, and notes for each whether it would have been guessed."""
        for token in token_ids:
            for num_agreeing, start in self._continuations()[:1]:
                is_alike = self._tokens[start] == token
                self._model.record.observe(num_agreeing, is_alike=is_alike)
            self._read([token])

    def _continuations(self, unread: Sequence[int] = ()) -> list[tuple[int, int]]:
        """Finds continuations of the text's end, of which some tokens may be unread.

        Returns:
            How many tokens agree, and where in the text the continuation begins, best first.
        """
        recent = [*self._tokens[-MOST_AGREEING:], *unread]
        length = len(self._tokens) + len(unread)
        end = tuple(recent[-self._model.longest :])
        found: list[int] = []
        for run in range(len(end), self._model.shortest - 1, -1):
            latest = reversed(self._starts.get(end[-run:], ()))
            # One may be the end itself.
            found += [start for start in islice(latest, NUM_COMPARED + 1) if start not in found]
        found = [start for start in found if start < length][:NUM_COMPARED]
        pairs = [(self._num_agreeing(recent, start), start) for start in found]
        return sorted(pairs, key=lambda pair: -pair[0])

    def _num_agreeing(self, recent: Sequence[int], start: int) -> int:
        """Returns how many tokens before `start` are those at the text's end."""
        most = min(start, MOST_AGREEING, len(recent))
        steps = range(1, most + 1)
        return next((n - 1 for n in steps if self._tokens[start - n] != recent[-n]), most)

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


class _Grown:
    """A tree of continuations and what each node is believed to be worth."""

    def __init__(self, anchor: int) -> None:
        self.builder = TreeBuilder(anchor)
        self.probs = [1.0]
        self._left = [1.0]  # of each node's probability, what its children do not have

    def add_path(
        self, tokens: Sequence[int], num_agreeing: int, record: AgreementRecord, shape: Shape
    ) -> None:
        """Adds tokens below the anchor; those of a priced shape as far as they pay.

        Where a path leaves an earlier one, it has a part of what that one's token leaves.
        """
        parent = 0
        for depth, token in enumerate(tokens):
            node = self.builder.child(parent, token)
            if node is None:
                prob = self._left[parent] * record.probability(num_agreeing + depth)
                if not shape.pays(prob, len(self.probs) - 1):
                    return
                node = self.builder.add(parent, token)
                self.probs.append(prob)
                self._left.append(prob)
                self._left[parent] -= prob
            parent = node
