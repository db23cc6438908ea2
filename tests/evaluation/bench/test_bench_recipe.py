"""Recipes and the methods in them."""

from pathlib import Path

import pytest

from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.bench_recipe import (
    BenchRecipe,
    LongContextTable,
    PairTable,
    SamplingTable,
    TaskTable,
    read_bench_recipe,
)
from treesnake.evaluation.bench.methods import Peer, parse_method

RECIPES = Path(__file__).parents[3] / "recipes"

RECIPE = """
methods = ["plain", "chain(4)", "+prompt-lookup@3x2x1", "mine@self-tuning"]
[pairs.small]
target = "smollm2"
[drafters.mine]
model = "some/mamba"
[[tasks]]
source = "gsm8k"
per_category = 2
[[sampling]]
temperature = 1
top_p = 0.9
"""


def read(tmp_path: Path, text: str) -> object:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return read_bench_recipe(path)


def test_a_recipe_is_read_and_named_for_its_file(tmp_path: Path) -> None:
    recipe = read(tmp_path, RECIPE)
    assert recipe.name == "small"
    assert recipe.pairs["small"].target == "smollm2"
    assert recipe.drafters["mine"].window is None
    assert recipe.sampling[0].name == "temperature 1, top-p 0.9"
    assert list(recipe.parsed_methods) == list(recipe.methods)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("per_category", "per_kind", "unknown key"),
        ("chain(4)", "chane(4)", "none of the searches self-tuning"),
        ('"plain", ', '"plain", "plain", ', "listed twice"),
        ("[[tasks]]", "[[long_context]]", "unknown key"),
        ("temperature = 1", "temperature = -1", "temperature must be"),
        ('target = "smollm2"', "target = 3", "must be of type str"),
        ("methods", "[", "cannot be read"),
        ("temperature = 1", "temperature = nan", r"small.toml, sampling\[1\].temperature"),
        ("per_category = 2", "per_category = 0", "small.toml: per_category must be at least 1"),
        ("methods", 'name = "../x"\nmethods', "small.toml: name names a file or folder"),
        ("methods", "seed = -1\nmethods", "seed must be at least 0"),
        ("methods", "threads = 0\nmethods", "threads must be at least 1"),
        ("methods", "repeats = 0\nmethods", "repeats must be at least 1"),
    ],
)
def test_what_a_recipe_may_not_say_is_an_error(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read(tmp_path, RECIPE.replace(before, after, 1))


def test_nothing_of_one_name_is_left_out_without_a_word() -> None:
    pairs, methods, tasks = {"p": PairTable("t")}, ("plain",), (TaskTable("q.jsonl"),)
    near = (SamplingTable(1.0), SamplingTable(1.0000001))
    with pytest.raises(InvalidInputError, match=r"sampling is listed twice.*'temperature 1'"):
        BenchRecipe("r", pairs, methods, tasks=tasks, sampling=near)
    with pytest.raises(InvalidInputError, match="task is listed twice"):
        BenchRecipe("r", pairs, methods, tasks=(*tasks, TaskTable("x", "q.jsonl")))
    with pytest.raises(InvalidInputError, match="a length twice"):
        BenchRecipe("r", pairs, methods, long_context=(LongContextTable(("d",), (8, 8)),))
    with pytest.raises(InvalidInputError, match="at least one sampling"):
        BenchRecipe("r", pairs, methods, tasks=tasks, sampling=())


def test_a_recipe_needs_a_task(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="one task"):
        read(tmp_path, RECIPE[: RECIPE.index("[[tasks]]")])


def test_methods_name_a_drafter_and_a_search() -> None:
    assert parse_method("plain").drafter_for("mamba") == "none"
    assert parse_method("chain(4)").drafter_for("mamba") == "mamba"
    assert parse_method("prompt-lookup@chain(4)").drafter_for("mamba") == "prompt-lookup"
    assert parse_method("+prompt-lookup@ucb").drafter_for("mamba") == "mamba+prompt-lookup"
    assert parse_method("transformers assisted").peer is Peer.ASSISTED
    with pytest.raises(InvalidInputError):
        parse_method("@chain(4)")


def test_sampling_has_the_seed_of_the_run() -> None:
    assert SamplingTable().name == "greedy"
    assert SamplingTable(0.7).params(3).seed == 3


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RECIPES.glob("**/*.toml")) if "methods" in path.read_text()],
    ids=lambda path: path.stem,
)
def test_the_recipes_of_this_repository_can_be_read(path: Path) -> None:
    assert read_bench_recipe(path).description
