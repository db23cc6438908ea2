"""A drafter of any network: what it runs, when, and by how much it is behind."""

from collections.abc import Sequence

import pytest
from jaxtyping import Float
from torch import Tensor

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafter
from treesnake.prompt import Key, Prompt
from treesnake.sampling import SamplingParams
from treesnake.shape import OFF, BestFirst, LevelWidths, chain
from treesnake.testing import RecurrentModel
from treesnake.testing.tiny import TinyState

GREEDY = SamplingParams()
PROMPT = Prompt((1, 2, 3))


class Recording(TinyState):
    """A state that notes the tokens that go through it."""

    def __init__(self) -> None:
        super().__init__(RecurrentModel(5))
        self.seen: list[int] = []

    @property
    def held(self) -> list[Key]:
        return self._held.key

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        self.seen += token_ids
        return super().extend(token_ids, parents)


def prefilled() -> tuple[Recording, NetworkDrafter]:
    model = Recording()
    drafter = NetworkDrafter(model)
    drafter.prefill(PROMPT)
    return model, drafter


def test_the_state_holds_the_prompt_but_its_last_token() -> None:
    model, drafter = prefilled()
    drafter.draft(3, chain(2), GREEDY, TorchRng(0))
    assert model.held == [1, 2]


def test_what_is_accepted_is_not_run_again() -> None:
    """Of a chain of three the model has seen the anchor and two tokens; the last is owed."""
    model, drafter = prefilled()
    tokens = drafter.draft(3, chain(3), GREEDY, TorchRng(0)).tree.tokens
    assert model.seen == [*tokens[:3]]
    drafter.commit(tokens)
    assert model.held == [1, 2, *tokens[:3]]
    drafter.draft(4, chain(1), GREEDY, TorchRng(0))
    assert model.seen == [*tokens, 4], "the unseen token goes in with the next anchor, once"


def test_a_rejected_draft_leaves_the_anchor() -> None:
    model, drafter = prefilled()
    drafter.draft(3, LevelWidths((2, 2)), GREEDY, TorchRng(0))
    drafter.commit([3])
    assert model.held == [1, 2, 3]


@pytest.mark.parametrize("num_steps", [1, 3])
def test_steps_without_a_draft_are_caught_up_later_in_one_call(num_steps: int) -> None:
    model, drafter = prefilled()
    anchors = [3, 4, 0][:num_steps]
    for anchor in anchors:
        drafter.draft(anchor, OFF, GREEDY, TorchRng(0))
        drafter.commit([anchor])
    assert model.seen == []
    drafter.draft(1, chain(1), GREEDY, TorchRng(0))
    assert model.seen == [*anchors, 1]


def test_tokens_that_another_drafter_found_are_owed_too() -> None:
    model, drafter = prefilled()
    tokens = drafter.draft(3, chain(2), GREEDY, TorchRng(0)).tree.tokens
    other = (tokens[1] + 1) % 5
    drafter.commit([3, other, 2])
    assert model.held == [1, 2, 3]
    model.seen.clear()
    drafter.draft(4, chain(1), GREEDY, TorchRng(0))
    assert model.seen == [other, 2, 4]


@pytest.mark.parametrize("shape", [chain(2), LevelWidths((2, 2)), BestFirst(2, 3, 4)], ids=str)
def test_an_abandoned_draft_leaves_no_trace(shape: LevelWidths | BestFirst) -> None:
    model, drafter = prefilled()
    tokens = drafter.draft(3, chain(1), GREEDY, TorchRng(0)).tree.tokens
    drafter.commit(tokens)
    first = drafter.draft(4, shape, GREEDY, TorchRng(0))
    again = drafter.draft(4, shape, GREEDY, TorchRng(0))
    assert first.tree.tokens == again.tree.tokens
    assert model.held == [1, 2, 3]


def test_a_prompt_that_goes_on_continues_with_what_was_owed() -> None:
    model, drafter = prefilled()
    tokens = drafter.draft(3, chain(1), GREEDY, TorchRng(0)).tree.tokens
    drafter.commit(tokens)
    drafter.prefill(Prompt((1, 2, *tokens, 4, 0)))
    assert model.held == [1, 2, *tokens, 4]


def test_a_commit_begins_with_the_anchor_of_a_draft() -> None:
    _, drafter = prefilled()
    drafter.draft(3, chain(1), GREEDY, TorchRng(0))
    with pytest.raises(AssertionError, match="anchor"):
        drafter.commit([4])


def test_nothing_is_run_while_nothing_is_drafted_and_then_part_by_part() -> None:
    model, drafter = prefilled()
    text = [3, *(node % 5 for node in range(100))]
    for token in text[:-1]:
        drafter.draft(token, OFF, GREEDY, TorchRng(0))
        drafter.commit([token])
    assert model.seen == []
    tokens = drafter.draft(text[-1], chain(2), GREEDY, TorchRng(0)).tree.tokens
    assert model.seen == [*text, tokens[1]]
    _, fresh = prefilled()
    fresh.prefill(Prompt.of([1, 2, *text]))
    assert tokens == fresh.draft(text[-1], chain(2), GREEDY, TorchRng(0)).tree.tokens


def test_a_tree_is_no_deeper_than_the_model_allows() -> None:
    drafter = NetworkDrafter(TinyState(RecurrentModel(5)), max_depth=2)
    drafter.prefill(PROMPT)
    assert len(drafter.draft(3, chain(9), GREEDY, TorchRng(0)).tree) == 3


def test_a_draft_that_was_interrupted_can_be_repeated() -> None:
    class Interrupted(Recording):
        def extend(
            self, token_ids: Sequence[int], parents: Sequence[int]
        ) -> Float[Tensor, "new_nodes vocab"]:
            if len(self.seen) == 2:
                self.seen.append(-1)
                raise KeyboardInterrupt
            return super().extend(token_ids, parents)

    model = Interrupted()
    drafter = NetworkDrafter(model)
    drafter.prefill(PROMPT)
    with pytest.raises(KeyboardInterrupt):
        drafter.draft(3, chain(3), GREEDY, TorchRng(0))
    tokens = drafter.draft(3, chain(3), GREEDY, TorchRng(0)).tree.tokens
    _, fresh = prefilled()
    assert tokens == fresh.draft(3, chain(3), GREEDY, TorchRng(0)).tree.tokens
