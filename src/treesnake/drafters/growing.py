"""How a tree grows from any model that can tell what comes after a node."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from math import exp, inf, log

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.drafters.vocabulary import SAME_VOCABULARY, VocabularyMap
from treesnake.kernels.cpu.best_tokens import find_best
from treesnake.sampling import Rng, SamplingParams, largest, log_softmax, to_probs
from treesnake.shape import FixedTree, Priced, Shape
from treesnake.threads import on_one_thread
from treesnake.tree import TokenTree
from treesnake.waiting_times import RARE

Extend = Callable[[Sequence[int], Sequence[int]], Float[Tensor, "new_nodes network_logits"]]
"""`TreeState.extend`, or something like it, for the target's tokens."""


@dataclass(frozen=True, eq=False)
class GrownDraft:
    """A draft and how its nodes are numbered in the model that grew it.

    Attributes:
        draft: the draft.
        grown_nodes: for each node of the draft the number that `Extend` gave it, or -1 for a leaf
            that the model never saw, since nothing was drafted below it.
    """

    draft: Draft
    grown_nodes: tuple[int, ...]

    def seen(self, token_ids: Sequence[int]) -> list[int]:
        """Returns the model's nodes for the first tokens of a text, the anchor's first.

        They end where the text leaves the tree, or before a leaf that the model never saw.
        """
        path = self.draft.tree.follow(token_ids)
        assert path, "the first token to commit is the anchor of the draft"
        return [node for node in (self.grown_nodes[step] for step in path) if node >= 0]


def grow(
    anchor: int,
    shape: Shape,
    params: SamplingParams,
    rng: Rng,
    extend: Extend,
    vocabulary: VocabularyMap | None = None,
) -> GrownDraft:
    """Drafts a tree of the given shape level by level, one call of `extend` a level.

    The deepest level is never run through the model, for nothing is drafted below it. `vocabulary`
    says of which tokens `extend` gives logits; None is all that the target has.

    Nodes are drawn from the drafter's distribution where the shape says so. Otherwise they are the
    most probable tokens, in sampled text those that come first by the noise of their place.
    """
    vocabulary = vocabulary or SAME_VOCABULARY
    if shape.depth == 0:
        tree = TokenTree.of((anchor,), (-1,))
        return GrownDraft(Draft.chosen(tree), (-1,))
    priced = shape.as_priced()
    if priced is not None:
        return _grow_priced(anchor, priced, params, rng, extend, vocabulary)
    fixed = shape.as_tree()
    assert fixed is not None, "a tree is fixed before it is drafted, or priced"
    return _grow_fixed(anchor, fixed, params, rng, extend, vocabulary)


def grown_at_once(
    anchor: int, shape: FixedTree, columns: Sequence[int], vocabulary: VocabularyMap
) -> GrownDraft:
    """Returns the draft of a tree that a network grew in one pass.

    Args:
        anchor: its first token.
        shape: of the tree.
        columns: of the drafted nodes' tokens in the network's logits, level by level.
        vocabulary: which tokens these are.
    """
    tokens = (anchor, *map(vocabulary.token_at, columns))
    tree = TokenTree.of(tokens, (-1, *shape.parents))
    numbers = count()
    grown = tuple(next(numbers) if children else -1 for children in shape.children)
    return GrownDraft(Draft.chosen(tree), grown)


def _grow_fixed(
    anchor: int,
    shape: FixedTree,
    params: SamplingParams,
    rng: Rng,
    extend: Extend,
    vocabulary: VocabularyMap,
) -> GrownDraft:
    """Grows the tree node by node as the shape has it; nodes without children are not run.

    Where a node has fewer tokens than the shape gives it children, those are missing, and all that
    would be below them.
    """
    sampled = shape.sampled and not params.is_greedy
    tokens, parents = [anchor], [-1]
    shape_nodes = [0]  # of each node, its node in the shape
    grown: dict[int, int] = {}
    rows: dict[int, Float[Tensor, " known"]] = {}
    newest = [0]
    depths = count()
    while level := [node for node in newest if shape.children[shape_nodes[node]]]:
        depth = next(depths)
        logits = extend(
            [tokens[node] for node in level],
            [grown.get(parents[node], -1) for node in level],
        )
        grown |= {node: len(grown) + index for index, node in enumerate(level)}
        widths = [len(shape.children[shape_nodes[node]]) for node in level]
        if sampled:
            # Of known tokens alone, which are fewer than the target's by far.
            probs = to_probs(vocabulary.known(logits), params)
            rows |= dict(zip(level, probs, strict=True))
            drawn = [
                [vocabulary.token_at(column) for column in rng.draw_distinct(row, width)]
                for row, width in zip(probs, widths, strict=True)
            ]
        else:
            best = _best_tokens(logits, max(widths), depth, params, rng, vocabulary)
            drawn = [
                [token for token, _ in row[:width]] for row, width in zip(best, widths, strict=True)
            ]
        first = len(tokens)
        for node, children in zip(level, drawn, strict=True):
            tokens += children
            parents += [node] * len(children)
            shape_nodes += shape.children[shape_nodes[node]][: len(children)]
        newest = list(range(first, len(tokens)))
    tree = TokenTree.of(tuple(tokens), tuple(parents))
    if sampled:
        draft = Draft.sampled(tree, vocabulary.spread(_rows_by_node(rows), 0.0))
    else:
        draft = Draft.chosen(tree)
    return GrownDraft(draft, tuple(grown.get(node, -1) for node in range(len(tokens))))


@on_one_thread
def _rows_by_node(rows: dict[int, Float[Tensor, " known"]]) -> Float[Tensor, "inner known"]:
    """Returns the rows in the order of the nodes; a leaf among them has a row of zeros."""
    nothing = torch.zeros_like(rows[0])
    return torch.stack([rows.get(node, nothing) for node in range(max(rows) + 1)])


def _grow_priced(
    anchor: int,
    shape: Priced,
    params: SamplingParams,
    rng: Rng,
    extend: Extend,
    vocabulary: VocabularyMap,
) -> GrownDraft:
    def best_children(
        nodes: Sequence[int], tokens: Sequence[int], parents: Sequence[int]
    ) -> list[list[tuple[int, float]]]:
        logits = extend(
            [tokens[node] for node in nodes], [grown.get(parents[node], -1) for node in nodes]
        )
        grown.update({node: len(grown) + index for index, node in enumerate(nodes)})
        return _best_tokens(logits, shape.width, next(depths), params, rng, vocabulary)

    depths = count()
    grown: dict[int, int] = {}
    tree = grow_best(anchor, shape, best_children)
    draft = Draft.chosen(
        TokenTree.of(tree.tokens, tree.parents),
        node_probs=tree.probs,
        num_expanded=tree.num_expanded,
    )
    return GrownDraft(draft, tuple(grown.get(node, -1) for node in tree.grown_as))


BestChildren = Callable[
    [Sequence[int], Sequence[int], Sequence[int]], Sequence[Sequence[tuple[int, float]]]
]
"""Gives the best tokens below some nodes with their log-probabilities there, best first.

It is told the nodes, and the tokens and parents of all nodes so far.
"""


@dataclass(frozen=True)
class BestTree:
    """A tree of the drafter's most probable nodes.

    Attributes:
        tokens: of each node.
        parents: of each node.
        probs: of the path to each node, by the drafter.
        grown_as: the number of each node while the tree was grown.
        num_expanded: how many nodes of each level were expanded.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    probs: tuple[float, ...]
    grown_as: tuple[int, ...]
    num_expanded: tuple[int, ...]


def grow_best(anchor: int, shape: Priced, best_children: BestChildren) -> BestTree:
    """Grows a priced tree level by level, from whatever tells a node's best children."""
    tokens, parents, probs = [anchor], [-1], [1.0]
    level, kept, num_expanded = [0], list[int](), list[int]()
    for price in shape.level_prices:
        if not level or sum(probs[node] for node in level) < price:
            break
        num_expanded.append(len(level))
        first = len(tokens)
        for node, best in zip(level, best_children(level, tokens, parents), strict=True):
            for token, log_prob in best:
                tokens.append(token)
                parents.append(node)
                probs.append(probs[node] * exp(log_prob))
        # No node below one that is left out here can be worth its price: it is less probable.
        candidates = [*kept, *range(first, len(tokens))]
        candidates.sort(key=lambda node: -probs[node])
        kept = _worth_their_price(candidates, probs, shape.node_prices)
        level = sorted([node for node in kept if node >= first][: shape.width])
    order = [0, *sorted(kept)]
    renumbered = {node: index for index, node in enumerate(order)}
    return BestTree(
        tokens=tuple(tokens[node] for node in order),
        parents=(-1, *(renumbered[parents[node]] for node in order[1:])),
        probs=tuple(probs[node] for node in order),
        grown_as=tuple(order),
        num_expanded=tuple(num_expanded),
    )


def _worth_their_price(
    candidates: Sequence[int], probs: Sequence[float], prices: Sequence[float]
) -> list[int]:
    """Returns the first candidates, up to one that is not worth its price."""
    pairs = zip(candidates, prices, strict=False)
    return [node for node, _ in takewhile(lambda pair: probs[pair[0]] >= pair[1], pairs)]


def with_noise(
    logits: Float[Tensor, "nodes columns"],
    depths: Sequence[int],
    token_ids: Int[np.ndarray, " columns"],
    temperature: float,
    rng: Rng,
) -> Float[Tensor, "nodes columns"]:
    """Adds the noise by which the target will draw the token after each node, on the host.

    If the target had the same logits, it would draw the largest. softmax of the sums tells roughly
    how probable it is that the target draws a token: the drafter's error is in its logits, so the
    noise counts as much as the temperature makes it count. Rare tokens become impossible.

    Args:
        logits: after each node.
        depths: of the token after each node.
        token_ids: the target's token for each column, -1 for none, which has no noise.
        temperature: above 0.
        rng: tells the noise.
    """
    rows = logits.float().numpy(force=True)
    noisy = np.full_like(rows, -inf)
    for row, sums, depth in zip(rows, noisy, depths, strict=True):
        likely = np.flatnonzero(row >= row.max() + temperature * log(RARE))
        ids = token_ids[likely]
        sums[likely] = row[likely] - temperature * np.log(rng.waits(depth, ids)) * (ids >= 0)
    return torch.from_numpy(noisy)


def _best_tokens(
    logits: Float[Tensor, "nodes network_logits"],
    number: int,
    depth: int,
    params: SamplingParams,
    rng: Rng,
    vocabulary: VocabularyMap,
) -> list[list[tuple[int, float]]]:
    """Returns the best tokens below each node with their log-probabilities, best first.

    In sampled text the noise by which the target will draw counts, too. Tokens that are ruled out
    are none.
    """
    known = vocabulary.known(logits)
    number = min(number, known.shape[-1])
    rows = known.numpy() if known.device.type == "cpu" and known.dtype == torch.float32 else None
    if rows is None or not (params.is_greedy or isinstance(rng, TorchRng)):
        columns, log_probs = _ranked(known, number, depth, params, rng, vocabulary)
    else:
        noise = None
        if isinstance(rng, TorchRng) and not params.is_greedy:
            noise = rng.waiting_times.noise(params.temperature, depth)
        token_ids = vocabulary.known_ids(known.shape[-1]).numpy()
        columns, log_probs = find_best(np.ascontiguousarray(rows), number, noise, token_ids)
    return [
        [
            (vocabulary.token_at(column), log_prob)
            for column, log_prob in zip(*row, strict=True)
            if log_prob > -inf
        ]
        for row in zip(columns.tolist(), log_probs.tolist(), strict=True)
    ]


def _ranked(
    known: Float[Tensor, "nodes known"],
    number: int,
    depth: int,
    params: SamplingParams,
    rng: Rng,
    vocabulary: VocabularyMap,
) -> tuple[Int[Tensor, "nodes best"], Float[Tensor, "nodes best"]]:
    """Returns the columns of the best tokens and their log-probabilities: the readable version."""
    if not params.is_greedy:
        token_ids = vocabulary.known_ids(known.shape[-1]).numpy()
        known = with_noise(known, [depth] * len(known), token_ids, params.temperature, rng)
    best = largest(log_softmax(known), number)
    return best.indices, best.values
