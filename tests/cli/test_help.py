"""Help, version and information, in this process."""

import json

import pytest
from typer.testing import CliRunner

from treesnake.cli.app import app

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
