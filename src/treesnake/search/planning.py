"""The tree that is expected to emit the most tokens per second, built node by node.

On average, a step emits one token plus the sum of all nodes' probabilities of acceptance. It costs
a pass of the target over the nodes. It also costs a pass of the drafter for each level but the
deepest, over the nodes that have children. So the best next node is the one with the most
probability per second (Sequoia, Chen et al. 2024; OPT-Tree, Wang et al. 2025), here with measured
seconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from treesnake.shape import FixedTree, Priced

NODES_WITHOUT_GAIN = 12
"""After this many nodes without a better rate the tree is complete. One is too few: the first node
of a level pays only once it has siblings."""

LEAST_S = 1e-9

Seconds = Callable[[int], float]
"""Seconds by a count of nodes."""


@dataclass(frozen=True)
class Plan:
    """A tree and what is expected of it.

    Attributes:
        shape: the tree.
        tokens: emitted by a step, on average.
        seconds: taken by a step.
    """

    shape: FixedTree
    tokens: float
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def plan_tree(
    accepted: Sequence[Sequence[float]],
    score_s: Seconds,
    draft_s: Seconds,
    *,
    max_nodes: int,
    max_width: int,
) -> Plan:
    """Adds the best node again and again, and returns the tree with the highest rate on the way.

    Args:
        accepted: how often a child is accepted if its parent was, by depth and rank.
        score_s: the seconds of a step without drafting, by the number of nodes with the anchor.
        draft_s: the seconds of a level, by the number of nodes that have children.
        max_nodes: the most nodes, not counting the anchor; there is always one.
        max_width: the most nodes of a level that have children.
    """
    planned = _PlannedTree(accepted, draft_s, max_width)
    tokens, drafting = 1.0, 0.0
    best: tuple[float, int, float, float] | None = None
    before = score_s(1)
    for num_nodes in range(1, max_nodes + 1):
        after = score_s(num_nodes + 1)
        added = planned.add_best(after - before)
        if added is None:
            break
        before = after
        tokens += added[0]
        drafting += added[1]
        rate = tokens / (after + drafting)
        if best is None or rate > best[0]:
            best = rate, num_nodes, tokens, after + drafting
        elif num_nodes > best[1] + NODES_WITHOUT_GAIN and num_nodes > 2 * best[1]:
            break
    assert best is not None, "the anchor can always have a child"
    _, num_nodes, tokens, seconds = best
    return Plan(planned.shape(num_nodes), tokens, seconds)


class _PlannedTree:
    """A tree under construction."""

    def __init__(
        self, accepted: Sequence[Sequence[float]], draft_s: Seconds, max_width: int
    ) -> None:
        self._accepted = accepted
        self._draft_s = draft_s
        self._max_width = max_width
        self._parents = [-1]
        self._depths = [0]
        self._reached = [1.0]
        self._num_children = [0]
        self._num_expanded = [0] * (len(accepted) + 1)
        self._level_s = [draft_s(1)] * len(accepted) + [inf]  # to expand one more node of a level

    def add_best(self, node_s: float) -> tuple[float, float] | None:
        """Adds the child with the most probability per second.

        Returns:
            Its probability and the seconds of drafting that it adds, or None if there is no room.
        """
        best_node, best_value, best_prob, best_s = -1, 0.0, 0.0, 0.0
        for node, num_children in enumerate(self._num_children):
            depth = self._depths[node]
            drafting_s = 0.0 if num_children else self._level_s[depth]
            if drafting_s == inf or num_children == len(self._accepted[depth]):
                continue
            prob = self._reached[node] * self._accepted[depth][num_children]
            value = prob / (node_s + drafting_s + LEAST_S)
            if value > best_value:
                best_node, best_value, best_prob, best_s = node, value, prob, drafting_s
        if best_node < 0:
            return None
        self._append(best_node, best_prob)
        return best_prob, best_s

    def shape(self, num_nodes: int) -> FixedTree:
        """Returns the first nodes, level by level."""
        children: dict[int, list[int]] = {}
        for node in range(1, num_nodes + 1):
            children.setdefault(self._parents[node], []).append(node)
        parents: list[int] = []
        level, index_of = [0], {0: 0}
        while level:
            newest = []
            for node in level:
                for child in children.get(node, ()):
                    parents.append(index_of[node])
                    index_of[child] = len(parents)
                    newest.append(child)
            level = newest
        return FixedTree(tuple(parents), sampled=False)

    def _append(self, parent: int, prob: float) -> None:
        depth = self._depths[parent]
        if self._num_children[parent] == 0:
            self._num_expanded[depth] += 1
            self._level_s[depth] = self._one_more_s(self._num_expanded[depth])
        self._num_children[parent] += 1
        self._parents.append(parent)
        self._depths.append(depth + 1)
        self._reached.append(prob)
        self._num_children.append(0)

    def _one_more_s(self, num_expanded: int) -> float:
        if num_expanded >= self._max_width:
            return inf
        return self._draft_s(num_expanded + 1) - self._draft_s(num_expanded)


def plan_prices(
    continued: Sequence[float],
    confidence_for: Callable[[float], float],
    score_s: Seconds,
    level_s: float,
    rate: float,
    *,
    max_nodes: int,
    width: int,
) -> Priced:
    """Sets the prices at which a node and a level are worth the seconds that they take.

    A second is worth `rate` tokens. A node pays if it is accepted at least as often as its seconds
    are worth tokens. A level pays if its first node pays for the level too. The rate over all steps
    is highest if every step gains the most tokens, less the worth of its seconds (Dinkelbach 1967).
    So nothing is better than these prices, compared node by node with the confidence of the moment.

    Args:
        continued: how often a child is accepted if its parent was expanded and accepted, by depth.
        confidence_for: returns the drafter's confidence at which nodes are accepted that often.
        score_s: the seconds of a step without drafting, by the number of nodes with the anchor.
        level_s: the seconds of drafting a level.
        rate: the tokens per second that steps achieve.
        max_nodes: the most nodes, not counting the anchor.
        width: the most nodes of a level that are expanded.
    """
    node_prices = []
    highest = 0.0
    for num_nodes in range(1, max_nodes + 1):
        worth = rate * (score_s(num_nodes + 1) - score_s(num_nodes))
        # Where costs rise in stairs, the nodes after a stair keep its price.
        highest = max(highest, confidence_for(worth)) if worth > 0 else highest
        node_prices.append(highest)
        if highest > 1:
            break
    node_s = score_s(2) - score_s(1)
    level_prices = [
        confidence_for(min(rate * (level_s + node_s) / max(share, 1e-3), 1e3))
        for share in continued
    ]
    # A mode that is on drafts at least one node, unless another drafter has guessed already.
    level_prices[0] = min(level_prices[0], 1.0)
    node_prices[0] = 0.0
    return Priced(width, tuple(level_prices), tuple(node_prices))
