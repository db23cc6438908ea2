"""Help, version and information, in this process."""

import json
import subprocess
import sys
from inspect import getdoc

import pytest
from typer.testing import CliRunner

from treesnake.cli.app import COMMANDS, app

RUNNER = CliRunner()


@pytest.mark.parametrize("command", [[], ["generate"], ["chat"], ["info"], ["calibrate"]], ids=str)
def test_help_fits_into_eighty_columns(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = RUNNER.invoke(app, [*command, "-h"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80


def test_the_version_is_shown() -> None:
    assert RUNNER.invoke(app, ["--version"]).output.startswith("treesnake ")


def test_info_says_what_is_here() -> None:
    facts = json.loads(RUNNER.invoke(app, ["info", "--json"]).output)
    assert facts["machine"]["threads"] >= 1
    assert facts["packages"]["torch"] != "not installed"
    shown = RUNNER.invoke(app, ["info"]).output
    assert "Machine" in shown
    assert "torch" in shown


@pytest.mark.parametrize("options", [["-n", "0"], ["--threads", "0"], ["--dtype", "int3"]], ids=str)
def test_options_out_of_range_are_refused(options: list[str]) -> None:
    assert RUNNER.invoke(app, ["generate", "hello", *options]).exit_code == 2


def test_help_and_version_wait_for_no_model_library() -> None:
    program = (
        "import sys, treesnake.cli.app as cli\n"
        "for arguments in [['--version'], ['-h'], *([name, '-h'] for name in cli.COMMANDS)]:\n"
        "    sys.argv[1:] = arguments\n"
        "    try:\n        cli.main()\n"
        "    except SystemExit:\n        pass\n"
        "    print(arguments, sorted({'numba', 'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    told = [line for line in result.stdout.splitlines() if line.startswith("[")]
    assert len(told) == len(COMMANDS) + 2
    assert [line for line in told if not line.endswith(" []")] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_what_each_help_begins_with(command: str) -> None:
    name = command.replace("-", "_")
    module = __import__(f"treesnake.cli.{name}", fromlist=[name])
    assert (getdoc(getattr(module, name)) or "").splitlines()[0] == COMMANDS[command]


def test_a_command_of_another_name_is_refused_with_those_that_are_near() -> None:
    result = RUNNER.invoke(app, ["generat", "hello"])
    assert result.exit_code == 2
    assert "Did you mean 'generate'" in result.output


def test_the_package_is_a_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "treesnake", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("treesnake ")


@pytest.mark.parametrize(
    ("typed", "completed"), [("gen", "generate"), ("generate --ma", "--max-new-tokens")]
)
def test_a_shell_completes_commands_and_options(typed: str, completed: str) -> None:
    asked = {
        "_TREESNAKE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"treesnake {typed}",
        "COMP_CWORD": str(len(typed.split())),
    }
    result = RUNNER.invoke(app, [], prog_name="treesnake", env=asked)
    assert result.output.split() == [completed]
