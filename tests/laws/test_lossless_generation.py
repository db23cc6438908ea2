"""Sampled texts have the target's distribution, by the whole loop.

Exactly, where every decision of drafting and accepting can be gone through; by a chi-square test
with fixed seeds on a larger vocabulary, with filters and constraints.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from treesnake.acceptance.rejection import rejection
from treesnake.acceptance.traversal import traversal
from treesnake.acceptance.tree_rejection import tree_rejection
from treesnake.chance import TorchRng
from treesnake.constraints import (
    BannedTokens,
    Constraint,
    EarliestEnd,
    LogitBias,
    OccurrencePenalty,
    RepetitionPenalty,
)
from treesnake.drafters.mixture import MixtureDrafterModel, Stream
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.weight_rules import (
    ExpectationMaximization,
    Hedge,
    MatchingGrid,
    WeightRule,
)
from treesnake.generate import generate
from treesnake.prompt import Prompt
from treesnake.protocols import AcceptanceRule, DrafterModel
from treesnake.sampling import Rng, SamplingParams, to_probs
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, FixedTree, LevelWidths, Priced, Shape, chain
from treesnake.stopping import EndTokens, StopRule
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import (
    AttentionModel,
    RecurrentModel,
    TableModel,
    TinyModel,
    TinyNetwork,
    enumerate_outcomes,
)
from treesnake.testing.conformance import total_variation

PROMPT = Prompt((1, 0))
SAMPLING = SamplingParams(temperature=1.0)

Law = dict[tuple[int, ...], float]


def new_text(
    models: tuple[TinyModel, TinyModel],
    shape: Shape,
    rng: Rng,
    num_new: int,
    *,
    params: SamplingParams = SAMPLING,
    accept: AcceptanceRule | None = None,
    constraints: Sequence[Constraint] = (),
    stop_rules: Sequence[StopRule] = (),
    drafter: DrafterModel | None = None,
) -> tuple[int, ...]:
    drafter = drafter or NetworkDrafterModel(TinyNetwork(models[1]))
    steps = generate(
        NetworkTargetModel(TinyNetwork(models[0])).new_session(),
        drafter.new_session(),
        PROMPT,
        search=StaticSearch(shape),
        params=params,
        rng=rng,
        max_length=len(PROMPT) + num_new,
        accept=accept,
        constraints=constraints,
        stop_rules=stop_rules,
    )
    return tuple(token for step in steps for token in step.emitted)


def own_law(
    model: TinyModel,
    num_new: int,
    params: SamplingParams = SAMPLING,
    constraints: Sequence[Constraint] = (),
    end_token: int | None = None,
) -> Law:
    """The target's own distribution of texts, by the chain rule."""

    def continuations(text: tuple[int, ...]) -> Law:
        new_tokens = text[len(PROMPT) :]
        if len(new_tokens) == num_new or (new_tokens and new_tokens[-1] == end_token):
            return {new_tokens: 1.0}
        state = model.initial()
        for token in text[:-1]:
            state, _ = model.step(state, token)
        logits = model.step(state, text[-1])[1]
        for constraint in constraints:
            logits = constraint(text, logits)
        return {
            new_text: probability * share
            for token, probability in enumerate(to_probs(logits, params).tolist())
            if probability > 0
            for new_text, share in continuations((*text, token)).items()
        }

    return continuations(PROMPT.token_ids)


EXACT_CASES = [
    (OFF, None),
    (chain(1), None),
    (chain(2), None),
    (chain(2), rejection),
    (LevelWidths((2,)), tree_rejection),
    (LevelWidths((2,)), traversal),
    (LevelWidths((1, 2)), tree_rejection),
    (LevelWidths((1, 2)), traversal),
    (LevelWidths((2, 1), sampled=False), None),
    (BestFirst(2, 2, 3), None),
    (FixedTree((0, 0, 2)), None),
    (FixedTree((0, 0, 2)), traversal),
    (Priced(2, (0.0, 0.6), (0.1, 0.2, 0.3)), None),
]


@pytest.mark.parametrize(
    ("shape", "accept"),
    EXACT_CASES,
    ids=[f"{shape}-{rule.__name__ if rule else 'default'}" for shape, rule in EXACT_CASES],
)
def test_texts_of_three_tokens_have_the_targets_distribution(
    shape: Shape, accept: AcceptanceRule | None
) -> None:
    models = RecurrentModel(3, seed=1), TableModel(3, seed=2)
    law = enumerate_outcomes(lambda rng: new_text(models, shape, rng, 3, accept=accept))
    assert total_variation(law, own_law(models[0], 3)) < 1e-5


@pytest.mark.parametrize("kind", [TableModel, RecurrentModel, AttentionModel])
def test_every_kind_of_state_keeps_the_distribution(kind: type) -> None:
    """A state that went wrong on the way would change the later tokens."""
    models = kind(2, seed=3), kind(2, seed=4)
    law = enumerate_outcomes(lambda rng: new_text(models, chain(2), rng, 4))
    assert total_variation(law, own_law(models[0], 4)) < 1e-5


@pytest.mark.parametrize("rule", [Hedge(), ExpectationMaximization(), MatchingGrid()], ids=str)
@pytest.mark.parametrize(
    "shape", [chain(2), LevelWidths((2,)), LevelWidths((1, 2)), BestFirst(2, 2, 3)], ids=str
)
def test_mixtures_whose_weights_move_keep_the_distribution(rule: WeightRule, shape: Shape) -> None:
    """Two networks and two readings of a prompt; steps move the weights, and streams leave.

    The text begins with what another one ended with.
    """
    models = RecurrentModel(2, seed=3), RecurrentModel(2, seed=4)
    first, second = TinyNetwork(models[1]), TinyNetwork(TableModel(2, seed=5))
    streams = (
        Stream("whole", first),
        Stream("end", first, lambda prompt: Prompt(prompt.token_ids[-1:])),
        Stream("table", second),
    )

    def mixture() -> MixtureDrafterModel:
        model = MixtureDrafterModel(streams, rule, least_weight=0.3, clock=None)
        model.first_weights.count(np.array([0.6, 0.3, 0.1]), None)
        return model

    law = enumerate_outcomes(lambda rng: new_text(models, shape, rng, 4, drafter=mixture()))
    assert total_variation(law, own_law(models[0], 4)) < 1e-5


CONSTRAINTS: dict[str, list[Constraint]] = {
    "repetition and ban": [RepetitionPenalty(1.5), BannedTokens([3])],
    "occurrences and bias": [
        OccurrencePenalty(len(PROMPT), presence=0.7, frequency=-1.3),
        LogitBias({2: -0.5, 3: -100}),
    ],
    "length": [EarliestEnd(len(PROMPT) + 2, [2]), BannedTokens([3])],
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_texts_with_constraints_and_an_end_have_the_constrained_targets_distribution(
    name: str,
) -> None:
    models = RecurrentModel(4, seed=1), TableModel(4, seed=2)
    params = SamplingParams(temperature=0.8, top_p=0.9)
    constraints = CONSTRAINTS[name]
    law = enumerate_outcomes(
        lambda rng: new_text(
            models,
            chain(2),
            rng,
            3,
            params=params,
            constraints=constraints,
            stop_rules=[EndTokens([2])],
        )
    )
    expected = own_law(models[0], 3, params, constraints, end_token=2)
    assert total_variation(law, expected) < 1e-5


def test_a_wrong_rule_gives_texts_of_another_distribution() -> None:
    """What is enumerated can tell: accepting every second token less often shows."""
    models = RecurrentModel(3, seed=1), TableModel(3, seed=2)

    class GenerousRng:
        def __init__(self, rng: Rng) -> None:
            self._rng = rng
            self.draw, self.draw_distinct = rng.draw, rng.draw_distinct
            self.waits, self.first_come, self.advance = rng.waits, rng.first_come, rng.advance

        def coin(self, probability: float) -> bool:
            return self._rng.coin(min(1.0, 2 * probability))

    law = enumerate_outcomes(lambda rng: new_text(models, chain(2), GenerousRng(rng), 3))
    assert total_variation(law, own_law(models[0], 3)) > 0.01


def chi_square_bound(degrees: int) -> float:
    """What a chi-square statistic exceeds once in 10,000 times (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 3.719 * spread**0.5) ** 3


def assert_drawn_from(counts: Counter[tuple[int, ...]], law: Law) -> None:
    """Compares counts with a law; texts that are too rare for the approximation go together."""
    total = sum(counts.values())
    assert set(counts) <= set(law), "a text came out that the target never writes"
    cells = [(counts[text], total * probability) for text, probability in law.items()]
    frequent = [cell for cell in cells if cell[1] >= 5]
    rare = [cell for cell in cells if cell[1] < 5]
    if sum(mean for _, mean in rare) >= 5:
        frequent.append((sum(count for count, _ in rare), sum(mean for _, mean in rare)))
    assert len(frequent) >= 8, "too few cells to tell anything"
    statistic = sum((count - mean) ** 2 / mean for count, mean in frequent)
    assert statistic < chi_square_bound(len(frequent) - 1)


NUM_TEXTS = 400


@pytest.mark.parametrize(
    ("shape", "accept", "params"),
    [
        (chain(3), None, SamplingParams(temperature=0.6, top_k=5)),
        (chain(2), rejection, SamplingParams(temperature=1.0, min_p=0.1)),
        (LevelWidths((3, 2)), tree_rejection, SamplingParams(temperature=1.3, top_p=0.85)),
        (LevelWidths((3, 2)), traversal, SamplingParams(1.2, top_k=6, top_p=0.95, min_p=0.02)),
        (BestFirst(3, 2, 6), None, SamplingParams(temperature=1.0)),
    ],
)
def test_sampled_texts_pass_a_chi_square_test(
    shape: Shape, accept: AcceptanceRule | None, params: SamplingParams
) -> None:
    models = RecurrentModel(8, seed=5), RecurrentModel(8, seed=6)
    rng = TorchRng(7)
    counts = Counter(
        new_text(models, shape, rng, 2, params=params, accept=accept) for _ in range(NUM_TEXTS)
    )
    assert_drawn_from(counts, own_law(models[0], 2, params))


def test_constrained_texts_pass_a_chi_square_test() -> None:
    models = AttentionModel(8, seed=5), RecurrentModel(8, seed=6)
    constraints = [RepetitionPenalty(1.4), BannedTokens([0, 3, 7])]
    params = SamplingParams(temperature=2.0, top_p=0.95)
    rng = TorchRng(8)
    counts = Counter(
        new_text(models, LevelWidths((2, 2)), rng, 2, params=params, constraints=constraints)
        for _ in range(NUM_TEXTS)
    )
    assert_drawn_from(counts, own_law(models[0], 2, params, constraints))


def test_the_chi_square_test_finds_a_wrong_distribution() -> None:
    """The drafter's own texts, which a rule that accepts everything would give."""
    models = RecurrentModel(8, seed=5), RecurrentModel(8, seed=6)
    rng = TorchRng(7)
    counts = Counter(new_text((models[1], models[1]), OFF, rng, 2) for _ in range(NUM_TEXTS))
    with pytest.raises(AssertionError):
        assert_drawn_from(counts, own_law(models[0], 2))


def test_own_texts_are_a_distribution() -> None:
    law = own_law(RecurrentModel(3, seed=1), 3)
    assert set(law) == set(product(range(3), repeat=3))
    assert sum(law.values()) == pytest.approx(1)
