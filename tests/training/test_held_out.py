"""What one pass over a text says of speculative decoding is what speculative decoding does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.drafters.network import NetworkDrafterModel
from treesnake.generate import generate
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams, TorchRng
from treesnake.search.static import StaticSearch
from treesnake.shape import chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing.tiny import RecurrentModel, TableModel, TinyNetwork
from treesnake.training.held_out import calibration_error, emitted_tokens


def test_a_step_emits_the_right_guesses_and_one_token() -> None:
    right, wrong = True, False
    assert emitted_tokens([right, right, wrong, right, wrong, wrong], 4) == [3, 2, 1]
    assert emitted_tokens([right] * 7, 2) == [3, 3, 1]
    assert emitted_tokens([], 4) == []


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 6))
def test_steps_emit_the_whole_text(is_right: list[bool], draft_length: int) -> None:
    emitted = emitted_tokens(is_right, draft_length)
    assert sum(emitted) == len(is_right)
    assert all(1 <= number <= draft_length + 1 for number in emitted)


def test_every_guess_that_is_never_right_costs_a_step() -> None:
    assert emitted_tokens([False] * 5, 4) == [1] * 5


def test_confidence_that_is_borne_out_has_no_error() -> None:
    confidence = torch.tensor([0.75, 0.75, 0.75, 0.75, 0.1])
    is_right = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    assert calibration_error(confidence, is_right) == pytest.approx(0.02)
    assert calibration_error(torch.ones(4), torch.zeros(4)) == pytest.approx(1.0)


@settings(max_examples=15)
@given(st.integers(0, 20), st.integers(1, 5))
def test_one_pass_tells_what_every_step_of_decoding_emits(seed: int, draft_length: int) -> None:
    target, drafter = RecurrentModel(6, seed=seed), TableModel(6, order=2, seed=seed + 1)
    prompt = (1, 2)
    steps = generate(
        NetworkTargetModel(TinyNetwork(target)).new_session(),
        NetworkDrafterModel(TinyNetwork(drafter)).new_session(),
        Prompt(prompt),
        search=StaticSearch(chain(draft_length)),
        params=SamplingParams(),
        rng=TorchRng(0),
        max_length=30,
    )
    emitted = [step.emitted for step in steps]
    text = [*prompt, *(token for tokens in emitted for token in tokens)]
    state, guesses = drafter.initial(), []
    for token in text:
        state, logits = drafter.step(state, token)
        guesses.append(int(logits.argmax()))
    is_right = [guess == token for guess, token in zip(guesses, text[1:], strict=False)]
    assert emitted_tokens(is_right[len(prompt) - 1 :], draft_length) == list(map(len, emitted))
