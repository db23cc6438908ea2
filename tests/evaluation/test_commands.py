"""bench, verify and report as they are called, on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treesnake.acceptance.following import follow_target
from treesnake.cli.app import app
from treesnake.errors import InvalidInputError
from treesnake.evaluation.verification import Verdict
from treesnake.evaluation.verification.page import to_page
from treesnake.loading.reference import LogitsComparison
from treesnake.outcome import Acceptance
from treesnake.tree import TokenTree

RUNNER = CliRunner()


@pytest.mark.parametrize("command", ["bench", "verify", "report"])
def test_help_fits_into_eighty_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = RUNNER.invoke(app, [command, "-h"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80


def model_options(folder: Path) -> list[str]:
    return ["-t", str(folder), "-d", str(folder), "--dtype", "float32", "--device", "cpu"]


def test_a_benchmark_by_options_and_its_page(
    tiny_folder: Path, question_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.json"
    arguments = [
        "bench", "-o", str(output), *model_options(tiny_folder),
        "--method", "plain", "--method", "chain(2)", "--task", str(question_file),
        "--per-category", "1", "--temperature", "0", "--temperature", "0.8", "-n", "6",
    ]  # fmt: skip
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "| chain(2) |" in output.with_suffix(".md").read_text()
    assert "times as fast" in result.output
    assert {row["sampling"] for row in json.loads(output.read_text())["rows"]} == {
        "greedy",
        "temperature 0.8",
    }
    shown = RUNNER.invoke(app, ["report", str(output)])
    assert shown.exit_code == 0
    assert "Step by step" in output.with_suffix(".html").read_text()


def test_a_benchmark_by_recipe(tiny_folder: Path, question_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'methods = ["plain"]\nmax_new_tokens = 2\n'
        f'[pairs.a]\ntarget = "{tiny_folder}"\ndrafter = "none"\n'
        f'[[tasks]]\nsource = "{question_file}"\n'
    )
    output = tmp_path / "small.json"
    result = RUNNER.invoke(app, ["bench", str(recipe), "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert json.loads(output.read_text())["recipe"]["name"] == "small"


def test_a_benchmark_that_is_interrupted_says_how_it_goes_on(
    tiny_folder: Path, question_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("treesnake.evaluation.bench.run_recipe", interrupt)
    output = tmp_path / "out.json"
    arguments = ["bench", "-o", str(output), "--task", str(question_file)]
    result = RUNNER.invoke(app, [*arguments, *model_options(tiny_folder)])
    assert result.exit_code == 130
    assert "goes on from" in result.output


@pytest.mark.parametrize("memory", [["--cold"], ["--warm", "OTHERS"]])
def test_a_benchmark_with_memories_tells_how_it_went_along_the_way(
    memory: list[str], tiny_folder: Path, question_file: Path, tmp_path: Path
) -> None:
    others = tmp_path / "others.jsonl"
    others.write_text(json.dumps({"question_id": 9, "turns": ["ab ab"]}))
    memory = [str(others) if part == "OTHERS" else part for part in memory]
    output = tmp_path / "results.json"
    arguments = ["--task", str(question_file), "--method", "plain", "--method", "chain(2)"]
    arguments += ["--max-new-tokens", "4", "--drafter", "prompt-lookup", *memory]
    result = RUNNER.invoke(
        app, ["bench", "-o", str(output), *model_options(tiny_folder), *arguments]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(output.read_text())
    assert found["recipe"]["has_memory"]
    assert {row["method"] for row in found["served"]} == {"plain", "chain(2)"}


def test_a_memory_begins_cold_or_warm(question_file: Path) -> None:
    asked = ["bench", "--task", str(question_file), "--cold", "--warm", str(question_file)]
    error = RUNNER.invoke(app, asked).exception
    assert isinstance(error, InvalidInputError)
    assert "not both" in str(error)


def test_a_benchmark_without_a_task_is_refused(tiny_folder: Path) -> None:
    result = RUNNER.invoke(app, ["bench", *model_options(tiny_folder)])
    assert isinstance(result.exception, InvalidInputError)


def test_a_lossless_pair_is_verified(tiny_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    arguments = [
        "verify", *model_options(tiny_folder), "--search", "2x1", "--samples", "10", "-n", "8",
        "--seed", "1", "--recurrent", "--page", str(page), "--json",
    ]  # fmt: skip
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    verdict = json.loads(result.stdout)
    assert verdict["is_lossless"] is True
    assert verdict["subject"]["search"] == "2x1"
    assert "64 of 64 tokens" in page.read_text()
    assert verdict["state"]["is_passed"] is True
    assert verdict["loading"]["is_passed"] is True
    assert verdict["loading"]["num_positions"] == 8


def test_logits_are_checked_where_a_model_is_described(tiny_folder: Path) -> None:
    result = RUNNER.invoke(app, ["info", str(tiny_folder), "--check", "--json", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["check"]["error"] < 1e-4
    result = RUNNER.invoke(app, ["info", "--check"])
    assert isinstance(result.exception, InvalidInputError)


def test_a_fault_of_loading_is_the_headline_of_the_page() -> None:
    verdict = Verdict({}, None, None, 1.0, LogitsComparison(8, error=1.2, tolerance=1e-3))
    assert not verdict.is_lossless
    assert to_page(verdict).startswith("# Not loaded as transformers loads it")
    missing = Verdict({}, None, None, 1.0, LogitsComparison(reason="no memory"))
    assert missing.is_lossless
    assert "not compared with transformers': no memory" in to_page(missing)


def test_what_is_not_lossless_has_an_exit_status(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule takes the token after the most probable one."""

    def follow_others(tree: TokenTree, next_token: Callable[[int], int]) -> Acceptance:
        return follow_target(tree, lambda node: (next_token(node) + 1) % 260)

    monkeypatch.setattr("treesnake.acceptance.greedy.follow_target", follow_others)
    arguments = ["verify", *model_options(tiny_folder), "--temperature", "0", "-n", "2"]
    result = RUNNER.invoke(app, [*arguments, "--search", "chain(2)"])
    assert result.exit_code == 1
    assert "Not lossless" in result.output
    assert "error" in result.output
