"""Drafters by name."""

import pytest

from treesnake.drafters.load import load_drafter
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import TreesnakeError
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams, TorchRng
from treesnake.shape import chain
from treesnake.testing import check_drafter


def test_names_give_drafters() -> None:
    assert isinstance(load_drafter("prompt-lookup"), NgramDrafterModel)
    assert isinstance(load_drafter("none"), NoDrafterModel)


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(TreesnakeError, match=r"prompt-lookup (or|and) none"):
        load_drafter("oracle")


def test_no_drafter_drafts_nothing() -> None:
    check_drafter(NoDrafterModel(), vocab_size=5)
    session = NoDrafterModel().new_session()
    session.prefill(Prompt((1, 1, 1)))
    draft = session.draft(1, chain(4), SamplingParams(), TorchRng(0))
    assert draft.tree.tokens == [1]
