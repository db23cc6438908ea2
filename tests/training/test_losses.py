"""Divergences over a few outcomes say what those over all tokens say, as far as they are known."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.training.losses import (
    NEVER,
    Drafted,
    all_outcomes,
    certain,
    cross_entropy,
    divergence,
    shared_draw_log_probs,
    sharpened,
    stored_outcomes,
)
from treesnake.training.training_recipe import Divergence

KINDS = get_args(Divergence)
DISTANCES = tuple(kind for kind in KINDS if kind != "rejection")
VOCAB = 9


def logits(seed: int, positions: int = 3) -> torch.Tensor:
    return 2 * torch.randn(positions, VOCAB, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", DISTANCES)
@given(st.integers(0, 99))
def test_a_divergence_is_zero_for_equal_distributions_and_positive_else(
    kind: Divergence, seed: int
) -> None:
    target = logits(seed).log_softmax(-1)
    same = divergence(kind, all_outcomes(Drafted.of(target + 3.0), target))
    torch.testing.assert_close(same, torch.zeros(3), atol=1e-5, rtol=0)
    assert (divergence(kind, all_outcomes(Drafted.of(logits(seed + 1)), target)) > 1e-4).all()


@pytest.mark.parametrize("kind", DISTANCES)
@given(st.integers(0, 99), st.integers(1, VOCAB - 2))
def test_fewer_outcomes_never_have_a_larger_divergence(
    kind: Divergence, seed: int, num_top: int
) -> None:
    target, drafter = logits(seed).log_softmax(-1), logits(seed + 1)
    top = target.topk(num_top)
    part = divergence(kind, stored_outcomes(Drafted.of(drafter), top.indices, top.values))
    whole = divergence(kind, all_outcomes(Drafted.of(drafter), target))
    assert (part <= whole + 1e-5).all()
    all_but_one = target.topk(VOCAB - 1)
    outcomes = stored_outcomes(Drafted.of(drafter), all_but_one.indices, all_but_one.values)
    nearly = divergence(kind, outcomes)
    torch.testing.assert_close(nearly, whole, atol=5e-3, rtol=5e-3)  # 1 - sum is rounded


def test_what_is_left_over_is_one_outcome() -> None:
    target, drafter = logits(0).log_softmax(-1), logits(1).log_softmax(-1)
    top = target.topk(2)
    outcomes = stored_outcomes(Drafted.of(drafter), top.indices, top.values)
    left_over = target.exp().sum(-1) - top.values.exp().sum(-1)
    torch.testing.assert_close(outcomes.target[:, -1].exp(), left_over)
    torch.testing.assert_close(outcomes.drafter.exp().sum(-1), torch.ones(3))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_cannot_be_said_have_no_part_in_it(kind: Divergence) -> None:
    drafter = logits(1).requires_grad_()
    columns = torch.tensor([[0, 1], [2, VOCAB], [VOCAB, VOCAB]])
    log_probs = torch.tensor([[0.5, 0.3], [0.2, 0.7], [0.6, 0.3]]).log()
    outcomes = stored_outcomes(Drafted.of(drafter), columns, log_probs)
    assert outcomes.target.exp()[1:, 1].tolist() == [0.0, 0.0]
    assert outcomes.drafter.exp()[1:, 1].tolist() == [0.0, 0.0]
    losses = divergence(kind, outcomes)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert drafter.grad is not None
    assert drafter.grad.isfinite().all()


def test_the_gradient_of_the_forward_divergence_leads_to_the_targets_probabilities() -> None:
    target = logits(0, positions=1).log_softmax(-1)
    top = target.topk(4)
    drafter = torch.zeros(1, VOCAB, requires_grad=True)
    optimizer = torch.optim.Adam([drafter], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        outcomes = stored_outcomes(Drafted.of(drafter), top.indices, top.values)
        divergence("forward_kl", outcomes).sum().backward()
        optimizer.step()
    found = drafter.detach().softmax(-1).gather(-1, top.indices)
    torch.testing.assert_close(found, top.values.exp(), atol=1e-3, rtol=0)


def test_stored_probabilities_that_sum_to_more_than_one_do_no_harm() -> None:
    columns, log_probs = torch.tensor([[0, 1]]), torch.tensor([[0.7, 0.31]]).log()
    outcomes = stored_outcomes(Drafted.of(logits(0, positions=1)), columns, log_probs)
    assert all(divergence(kind, outcomes).isfinite().all() for kind in KINDS)


def test_cross_entropy_passes_over_what_cannot_be_said() -> None:
    losses = cross_entropy(Drafted.of(logits(0)), torch.tensor([1, VOCAB, 2]))
    assert losses[1] == 0
    torch.testing.assert_close(losses[0], -logits(0).log_softmax(-1)[0, 1])


def test_agreement_is_how_often_both_draw_a_token_by_the_same_noise() -> None:
    target, drafter = logits(0, positions=1).log_softmax(-1), logits(1, positions=1)
    drafter[0, 5:] = NEVER  # what it cannot say
    top = target.topk(VOCAB - 1)
    waits = torch.empty(200_000, VOCAB).exponential_(generator=torch.Generator().manual_seed(0))
    drawn = (waits / target.exp()).argmin(-1)
    agreed = drawn[drawn == (waits / drafter.softmax(-1)).argmin(-1)]
    columns = top.indices.where(top.indices < 5, torch.tensor(5))
    outcomes = stored_outcomes(Drafted.of(drafter[:, :5]), columns, top.values)
    found = shared_draw_log_probs(outcomes, rest_in_common=1).exp()
    counted = torch.tensor([[float((agreed == token).sum()) for token in top.indices[0]]])
    torch.testing.assert_close(found, counted / len(waits), atol=0.005, rtol=0)


@given(st.integers(0, 99))
def test_tokens_that_are_not_known_bound_how_often_both_draw_the_known_ones(seed: int) -> None:
    target, drafter = logits(seed).log_softmax(-1), logits(seed + 1)
    whole = torch.maximum(
        *(each[:, None, :] - each[:, :, None] for each in (target, drafter.log_softmax(-1)))
    )
    top = target.topk(4)
    true = (-whole.logsumexp(-1)).gather(-1, top.indices)
    outcomes = stored_outcomes(Drafted.of(drafter), top.indices, top.values)
    low, middle, high = (shared_draw_log_probs(outcomes, part) for part in (0, 0.5, 1))
    assert (low <= true + 1e-4).all()
    assert (true <= high + 1e-4).all()
    assert (low <= middle).all()
    assert (middle <= high).all()


@given(st.integers(0, 99))
def test_rejection_is_hardly_more_than_the_distance_makes_it(seed: int) -> None:
    """Daliri, Musco and Suresh 2024, Theorem 1."""
    target, drafter = logits(seed).log_softmax(-1), logits(seed + 1)
    drafter[:, -1] = NEVER  # the last outcome stands for many tokens
    target[:, -1] = NEVER
    outcomes = all_outcomes(Drafted.of(drafter), target.log_softmax(-1))
    distance = divergence("total_variation", outcomes)
    rejection = divergence("rejection", outcomes)
    assert (rejection >= distance - 1e-5).all()
    assert (rejection <= 2 * distance / (1 + distance) + 1e-5).all()


def test_a_certain_target_agrees_as_often_as_the_drafter_says_its_token() -> None:
    drafter, columns = logits(0), torch.tensor([[2, 5], [0, VOCAB], [1, VOCAB]])
    log_probs = certain(torch.tensor([[True, False]] * 3))
    found = divergence("rejection", stored_outcomes(Drafted.of(drafter), columns, log_probs))
    expected = 1 - drafter.softmax(-1)[torch.arange(3), columns[:, 0]]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_temperature_sharpens_what_is_known() -> None:
    whole = logits(0).log_softmax(-1)
    temperatures = torch.tensor([0.5, 1.0, 1.3])
    expected = (whole / temperatures[:, None]).log_softmax(-1)
    top = whole.topk(VOCAB - 1)
    found = sharpened(top.values, temperatures)
    torch.testing.assert_close(found, expected.gather(-1, top.indices), atol=0.02, rtol=0)
    few = sharpened(whole.topk(2).values, temperatures)
    torch.testing.assert_close(few[1], whole[1].topk(2).values, atol=1e-4, rtol=0)
    assert (few[0] <= expected[0].topk(2).values + 1e-5).all(), "others have no more than that"
