"""Drawing a scene from the command line."""

from pathlib import Path

from typer.testing import CliRunner

from treesnake.cli.app import app

RUNNER = CliRunner()


def test_a_scene_is_drawn_and_told(tmp_path: Path) -> None:
    file = tmp_path / "scene.png"
    result = RUNNER.invoke(app, ["scene", str(file), "--seed", "7"])
    assert result.exit_code == 0
    assert result.output.startswith("An image of a ")
    first = file.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert RUNNER.invoke(app, ["scene", str(file), "--seed", "8"]).output != result.output
    assert file.read_bytes() != first


def test_a_folder_is_no_file_for_a_scene(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["scene", str(tmp_path)])
    assert result.exit_code != 0
    assert "is a folder" in str(result.exception)
