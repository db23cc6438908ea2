"""What is believed of a drafter comes to what it is."""

import random

import pytest

from treesnake.search.belief import NUM_RANKS, ConfidenceBelief, RankBelief
from treesnake.tree import TokenTree


def star(num_children: int) -> TokenTree:
    return TokenTree.of([0] * (1 + num_children), [-1] + [0] * num_children)


def test_ranks_are_accepted_as_often_as_they_were() -> None:
    belief, chance, tree = RankBelief(), random.Random(0), star(3)
    for _ in range(2000):
        rank = chance.choices([0, 1, 2, None], [0.5, 0.2, 0.1, 0.2])[0]
        belief.observe(tree, (0,) if rank is None else (0, rank + 1))
    assert belief.table()[0][:3] == pytest.approx([0.5, 0.2, 0.1], abs=0.12)


def test_depths_that_were_not_seen_are_believed_to_be_like_the_others() -> None:
    belief = RankBelief()
    for _ in range(200):
        belief.observe(star(1), (0, 1))
    assert belief.table()[10][0] > 0.9


def test_what_is_believed_beforehand_falls_with_the_rank() -> None:
    table = RankBelief().table()
    assert all(row == sorted(row, reverse=True) for row in table)
    assert len(table[0]) == NUM_RANKS
    assert sum(table[0]) < 1


def test_after_many_refusals_a_few_acceptances_are_believed() -> None:
    belief = RankBelief()
    for is_accepted in [False] * 1000 + [True] * 200:
        belief.observe(star(1), (0, 1) if is_accepted else (0,))
    assert belief.table()[0][0] > 0.8


@pytest.mark.parametrize("truth", [1.0, 0.5])
def test_a_confidence_is_believed_as_far_as_it_was_right(truth: float) -> None:
    belief, chance = ConfidenceBelief(), random.Random(1)
    for _ in range(3000):
        confidence = chance.uniform(0.02, 1.0)
        is_accepted = chance.random() < truth * confidence
        belief.observe((1.0, confidence), (0, 1) if is_accepted else (0,))
    for probability in (0.15, 0.3):
        assert belief.curve().confidence_for(probability) == pytest.approx(
            probability / truth, rel=0.4
        )


def test_no_confidence_of_a_drafter_that_is_always_wrong_is_enough() -> None:
    belief = ConfidenceBelief()
    for _ in range(500):
        belief.observe((1.0, 0.9, 0.5, 0.1), (0,))
    assert belief.curve().confidence_for(0.3) > 1
    assert belief.curve().confidence_for(0.0) == 0


def test_more_confidence_is_never_believed_less() -> None:
    belief, chance = ConfidenceBelief(), random.Random(2)
    for _ in range(50):
        belief.observe((1.0, chance.random(), float("nan")), chance.choice([(0,), (0, 1)]))
    accepted = belief.curve().accepted
    assert list(accepted) == sorted(accepted, reverse=True)
