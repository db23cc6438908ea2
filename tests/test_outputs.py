"""Files that a person asked for."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from treesnake.errors import InvalidInputError, OutputError
from treesnake.outputs import check_output, held_alone, telling_failure, write_output


def test_missing_folders_are_made_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "page.html"
    check_output(path)
    assert list(path.parent.iterdir()) == []
    write_output(path, "text")
    check_output(path)
    assert path.read_text() == "text"


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    wrong = (
        (tmp_path / "circle", "cannot be written"),
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "page.html", "cannot be written"),
        (tmp_path / ("x" * 250 + ".html"), "cannot be written"),
        (tmp_path / "half\0" / "page.html", "cannot be written"),
    )
    for path, reason in wrong:
        with pytest.raises(InvalidInputError, match=reason):
            check_output(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_is_told_with_what_to_do() -> None:
    check_output(Path("/dev/full"))
    with pytest.raises(OutputError, match=r"/dev/full cannot be written: No space left.*; wait"):
        write_output(Path("/dev/full"), "text", "wait")


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_output(path, "old")
    with pytest.raises(OutputError, match="No space"), telling_failure(path, "make room"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "old"


def test_half_a_surrogate_pair_does_not_cost_the_file(tmp_path: Path) -> None:
    write_output(tmp_path / "a.md", "half \ud83d")
    assert (tmp_path / "a.md").read_text("utf-8") == "half ?"


def test_an_output_has_one_writer_until_it_ends_or_dies(tmp_path: Path) -> None:
    path = tmp_path / "r.log.jsonl"
    code = (
        "import sys, pathlib; from treesnake.outputs import held_alone\n"
        f"with held_alone(pathlib.Path({str(path)!r})): print(1, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(InvalidInputError, match="another process is writing"), held_alone(path):
        pass
    process.kill()
    process.communicate()
    with held_alone(path):
        pass
