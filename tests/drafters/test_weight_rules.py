"""How the weights of streams move."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treesnake.drafters.weight_rules import (
    GROWTH,
    KEPT_SHARE,
    MOST_LIKELY,
    WEIGHT_RULES,
    Evidence,
    ExpectationMaximization,
    FixedWeights,
    Hedge,
    InverseDivergence,
    MatchingGrid,
    OverlapGrid,
    Weighing,
    WeightRule,
    parse_weight_rule,
    uniform,
)
from treesnake.errors import InvalidInputError

LEARNING: list[WeightRule] = [
    rule(decay)
    for rule in (InverseDivergence, MatchingGrid, OverlapGrid, ExpectationMaximization, Hedge)
    for decay in (1.0, 0.9)
]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float32)


def evidence(noise: list[float], seed: int, *, is_greedy: bool = False) -> Evidence:
    """Streams that guess a target, the worse the more noise each has."""
    chance = np.random.default_rng(seed)
    logits = chance.normal(size=(3, 20)) * 2
    streams = [logits + chance.normal(size=logits.shape) * each for each in noise]
    target = softmax(logits)
    if is_greedy:
        target = np.eye(20, dtype=np.float32)[target.argmax(-1)]
    return Evidence([*softmax(np.stack(streams, 1))], [*target])


def after(rule: WeightRule, steps: list[Evidence]) -> Weighing:
    weighing = rule.start(uniform(len(steps[0].draft_rows[0])))
    for step in steps:
        weighing = rule.update(weighing, step)
    return weighing


@pytest.mark.parametrize("rule", LEARNING, ids=str)
def test_a_rule_begins_with_the_weights_that_it_is_given(rule: WeightRule) -> None:
    assert rule.start(np.array([0.1, 0.9])).weights.tolist() == [0.1, 0.9]


def test_fixed_weights_are_equal_where_nothing_is_said() -> None:
    assert FixedWeights().start(np.array([0.1, 0.9])).weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("rule", LEARNING, ids=str)
@pytest.mark.parametrize("is_greedy", [False, True], ids=["sampled", "greedy"])
def test_the_stream_that_guesses_better_counts_for_more(rule: WeightRule, is_greedy: bool) -> None:
    steps = [evidence([3.0, 0.3, 3.0], seed, is_greedy=is_greedy) for seed in range(40)]
    weights = after(rule, steps).weights
    assert weights[1] == max(weights)
    assert weights[1] > 0.5


@given(st.sampled_from(LEARNING), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_weights_are_a_distribution_and_totals_keep_their_size(
    rule: WeightRule, num_streams: int, is_greedy: bool, seed: int
) -> None:
    noise = [0.0, 1.0, 2.0, 3.0][:num_streams]
    weighing = rule.start(uniform(num_streams))
    for number in range(4):
        size = weighing.totals.shape
        weighing = rule.update(weighing, evidence(noise, seed + number, is_greedy=is_greedy))
        assert weighing.weights.min() >= 0
        assert weighing.weights.sum() == pytest.approx(1)
        assert weighing.totals.shape == size


@pytest.mark.parametrize(
    "rule", [each(0.8) for each in WEIGHT_RULES.values() if each is not FixedWeights]
)
def test_a_rule_that_forgets_follows_a_change(rule: WeightRule) -> None:
    steps = [evidence([0.2, 3.0], seed) for seed in range(40)]
    steps += [evidence([3.0, 0.2], 40 + seed) for seed in range(20)]
    weights = after(rule, steps).weights
    assert weights[1] > weights[0]


def test_inverse_divergence_is_what_its_name_says() -> None:
    target = np.array([[0.5, 0.5]], np.float32)
    streams = np.array([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]], np.float32)
    weights = after(InverseDivergence(), [Evidence([streams[1:]], [*target])]).weights
    divergences = [(target * np.log(target / each)).sum() for each in streams[1:]]
    assert weights[0] / weights[1] == pytest.approx(divergences[1] / divergences[0], rel=1e-3)
    assert after(InverseDivergence(), [Evidence([streams], [*target])]).weights[0] > 0.99


def test_the_grid_prefers_matches_and_then_a_small_divergence() -> None:
    """The second stream is closer to the target, but its best token is another one."""
    target = np.array([[0.4, 0.35, 0.25]], np.float32)
    streams = np.array([[0.9, 0.05, 0.05], [0.36, 0.38, 0.26]], np.float32)
    weights = after(MatchingGrid(), [Evidence([streams], [*target])]).weights
    grid = [np.array([part / 10, 1 - part / 10]) for part in range(11)]
    mixtures = [weights_there @ streams for weights_there in grid]
    matching = [index for index, mixture in enumerate(mixtures) if mixture.argmax() == 0]
    divergences = {
        index: (target[0] * np.log(target[0] / mixtures[index])).sum() for index in matching
    }
    assert weights == pytest.approx(grid[min(divergences, key=lambda index: divergences[index])])


def test_the_overlap_grid_takes_the_mixture_that_is_accepted_most() -> None:
    target = np.array([[0.5, 0.2, 0.3]], np.float32)
    streams = np.array([[0.9, 0.05, 0.05], [0.1, 0.35, 0.55]], np.float32)
    weights = after(OverlapGrid(), [Evidence([streams], [*target])]).weights
    assert weights == pytest.approx([0.5, 0.5])


def test_hedge_counts_the_tokens_that_would_have_been_accepted() -> None:
    """Of the second stream 0.2 tokens more are accepted than of the first."""
    target = np.array([[0.5, 0.2, 0.3]], np.float32)
    streams = np.array([[0.9, 0.05, 0.05], [0.7, 0.2, 0.1]], np.float32)
    weights = after(Hedge(), [Evidence([streams], [*target])]).weights
    share = 1 / (1 + np.exp(-GROWTH * 0.2))
    assert weights[1] == pytest.approx((1 - KEPT_SHARE) * share + KEPT_SHARE / 2, abs=1e-6)


def test_expectation_maximization_finds_the_most_probable_mixture() -> None:
    steps = [evidence([1.0, 1.4, 2.0], seed) for seed in range(400)]

    def log_prob(weights: np.ndarray) -> float:
        return sum(
            float(np.log(weights @ step.likely_draft_probs) @ step.likely_target_probs)
            for step in steps
        )

    found = log_prob(after(ExpectationMaximization(1.0), steps).weights)
    chance = np.random.default_rng(0)
    others = [log_prob(chance.dirichlet(np.ones(3))) for _ in range(50)]
    uniform = log_prob(np.full(3, 1 / 3))
    assert found > uniform
    assert found > max(others) - 0.05 * (max(others) - uniform)


def test_only_likely_tokens_of_the_target_are_compared() -> None:
    target = np.full((2, 5000), 1e-9, np.float32)
    target[0, 7] = 1
    target[1] = 1 / 5000
    compared = Evidence([*target[:, None]], [*target])
    assert len(compared.likely_target_probs) == 1 + MOST_LIKELY


def test_streams_may_have_columns_of_their_own() -> None:
    full = evidence([0.5, 1.5], 0)
    kept = np.array([7, *range(5), *range(8, 20)])
    column_of = np.full(20, -1)
    column_of[kept] = np.arange(len(kept))
    rows = np.stack(full.draft_rows)
    without = rows.copy()
    without[:, :, [5, 6]] = 0
    spread = Evidence([*without], full.target_rows)
    dense = Evidence([*rows[:, :, kept]], full.target_rows, column_of)
    for rule in LEARNING:
        assert after(rule, [dense]).weights == pytest.approx(after(rule, [spread]).weights)


def test_what_a_stream_rules_out_is_no_reason_to_rule_it_out() -> None:
    target = np.array([[1.0, 0.0]], np.float32)
    streams = np.array([[0.0, 1.0], [0.5, 0.5]], np.float32)
    for rule in LEARNING:
        weights = after(rule, [Evidence([streams], [*target])] * 3).weights
        assert np.isfinite(weights).all()
        assert weights[1] > weights[0]


def test_fixed_weights_stay() -> None:
    rule = FixedWeights((1, 3))
    assert after(rule, [evidence([0.1, 3.0], 0)]).weights.tolist() == [0.25, 0.75]
    with pytest.raises(InvalidInputError, match="2 weights were given for 3 streams"):
        rule.start(uniform(3))


@pytest.mark.parametrize("weights", [(-1.0, 2.0), (0.0, 0.0), (float("nan"), 1.0)])
def test_fixed_weights_that_are_none_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInputError, match="weights of streams"):
        FixedWeights(weights)


@pytest.mark.parametrize("decay", [0.0, 1.1, -1.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InvalidInputError, match="decay"):
        InverseDivergence(decay)


def test_rules_go_by_name_and_weights_by_number() -> None:
    assert parse_weight_rule("em") == ExpectationMaximization()
    assert parse_weight_rule("0.7,0.3") == FixedWeights((0.7, 0.3))
    with pytest.raises(InvalidInputError, match=r"choose one of uniform, .* or give weights"):
        parse_weight_rule("best")
