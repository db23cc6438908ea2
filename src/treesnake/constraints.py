"""Constraints on the next token given the text so far, applied at every node of a tree.

They change the target's logits before probabilities are made of them, node by node with the node's
own path, so that constrained generation is as exact as free generation: what is sampled is the
constrained target. The drafter is left as it is; it may propose what is then rejected.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from treesnake.errors import InvalidInputError
from treesnake.tree import TokenTree


@runtime_checkable
class Constraint(Protocol):
    """Changes the logits of the next token; must depend on its arguments alone."""

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        """Returns new logits after the tokens `prefix`, prompt included; -inf forbids a token."""
        ...


@dataclass(frozen=True)
class RepetitionPenalty:
    """Makes tokens of the text less probable (CTRL, Keskar et al. 2019), as transformers does.

    Logits of seen tokens are divided by `penalty` if positive and multiplied by it if negative.
    """

    penalty: float

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise InvalidInputError(f"a repetition penalty must be above 0, got {self.penalty}")

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        seen = torch.tensor(sorted(set(prefix)), device=logits.device)
        scores = logits[seen]
        scores = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return logits.index_copy(0, seen, scores)


@dataclass(frozen=True)
class BannedTokens:
    """Forbids some tokens everywhere."""

    token_ids: Collection[int]

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        banned = torch.tensor(sorted(self.token_ids), dtype=torch.long, device=logits.device)
        return logits.index_fill(0, banned, float("-inf"))


@dataclass(frozen=True)
class AllowedTokens:
    """Allows only what a function of the text allows: a grammar, a schema, a list of words.

    Attributes:
        allowed_mask: takes the tokens so far, prompt included, and returns True for each token of
            the vocabulary that may come next.
    """

    allowed_mask: Callable[[Sequence[int]], Bool[Tensor, " vocab"]]

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        mask = self.allowed_mask(prefix).to(logits.device)
        if not bool(mask.any()):
            raise InvalidInputError(
                f"the constraint allows no token after {len(prefix)} tokens; allow at least an end "
                "token there"
            )
        return logits.masked_fill(~mask, float("-inf"))


def constrain(
    logits: Float[Tensor, "nodes vocab"],
    tree: TokenTree,
    context: Sequence[int],
    constraints: Sequence[Constraint],
) -> Float[Tensor, "nodes vocab"]:
    """Applies the constraints one after the other at every node.

    Args:
        logits: what the target gave.
        tree: the tree that it scored.
        context: the text so far, whose last token is the tree's anchor.
        constraints: none at all costs nothing. They never see a text that they forbid: a node that
            cannot be accepted, nor anything below it, keeps its logits.
    """
    if not constraints:
        return logits
    rows: list[Float[Tensor, " vocab"]] = []
    reachable: list[bool] = []
    for node, (parent, token) in enumerate(zip(tree.parent_list, tree.tokens, strict=True)):
        allowed = parent < 0 or (reachable[parent] and bool(rows[parent][token] > float("-inf")))
        row = logits[node]
        if allowed:
            prefix = [*context[:-1], *tree.path_tokens(node)]
            for constraint in constraints:
                row = constraint(prefix, row)
        rows.append(row)
        reachable.append(allowed)
    return torch.stack(rows)
