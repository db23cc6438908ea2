"""Replays a search on traces: what it would have accepted, and what that would have taken."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, exp

from treesnake.drafters.draft_state import MOST_BEHIND
from treesnake.drafters.growing import grow_best
from treesnake.evaluation.simulation.trace import RecordedTree, Trace
from treesnake.outcome import Acceptance, Step, StepSeconds
from treesnake.protocols import TreeSearch
from treesnake.search.costs import CostTable, LearnedCosts
from treesnake.shape import FixedTree, Priced, Shape
from treesnake.tree import TokenTree


@dataclass(frozen=True)
class Replayed:
    """What a search made of one trace.

    Attributes:
        tokens: emitted.
        seconds: that they took on the machine.
        num_steps: how many steps.
    """

    tokens: int
    seconds: float
    num_steps: int


class Machine:
    """What steps take on a machine, by its table of costs.

    Args:
        costs: of the machine.
        noise: the deviation of the logarithm of each step's seconds.
        seed: of the noise.
        num_texts: how many texts like the one that is replayed share each pass.
    """

    def __init__(
        self, costs: CostTable, *, noise: float = 0.0, seed: int = 0, num_texts: int = 1
    ) -> None:
        self.num_texts = num_texts
        self._costs = LearnedCosts(costs).shared_by(num_texts)
        self._noise = noise
        self._random = random.Random(seed)

    def seconds(
        self, num_nodes: int, levels: Sequence[int], context_length: int, num_behind: int
    ) -> StepSeconds:
        """Returns the seconds of a step.

        Args:
            num_nodes: nodes that are scored, with the anchor.
            levels: nodes that are expanded for each level.
            context_length: tokens so far.
            num_behind: tokens that the drafter has to read first.
        """
        score_s = self._costs.score_s(num_nodes, context_length)
        draft_s = sum(self._costs.draft_s(level, context_length) for level in levels)
        if levels and num_behind:
            most = min(num_behind, MOST_BEHIND)
            runs = ceil(num_behind / MOST_BEHIND)
            draft_s += runs * self._costs.draft_s(most, context_length)
        if self._noise:
            factor = exp(self._random.gauss(0.0, self._noise))
            score_s, draft_s = score_s * factor, draft_s * factor
        return StepSeconds(draft_s, score_s, 0.0, 0.0)


def replay(trace: Trace, search: TreeSearch, machine: Machine) -> Replayed:
    """Runs the search of one text over a trace, behind a first step that is plain."""
    position, num_steps, num_behind = 1, 1, 0
    seconds = machine.seconds(1, [], trace.prompt_length, 0).total_s
    while position < len(trace):
        context_length = trace.prompt_length + position
        room = len(trace) - position
        shape = search.choose(context_length).clipped(room - 1)
        drafted = _draft(trace, position, shape)
        taken = machine.seconds(len(drafted.tree), drafted.levels, context_length, num_behind)
        num_behind = 0 if drafted.levels else num_behind + len(drafted.path)
        step = Step(
            shape,
            drafted.tree,
            Acceptance(drafted.path, 0),
            (0,) * len(drafted.path),
            taken,
            node_probs=drafted.node_probs,
            num_expanded=drafted.levels,
            num_texts=machine.num_texts,
        )
        search.observe(step)
        position += len(drafted.path)
        seconds += taken.total_s
        num_steps += 1
    return Replayed(len(trace), seconds, num_steps)


@dataclass(frozen=True, eq=False)
class _Drafted:
    """A tree as it would have been drafted; its tokens mean nothing."""

    tree: TokenTree
    path: tuple[int, ...]
    levels: tuple[int, ...]
    node_probs: tuple[float, ...] | None = None


def _draft(trace: Trace, position: int, shape: Shape) -> _Drafted:
    priced = shape.as_priced()
    if priced is not None:
        return _draft_priced(trace.trees[position], priced)
    fixed = shape.as_tree()
    assert fixed is not None, "a tree is fixed before it is drafted, or priced"
    tree = _tree_of(fixed)
    path = [0]
    for rank in trace.ranks[position : position + shape.depth]:
        children = fixed.children[path[-1]]
        if not 0 <= rank < len(children):
            break
        path.append(children[rank])
    return _Drafted(tree, tuple(path), tree.num_expanded)


def _draft_priced(recorded: RecordedTree, shape: Priced) -> _Drafted:
    """Draws the part of a recorded tree that a shape would have; tokens are nodes recorded."""
    best = recorded.best_children
    grown = grow_best(
        0, shape, lambda nodes, tokens, _: [best[tokens[node]][: shape.width] for node in nodes]
    )
    tree = TokenTree.of(grown.tokens, grown.parents)
    return _Drafted(tree, tree.follow(recorded.path), grown.num_expanded, grown.probs)


@lru_cache(maxsize=1024)
def _tree_of(shape: FixedTree) -> TokenTree:
    return TokenTree.of((0,) * (1 + len(shape.parents)), (-1, *shape.parents))
