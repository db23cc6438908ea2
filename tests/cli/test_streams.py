"""Streams as people have them: closed, full, of another encoding."""

import os
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from treesnake.cli import app as app_module
from treesnake.cli.generate import generate
from treesnake.errors import InvalidInputError

COMMAND = [sys.executable, "-m", "treesnake.cli"]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_a_reader_that_has_gone_is_no_verdict() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*COMMAND, "info"], stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_an_output_that_is_full_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*COMMAND, "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr.startswith("error: the output cannot be read or written: No space left")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_messages_that_cannot_be_written_are_no_verdict() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*COMMAND, "generate", "hi", "--search", "none"],
            stdout=subprocess.PIPE,
            stderr=full,
            env=ENVIRONMENT,
            check=False,
        )
    assert (result.returncode, result.stdout) == (2, b"")


def test_characters_that_an_encoding_lacks_end_nothing() -> None:
    """Nor does a terminal of one column."""
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii", "COLUMNS": "1"}
    result = subprocess.run(
        [*COMMAND, "generate", "hi", "--search", "☃[/b]"],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith(b'error: "?[/b]" is none of the searches')


def test_nothing_on_standard_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"\n")))
    with pytest.raises(InvalidInputError, match="standard input is empty"):
        generate("-")


def test_a_fault_of_ours_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise KeyError("lm_head.weight")

    monkeypatch.setattr(app_module, "app", broken)
    monkeypatch.setattr(app_module, "put_off_collection", lambda: None)
    with pytest.raises(SystemExit) as ended:
        app_module.main()
    assert ended.value.code == 70
    assert "KeyError" in capsys.readouterr().err
