"""What is kept between runs, shown and cleared."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treesnake.cli.app import app
from treesnake.errors import OutputError
from treesnake.kernels.cpu.jit import kernels_in
from treesnake.loading import caches
from treesnake.loading.caches import Cache, find_caches

RUNNER = CliRunner()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder that holds a kernel, a cost file and files of others."""
    monkeypatch.setenv("TREESNAKE_CACHE", str(tmp_path))
    monkeypatch.setattr(caches, "kernel_folder", lambda: tmp_path)
    (tmp_path / "costs").mkdir()
    for name in ("decode-checked.nbi", "decode-checked.1.nbc", "other.nbi", "costs/1.json"):
        (tmp_path / name).write_bytes(b"1234")
    return tmp_path


def test_clearing_removes_our_files_and_no_others(folder: Path) -> None:
    assert [cache.num_bytes for cache in find_caches()] == [8, 4]
    result = RUNNER.invoke(app, ["cache", "clear"])
    assert result.exit_code == 0
    assert [cache.num_bytes for cache in find_caches()] == [0, 0]
    assert (folder / "other.nbi").exists()


def test_showing_removes_nothing(folder: Path) -> None:
    shown = RUNNER.invoke(app, ["cache"]).output
    assert f"({folder})" in shown
    assert len(kernels_in(folder)) == 2


def test_info_says_where_the_caches_are(folder: Path) -> None:
    facts = json.loads(RUNNER.invoke(app, ["info", "--json"]).output)
    assert facts["caches"]["compiled_kernels"] == f"0.0 MB in {folder}"


def test_a_file_that_cannot_be_removed_is_named(tmp_path: Path) -> None:
    cache = Cache("costs", tmp_path, [tmp_path])  # a folder is no file
    with pytest.raises(OutputError, match="cannot be removed"):
        cache.clear()
