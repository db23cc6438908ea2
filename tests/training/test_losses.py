"""Divergences over a few outcomes say what those over all tokens say, as far as they are known."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.training.losses import all_outcomes, cross_entropy, divergence, stored_outcomes
from treesnake.training.training_recipe import Divergence

KINDS = get_args(Divergence)
VOCAB = 9


def logits(seed: int, positions: int = 3) -> torch.Tensor:
    return 2 * torch.randn(positions, VOCAB, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 99))
def test_a_divergence_is_zero_for_equal_distributions_and_positive_else(
    kind: Divergence, seed: int
) -> None:
    target = logits(seed).log_softmax(-1)
    same = divergence(kind, all_outcomes(target + 3.0, target))
    torch.testing.assert_close(same, torch.zeros(3), atol=1e-5, rtol=0)
    assert (divergence(kind, all_outcomes(logits(seed + 1), target)) > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 99), st.integers(1, VOCAB - 2))
def test_fewer_outcomes_never_have_a_larger_divergence(
    kind: Divergence, seed: int, num_top: int
) -> None:
    target, drafter = logits(seed).log_softmax(-1), logits(seed + 1)
    top = target.topk(num_top)
    part = divergence(kind, stored_outcomes(drafter, top.indices, top.values))
    whole = divergence(kind, all_outcomes(drafter, target))
    assert (part <= whole + 1e-5).all()
    all_but_one = target.topk(VOCAB - 1)
    nearly = divergence(kind, stored_outcomes(drafter, all_but_one.indices, all_but_one.values))
    torch.testing.assert_close(nearly, whole, atol=5e-3, rtol=5e-3)  # 1 - sum is rounded


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_over_is_one_outcome(kind: Divergence) -> None:
    target, drafter = logits(0).log_softmax(-1), logits(1).log_softmax(-1)
    top = target.topk(2)
    outcomes = stored_outcomes(drafter, top.indices, top.values)
    left_over = target.exp().sum(-1) - top.values.exp().sum(-1)
    torch.testing.assert_close(outcomes.target[:, -1].exp(), left_over)
    torch.testing.assert_close(outcomes.drafter.exp().sum(-1), torch.ones(3))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_cannot_be_said_have_no_part_in_it(kind: Divergence) -> None:
    drafter = logits(1).requires_grad_()
    columns = torch.tensor([[0, 1], [2, VOCAB], [VOCAB, VOCAB]])
    log_probs = torch.tensor([[0.5, 0.3], [0.2, 0.7], [0.6, 0.3]]).log()
    outcomes = stored_outcomes(drafter, columns, log_probs)
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
        divergence("forward_kl", stored_outcomes(drafter, top.indices, top.values)).sum().backward()
        optimizer.step()
    found = drafter.detach().softmax(-1).gather(-1, top.indices)
    torch.testing.assert_close(found, top.values.exp(), atol=1e-3, rtol=0)


def test_stored_probabilities_that_sum_to_more_than_one_do_no_harm() -> None:
    columns = torch.tensor([[0, 1]])
    outcomes = stored_outcomes(logits(0, positions=1), columns, torch.tensor([[0.7, 0.31]]).log())
    assert all(divergence(kind, outcomes).isfinite().all() for kind in KINDS)


def test_cross_entropy_passes_over_what_cannot_be_said() -> None:
    losses = cross_entropy(logits(0), torch.tensor([1, VOCAB, 2]))
    assert losses[1] == 0
    torch.testing.assert_close(losses[0], -logits(0).log_softmax(-1)[0, 1])
