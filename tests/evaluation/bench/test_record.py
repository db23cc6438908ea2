"""Steps added up."""

from dataclasses import replace

import pytest

from treesnake.evaluation.bench.record import (
    TurnRecord,
    kind_of_shape,
    sum_steps,
    to_shown_step,
    with_texts,
)
from treesnake.outcome import Acceptance, Step, StepSeconds
from treesnake.shape import OFF, BestFirst, FixedTree, LevelWidths, Priced, Shape, chain
from treesnake.tree import TokenTree

TREE = TokenTree.of([9, 1, 2, 3, 4], [-1, 0, 0, 2, 2])
SECONDS = StepSeconds(0.1, 0.2, 0.3, 0.4)


def step(path: tuple[int, ...], emitted: tuple[int, ...]) -> Step:
    return Step(LevelWidths((2, 2)), TREE, Acceptance(path, 7), emitted, SECONDS)


def test_positions_and_ranks_are_tallied() -> None:
    record = sum_steps([step((0, 2, 3), (2, 3, 7)), step((0,), (7,))])
    assert record.num_drafted == 8
    assert record.num_accepted == 2
    assert record.by_position.offered == (2, 2)
    assert record.by_position.taken == (1, 1)
    # Below the anchor twice, below node 2 once; nodes 2 (second) and 3 (first) were accepted.
    assert record.by_rank.offered == (3, 3)
    assert record.by_rank.taken == (1, 1)
    assert record.score_s == pytest.approx(0.4)
    assert record.shapes["2x2"].num_emitted == 4
    assert record.shapes["2x2"].seconds == pytest.approx(2.0)


def test_a_shown_step_has_the_weights_of_its_streams() -> None:
    plain = step((0,), (7,))
    assert to_shown_step(plain).stream_weights == {}
    mixed = replace(plain, stream_weights={"M": 1 / 3, "T": 2 / 3})
    assert to_shown_step(mixed).stream_weights == {"M": 0.3333, "T": 0.6667}


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (OFF, "off"),
        (FixedTree(()), "off"),
        (chain(4), "chain(4)"),
        (BestFirst(2, 3, 4), "best_first(2, 3, 4)"),
        (FixedTree((0,)), "tree of 1 node"),
        (FixedTree((0, 0, 1, 1, 2)), "tree of 4 to 7 nodes"),
        (Priced(2, (0.1,), (0.1, 0.1)), "by confidence"),
    ],
)
def test_shapes_that_are_alike_are_one_kind(shape: Shape, kind: str) -> None:
    assert kind_of_shape(shape) == kind


def test_a_shown_step_has_its_tree_and_its_texts() -> None:
    shown = to_shown_step(step((0, 2), (2, 7)))
    assert shown.parents == (-1, 0, 0, 2, 2)
    turn = TurnRecord(1, 2, 1, 2, 0.1, 0.1, shown=(shown,))
    (told,) = with_texts(turn, lambda tokens: f"<{tokens[0]}>").shown
    assert told.texts == ("<9>", "<1>", "<2>", "<3>", "<4>")
    assert told.emitted_texts == ("<2>", "<7>")
