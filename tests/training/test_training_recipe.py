"""A recipe is read whole before anything is run, and what is wrong in it is told."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from treesnake.errors import InvalidInputError
from treesnake.training.training_recipe import (
    CorpusStage,
    TrainingRecipe,
    check_training_recipe,
    read_training_recipe,
)

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted([*FOLDER.glob("train/*.toml"), *FOLDER.glob("treesnake-smol/*.toml")])

SMALLEST = """
name = "a"
target = "smollm2"
drafter = {kind = "mamba", hidden_size = 8, num_layers = 1}
"""


def test_a_recipe_comes_back_as_it_was_written(
    recipe: TrainingRecipe, tmp_path: Path, write_recipe: Callable[[TrainingRecipe, Path], Path]
) -> None:
    assert read_training_recipe(write_recipe(recipe, tmp_path / "recipe.toml")) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_can_be_read(path: Path) -> None:
    assert read_training_recipe(path).stages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 3", "recipe.toml lacks the key"),
        ("x = 1", 'recipe.toml has an unknown key "x"; the keys are draft_vocabulary'),
        (SMALLEST + "stages = [{kind = 'pretrain', name = 'p', data = 'x'}]", "must be a list"),
        (SMALLEST + "stages = [{kind = 'rest', name = 'p'}]", "kind must be one of 'corpus'"),
        (SMALLEST + "stages = [{name = 'p'}]", "kind must be one of"),
        (SMALLEST + "stages = []", "at least one stage"),
        (SMALLEST + "stages = 3", "stages must be a list, not 3"),
        (
            SMALLEST + "stages = [{kind = 'pretrain', name = 'p', data = ['x'], epochs = 1.5}]",
            r"recipe.toml, stages, epochs must be of type int, not 1.5",
        ),
        (
            SMALLEST + "stages = [{kind = 'pretrain', name = 'p', data = ['x'], epochs = 0}]",
            'epochs of the stage "p" must be above 0',
        ),
        (
            SMALLEST + "stages = [{kind = 'pretrain', name = 'p', data = ['x'], held_out = 1.0}]",
            'held_out of the stage "p" must be at least 0 and below 1',
        ),
        (SMALLEST + "stages = [{kind = 'answers', name = '../p', prompts = []}]", "no slash"),
        (
            SMALLEST + "start = {attention_layers = [1]}\n"
            "stages = [{kind = 'answers', name = 'p', prompts = []}]",
            "attention_layers is for a drafter of kind mamba2",
        ),
        ("name = ", "cannot be read"),
    ],
)
def test_what_cannot_be_right_is_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_training_recipe(path)


def test_a_recipe_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_training_recipe(tmp_path / "recipe.toml")


def test_stages_have_names_of_their_own(recipe: TrainingRecipe) -> None:
    corpus = CorpusStage(name="distil", source="x", content="text", column="text")
    with pytest.raises(InvalidInputError, match='two stages are called "distil"'):
        check_training_recipe(replace(recipe, stages=(corpus, *recipe.stages)))
