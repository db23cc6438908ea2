"""What verification must find: each fault is planted in a toy pair that passes without it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.acceptance.proposal import proposal
from treesnake.acceptance.residual import residual
from treesnake.decoder import SpeculativeDecoder
from treesnake.draft import Draft
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.evaluation.verification import (
    SamplingPlan,
    Verdict,
    VerifyPlan,
    verify,
    verify_sampling,
)
from treesnake.outcome import Acceptance
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.protocols import AcceptanceRule, TargetModel
from treesnake.sampling import Distributions, Rng, SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import LevelWidths
from treesnake.targets.network import NetworkTarget, NetworkTargetModel
from treesnake.testing import RecurrentModel, TableModel, TinyNetwork
from treesnake.testing.tiny import TinyState
from treesnake.tree import TokenTree

PROMPTS = [[1, 2], [3]]
SHAPE = LevelWidths((3, 2))
ALPHA = 0.001
"""So small that a change of how samples are drawn hardly ever fails a test of what is correct."""

QUICK = VerifyPlan(
    24,
    SamplingPlan(num_samples=80, num_tokens=4, num_long_tokens=100, alpha=ALPHA, seed=0),
)

Probs = Float[Tensor, " vocab"]


def decoder(target: TargetModel, *, accept: AcceptanceRule | None = None) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        Pair(target, NetworkDrafterModel(TinyNetwork(RecurrentModel(8, seed=6)))),
        search=StaticSearch(SHAPE),
        accept=accept,
    )


def recurrent_target() -> NetworkTargetModel:
    return NetworkTargetModel(TinyNetwork(RecurrentModel(8, seed=5)))


def judge(subject: SpeculativeDecoder) -> Verdict:
    return verify(subject, PROMPTS, QUICK)


def test_a_correct_pair_passes() -> None:
    verdict = judge(decoder(recurrent_target()))
    assert verdict.is_lossless
    assert verdict.greedy is not None
    assert verdict.greedy.num_tokens == 48
    assert verdict.as_json()["is_lossless"] is True


# Faults of a rule: they show in sampling and nowhere else.

Order = Callable[[Draft, int], list[int]]
Remainder = Callable[[Probs, Probs], Probs]


def tree_rejection_with(order: Order, remainder: Remainder) -> AcceptanceRule:
    """Tree rejection, whose order of siblings and residual can be replaced."""

    def rule(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
        path, target_probs = [0], target.probs
        while True:
            remaining, accepted, siblings = target_probs[path[-1]], None, []
            for child in order(draft, path[-1]):
                token = draft.tree.tokens[child]
                proposed = proposal(draft, child, siblings, target_probs)
                if rng.coin(float(remaining[token]) / float(proposed[token])):
                    accepted = child
                    break
                remaining = remainder(remaining, proposed)
                siblings.append(token)
            if accepted is None:
                if not bool(remaining.sum() > 0):
                    remaining = target_probs[path[-1]]
                return Acceptance(tuple(path), rng.draw(remaining))
            path.append(accepted)

    return rule


def as_drawn(draft: Draft, node: int) -> list[int]:
    return draft.tree.children[node]


def sorted_by_probability(draft: Draft, node: int) -> list[int]:
    tokens, probs = draft.tree.tokens, draft.draft_probs
    if probs is None:
        return []
    return sorted(draft.tree.children[node], key=lambda child: -float(probs[node, tokens[child]]))


def not_renormalised(remaining: Probs, proposed: Probs) -> Probs:
    return (remaining - proposed).clamp(min=0)


def nothing_taken_away(remaining: Probs, proposed: Probs) -> Probs:
    return remaining


def sampled_with(rule: AcceptanceRule) -> bool:
    """Whether sampling passes on a pair whose tables are far from each other."""
    subject = SpeculativeDecoder(
        Pair(
            NetworkTargetModel(TinyNetwork(TableModel(4, seed=0))),
            NetworkDrafterModel(TinyNetwork(TableModel(4, seed=13))),
        ),
        search=StaticSearch(LevelWidths((3,))),
        accept=rule,
    )
    plan = SamplingPlan(num_samples=900, num_tokens=3, num_long_tokens=24, alpha=ALPHA, seed=0)
    return verify_sampling(subject, [Prompt.of([0])], plan).is_passed


def test_the_rule_without_a_fault_passes() -> None:
    assert sampled_with(tree_rejection_with(as_drawn, residual))


@pytest.mark.parametrize(
    ("order", "remainder"),
    [
        (sorted_by_probability, residual),
        (as_drawn, not_renormalised),
        (as_drawn, nothing_taken_away),
    ],
    ids=["sorted children", "residual not renormalised", "rejected mass not taken away"],
)
def test_a_faulty_rule_is_found_in_samples(order: Order, remainder: Remainder) -> None:
    assert not sampled_with(tree_rejection_with(order, remainder))


# Faults of a state: they show in greedy texts and in samples.


class ToyTarget(NetworkTarget):
    """A target over a toy, whose state faults may reach into."""

    def __init__(self, state: TinyState) -> None:
        super().__init__(TinyNetwork(SHARP), state)
        self.state = state


class UnrolledTarget(ToyTarget):
    """Keeps the whole tree where only a path was accepted."""

    def commit(self, path: Sequence[int]) -> None:
        tokens = list(self.state._held.tokens)
        super().commit(())
        self.state.extend(tokens, range(-1, len(tokens) - 1))
        super().commit(range(len(tokens)))


class StaleMaskTarget(ToyTarget):
    """Scores a tree with the parents of the last tree that was as large."""

    def __init__(self, state: TinyState) -> None:
        super().__init__(state)
        self._parents: dict[int, tuple[int, ...]] = {}

    def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
        parents = self._parents.get(len(tree), tree.parents)
        self._parents[len(tree)] = tree.parents
        self.state.commit(())
        return self.state.extend(tree.tokens, parents)

    def commit(self, path: Sequence[int]) -> None:
        self.state._committed = self.state._nodes[path[-1]]
        self.state._held.commit(path)
        self.state._nodes = []


class ForgetfulTarget(ToyTarget):
    """Loses the last token of a path of several."""

    def commit(self, path: Sequence[int]) -> None:
        super().commit(path[:-1] if len(path) > 1 else path)


SHARP = TableModel(8, order=2, seed=5, sharpness=3.0)


@dataclass(frozen=True)
class FaultyTargetModel:
    session: type[ToyTarget]

    def new_session(self) -> ToyTarget:
        return self.session(TinyState(SHARP))


class AlternatingSearch(StaticSearch):
    """Trees of one size and two forms, so that a mask that is kept fits and is wrong."""

    def choose(self, context_length: int) -> LevelWidths:
        return LevelWidths((2, 1)) if context_length % 2 else LevelWidths((1, 1, 1, 1))


@pytest.mark.parametrize("session", [UnrolledTarget, StaleMaskTarget, ForgetfulTarget])
def test_a_faulty_state_is_found_in_greedy_texts_and_in_samples(
    session: type[ToyTarget],
) -> None:
    subject = SpeculativeDecoder(
        Pair(FaultyTargetModel(session), NetworkDrafterModel(TinyNetwork(SHARP))),
        search=AlternatingSearch(SHAPE),
    )
    verdict = judge(subject)
    assert verdict.greedy is not None
    assert verdict.sampling is not None
    assert verdict.greedy.errors, "greedy texts differ"
    assert not verdict.sampling.is_passed
    assert not verdict.is_lossless
    first = verdict.greedy.errors[0]
    assert first.gap > 0
    assert first.rounding < 1e-4
    assert first.emitted_token != first.plain_token


def test_a_correct_state_passes_under_shapes_that_change() -> None:
    subject = SpeculativeDecoder(
        Pair(NetworkTargetModel(TinyNetwork(SHARP)), NetworkDrafterModel(TinyNetwork(SHARP))),
        search=AlternatingSearch(SHAPE),
    )
    assert judge(subject).is_lossless


def test_an_impossible_token_fails_whatever_the_frequencies_are() -> None:
    def first_token(draft: Draft, target: Distributions, rng: Rng) -> Acceptance:
        rng.coin(0.5)
        return Acceptance((0,), int(target.logits[0].argmin()))

    subject = decoder(recurrent_target(), accept=first_token)
    plan = replace(
        QUICK.sampling or SamplingPlan(),
        params=SamplingParams(temperature=1.0, top_k=3),
        num_samples=20,
    )
    evidence = verify_sampling(subject, [Prompt.of([1])], plan)
    assert evidence.impossible_tokens >= 20
    assert not evidence.is_passed


def test_the_false_alarm_rate_is_what_it_says() -> None:
    """At 10 %, 100 seeds give 10 alarms on average; 3 to 18 hold 99 of 100 such experiments."""
    subject = SpeculativeDecoder(
        Pair(
            NetworkTargetModel(TinyNetwork(TableModel(6, seed=5))),
            NetworkDrafterModel(TinyNetwork(TableModel(6, seed=6))),
        ),
        search=StaticSearch(LevelWidths((2,))),
    )
    alarms = [
        not verify_sampling(
            subject,
            [Prompt.of([1])],
            SamplingPlan(
                num_samples=15,
                num_tokens=2,
                num_long_tokens=12,
                num_long_texts=1,
                alpha=0.1,
                seed=seed,
            ),
        ).is_passed
        for seed in range(100)
    ]
    assert 3 <= np.sum(alarms) <= 18


def test_nothing_else_is_touched_by_verification() -> None:
    """The global random state, which a user may have seeded, stays as it is."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    verify(decoder(recurrent_target()), [[1]], VerifyPlan(4, None))
    assert torch.equal(before, torch.get_rng_state())
