"""Lookup across texts: what came next where the end of a text occurred in earlier ones.

It stands beside prompt lookup, which looks into the text itself, and a model. Where the places that
were found go on differently, the tree has a branch for each. How probable a branch is, is told by
how many places have it and for how long they agree with the text. What came of such guesses is
counted, so that a search can price them as it does those of a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from treesnake.draft import Draft, Scored
from treesnake.memory.recall_record import RecallRecord
from treesnake.memory.text_memory import MOST_AGREEING, NOTHING, Recalled, TextMemory
from treesnake.prompt import Prompt
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape, ShapeKind
from treesnake.tree import TreeBuilder

PIECE = 64
"""A text is added in pieces of so many tokens, so that texts under way know of each other."""

NUM_CONTEXT = 16
"""Tokens before an answer, or before a piece, that are kept with it."""

MOST_WEIGHED = 16
"""A place that agrees for a token more counts twice, up to so many tokens."""

LEAST_PROB = 0.2
"""Less probable nodes are not drafted, whatever their price: that of the first node is nothing."""

LEAST_PROB_UNPRICED = 0.5
"""The same for shapes without prices: their guesses are more often right than wrong."""


PATIENCE = 8
"""After so many lookups of a text without a guess that came true, only long runs are looked up,
until one comes true."""


class MemoryDrafter:
    """Drafts from a memory, and adds to it what the target writes.

    Prompts are not added: what they say is in the text itself, where prompt lookup finds it.

    Args:
        memory: shared by any number of texts.
    """

    def __init__(self, memory: TextMemory) -> None:
        self.memory = memory
        self._tokens: list[int] = []
        self._num_added = 0
        self._end = -1
        self._guesses: _Guesses | None = None
        self._num_in_vain = 0

    def prefill(self, prompt: Prompt) -> None:
        """Adds what is left of the answer before, and begins behind the prompt."""
        self.remember()
        self._tokens = list(prompt.token_ids[:-1])
        self._num_added = len(prompt)
        self._end = -1
        self._guesses = None
        self._num_in_vain = 0

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Returns a chosen tree of at most the shape's depth and size, often just the anchor."""
        if self._guesses is not None:
            said = [*self._tokens[self._guesses.length + 1 :], anchor]
            self._num_in_vain = 0 if self._guesses.learn(said) else self._num_in_vain + 1
        recent = [*self._tokens[-MOST_AGREEING:], anchor]
        recalled = NOTHING
        if shape.depth > 0:
            is_vain = self._num_in_vain >= PATIENCE
            recalled = self.memory.recall(recent, shape.depth, long_runs=is_vain)
        guesses = _Guesses(anchor, len(self._tokens), self.memory.record, recalled, shape)
        self._guesses = guesses
        return Draft.chosen(guesses.builder.build(), node_probs=tuple(guesses.probs))

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        """Reads the tokens, and adds them to the memory once they are a piece."""
        self._tokens += token_ids
        if len(self._tokens) - self._num_added >= PIECE:
            self.remember()

    def remember(self) -> None:
        """Adds what the memory lacks of the answer, as at its end."""
        if self._num_added < len(self._tokens):
            begin = max(self._num_added - NUM_CONTEXT, 0)
            self._end = self.memory.add(
                self._tokens[begin:], num_known=self._num_added - begin, after=self._end
            )
            self._num_added = len(self._tokens)


@dataclass(frozen=True)
class _Branch:
    """A token that may come next, with its probability and the places where it came."""

    token: int
    prob: float
    places: list[int]


class _Guesses:
    """A tree of what came next at the places that were found.

    Attributes:
        builder: the tree.
        probs: of the path to each node.
        length: tokens of the text before the anchor.
    """

    def __init__(
        self, anchor: int, length: int, record: RecallRecord, recalled: Recalled, shape: Shape
    ) -> None:
        self.builder = TreeBuilder(anchor)
        self.probs = [1.0]
        self.length = length
        self._record = record
        self._best: dict[int, tuple[int, float, int]] = {}
        if recalled.agreements:
            self._grow(recalled, shape)

    def learn(self, token_ids: Sequence[int]) -> bool:
        """Counts which of the best guesses came true; tells whether a drafted token did.

        Args:
            token_ids: what the text gained behind the anchor.
        """
        came_true = self.builder.child(0, token_ids[0]) is not None
        node: int | None = 0
        for token in token_ids:
            if node is None or node not in self._best:
                break
            num_agreeing, share, guessed = self._best[node]
            self._record.observe(num_agreeing, share, is_right=token == guessed)
            node = self.builder.child(node, token)
        return came_true

    def _grow(self, recalled: Recalled, shape: Shape) -> None:
        """Adds the most probable nodes, as long as they pay."""
        least = LEAST_PROB if shape.kind is ShapeKind.PRICED else LEAST_PROB_UNPRICED
        order = count()
        heap: list[tuple[float, int, int, int, _Branch]] = []
        num_children = [0]

        def open_node(node: int, depth: int, places: Sequence[int]) -> None:
            for branch in self._branches(recalled, places, depth, node):
                prob = self.probs[node] * branch.prob
                heappush(heap, (-prob, next(order), node, depth + 1, branch))

        open_node(0, 0, range(len(recalled.agreements)))
        while heap and len(self.probs) <= shape.num_drafted:
            minus, _, parent, depth, branch = heappop(heap)
            if -minus < least or not shape.pays(-minus, len(self.probs) - 1):
                return
            if num_children[parent] < shape.widest:
                num_children[parent] += 1
                num_children.append(0)
                node = self.builder.add(parent, branch.token)
                self.probs.append(-minus)
                if depth < shape.depth:
                    open_node(node, depth, branch.places)

    def _branches(
        self, recalled: Recalled, places: Sequence[int], depth: int, node: int
    ) -> list[_Branch]:
        """Returns what came next below a node, the best guess first."""
        found: dict[int, list[int]] = {}
        for place in places:
            token = recalled.continuations[place][depth]
            if token >= 0:
                found.setdefault(token, []).append(place)
        if not found:
            return []
        votes = {
            token: sum(2.0 ** min(recalled.agreements[place], MOST_WEIGHED) for place in at)
            for token, at in found.items()
        }
        best = max(votes, key=votes.__getitem__)
        share = votes[best] / sum(votes.values())
        num_agreeing = recalled.agreements[found[best][0]] + depth
        self._best[node] = num_agreeing, share, best
        prob = self._record.probability(num_agreeing, share)
        others = sum(votes.values()) - votes[best]
        each = min(prob / votes[best], (1 - prob) / others) if others else 0.0
        return [
            _Branch(token, prob if token == best else each * votes[token], at)
            for token, at in found.items()
        ]
