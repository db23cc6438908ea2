"""Replays a search on traces: what it would have accepted, and what that would have taken."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, exp

import torch

from treesnake.drafters.growing import grow_best
from treesnake.drafters.model_drafter import LONGEST_LEAD
from treesnake.evaluation.simulation.trace import RecordedTree, Trace
from treesnake.outcome import Acceptance, Step, StepSeconds
from treesnake.protocols import TreeSearch
from treesnake.search.costs import CostTable, LearnedCosts
from treesnake.shape import BestFirst, FixedTree, LevelWidths, Priced, Shape
from treesnake.tree import TokenTree, level_parents


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
    """

    def __init__(self, costs: CostTable, *, noise: float = 0.0, seed: int = 0) -> None:
        self._costs = LearnedCosts(costs)
        self._noise = noise
        self._random = random.Random(seed)

    def seconds(
        self, num_nodes: int, levels: Sequence[int], context_length: int, num_missed: int
    ) -> StepSeconds:
        """Returns the seconds of a step.

        Args:
            num_nodes: nodes that are scored, with the anchor.
            levels: nodes that are expanded for each level.
            context_length: tokens so far.
            num_missed: tokens that were emitted while the drafter was off.
        """
        score_s = self._costs.score_s(num_nodes, context_length)
        draft_s = sum(self._costs.draft_s(level, context_length) for level in levels)
        if levels and num_missed:
            most = min(num_missed, LONGEST_LEAD)
            runs = ceil(num_missed / LONGEST_LEAD)
            draft_s += runs * self._costs.draft_s(most, context_length)
        if self._noise:
            factor = exp(self._random.gauss(0.0, self._noise))
            score_s, draft_s = score_s * factor, draft_s * factor
        return StepSeconds(draft_s, score_s, 0.0, 0.0)


def replay(trace: Trace, search: TreeSearch, machine: Machine) -> Replayed:
    """Runs a search over one trace; the search may have seen others before."""
    position, seconds, num_steps, num_missed = 0, 0.0, 0, 0
    while position < len(trace):
        context_length = trace.prompt_length + position
        room = len(trace) - position
        shape = search.choose(context_length).clipped(room - 1)
        drafted = _draft(trace, position, shape)
        taken = machine.seconds(len(drafted.tree), drafted.levels, context_length, num_missed)
        num_missed = 0 if drafted.levels else num_missed + len(drafted.path)
        step = Step(
            shape,
            drafted.tree,
            Acceptance(drafted.path, 0),
            (0,) * len(drafted.path),
            taken,
            node_probs=drafted.node_probs,
            num_expanded=drafted.levels,
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
    if isinstance(shape, BestFirst):
        free = (0.0,) * shape.depth, (0.0,) * shape.num_drafted
        return _draft_priced(trace.trees[position], Priced(shape.width, *free))
    if isinstance(shape, Priced):
        return _draft_priced(trace.trees[position], shape)
    fixed = _fixed(shape)
    path = [0]
    for rank in trace.ranks[position : position + shape.depth]:
        children = fixed.shape.children[path[-1]]
        if not 0 <= rank < len(children):
            break
        path.append(children[rank])
    return _Drafted(fixed.tree, tuple(path), fixed.tree.num_expanded)


def _draft_priced(recorded: RecordedTree, shape: Priced) -> _Drafted:
    """Draws the part of a recorded tree that a shape would have; tokens are nodes recorded."""
    best = recorded.best_children
    grown = grow_best(
        0, shape, lambda nodes, tokens, _: [best[tokens[node]][: shape.width] for node in nodes]
    )
    tree = TokenTree(torch.tensor(grown.tokens), torch.tensor(grown.parents))
    return _Drafted(tree, tree.follow(recorded.path), grown.num_expanded, grown.probs)


@dataclass(frozen=True, eq=False)
class _Fixed:
    shape: FixedTree
    tree: TokenTree


@lru_cache(maxsize=1024)
def _fixed(shape: LevelWidths | FixedTree) -> _Fixed:
    if isinstance(shape, LevelWidths):
        shape = FixedTree(tuple(level_parents(shape.widths)[1:]))
    parents = torch.tensor((-1, *shape.parents))
    return _Fixed(shape, TokenTree(torch.zeros_like(parents), parents))
