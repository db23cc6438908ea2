"""What a drafted token stands for: its law given its earlier siblings."""

import pytest
import torch

from treesnake.acceptance.proposal import proposal
from treesnake.draft import Draft
from treesnake.errors import LosslessnessError
from treesnake.tree import TokenTree

TREE = TokenTree.of([0, 2, 1, 3], [-1, 0, 0, 1])
DRAFT_PROBS = torch.tensor([[0.1, 0.2, 0.5, 0.2], [0.25, 0.25, 0.25, 0.25]])
TARGET_PROBS = torch.full((4, 4), 0.25)
MIXED = Draft(TREE, DRAFT_PROBS, (False, True, True, False))


def test_the_first_sibling_was_drawn_from_its_parents_row() -> None:
    torch.testing.assert_close(proposal(MIXED, 1, [], TARGET_PROBS), DRAFT_PROBS[0])


def test_a_later_sibling_was_drawn_from_what_was_left() -> None:
    law = proposal(MIXED, 2, [2], TARGET_PROBS)
    torch.testing.assert_close(law, torch.tensor([0.2, 0.4, 0.0, 0.4]))


def test_a_chosen_token_stands_for_itself() -> None:
    assert proposal(MIXED, 3, [], TARGET_PROBS).tolist() == [0, 0, 0, 1]


def test_the_drafts_own_probabilities_stay_as_they_are() -> None:
    before = DRAFT_PROBS.clone()
    proposal(MIXED, 2, [2], TARGET_PROBS)
    assert torch.equal(DRAFT_PROBS, before)


def test_a_token_that_an_earlier_sibling_has_cannot_have_been_drawn() -> None:
    with pytest.raises(LosslessnessError, match="drawn twice"):
        proposal(MIXED, 2, [2, 1], TARGET_PROBS)
