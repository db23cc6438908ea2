"""Our own server, measured by `treesnake bench --server` over a socket."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treesnake.cli.app import app
from treesnake.errors import TreesnakeError

QUESTIONS = [{"question_id": number, "turns": f"draft tree {number}"} for number in range(7)]


@pytest.fixture
def task(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in QUESTIONS))
    return str(path)


def bench(*options: str) -> None:
    result = CliRunner().invoke(app, ["bench", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_our_server_is_measured_over_a_socket(server: str, task: str, tmp_path: Path) -> None:
    output = tmp_path / "ours.json"
    clients = ["--clients", "1", "--clients", "2", "--per-client", "2", "-n", "5"]
    names = ["--server", f"ours={server}", "--server", f"again={server}/v1#tiny"]
    bench(*names, "--task", task, *clients, "--output", str(output))
    result = json.loads(output.read_text())
    rows = {(row["server"], row["num_clients"]): row for row in result["servers"]}
    assert {name for name, _ in rows} == {"ours", "again"}
    for (_, number), row in rows.items():
        assert row["is_counted"]
        assert row["num_answers"] == 2 * number
        assert row["num_tokens"] == 5 * row["num_answers"]
        assert row["num_prompt_tokens"] > 0
    assert "| ours | 2 |" in output.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--server", "http://127.0.0.1:1"], "--task"),
        (["--server", "nowhere", "--task", "TASK"], "no address"),
        (["--server", "http://127.0.0.1:1", "--task", "TASK"], "cannot be reached"),
        (["--server", "http://127.0.0.1:1", "--drafter", "none"], "--drafter has no effect"),
        (["--server", "http://127.0.0.1:1", "recipe.toml"], "RECIPE has no effect"),
        (["--server", "http://127.0.0.1:1", "--output", "a.txt"], ".json file"),
        (["--clients", "2"], "--clients is for servers"),
    ],
)
def test_what_cannot_be_measured_is_told(
    options: list[str], reason: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [task if option == "TASK" else option for option in options]
    with pytest.raises(TreesnakeError) as told:
        bench(*given)
    assert reason in str(told.value)
