"""How a tree grows from any model that can tell what comes after a node."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.draft import Draft
from treesnake.sampling import Rng, SamplingParams, to_probs
from treesnake.shape import BestFirst, LevelWidths, Shape
from treesnake.tree import TokenTree

Extend = Callable[[Sequence[int], Sequence[int]], Float[Tensor, "new_nodes vocab"]]
"""`TreeModel.extend`, or something like it."""


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


def grow(anchor: int, shape: Shape, params: SamplingParams, rng: Rng, extend: Extend) -> GrownDraft:
    """Drafts a tree of the given shape level by level, one call of `extend` a level.

    The deepest level is never run through the model, for nothing is drafted below it.
    """
    if shape.depth == 0:
        tree = TokenTree(torch.tensor([anchor]), torch.tensor([-1]))
        return GrownDraft(Draft.chosen(tree), (-1,))
    if isinstance(shape, BestFirst):
        return _grow_best_first(anchor, shape, params, extend)
    return _grow_levels(anchor, shape, params, rng, extend)


def _grow_levels(
    anchor: int, shape: LevelWidths, params: SamplingParams, rng: Rng, extend: Extend
) -> GrownDraft:
    sampled = shape.sampled and not params.is_greedy
    tokens, parents = [anchor], [-1]
    level = [0]
    rows = []
    num_grown = 0
    for width in shape.widths:
        logits = extend([tokens[node] for node in level], [parents[node] for node in level])
        num_grown += len(level)
        if sampled:
            probs = to_probs(logits, params)
            rows.append(probs)
            drawn = [rng.draw_distinct(row, width) for row in probs]
        else:
            drawn = [[token for token, _ in row] for row in _best_tokens(logits, width)]
        first = len(tokens)
        for node, children in zip(level, drawn, strict=True):
            tokens += children
            parents += [node] * len(children)
        level = list(range(first, len(tokens)))
    tree = TokenTree(torch.tensor(tokens), torch.tensor(parents))
    draft = Draft.sampled(tree, torch.cat(rows)) if sampled else Draft.chosen(tree)
    unseen = (-1,) * (len(tokens) - num_grown)
    return GrownDraft(draft, (*range(num_grown), *unseen))


def _grow_best_first(
    anchor: int, shape: BestFirst, params: SamplingParams, extend: Extend
) -> GrownDraft:
    tokens, parents, scores = [anchor], [-1], [0.0]
    grown: dict[int, int] = {}
    level = [0]
    for _ in range(shape.depth):
        logits = extend(
            [tokens[node] for node in level],
            [grown.get(parents[node], -1) for node in level],
        )
        grown |= {node: len(grown) + index for index, node in enumerate(level)}
        first = len(tokens)
        for node, best in zip(
            level, _best_tokens(logits.log_softmax(-1), shape.width), strict=True
        ):
            for token, log_prob in best:
                tokens.append(token)
                parents.append(node)
                scores.append(scores[node] + log_prob)
        newest = range(first, len(tokens))
        level = sorted(sorted(newest, key=lambda node: -scores[node])[: shape.width])
    drafted = sorted(range(1, len(tokens)), key=lambda node: -scores[node])
    kept = [0, *sorted(drafted[: shape.num_drafted])]
    renumbered = {node: index for index, node in enumerate(kept)}
    tree = TokenTree(
        torch.tensor([tokens[node] for node in kept]),
        torch.tensor([-1, *(renumbered[parents[node]] for node in kept[1:])]),
    )
    return GrownDraft(Draft.chosen(tree), tuple(grown.get(node, -1) for node in kept))


def _best_tokens(
    scores: Float[Tensor, "nodes vocab"], num_tokens: int
) -> list[list[tuple[int, float]]]:
    """Returns the tokens with the highest scores in each row; one that is ruled out is none."""
    best = scores.topk(min(num_tokens, scores.shape[-1]), dim=-1)
    return [
        [(token, score) for token, score in zip(tokens, row, strict=True) if score > -inf]
        for tokens, row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
