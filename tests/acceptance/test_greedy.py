"""The greedy rule walks down as far as the tree has the target's own tokens."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.acceptance.greedy import greedy
from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.errors import LosslessnessError
from treesnake.outcome import Acceptance
from treesnake.sampling import Distributions, SamplingParams
from treesnake.tree import TokenTree

RNG = TorchRng(0)


def one_hot(tokens: list[int], vocab_size: int = 5) -> Distributions:
    rows = torch.nn.functional.one_hot(torch.tensor(tokens), vocab_size).float()
    return Distributions(rows, SamplingParams())


BRANCHED = Draft.chosen(TokenTree.of([0, 1, 2, 3, 4, 3], [-1, 0, 0, 2, 2, 1]))


@pytest.mark.parametrize(
    ("next_tokens", "expected"),
    [
        ([2, 0, 4, 0, 1, 0], Acceptance((0, 2, 4), 1)),
        ([1, 3, 0, 0, 0, 2], Acceptance((0, 1, 5), 2)),
        ([2, 0, 1, 0, 0, 0], Acceptance((0, 2), 1)),
        ([0, 3, 4, 0, 0, 0], Acceptance((0,), 0)),
    ],
)
def test_the_accepted_path_is_the_targets_own(next_tokens: list[int], expected: Acceptance) -> None:
    assert greedy(BRANCHED, one_hot(next_tokens), RNG) == expected


@given(st.integers(0, 10**6))
def test_on_any_tree_each_accepted_token_follows_from_its_parent(seed: int) -> None:
    """Trees may be sampled, chosen or have the same child twice; the path ends where it must."""
    chance = random.Random(seed)
    num_nodes = chance.randrange(1, 20)
    parents = [-1, *(chance.randrange(node) for node in range(1, num_nodes))]
    tree = TokenTree.of([chance.randrange(3) for _ in parents], parents)
    next_tokens = [chance.randrange(3) for _ in parents]
    accepted = greedy(Draft.chosen(tree), one_hot(next_tokens), RNG)
    for parent, child in zip(accepted.path, accepted.path[1:], strict=False):
        assert tree.parents[child] == parent
        assert tree.tokens[child] == next_tokens[parent]
    last = accepted.path[-1]
    assert accepted.token == next_tokens[last]
    assert accepted.token not in [tree.tokens[child] for child in tree.children[last]]


def test_distributions_of_more_than_one_token_are_refused() -> None:
    target = Distributions(torch.zeros(6, 5), SamplingParams(temperature=1.0))
    with pytest.raises(LosslessnessError, match="temperature 0 only; accept with exact"):
        greedy(BRANCHED, target, RNG)


def test_scores_of_another_tree_are_refused() -> None:
    with pytest.raises(LosslessnessError, match="6 nodes and the target scored 2; score the tree"):
        greedy(BRANCHED, one_hot([0, 1]), RNG)
