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

STAGE = (
    SMALLEST
    + """
[[stages]]
kind = "pretrain"
name = "p"
data = ["x"]
"""
)

CORPUS = (
    SMALLEST
    + """
[[stages]]
kind = "corpus"
name = "c"
source = "t.txt"
content = "text"
column = "line"
"""
)


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
            r"recipe.toml, stages\[1\], epochs must be of type int, not 1.5",
        ),
        (
            SMALLEST + "stages = [{kind = 'pretrain', name = 'p', data = ['x'], epochs = 0}]",
            'epochs of the stage "p" must be above 0',
        ),
        (
            SMALLEST + "stages = [{kind = 'pretrain', name = 'p', data = ['x'], held_out = 1.0}]",
            'held_out of the stage "p" must be at least 0 and below 1',
        ),
        (
            SMALLEST + "stages = [{kind = 'answers', name = '../p', prompts = []}]",
            "no part of a path",
        ),
        (
            SMALLEST + "start = {attention_layers = [1]}\n"
            "stages = [{kind = 'answers', name = 'p', prompts = []}]",
            "attention_layers is for a drafter of kind mamba2",
        ),
        ("name = ", "cannot be read"),
        (STAGE.replace('"p"', '".."'), "the name of a stage names a file or folder"),
        (STAGE.replace('"p"', '"drafter"'), "names of the run's own files"),
        (STAGE.replace('"p"', '"Logs"'), "names of the run's own files"),
        (STAGE.replace('"p"', '"web.done.json"'), "names of the run's own files"),
        (STAGE.replace('"a"', '"../a"', 1), "recipe.toml: name names a file or folder"),
        (STAGE + "[[stages]]\nkind='pretrain'\nname='P'\ndata=['x']", "two stages are called"),
        (STAGE.replace('["x"]', "[]"), 'data of the stage "p" must name something'),
        (STAGE.replace('["x"]', '[""]'), 'data of the stage "p" must name something'),
        (STAGE.replace('["x"]', '["x", "x"]'), "and nothing twice"),
        (STAGE.replace('["x"]', '["p"]'), 'needs "p", which does not come before it'),
        (STAGE + "learning_rate = nan", "a finite number"),
        (STAGE + "learning_rate = inf", "a finite number"),
        (STAGE + "learning_rate = -1.0", 'learning_rate of the stage "p" must be above 0'),
        ("seed = -1\n" + STAGE, "seed must be above 0"),
        ("seed = 9999999999\n" + STAGE, "seed must be at most"),
        ("draft_vocabulary = 0\n" + STAGE, "draft_vocabulary must be above 0"),
        (STAGE.replace("= 8", "= 0"), "hidden_size of the drafter must be above 0"),
        (STAGE.replace("= 8", "= 10000000"), "hidden_size of the drafter must be at most"),
        ("start = {output_scale = -1.0}\n" + STAGE, "output_scale of start must be above 0"),
        (STAGE + "[[stages]]\nkind='answers'\nname='q'\nprompts=['p']", "makes no prompts"),
        (CORPUS + "max_tokens = 1", "must be at least 2"),
        (
            CORPUS.replace("text", "prompts") + STAGE[STAGE.index("[[") :].replace("x", "c"),
            "makes no texts",
        ),
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
