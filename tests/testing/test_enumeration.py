"""Exact probabilities of random procedures, against arithmetic by hand."""

from itertools import permutations

import pytest
import torch

from treesnake.sampling import Rng
from treesnake.testing import enumerate_outcomes

PROBS = torch.tensor([0.5, 0.3, 0.2])


def test_a_coin_has_two_sides() -> None:
    law = enumerate_outcomes(lambda rng: rng.coin(0.25))
    assert law == {True: 0.25, False: 0.75}


def test_certain_decisions_are_not_branched_on() -> None:
    runs: list[bool] = []

    def experiment(rng: Rng) -> bool:
        runs.append(rng.coin(1.5))
        return rng.coin(0.0) or runs[-1]

    assert enumerate_outcomes(experiment) == {True: 1.0}
    assert runs == [True]


def test_draws_have_the_probabilities_of_their_weights() -> None:
    law = enumerate_outcomes(lambda rng: rng.draw(4 * PROBS))
    assert law == pytest.approx({0: 0.5, 1: 0.3, 2: 0.2})


def test_tokens_without_weight_are_left_out() -> None:
    assert set(enumerate_outcomes(lambda rng: rng.draw(torch.tensor([0.0, 1, 0, 2])))) == {1, 3}


def test_distinct_draws_are_without_replacement() -> None:
    law = enumerate_outcomes(lambda rng: tuple(rng.draw_distinct(PROBS, 2)))
    probs = PROBS.tolist()
    assert law == pytest.approx(
        {(a, b): probs[a] * probs[b] / (1 - probs[a]) for a, b in permutations(range(3), 2)}
    )


def test_there_are_no_more_distinct_tokens_than_have_weight() -> None:
    law = enumerate_outcomes(lambda rng: tuple(rng.draw_distinct(torch.tensor([0.5, 0, 0.5]), 3)))
    assert law == {(0, 2): 0.5, (2, 0): 0.5}


def test_later_decisions_may_depend_on_earlier_ones() -> None:
    def wait_for_heads(rng: Rng) -> int:
        return next((toss for toss in range(3) if rng.coin(0.5)), 3)

    assert enumerate_outcomes(wait_for_heads) == {0: 0.5, 1: 0.25, 2: 0.125, 3: 0.125}


def test_a_procedure_without_chance_has_one_outcome() -> None:
    assert enumerate_outcomes(lambda rng: "so be it") == {"so be it": 1.0}


def test_what_is_drawn_from_is_left_as_it_was() -> None:
    before = PROBS.clone()
    enumerate_outcomes(lambda rng: tuple(rng.draw_distinct(PROBS, 3)))
    assert torch.equal(PROBS, before)
