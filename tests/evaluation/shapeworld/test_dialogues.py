"""What is said about scenes."""

from random import Random

import pytest

from treesnake.evaluation.shapeworld.dialogues import (
    NUMBERS,
    TASKS,
    caption,
    count,
    difference,
    exist,
)
from treesnake.evaluation.shapeworld.scenes import Figure

NUM_PICTURES = {"difference": 2, "problem": 0, "facts": 0, "short_story": 2, "story": 5}
NUM_PICTURES["bare_story"] = 0


@pytest.mark.parametrize("name", TASKS)
def test_a_task_makes_the_same_dialogue_from_the_same_seed(name: str) -> None:
    dialogue = TASKS[name](Random(2))
    assert dialogue == TASKS[name](Random(2))
    assert len(dialogue.scenes) == NUM_PICTURES.get(name, 1)
    assert len(dialogue.turns) == (2 if name in ("summary", "arithmetic") else 1)
    assert all(turn.question and turn.answer.endswith(".") for turn in dialogue.turns)


def test_figures_are_counted_right() -> None:
    for seed in range(200):
        dialogue = count(Random(seed))
        (scene,), (turn,) = dialogue.scenes, dialogue.turns
        wanted = turn.question.removeprefix("How many ").split()[0].rstrip("?")
        number = sum(
            wanted in ("shapes", figure.color) or wanted.startswith(figure.shape)
            for figure in scene.values()
        )
        assert turn.answer.endswith(f" is {NUMBERS[number]}.")


def test_a_figure_is_said_to_be_there_if_it_is() -> None:
    for seed in range(200):
        dialogue = exist(Random(seed))
        (scene,), (turn,) = dialogue.scenes, dialogue.turns
        wanted = turn.question.removeprefix("Is there a ").split("?")[0].split()[:2]
        is_there = any([each.color, each.shape] == wanted for each in scene.values())
        assert (" yes, there is" in turn.answer) == is_there


def test_pictures_that_are_compared_differ_in_one_figure() -> None:
    for seed in range(100):
        first, second = difference(Random(seed)).scenes
        assert sum(second.get(corner) != figure for corner, figure in first.items()) == 1


def test_a_caption_leaves_out_size_and_place() -> None:
    scene = {0: Figure("red", "ring", True), 3: Figure("blue", "cross", False)}
    assert caption(scene) == "An image of a red ring, a blue cross."
