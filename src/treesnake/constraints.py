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
from treesnake.threads import on_one_thread
from treesnake.tree import TokenTree

FORBIDDEN = float("-inf")
"""The logit of a token that may not come next."""


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
        return logits.index_fill(0, banned, FORBIDDEN)


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
        return logits.masked_fill(~mask, FORBIDDEN)


@on_one_thread
def constrain(
    logits: Float[Tensor, "nodes vocab"],
    tree: TokenTree,
    context: Sequence[int],
    constraints: Sequence[Constraint],
    find_end: Callable[[Sequence[int]], object] = lambda drafted: None,
) -> tuple[Float[Tensor, "nodes vocab"], frozenset[int]]:
    """Applies the constraints one after the other at every node; also returns the dead ends.

    They never see a text that they forbid, nor one that has ended: a node that cannot be accepted,
    or after which nothing will be emitted, keeps its logits, and so does all below it.

    A dead end is a node after which no token is left. It keeps its logits too, since the drafter
    may have gone where the target never does; what is accepted may go up to it and not beyond, see
    `num_allowed`. The next tree begins there, if it was, and is refused.

    Args:
        logits: what the target gave.
        tree: the tree that it scored.
        context: the text so far, whose last token is the tree's anchor.
        constraints: none at all costs nothing.
        find_end: takes the drafted tokens on the way to a node; true where they end the text.

    Raises:
        InvalidInputError: if no token is left after the text, the anchor being a dead end.
    """
    if not constraints:
        return logits, frozenset()
    dead_ends: set[int] = set()
    rows: list[Float[Tensor, " vocab"]] = []
    is_open: list[bool] = []
    for node, (parent, token) in enumerate(zip(tree.parents, tree.tokens, strict=True)):
        drafted = tree.path_tokens(node)[1:]
        row = logits[node]
        is_open.append(
            parent < 0
            or (is_open[parent] and bool(rows[parent][token] > FORBIDDEN) and not find_end(drafted))
        )
        if is_open[node]:
            constrained = _constrain_row(row, [*context, *drafted], constraints)
            if bool((constrained > FORBIDDEN).any()):
                row = constrained
            else:
                dead_ends.add(node)
                is_open[node] = False
        rows.append(row)
    if 0 in dead_ends:
        raise InvalidInputError(
            f"the constraints allow no token after {len(context)} tokens; allow at least an end "
            "token there"
        )
    return torch.stack(rows), frozenset(dead_ends)


def num_allowed(path: Sequence[int], dead_ends: Collection[int]) -> int:
    """Returns how many tokens of an accepted path and the target's own may be emitted.

    All of them, or those up to the first dead end: the text comes to it as plain decoding would.
    """
    return next((index for index, node in enumerate(path) if node in dead_ends), len(path))


def _constrain_row(
    logits: Float[Tensor, " vocab"], prefix: Sequence[int], constraints: Sequence[Constraint]
) -> Float[Tensor, " vocab"]:
    for constraint in constraints:
        logits = constraint(prefix, logits)
    return logits
