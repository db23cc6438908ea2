"""How many drafted tokens each rule accepts, exactly computed by enumeration."""

from collections.abc import Sequence

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.acceptance.block import block
from treesnake.acceptance.exact import exact
from treesnake.acceptance.rejection import rejection
from treesnake.acceptance.traversal import traversal
from treesnake.acceptance.tree_rejection import tree_rejection
from treesnake.drafters.growing import grow
from treesnake.outcome import Acceptance
from treesnake.protocols import AcceptanceRule
from treesnake.sampling import Distributions, Rng, SamplingParams
from treesnake.shape import LevelWidths, Shape, chain
from treesnake.testing import TableModel, enumerate_outcomes

SAMPLING = SamplingParams(temperature=1.0)
ROUNDING = 1e-5

Rows = Float[Tensor, "vocab vocab"]
"""The logits after each token."""

Law = dict[tuple[Acceptance, tuple[int, ...]], float]
"""The probability of each acceptance together with the tree that was drafted."""


def random_rows(seed: int, vocab_size: int = 3) -> Rows:
    model = TableModel(vocab_size, seed=seed)
    return torch.stack([model.step(model.initial(), token)[1] for token in range(vocab_size)])


def law(rule: AcceptanceRule, shape: Shape, target: Rows, drafter: Rows) -> Law:
    """Returns what a rule makes of drafts over token 0."""

    def step(rng: Rng) -> tuple[Acceptance, tuple[int, ...]]:
        def extend(tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
            return drafter[list(tokens)]

        draft = grow(0, shape, SAMPLING, rng, extend).draft
        distributions = Distributions(target[list(draft.tree.tokens)], SAMPLING)
        return rule(draft, distributions, rng), draft.tree.tokens

    return enumerate_outcomes(step)


def expected_accepted(rule: AcceptanceRule, shape: Shape, target: Rows, drafter: Rows) -> float:
    return sum(
        (len(acceptance.path) - 1) * probability
        for (acceptance, _), probability in law(rule, shape, target, drafter).items()
    )


@pytest.mark.parametrize("length", [1, 2, 3])
def test_block_accepts_at_least_as_many_tokens_as_rejection(length: int) -> None:
    gains = []
    for seed in range(12 if length < 3 else 4):
        rows = random_rows(2 * seed), random_rows(2 * seed + 1)
        by_block, by_token = (
            expected_accepted(rule, chain(length), *rows) for rule in (block, rejection)
        )
        gains.append(by_block - by_token)
    assert min(gains) > -ROUNDING
    if length == 1:
        assert max(gains) < ROUNDING, "with one token there is nothing to judge jointly"
    else:
        assert max(gains) > 0.05


@pytest.mark.parametrize("length", [1, 2, 3])
def test_traversal_of_a_chain_is_block_verification(length: int) -> None:
    for seed in range(3):
        rows = random_rows(2 * seed), random_rows(2 * seed + 1)
        first, second = (law(rule, chain(length), *rows) for rule in (traversal, block))
        assert all(
            abs(first.get(outcome, 0.0) - second.get(outcome, 0.0)) < ROUNDING
            for outcome in {*first, *second}
        )


@pytest.mark.parametrize("widths", [(2,), (3,)])
def test_on_one_level_traversal_is_tree_rejection(widths: tuple[int, ...]) -> None:
    for seed in range(6):
        rows = random_rows(2 * seed), random_rows(2 * seed + 1)
        first, second = (
            expected_accepted(rule, LevelWidths(widths), *rows)
            for rule in (traversal, tree_rejection)
        )
        assert first == pytest.approx(second, abs=ROUNDING)


@pytest.mark.parametrize("widths", [(2, 1), (1, 2)])
def test_traversal_accepts_more_than_tree_rejection_on_random_pairs(
    widths: tuple[int, ...],
) -> None:
    gains = []
    for seed in range(3):
        rows = random_rows(2 * seed), random_rows(2 * seed + 1)
        whole, by_token = (
            expected_accepted(rule, LevelWidths(widths), *rows)
            for rule in (traversal, tree_rejection)
        )
        gains.append(whole - by_token)
    assert min(gains) > -ROUNDING
    assert max(gains) > 0.01


def test_on_a_tree_made_for_it_traversal_accepts_a_little_less() -> None:
    """Siblings below a node that is likely to fail: the gain is no theorem on trees.

    The drafter always offers token 0, which the target says with probability 0.84; what matters is
    the two siblings below it.
    """
    target = torch.tensor([[0.5934, 0.1756, 0.1156, 0.1154]] * 4)
    target_after_anchor = torch.tensor([0.8421, 0.1579, 0.0, 0.0])
    drafter = torch.tensor([[0.236, 0.0003, 0.1154, 0.6483]] * 4)

    def expected(rule: AcceptanceRule) -> float:
        def step(rng: Rng) -> int:
            levels = iter([torch.tensor([[1.0, 0, 0, 0]]), drafter[:1]])

            def extend(tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
                return next(levels).log()

            draft = grow(0, LevelWidths((1, 2)), SAMPLING, rng, extend).draft
            rows = target[list(draft.tree.tokens)]
            rows[0] = target_after_anchor
            return len(rule(draft, Distributions(rows.log(), SAMPLING), rng).path) - 1

        return sum(
            accepted * probability for accepted, probability in enumerate_outcomes(step).items()
        )

    assert 0.003 < expected(tree_rejection) - expected(traversal) < 0.004


def test_a_drafter_that_is_the_target_is_always_right_if_it_samples() -> None:
    rows = random_rows(0)
    assert expected_accepted(exact, chain(2), rows, rows) == pytest.approx(2, abs=ROUNDING)
    assert expected_accepted(exact, chain(2, sampled=False), rows, rows) < 1.9
