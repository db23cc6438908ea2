"""The default rule takes the one that is exact for a draft and accepts the most."""

import pytest
import torch

from treesnake.acceptance.block import block
from treesnake.acceptance.coupled import coupled
from treesnake.acceptance.exact import exact
from treesnake.acceptance.traversal import traversal
from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.protocols import AcceptanceRule
from treesnake.sampling import Distributions, SamplingParams
from treesnake.tree import TokenTree

CHAIN = TokenTree.chain([0, 1, 2])
BRANCHED = TokenTree.of([0, 1, 2], [-1, 0, 0])
TARGET = Distributions(
    torch.tensor([[0.1, 0.2, 0.7], [0.4, 0.3, 0.3], [0.2, 0.2, 0.6]]).log(),
    SamplingParams(temperature=1.0),
)
DRAFT_PROBS = torch.tensor([[0.3, 0.5, 0.2], [0.2, 0.2, 0.6], [0.8, 0.1, 0.1]])


@pytest.mark.parametrize(
    ("draft", "rule"),
    [
        (Draft.sampled(CHAIN, DRAFT_PROBS), block),
        (Draft.chosen(CHAIN), coupled),
        (Draft.chosen(BRANCHED), coupled),
        (Draft.sampled(BRANCHED, DRAFT_PROBS), traversal),
        (Draft(CHAIN, DRAFT_PROBS, (False, True, False)), traversal),
    ],
    ids=["sampled chain", "chosen chain", "chosen tree", "sampled tree", "mixed chain"],
)
def test_each_draft_goes_to_its_rule(draft: Draft, rule: AcceptanceRule) -> None:
    for seed in range(20):
        decided = exact(draft, TARGET, TorchRng(seed))
        assert decided == rule(draft, TARGET, TorchRng(seed))
