"""What is left of a distribution after a proposal was rejected."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.acceptance.residual import residual


def random_probs(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 7, generator=generator).mul(3).softmax(-1)


@given(st.integers(0, 10**6))
def test_the_residual_completes_what_was_accepted(seed: int) -> None:
    """min(target, draft) + rejected mass * residual = target: the identity behind every rule."""
    target_probs, draft_probs = random_probs(seed)
    accepted = torch.minimum(target_probs, draft_probs)
    rest = (1 - accepted.sum()) * residual(target_probs, draft_probs)
    torch.testing.assert_close(accepted + rest, target_probs, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 10**6))
def test_a_residual_is_a_distribution_over_what_was_proposed_too_rarely(seed: int) -> None:
    target_probs, draft_probs = random_probs(seed)
    rest = residual(target_probs, draft_probs)
    assert abs(float(rest.sum()) - 1) < 1e-5
    assert torch.equal(rest > 0, target_probs > draft_probs)


def test_where_nothing_is_left_the_distribution_itself_remains() -> None:
    probs = random_probs(0)[0]
    torch.testing.assert_close(residual(probs, probs), probs)
    torch.testing.assert_close(residual(0.5 * probs, probs), probs)
