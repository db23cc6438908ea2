"""What a draft says about its nodes, and the claims that it refuses."""

import pytest
import torch
from jaxtyping import TypeCheckError

from treesnake.draft import Draft
from treesnake.errors import InvalidInputError
from treesnake.tree import TokenTree

BRANCHED = TokenTree.of([0, 1, 2, 1], [-1, 0, 0, 1])
UNIFORM = torch.full((4, 3), 1 / 3)


def test_sampled_and_chosen_drafts_say_so() -> None:
    sampled, chosen = Draft.sampled(BRANCHED, UNIFORM), Draft.chosen(BRANCHED)
    assert (sampled.is_sampled, sampled.is_chosen) == (True, False)
    assert (chosen.is_sampled, chosen.is_chosen) == (False, True)
    assert sampled.sampled_mask == (False, True, True, True)


def test_a_mixed_draft_is_neither_sampled_nor_chosen() -> None:
    mixed = Draft(BRANCHED, UNIFORM, (False, True, False, True))
    assert not mixed.is_sampled
    assert not mixed.is_chosen


def test_an_anchor_alone_is_both() -> None:
    draft = Draft.chosen(TokenTree.chain([5]))
    assert draft.is_sampled
    assert draft.is_chosen


def test_probabilities_after_leaves_may_be_missing() -> None:
    assert Draft.sampled(BRANCHED, UNIFORM[:2]).is_sampled


def test_sampled_nodes_need_the_distribution_that_they_were_drawn_from() -> None:
    with pytest.raises(InvalidInputError, match="lacks: it has 1 rows"):
        Draft.sampled(BRANCHED, UNIFORM[:1])
    with pytest.raises(InvalidInputError, match="lacks: it has 0 rows"):
        Draft(BRANCHED, None, (False, True, False, False))


def test_nobody_drew_the_anchor() -> None:
    with pytest.raises(InvalidInputError, match="anchor"):
        Draft(BRANCHED, UNIFORM, (True, True, True, True))


def test_every_node_has_an_entry_in_the_mask() -> None:
    with pytest.raises((InvalidInputError, TypeCheckError)):
        Draft(BRANCHED, UNIFORM, (False, True))
