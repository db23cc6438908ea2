"""The toy models: what their states remember, and that sessions share weights alone."""

import pytest
import torch
from torch import Tensor

from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.prompt import Prompt, PromptInput
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import (
    AttentionModel,
    RecurrentModel,
    TableModel,
    TinyModel,
    TinyNetwork,
    check_network,
)
from treesnake.testing.tiny import TinyState

TOYS = [TableModel, RecurrentModel, AttentionModel]


def logits_after(model: TinyModel, tokens: list[int]) -> Tensor:
    state = model.initial()
    for token in tokens[:-1]:
        state, _ = model.step(state, token)
    return model.step(state, tokens[-1])[1]


@pytest.mark.parametrize("kind", TOYS)
def test_a_seed_gives_the_same_weights_again(kind: type) -> None:
    text = [1, 2, 0]
    first, again, other = (logits_after(kind(4, seed=seed), text) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_table_looks_as_far_back_as_its_order() -> None:
    model = TableModel(4, order=2)
    assert torch.equal(logits_after(model, [0, 1, 2]), logits_after(model, [3, 1, 2]))
    assert not torch.equal(logits_after(model, [0, 1, 2]), logits_after(model, [0, 3, 2]))


@pytest.mark.parametrize("kind", [RecurrentModel, AttentionModel])
def test_the_other_toys_remember_the_order_of_the_whole_text(kind: type) -> None:
    """What a state forgets no test can find to be wrong."""
    model = kind(4)
    assert not torch.allclose(
        logits_after(model, [1, 2, 0, 0, 3]), logits_after(model, [2, 1, 0, 0, 3]), atol=1e-3
    )


def test_recurrent_states_have_a_fixed_size_and_caches_grow() -> None:
    recurrent, attention = RecurrentModel(4, width=5), AttentionModel(4, width=5)
    assert recurrent.step(recurrent.initial(), 1)[0].shape == (5,)
    assert attention.step(attention.step(attention.initial(), 1)[0], 1)[0].shape == (2, 5)


@pytest.mark.parametrize("kind", TOYS)
def test_a_state_grows_a_tree_in_pieces_or_at_once(kind: type) -> None:
    model = kind(4)
    at_once, in_pieces = TinyState(model), TinyState(model)
    logits = at_once.extend([1, 2, 3, 0], [-1, 0, 0, 2])
    pieces = [in_pieces.extend([1], [-1]), in_pieces.extend([2, 3], [0, 0])]
    pieces.append(in_pieces.extend([0], [2]))
    assert torch.equal(torch.cat(pieces), logits)


@pytest.mark.parametrize("kind", TOYS)
def test_a_committed_path_is_held(kind: type) -> None:
    state = TinyState(kind(4))
    state.prefill(Prompt((3, 0)))
    state.extend([1, 2, 3], [-1, 0, 0])
    state.commit([0, 2])
    assert state.length == 3
    expected = TinyState(kind(4))
    expected.prefill(Prompt((3, 1, 3, 0)))
    assert torch.equal(state.extend([2], [-1]), expected.extend([2], [-1]))


@pytest.mark.parametrize("kind", TOYS)
def test_toys_are_networks_that_keep_every_promise(kind: type) -> None:
    check_network(TinyNetwork(kind(4)), num_trials=6, tolerance=0)


@pytest.mark.parametrize("kind", [RecurrentModel, AttentionModel])
def test_equal_ids_with_other_pictures_are_other_texts(kind: type) -> None:
    def prompt(value: float) -> Prompt:
        tensors = {"pixel_values": torch.full((1,), value)}
        return Prompt((1, 2, 2, 3, 1), (PromptInput(tensors, 1, 2),))

    def after(*prompts: Prompt) -> torch.Tensor:
        state = TinyState(kind(4, seed=2))
        for each in prompts:
            state.prefill(each)
        return state.extend([0], [-1])

    assert torch.equal(after(prompt(0.25), prompt(0.5)), after(prompt(0.5)))
    assert not torch.equal(after(prompt(0.25)), after(prompt(0.5)))


def test_targets_refuse_prompts_that_do_not_fit() -> None:
    session = NetworkTargetModel(TinyNetwork(TableModel(4), context_length=3)).new_session()
    session.prefill(Prompt((1, 2)))
    with pytest.raises(ContextLengthError):
        session.prefill(Prompt((1, 2, 3)))
    with pytest.raises(InvalidInputError):
        session.prefill(Prompt((1, 4)))
