"""`treesnake train` as far as it can be told without a model."""

import importlib.util
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treesnake.cli.app import app
from treesnake.errors import InvalidInputError, LoadError

RUNNER = CliRunner()


def test_help_fits_into_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = RUNNER.invoke(app, ["train", "-h"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80


def test_a_recipe_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("colour = 1")
    result = RUNNER.invoke(app, ["train", str(path)])
    assert isinstance(result.exception, InvalidInputError)
    assert 'unknown key "colour"' in str(result.exception)


def test_packages_that_are_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treesnake.cli.train.find_spec", lambda _name: None)
    result = RUNNER.invoke(app, ["train", str(tmp_path / "recipe.toml")])
    assert isinstance(result.exception, LoadError)
    assert "accelerate, datasets, tensorboard; install treesnake[train]" in str(result.exception)
    assert importlib.util.find_spec("accelerate") is not None
