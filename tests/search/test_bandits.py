"""The searches over lists of shapes, on bandits whose best arm is known."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from treesnake.errors import InvalidInputError
from treesnake.outcome import Acceptance, Step, StepSeconds
from treesnake.protocols import TreeSearch
from treesnake.search.arms import ARMS, MeasuredRate
from treesnake.search.moving_average import MovingAverageSearch
from treesnake.search.static import StaticSearch
from treesnake.search.thompson import ThompsonSearch
from treesnake.search.trial import TrialSearch
from treesnake.search.ucb import DiscountedUcbSearch, UcbSearch
from treesnake.shape import OFF, Shape, chain
from treesnake.tree import TokenTree

SHAPES = (OFF, chain(1), chain(2), chain(4))
SEARCHES: dict[str, Callable[[], TreeSearch]] = {
    "discounted ucb": lambda: DiscountedUcbSearch(SHAPES),
    "thompson": lambda: ThompsonSearch(SHAPES),
    "moving average": lambda: MovingAverageSearch(SHAPES),
}
FOLLOWING = pytest.mark.parametrize("new_search", SEARCHES.values(), ids=SEARCHES)


@dataclass(frozen=True)
class Arm:
    """A step emits each drafted token with a probability, as long as it did those before."""

    probability: float
    seconds: float


def arms(probability: float, level_s: float) -> dict[Shape, Arm]:
    return {shape: Arm(probability, 1 + level_s * shape.depth) for shape in SHAPES}


def step_of(shape: Shape, num_emitted: int, seconds: float) -> Step:
    tree = TokenTree.chain([0] * 1)
    times = StepSeconds(0.0, seconds, 0.0, 0.0)
    return Step(shape, tree, Acceptance((0,), 0), (0,) * num_emitted, times)


def mean_rate(shape: Shape, arm: Arm) -> float:
    tokens = sum(arm.probability**depth for depth in range(shape.depth + 1))
    return tokens / arm.seconds


def play(
    search: TreeSearch, table: dict[Shape, Arm], num_steps: int, chance: random.Random
) -> Counter[Shape]:
    """Plays, and returns how often each shape was chosen."""
    chosen: Counter[Shape] = Counter()
    for _ in range(num_steps):
        shape = search.choose(100)
        arm = table[shape]
        num_emitted = 1
        while num_emitted <= shape.depth and chance.random() < arm.probability:
            num_emitted += 1
        search.observe(step_of(shape, num_emitted, arm.seconds * chance.uniform(0.9, 1.1)))
        chosen[shape] += 1
    return chosen


def share_of_best(chosen: Counter[Shape], table: dict[Shape, Arm]) -> float:
    """Returns the rate that was had, in parts of the best arm's."""
    rates = {shape: mean_rate(shape, table[shape]) for shape in table}
    seconds = sum(count * table[shape].seconds for shape, count in chosen.items())
    tokens = sum(count * table[shape].seconds * rates[shape] for shape, count in chosen.items())
    return tokens / seconds / max(rates.values())


GOOD, BAD = arms(0.9, 0.1), arms(0.1, 0.5)


@FOLLOWING
@pytest.mark.parametrize("table", [GOOD, BAD], ids=["deep is best", "off is best"])
def test_the_best_shape_is_found(
    new_search: Callable[[], TreeSearch], table: dict[Shape, Arm]
) -> None:
    chosen = play(new_search(), table, 800, random.Random(1))
    best = max(SHAPES, key=lambda shape: mean_rate(shape, table[shape]))
    assert chosen.most_common(1)[0][0] == best
    assert share_of_best(chosen, table) > 0.9


@FOLLOWING
def test_another_shape_is_found_when_the_text_changes(
    new_search: Callable[[], TreeSearch],
) -> None:
    search, chance = new_search(), random.Random(2)
    play(search, GOOD, 500, chance)
    play(search, BAD, 200, chance)
    assert share_of_best(play(search, BAD, 500, chance), BAD) > 0.85


def test_ucb_finds_the_best_shape_where_its_model_of_costs_is_right() -> None:
    search = UcbSearch(SHAPES, lambda_ucb=0.5, lambda_gamma=0.1)
    chosen = play(search, GOOD, 800, random.Random(3))
    assert chosen.most_common(1)[0][0] == chain(4)


def test_ucb_without_exploration_stays_with_what_was_first_seen_best() -> None:
    search = UcbSearch(SHAPES, lambda_ucb=0.0)
    for shape in SHAPES:
        assert search.choose(0) == shape, "each is tried once, in their order"
        search.observe(step_of(shape, 3 if shape == chain(1) else 1, 1.0))
    assert {search.choose(0) for _ in range(10)} == {chain(1)}


def test_the_lambdas_of_ucb_weigh_drafting_and_exploration() -> None:
    def most_chosen(lambda_gamma: float) -> Shape:
        search = UcbSearch(SHAPES, lambda_ucb=2.0, lambda_gamma=lambda_gamma)
        return play(search, GOOD, 400, random.Random(4)).most_common(1)[0][0]

    assert most_chosen(0.0) == chain(4)
    assert most_chosen(2.0) == OFF
    few, many = (
        play(UcbSearch(SHAPES, lambda_ucb=weight), GOOD, 400, random.Random(4))[OFF]
        for weight in (0.1, 5.0)
    )
    assert few < many


def test_a_trial_gives_each_shape_its_turns_and_then_keeps_the_best() -> None:
    search = TrialSearch(SHAPES, num_trials=50)
    trial = play(search, GOOD, 50 * len(SHAPES), random.Random(5))
    assert set(trial.values()) == {50}
    assert set(play(search, BAD, 100, random.Random(5))) == {chain(4)}


def test_a_moving_average_tries_all_shapes_again_and_again() -> None:
    search = MovingAverageSearch(SHAPES, explore_every=5)
    play(search, GOOD, 100, random.Random(6))
    assert set(play(search, GOOD, 25, random.Random(7))) == set(SHAPES)


def test_one_seed_gives_the_same_choices() -> None:
    first, again = (play(ThompsonSearch(SHAPES), GOOD, 50, random.Random(8)) for _ in range(2))
    assert first == again


ALL = [
    *SEARCHES.values(),
    lambda: UcbSearch(SHAPES),
    lambda: TrialSearch(SHAPES),
    lambda: StaticSearch(OFF),
]


@pytest.mark.parametrize("new_search", ALL)
def test_a_shape_that_was_clipped_to_another_teaches_nothing(
    new_search: Callable[[], TreeSearch],
) -> None:
    search, untouched = new_search(), new_search()
    search.observe(step_of(chain(3), 1, 1.0))
    assert search.choose(0) == untouched.choose(0)


@pytest.mark.parametrize("kind", [UcbSearch, DiscountedUcbSearch, ThompsonSearch, TrialSearch])
@pytest.mark.parametrize("shapes", [(), (OFF, OFF)], ids=["none", "twice"])
def test_lists_of_no_shapes_or_of_one_twice_are_refused(
    kind: type, shapes: Sequence[Shape]
) -> None:
    with pytest.raises(InvalidInputError, match="each once"):
        kind(shapes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UcbSearch(lambda_ucb=-1),
        lambda: UcbSearch(lambda_gamma=-1),
        lambda: DiscountedUcbSearch(discount=0),
        lambda: ThompsonSearch(discount=1.5),
        lambda: MovingAverageSearch(weight=0),
        lambda: MovingAverageSearch(explore_every=1),
        lambda: TrialSearch(num_trials=0),
    ],
)
def test_constants_out_of_range_are_refused(make: Callable[[], TreeSearch]) -> None:
    with pytest.raises(InvalidInputError):
        make()


def test_a_measured_rate_is_the_ratio_of_the_sums() -> None:
    rate = MeasuredRate()
    assert rate.mean == rate.seconds_per_step == rate.standard_error == 0
    rate.add(3, 1.0)
    rate.add(1, 3.0)
    assert rate.mean == 1.0
    assert rate.seconds_per_step == 2.0
    doubt = rate.standard_error
    for _ in range(20):
        rate.add(2, 2.0)
    assert 0 < rate.standard_error < doubt / 2
    rate.decay(0.5)
    assert rate.mean == 1.0
    assert rate.num == 11


@pytest.mark.parametrize("kind", [ThompsonSearch, MovingAverageSearch])
def test_the_usual_arms_let_a_search_stop_drafting(kind: Callable[[], TreeSearch]) -> None:
    table = {shape: Arm(0.0, 1 + shape.depth) for shape in ARMS}
    chosen = play(kind(), table, 600, random.Random(5))
    assert chosen.most_common(1)[0][0] == OFF
