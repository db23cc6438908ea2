"""What a folder keeps of earlier answers, shown and cleared."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from treesnake.cli.app import app
from treesnake.cli.options import on_or_folder
from treesnake.errors import InvalidInputError
from treesnake.memory.memory_log import MemoryLog

RUNNER = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a folder with a memory."""
    MemoryLog(tmp_path, {"target": "tiny"}).append([1, 2, 3], 0)
    return tmp_path


def test_a_folder_is_shown_and_cleared(folder: Path) -> None:
    shown = RUNNER.invoke(app, ["memory", "--memory", str(folder)]).output
    assert shown == f"1 memories, 0.0 MB in {folder}\n"
    assert "removed" in RUNNER.invoke(app, ["memory", "clear", "--memory", str(folder)]).output
    assert not list(folder.glob("*.tokens"))


def test_the_folder_can_be_set_for_all_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREESNAKE_MEMORY", str(folder))
    assert str(folder) in RUNNER.invoke(app, ["memory"]).output


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TREESNAKE_MEMORY", raising=False)
    error = RUNNER.invoke(app, ["memory"]).exception
    assert isinstance(error, InvalidInputError)
    assert "give --memory FOLDER" in str(error)


def test_a_memory_by_name_is_of_this_process_or_none_or_a_folder() -> None:
    names = (None, "off", "on", "folder")
    assert [on_or_folder(name) for name in names] == [False, False, True, "folder"]
