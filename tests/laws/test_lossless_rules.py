"""Each sampling rule keeps the target's distribution, by exact enumeration of all that can happen.

Whatever a draft is offered to a rule, texts of three tokens come out as the target would have
written them. Rules and drafts with a plausible mistake in them fail the same test.
"""

from collections.abc import Callable

import pytest
import torch

from treesnake.acceptance.block import block
from treesnake.acceptance.coupled import coupled
from treesnake.acceptance.exact import exact
from treesnake.acceptance.rejection import rejection
from treesnake.acceptance.traversal import traversal
from treesnake.acceptance.tree_rejection import tree_rejection
from treesnake.draft import Draft
from treesnake.outcome import Acceptance
from treesnake.protocols import AcceptanceRule
from treesnake.sampling import Distributions, Rng, SamplingParams, to_probs
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape, chain
from treesnake.testing import TableModel, check_rule
from treesnake.testing.conformance import (
    drafting,
    emitted_distribution,
    sequence_distribution,
    total_variation,
)
from treesnake.testing.tiny import TinyState
from treesnake.tree import TokenTree, merge

VOCAB_SIZE = 3
NUM_TOKENS = 3
SAMPLING = SamplingParams(temperature=1.0)

CHAINS = [OFF, chain(1), chain(2)]
SAMPLED_TREES = [LevelWidths(widths) for widths in ((2,), (3,), (2, 1), (1, 2))]
CHOSEN_TREES = [
    chain(2, sampled=False),
    LevelWidths((2, 2), sampled=False),
    LevelWidths((3, 1), sampled=False),
    BestFirst(2, 2, 3),
]

Drafting = Callable[[Rng], Draft]


def models(trial: int) -> tuple[TableModel, TableModel]:
    return TableModel(VOCAB_SIZE, seed=2 * trial), TableModel(VOCAB_SIZE, seed=2 * trial + 1)


def distance(
    rule: AcceptanceRule,
    make_drafting: Callable[[TableModel], Drafting],
    trial: int,
    params: SamplingParams = SAMPLING,
) -> float:
    """Returns how far what a rule emits is from the target's own texts, in total variation."""
    target, drafter = models(trial)
    return total_variation(
        emitted_distribution(rule, make_drafting(drafter), target, params, NUM_TOKENS),
        sequence_distribution(target, 0, params, NUM_TOKENS),
    )


@pytest.mark.parametrize("shape", CHAINS, ids=str)
@pytest.mark.parametrize("rule", [rejection, block, tree_rejection, traversal, exact])
def test_sampled_chains_are_accepted_without_loss(rule: AcceptanceRule, shape: Shape) -> None:
    check_rule(rule, shape, num_trials=4)


@pytest.mark.parametrize("shape", SAMPLED_TREES, ids=str)
@pytest.mark.parametrize("rule", [tree_rejection, traversal, exact])
def test_sampled_trees_are_accepted_without_loss(rule: AcceptanceRule, shape: Shape) -> None:
    check_rule(rule, shape, num_trials=2)


@pytest.mark.parametrize("rule", [tree_rejection, traversal])
def test_a_tree_with_branches_on_two_levels_is_accepted_without_loss(
    rule: AcceptanceRule,
) -> None:
    check_rule(rule, LevelWidths((2, 2)), num_trials=1)


@pytest.mark.parametrize("rule", [rejection, block, traversal])
def test_long_chains_are_accepted_without_loss(rule: AcceptanceRule) -> None:
    check_rule(rule, chain(3), num_trials=1, num_tokens=4)


@pytest.mark.parametrize("shape", CHOSEN_TREES, ids=str)
@pytest.mark.parametrize("rule", [coupled, tree_rejection, traversal, exact])
def test_chosen_trees_are_accepted_without_loss(rule: AcceptanceRule, shape: Shape) -> None:
    check_rule(rule, shape)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.4),
        SamplingParams(temperature=1.7, top_k=2),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.3),
    ],
)
@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (rejection, chain(2)),
        (block, chain(2)),
        (tree_rejection, LevelWidths((2, 1))),
        (traversal, LevelWidths((2, 1))),
    ],
)
def test_filters_leave_the_rules_without_loss(
    rule: AcceptanceRule, shape: Shape, params: SamplingParams
) -> None:
    """With them target and drafter give no probability at all to different tokens."""
    for trial in range(2):
        assert distance(rule, lambda model: drafting(model, shape, params), trial, params) < 1e-5


# Drafts of which some nodes are sampled and others chosen.


def sampled_then_chosen(drafter: TableModel) -> Drafting:
    """A chosen tree of another drafter's joined to a sampled one, as composite drafters do it."""
    lookup = TableModel(VOCAB_SIZE, seed=99)

    def draft(rng: Rng) -> Draft:
        sampled = drafting(drafter, LevelWidths((1, 1)), SAMPLING)(rng)
        chosen = drafting(lookup, LevelWidths((2, 1), sampled=False), SAMPLING)(rng)
        tree, _ = merge(sampled.tree, chosen.tree)
        num_chosen = len(tree) - len(sampled.tree)
        return Draft(tree, sampled.draft_probs, sampled.sampled_mask + (False,) * num_chosen)

    return draft


def chosen_then_sampled(drafter: TableModel) -> Drafting:
    """The most probable token first, then a draw from the others, and a draw below each."""

    def draft(rng: Rng) -> Draft:
        state = TinyState(drafter)
        first_row = to_probs(state.extend([0], [-1]), SAMPLING)
        best = int(first_row[0].argmax())
        others = first_row[0].clone()
        others[best] = 0
        level = [best, rng.draw(others)]
        rows = torch.cat([first_row, to_probs(state.extend(level, [0, 0]), SAMPLING)])
        tokens = [0, *level, *(rng.draw(row) for row in rows[1:])]
        tree = TokenTree.of(tokens, [-1, 0, 0, 1, 2])
        return Draft(tree, rows, (False, False, True, True, True))

    return draft


@pytest.mark.parametrize("make_drafting", [sampled_then_chosen, chosen_then_sampled])
@pytest.mark.parametrize("rule", [tree_rejection, traversal, exact])
def test_mixed_drafts_are_accepted_without_loss(
    rule: AcceptanceRule, make_drafting: Callable[[TableModel], Drafting]
) -> None:
    assert max(distance(rule, make_drafting, trial) for trial in range(3)) < 1e-5


# Mistakes that were made elsewhere, or nearly here. Nobody can see them from a few samples.


def sorted_children(drafter: TableModel) -> Drafting:
    """Siblings sorted by their draft probability after they were drawn."""

    def draft(rng: Rng) -> Draft:
        honest = drafting(drafter, LevelWidths((2,)), SAMPLING)(rng)
        assert honest.draft_probs is not None
        row = honest.draft_probs[0]
        tokens = sorted(honest.tree.tokens[1:], key=lambda token: -row[token])
        tree = TokenTree.of([0, *tokens], honest.tree.parents)
        return Draft.sampled(tree, honest.draft_probs)

    return draft


def pruned_children(drafter: TableModel) -> Drafting:
    """Drawn tokens dropped afterwards because they turned out improbable."""

    def draft(rng: Rng) -> Draft:
        honest = drafting(drafter, LevelWidths((2,)), SAMPLING)(rng)
        assert honest.draft_probs is not None
        row = honest.draft_probs[0]
        tokens = [token for token in honest.tree.tokens[1:] if row[token] > 0.3]
        tree = TokenTree.of([0, *tokens], [-1] + [0] * len(tokens))
        return Draft.sampled(tree, honest.draft_probs)

    return draft


def unfiltered_probs(drafter: TableModel) -> Drafting:
    """Tokens drawn at one temperature and said to be drawn at another."""

    def draft(rng: Rng) -> Draft:
        honest = drafting(drafter, LevelWidths((2,)), SamplingParams(temperature=0.3))(rng)
        row = to_probs(TinyState(drafter).extend([0], [-1]), SAMPLING)
        return Draft.sampled(honest.tree, row)

    return draft


@pytest.mark.parametrize("rule", [tree_rejection, traversal])
@pytest.mark.parametrize("make_drafting", [sorted_children, pruned_children, unfiltered_probs])
def test_drafts_that_are_not_what_they_say_lose(
    make_drafting: Callable[[TableModel], Drafting], rule: AcceptanceRule
) -> None:
    assert max(distance(rule, make_drafting, trial) for trial in range(4)) > 0.02


def keeping_the_target(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
    """Draws from the target after a rejection, where the residual is due."""
    assert draft.draft_probs is not None
    target_probs = target.probs
    for node, token in enumerate(draft.tree.tokens[1:]):
        if not rng.coin(float(target_probs[node, token] / draft.draft_probs[node, token])):
            return Acceptance(tuple(range(node + 1)), rng.draw(target_probs[node]))
    return Acceptance(tuple(range(len(draft.tree))), rng.draw(target_probs[-1]))


def _offered_siblings(
    draft: Draft,
    target: Distributions,
    rng: Rng,
    *,
    normalize: bool,
    exclude_siblings: bool,
) -> Acceptance:
    """Tree rejection on one level, with two ways of going wrong."""
    assert draft.draft_probs is not None
    target_probs = target.probs
    remaining, proposed = target_probs[0].clone(), draft.draft_probs[0].clone()
    for child in draft.tree.children[0]:
        token = draft.tree.tokens[child]
        if rng.coin(float(remaining[token] / proposed[token])):
            return Acceptance((0, child), rng.draw(target_probs[child]))
        remaining = (remaining - proposed).clamp(min=0)
        if normalize:
            remaining = remaining / remaining.sum()
        if exclude_siblings:
            proposed[token] = 0
            proposed = proposed / proposed.sum()
    return Acceptance((0,), rng.draw(remaining if remaining.sum() > 0 else target_probs[0]))


def not_normalizing(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
    """Offers the second sibling to a residual that was not normalized."""
    return _offered_siblings(draft, target, rng, normalize=False, exclude_siblings=True)


def drawing_with_replacement(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
    """Takes siblings that were drawn without replacement for independent draws."""
    return _offered_siblings(draft, target, rng, normalize=True, exclude_siblings=False)


def one_level(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
    """The same without a mistake, to show that the mistakes are what is found."""
    return _offered_siblings(draft, target, rng, normalize=True, exclude_siblings=True)


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (keeping_the_target, chain(2)),
        (not_normalizing, LevelWidths((2,))),
        (drawing_with_replacement, LevelWidths((2,))),
    ],
)
def test_wrong_rules_are_found_out(rule: AcceptanceRule, shape: Shape) -> None:
    with pytest.raises(AssertionError, match="is not lossless for"):
        check_rule(rule, shape)


def test_the_rule_that_the_wrong_ones_were_made_from_is_right() -> None:
    check_rule(one_level, LevelWidths((2,)))


def test_matching_the_targets_own_draws_is_exact_for_any_tree() -> None:
    """A draft that chance had a part in, and one that was even pruned by what chance gave."""

    def sampled(drafter: TableModel) -> Drafting:
        return drafting(drafter, LevelWidths((2, 1)), SAMPLING)

    for make_drafting in (sampled, pruned_children):
        assert max(distance(coupled, make_drafting, trial) for trial in range(3)) < 1e-5
