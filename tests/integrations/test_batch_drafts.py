"""States of a drafter are found again in another engine's batch, and draft what they do alone."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pytest

from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.errors import BrokenModelError
from treesnake.integrations import batch_drafts
from treesnake.integrations.batch_drafts import BatchDrafts, Row
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.shape import chain
from treesnake.testing import RecurrentModel, TinyNetwork

SHAPE = chain(3)
TEXTS = ([3, 1, 4, 1, 5], [2, 7, 1, 8], [3, 1, 4, 9, 2])


class Prefills(NetworkDrafterModel):
    """Counts how many sessions there were."""

    num_sessions = 0

    def new_session(self) -> Any:
        type(self).num_sessions += 1
        return super().new_session()


@pytest.fixture
def model() -> NetworkDrafterModel:
    Prefills.num_sessions = 0
    return Prefills(TinyNetwork(RecurrentModel(16, seed=1)))


def row(tokens: Sequence[int], hint: Hashable = 0, *, is_drafted: bool = True) -> Row:
    return Row(hint, np.array(tokens, np.int32), is_drafted)


def alone(model: NetworkDrafterModel, tokens: Sequence[int]) -> tuple[int, ...]:
    session = NetworkDrafterModel(model.network).new_session()
    session.prefill(Prompt(tuple(tokens)))
    return session.draft(tokens[-1], SHAPE, SamplingParams(), TorchRng(0)).tree.tokens


def tokens_of(drafts: Sequence[Draft | None]) -> list[tuple[int, ...] | None]:
    return [draft and draft.tree.tokens for draft in drafts]


def test_rows_draft_together_what_they_draft_alone(model: NetworkDrafterModel) -> None:
    drafts = BatchDrafts(model, 8)
    texts = [list(text) for text in TEXTS]
    for new in ([6], [1, 2], [4, 4, 4, 4, 4], [0]):
        got = drafts.draft([row(text, index) for index, text in enumerate(texts)], SHAPE)
        assert tokens_of(got) == [alone(model, text) for text in texts]
        for text in texts:
            text.extend(new)
    assert Prefills.num_sessions == len(texts)


@pytest.mark.parametrize("most_together", [2, 3])
def test_rows_share_every_pass(
    model: NetworkDrafterModel, monkeypatch: pytest.MonkeyPatch, most_together: int
) -> None:
    monkeypatch.setattr(batch_drafts, "MOST_TOGETHER", most_together)
    sizes: list[int] = []
    inner = type(model.network).extend_all

    def extend_all(network: Any, parts: Sequence[Any]) -> Any:
        sizes.append(len(parts))
        return inner(network, parts)

    monkeypatch.setattr(type(model.network), "extend_all", extend_all)
    drafts = BatchDrafts(model, 8)
    drafts.draft([row(text, index) for index, text in enumerate(TEXTS)], SHAPE)
    sizes.clear()  # prompts are read beside the others, so passes just behind them are smaller
    longer = [[*text, 7] for text in TEXTS]
    drafts.draft([row(text, index) for index, text in enumerate(longer)], SHAPE)
    expected = {2: [2, 2, 2, 1, 1, 1], 3: [3, 3, 3]}
    assert sizes == expected[most_together]


def test_texts_that_change_their_rows_are_recognized(model: NetworkDrafterModel) -> None:
    drafts = BatchDrafts(model, 8)
    texts = [list(text) for text in TEXTS]
    drafts.draft([row(text, index) for index, text in enumerate(texts)], SHAPE)
    for text in texts:
        text.append(11)
    got = drafts.draft([row(text, index) for index, text in enumerate(texts[::-1])], SHAPE)
    assert tokens_of(got) == [alone(model, text) for text in texts[::-1]]
    assert Prefills.num_sessions == len(texts)


def test_a_text_that_was_away_goes_on(model: NetworkDrafterModel) -> None:
    drafts = BatchDrafts(model, 8)
    drafts.draft([row(TEXTS[0])], SHAPE)
    drafts.draft([row(TEXTS[1])], SHAPE)
    longer = [*TEXTS[0], 6, 6, 6]
    assert tokens_of(drafts.draft([row(longer)], SHAPE)) == [alone(model, longer)]
    assert Prefills.num_sessions == 2


def test_two_rows_of_one_text_have_states_of_their_own(model: NetworkDrafterModel) -> None:
    drafts = BatchDrafts(model, 8)
    drafts.draft([row(TEXTS[0])], SHAPE)
    twins = [[*TEXTS[0], 5], [*TEXTS[0], 6]]
    got = drafts.draft([row(text, index) for index, text in enumerate(twins)], SHAPE)
    assert tokens_of(got) == [alone(model, text) for text in twins]
    assert len(drafts) == 2


def test_a_prompt_under_way_is_read_and_not_drafted_for(model: NetworkDrafterModel) -> None:
    drafts = BatchDrafts(model, 8)
    assert drafts.draft([row(TEXTS[0], is_drafted=False)], SHAPE) == [None]
    assert drafts.draft([row(TEXTS[0], is_drafted=False)], SHAPE) == [None]
    longer = [*TEXTS[0], 6]
    assert tokens_of(drafts.draft([row(longer)], SHAPE)) == [alone(model, longer)]
    assert drafts.draft([row([*longer, 2], is_drafted=False)], SHAPE) == [None]
    assert tokens_of(drafts.draft([row([*longer, 2])], SHAPE)) == [alone(model, [*longer, 2])]
    assert Prefills.num_sessions == 1


def test_the_text_unused_for_longest_is_dropped(model: NetworkDrafterModel) -> None:
    drafts = BatchDrafts(model, 2)
    for hint, text in enumerate((*TEXTS[:2], [9, 9])):
        drafts.draft([row(text, hint)], SHAPE)
    assert len(drafts) == 2
    assert tokens_of(drafts.draft([row(TEXTS[0], 0)], SHAPE)) == [alone(model, TEXTS[0])]
    assert Prefills.num_sessions == 4
    drafts.forget([0, "never there"])
    assert len(drafts) == 1


def test_a_drafter_that_fails_has_no_draft_and_begins_anew(
    model: NetworkDrafterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = BatchDrafts(model, 2)
    network: Any = model.network

    def fail(*parts: Any) -> Any:
        raise BrokenModelError("no numbers")

    with monkeypatch.context() as patched:
        patched.setattr(type(network), "extend_all", fail)
        assert drafts.draft([row(TEXTS[0])], SHAPE) == [None]
    assert tokens_of(drafts.draft([row(TEXTS[0])], SHAPE)) == [alone(model, TEXTS[0])]
