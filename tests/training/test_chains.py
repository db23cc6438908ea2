"""Expected steps are those of all ways that guesses can come out."""

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.training.chains import chain_steps, in_rows

PROBS = st.lists(st.floats(0, 1), min_size=1, max_size=6)
RIGHT, WRONG = 1.0, 0.0


def emitted_tokens(is_right: Sequence[float], draft_length: int) -> list[int]:
    """What each step emits: right guesses and a token of the target's; the first step has none."""
    emitted, position = [1], 1
    while position < len(is_right):
        drafted = is_right[position : position + draft_length]
        accepted = drafted.index(WRONG) if WRONG in drafted else len(drafted)
        emitted.append(min(accepted + 1, len(is_right) - position))
        position += emitted[-1]
    return emitted


def num_steps(hits: Sequence[float], draft_length: int) -> float:
    steps = chain_steps(torch.tensor([hits]), torch.tensor([len(hits)]), draft_length)
    return float(steps.num_steps)


@pytest.mark.parametrize(
    ("is_right", "draft_length", "expected"),
    [
        ([RIGHT] * 2 + [WRONG, RIGHT], 4, [1, 2, 1]),
        ([RIGHT] * 8, 2, [1, 3, 3, 1]),
        ([WRONG] * 4, 4, [1, 1, 1, 1]),
    ],
)
def test_steps_are_counted_as_they_come(
    is_right: list[float], draft_length: int, expected: list[int]
) -> None:
    assert emitted_tokens(is_right, draft_length) == expected
    assert num_steps(is_right, draft_length) == len(expected)


@given(PROBS, st.integers(1, 4))
def test_the_number_of_steps_is_a_mean_over_all_ways(probs: list[float], draft_length: int) -> None:
    mean = 0.0
    for way in product((WRONG, RIGHT), repeat=len(probs)):
        chance = 1.0
        for hit, prob in zip(way, probs, strict=True):
            chance *= prob if hit else 1 - prob
        mean += chance * len(emitted_tokens(way, draft_length))
    assert num_steps(probs, draft_length) == pytest.approx(mean, abs=1e-4)


@given(PROBS, st.integers(1, 4))
def test_what_a_guess_saves_is_the_slope_of_the_steps(
    probs: list[float], draft_length: int
) -> None:
    """Behind its end a text goes on, so that its last token counts as much as the others."""
    longer = torch.tensor([[*probs, 0.3]]).requires_grad_()
    chain_steps(longer, torch.tensor([len(probs) + 1]), draft_length).num_steps.sum().backward()
    saved = chain_steps(torch.tensor([probs]), torch.tensor([len(probs)]), draft_length).saved_steps
    assert longer.grad is not None
    torch.testing.assert_close(saved, -longer.grad[:, :-1], atol=1e-4, rtol=1e-4)


def test_a_token_that_is_not_guessed_saves_nothing() -> None:
    steps = chain_steps(torch.tensor([[RIGHT] * 5]), torch.tensor([5]), 2)
    assert steps.saved_steps[0, 0] == 0, "the first step drafts nothing"
    assert steps.saved_steps[0, 3] == 0, "it comes behind a whole chain"
    assert steps.guess_chances.sum(-1)[0].tolist() == [0, 1, 1, 0, 1]


def test_texts_of_other_lengths_beside_them_change_nothing() -> None:
    values, counts = torch.tensor([0.5, 0.2, 0.9, 0.4, 0.7]), [2, 3]
    together = chain_steps(in_rows(values, counts), torch.tensor(counts), 2)
    for row, alone in enumerate(values.split(counts)):
        steps = chain_steps(alone[None], torch.tensor([len(alone)]), 2)
        assert together.num_steps[row] == pytest.approx(float(steps.num_steps))
        torch.testing.assert_close(together.saved_steps[row, : len(alone)], steps.saved_steps[0])
