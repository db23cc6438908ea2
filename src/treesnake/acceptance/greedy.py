"""Greedy acceptance: follow the target's most probable tokens as far as the tree has them."""

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.acceptance.checks import check_vocabulary
from treesnake.draft import Draft
from treesnake.errors import LosslessnessError
from treesnake.outcome import Acceptance
from treesnake.sampling import Rng


def greedy(draft: Draft, target_probs: Float[Tensor, "nodes vocab"], rng: Rng) -> Acceptance:
    """Accepts the path of the target's most probable tokens; exact for any draft at temperature 0.

    Raises:
        LosslessnessError: if the target's distributions are not single tokens.
    """
    check_vocabulary(draft, target_probs)
    largest = target_probs.max(-1)
    if not torch.all(largest.values == 1):
        raise LosslessnessError(
            "the greedy rule is exact at temperature 0 only; accept with exact above it"
        )
    next_tokens = largest.indices.tolist()
    tree = draft.tree
    path = [0]
    while True:
        token = next_tokens[path[-1]]
        matches = [child for child in tree.children[path[-1]] if tree.tokens[child] == token]
        if not matches:
            return Acceptance(tuple(path), token)
        path.append(matches[0])
