"""A memory in a benchmark holds answers to the questions before, never to the one that is asked."""

from dataclasses import replace
from pathlib import Path

import pytest

from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench import (
    BenchRecipe,
    Journal,
    run_recipe,
    summarize,
    to_markdown,
)
from treesnake.evaluation.bench.bench_recipe import PairTable, SamplingTable, TaskTable
from treesnake.json_lines import json_line

LONG = "one two three four five six seven"
METHODS = ("plain", "off", "prompt-lookup@chain(4)")


def write_questions(path: Path, texts: list[str]) -> Path:
    lines = [
        json_line({"question_id": str(number), "category": "a", "turns": [text]})
        for number, text in enumerate(texts)
    ]
    path.write_bytes(b"".join(lines))
    return path


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> BenchRecipe:
    questions = write_questions(tmp_path / "questions.jsonl", [LONG, "two", LONG])
    pair = PairTable(str(tiny_folder), dtype="float32", device="cpu", engine="native")
    return BenchRecipe(
        name="served",
        pairs={"tiny": replace(pair, drafter="prompt-lookup")},
        methods=METHODS,
        tasks=(TaskTable(str(questions), name="questions"),),
        sampling=(SamplingTable(),),
        max_new_tokens=12,
        threads=1,
        num_agreement=0,
        num_shown=0,
        has_memory=True,
    )


def num_steps(journal: Journal, question: str) -> int:
    (run,) = [run for run in journal.runs if (run.method, run.question) == (METHODS[-1], question)]
    assert run.error is None, run.error
    return run.turns[0].num_emissions


def test_a_question_that_returns_takes_fewer_steps(recipe: BenchRecipe, tmp_path: Path) -> None:
    cold = run_recipe(recipe, tmp_path / "cold.log.jsonl")
    none = run_recipe(replace(recipe, has_memory=False), tmp_path / "none.log.jsonl")
    assert num_steps(cold, "2") < num_steps(none, "2")
    assert num_steps(cold, "0") == num_steps(none, "0")
    for method in METHODS[:2]:
        texts = [
            [run.turns[0].token_ids for run in each.runs if run.method == method]
            for each in (cold, none)
        ]
        assert texts[0] == texts[1]


def test_a_run_that_was_stopped_goes_on_with_what_it_had_served(
    recipe: BenchRecipe, tmp_path: Path
) -> None:
    path = tmp_path / "cold.log.jsonl"
    whole = num_steps(run_recipe(recipe, path), "2")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: 1 + 2 * len(METHODS)]))
    assert num_steps(run_recipe(recipe, path), "2") == whole


def test_a_warm_memory_holds_answers_to_other_questions(
    recipe: BenchRecipe, tmp_path: Path
) -> None:
    others = write_questions(tmp_path / "others.jsonl", ["one.", "ones"])
    warm = replace(recipe, served=(TaskTable(str(others)),))
    journal = run_recipe(warm, tmp_path / "warm.log.jsonl")
    assert {run.question for run in journal.runs} == {"0", "1", "2"}
    assert all(run.error is None for run in journal.runs)


def test_a_question_that_is_reported_cannot_fill_the_memory(
    recipe: BenchRecipe, tmp_path: Path
) -> None:
    others = write_questions(tmp_path / "others.jsonl", ["three", "two"])
    warm = replace(recipe, served=(TaskTable(str(others)),))
    with pytest.raises(InvalidInputError, match="warm the memory with others"):
        run_recipe(warm, tmp_path / "warm.log.jsonl")


def test_served_questions_need_a_memory(recipe: BenchRecipe) -> None:
    with pytest.raises(InvalidInputError, match="has_memory = true"):
        replace(recipe, has_memory=False, served=recipe.tasks)


def test_the_summary_tells_tokens_a_step_by_tokens_served(
    recipe: BenchRecipe, tmp_path: Path
) -> None:
    summary = summarize(run_recipe(recipe, tmp_path / "cold.log.jsonl"), {})
    rows = [row for row in summary.served if row.method == METHODS[-1]]
    assert [row.num_served for row in rows] == sorted(row.num_served for row in rows)
    assert rows[-1].num_served == sum(
        turn.num_new
        for run in Journal(tmp_path / "cold.log.jsonl").runs
        if run.method == METHODS[-1]
        for turn in run.turns
    )
    assert rows[-1].tokens_per_step > 1
    assert "## Tokens a step by tokens served" in to_markdown(summary)
