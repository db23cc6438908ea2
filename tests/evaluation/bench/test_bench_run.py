"""A whole benchmark on a tiny model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from treesnake.evaluation.bench import (
    BenchRecipe,
    Journal,
    ResultFiles,
    run_recipe,
    summarize,
    to_markdown,
    write_results,
)
from treesnake.evaluation.bench.bench_recipe import (
    DrafterTable,
    LongContextTable,
    PairTable,
    SamplingTable,
    TaskTable,
)

METHODS = (
    "plain",
    "transformers",
    "transformers assisted",
    "transformers prompt lookup",
    "chain(2)",
    "2x1 chosen",
    "prompt-lookup@self-tuning",
    "+prompt-lookup@chain(2)",
    "windowed@chain(2)",
    "missing/model@chain(2)",
)


@pytest.fixture(scope="module")
def recipe(tiny_folder: Path, question_file: Path) -> BenchRecipe:
    pair = PairTable(
        str(tiny_folder), "same", str(tiny_folder), dtype="float32", device="cpu", engine="native"
    )
    return BenchRecipe(
        name="tiny",
        description="what tests run",
        pairs={"tiny": pair},
        drafters={
            "same": DrafterTable(str(tiny_folder), "float32"),
            "windowed": DrafterTable(str(tiny_folder), "float32", window=8),
        },
        methods=METHODS,
        tasks=(TaskTable(str(question_file), name="questions"),),
        sampling=(SamplingTable(), SamplingTable(1.0)),
        max_new_tokens=8,
        threads=1,
        num_agreement=1,
    )


@pytest.fixture(scope="module")
def journal(recipe: BenchRecipe, tmp_path_factory: pytest.TempPathFactory) -> Journal:
    return run_recipe(recipe, tmp_path_factory.mktemp("results") / "tiny.log.jsonl")


def test_every_method_answers_every_question(journal: Journal) -> None:
    failed = {run.method for run in journal.runs if run.error is not None}
    assert failed == {"missing/model@chain(2)"}
    good = [run for run in journal.runs if run.error is None]
    assert len(good) == (len(METHODS) - 1) * 3 * 2
    for run in good:
        assert len(run.turns) == (2 if run.question == "1" else 1)
        for turn in run.turns:
            assert 0 < turn.num_first <= turn.num_new <= 8
            assert 0 < turn.first_s <= turn.total_s
            assert turn.num_new == len(turn.token_ids)


def test_greedy_texts_are_all_the_same(journal: Journal) -> None:
    texts: dict[str, set[tuple[tuple[int, ...], ...]]] = {}
    for run in journal.runs:
        if run.error is None and run.sampling == "greedy":
            texts.setdefault(run.question, set()).add(tuple(t.token_ids for t in run.turns))
    assert all(len(found) == 1 for found in texts.values())


def test_a_drafter_that_is_the_target_has_everything_accepted(journal: Journal) -> None:
    summary = summarize(journal, {})
    rows = {
        row.method: row.measures
        for row in summary.rows
        if row.sampling == "greedy" and row.category == "all"
    }
    assert rows["chain(2)"].acceptance_by_position == (1.0, 1.0)
    assert rows["2x1 chosen"].acceptance_by_rank == (1.0, 0.0)
    assert rows["plain"].tokens_per_step == 1
    assert rows["plain"].accepted_per_step == 0
    assert rows["transformers"].phases is None
    assert rows["chain(2)"].same_as_reference == 3
    assert rows["plain"].time_by_shape == {"off": 1.0}
    assert rows["chain(2)"].drafter_bytes
    weights = {method: row.weights_bytes for method, row in rows.items()}
    assert weights["transformers assisted"] == 2 * (weights["transformers"] or 0)
    assert weights["chain(2)"] == 2 * (weights["plain"] or 0) > 0
    assert rows["windowed@chain(2)"].acceptance_by_position[0] < 1
    drafters = {row.drafter: row.measures for row in summary.drafters}
    assert drafters.keys() == {"same", "windowed"}
    assert drafters["same"].same_choice == 1
    assert drafters["same"].total_variation < 1e-4 < drafters["windowed"].total_variation


def test_a_finished_benchmark_runs_nothing_again(recipe: BenchRecipe, journal: Journal) -> None:
    size = journal.path.stat().st_size
    asked: list[str] = []
    run_recipe(recipe, journal.path, progress=lambda done, all_, what: asked.append(what))
    assert set(asked) <= {"missing/model@chain(2), loops", "missing/model@chain(2), words"}
    assert journal.path.stat().st_size <= size + 2000


def test_a_benchmark_that_was_stopped_continues(recipe: BenchRecipe, tmp_path: Path) -> None:
    path = tmp_path / "tiny.log.jsonl"

    class StoppedError(BaseException):
        pass

    def stop(num_done: int, num_runs: int, what: str) -> None:
        assert num_runs == len(METHODS) * 3 * 2
        if num_done == 6:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_recipe(recipe, path, progress=stop)
    done = Journal(path).records
    assert len(done) == 5
    first_asked: list[int] = []

    def note(num_done: int, num_runs: int, what: str) -> None:
        first_asked.append(num_done)
        raise StoppedError

    with pytest.raises(StoppedError):
        run_recipe(recipe, path, progress=note)
    assert first_asked == [6]
    assert Journal(path).records == done


def test_results_are_three_files(journal: Journal) -> None:
    files = ResultFiles(journal.path.with_name("tiny.json"))
    assert files.journal == journal.path
    summary = write_results(files, {"before": {}})
    table = files.tables.read_text()
    assert table == to_markdown(summary)
    assert "| chain(2) |" in table
    assert "3 of 3" in table
    assert "missing/model" in table


def test_long_contexts_are_categories_by_length(
    recipe: BenchRecipe, tiny_folder: Path, tmp_path: Path
) -> None:
    document = tmp_path / "book.txt"
    document.write_text("It was a dark and stormy night. " * 20)
    long_recipe = BenchRecipe(
        name="long",
        pairs=recipe.pairs,
        drafters=recipe.drafters,
        methods=("plain", "chain(2)"),
        long_context=(LongContextTable(("book.txt",), (16, 64), 2, question="And?"),),
        max_new_tokens=4,
        num_shown=0,
        num_agreement=0,
    )
    journal = run_recipe(long_recipe, tmp_path / "long.log.jsonl", data_folder=tmp_path)
    lengths = {run.category: run.turns[0].num_prompt for run in journal.runs}
    assert lengths == {"16 tokens": 22, "64 tokens": 70}
    assert all(run.error is None for run in journal.runs)


def test_a_question_that_does_not_fit_is_an_error_of_that_question_alone(
    recipe: BenchRecipe, tmp_path: Path
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        json.dumps({"turns": ["long " * 200]}) + "\n" + json.dumps({"turns": ["short"]}) + "\n"
    )
    mixed = replace(
        recipe, methods=("plain", "chain(2)"), tasks=(TaskTable(questions.name),), num_agreement=0
    )
    runs = run_recipe(mixed, tmp_path / "mixed.log.jsonl", data_folder=tmp_path).runs
    assert {run.question for run in runs if run.error is None} == {"2"}
    assert all("context" in run.error for run in runs if run.error is not None)
    assert len(runs) == 8
