"""Every rule refuses the drafts for which it would not be exact, and says what to do instead."""

import pytest
import torch

from treesnake.acceptance.block import block
from treesnake.acceptance.coupled import coupled
from treesnake.acceptance.exact import exact, rule_for
from treesnake.acceptance.greedy import greedy
from treesnake.acceptance.rejection import rejection
from treesnake.acceptance.traversal import traversal
from treesnake.acceptance.tree_rejection import tree_rejection
from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.errors import LosslessnessError
from treesnake.protocols import AcceptanceRule
from treesnake.sampling import Distributions, SamplingParams
from treesnake.tree import TokenTree

CHAIN = TokenTree.chain([0, 1, 2])
BRANCHED = TokenTree.of([0, 1, 2], [-1, 0, 0])
TWICE = TokenTree.of([0, 1, 1], [-1, 0, 0])

CHAIN_RULES = [rejection, block]
TREE_RULES = [tree_rejection, traversal]
SAMPLED_RULES = [*CHAIN_RULES, *TREE_RULES, exact]
ALL_RULES = [*SAMPLED_RULES, coupled, greedy]


def uniform(num_nodes: int = 3, vocab_size: int = 4) -> torch.Tensor:
    return torch.full((num_nodes, vocab_size), 1 / vocab_size)


def scored(probs: torch.Tensor) -> Distributions:
    return Distributions(probs.log(), SamplingParams(temperature=1.0))


def mixed(tree: TokenTree) -> Draft:
    return Draft(tree, uniform(), (False, True, False))


@pytest.mark.parametrize("rule", ALL_RULES)
def test_functions_are_rules(rule: AcceptanceRule) -> None:
    assert isinstance(rule, AcceptanceRule)


@pytest.mark.parametrize("rule", CHAIN_RULES)
def test_rules_for_chains_refuse_branches(rule: AcceptanceRule) -> None:
    with pytest.raises(LosslessnessError, match="is for chains; accept trees with tree_rejection"):
        rule(Draft.sampled(BRANCHED, uniform()), scored(uniform()), TorchRng(0))


@pytest.mark.parametrize("rule", CHAIN_RULES)
@pytest.mark.parametrize("draft", [Draft.chosen(CHAIN), mixed(CHAIN)], ids=["chosen", "mixed"])
def test_rules_for_sampled_tokens_refuse_chosen_ones(rule: AcceptanceRule, draft: Draft) -> None:
    with pytest.raises(LosslessnessError, match="accept chosen tokens with coupled"):
        rule(draft, scored(uniform()), TorchRng(0))


@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_another_vocabulary_is_refused(rule: AcceptanceRule) -> None:
    draft = Draft.sampled(CHAIN, uniform(vocab_size=5))
    with pytest.raises(LosslessnessError, match="5 tokens, target 4; load the drafter"):
        rule(draft, scored(uniform()), TorchRng(0))


@pytest.mark.parametrize("rule", ALL_RULES)
def test_scores_of_another_tree_are_refused(rule: AcceptanceRule) -> None:
    with pytest.raises(LosslessnessError, match="3 nodes and the target scored 2; score the tree"):
        rule(Draft.sampled(CHAIN, uniform()), scored(uniform(num_nodes=2)), TorchRng(0))


@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_tokens_that_cannot_have_been_drawn_are_refused(rule: AcceptanceRule) -> None:
    draft_probs = torch.tensor([[0.5, 0.0, 0.5, 0.0]] * 3)
    with pytest.raises(LosslessnessError, match="token 1 is drafted as sampled"):
        rule(Draft.sampled(CHAIN, draft_probs), scored(uniform()), TorchRng(0))


@pytest.mark.parametrize("rule", [*TREE_RULES, exact])
def test_a_token_drawn_twice_among_siblings_is_refused(rule: AcceptanceRule) -> None:
    """The target has no mass on it, so that the first of the two is rejected for certain."""
    target_probs = torch.tensor([[0.5, 0.0, 0.5, 0.0]] * 3)
    with pytest.raises(LosslessnessError, match="drawn twice among siblings"):
        rule(Draft.sampled(TWICE, uniform()), scored(target_probs), TorchRng(0))


def test_the_default_rule_follows_from_the_temperature() -> None:
    assert rule_for(SamplingParams()) is greedy
    assert rule_for(SamplingParams(temperature=0.5)) is exact
