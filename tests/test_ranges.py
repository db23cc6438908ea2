"""Versions that are tried are those that pyproject.toml allows; without an index nothing fails."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "ranges.py"


def run(
    answer: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[int, list[str]]:
    """Runs the script with a uv that gives one answer; returns its failures and what was asked."""
    asked = tmp_path / "asked"
    asked.mkdir()
    uv = tmp_path / "uv"
    uv.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys, uuid\n"
        f"pathlib.Path({str(asked)!r}, uuid.uuid4().hex).write_text(' '.join(sys.argv[1:]))\n"
        f"print({answer!r})\n"
        f"sys.exit({status})\n"
    )
    uv.chmod(0o755)
    monkeypatch.setenv("UV", str(uv))
    monkeypatch.setattr(sys, "argv", ["ranges.py", *options])
    failures = runpy.run_path(str(SCRIPT), run_name="imported")["main"]()
    return failures, [path.read_text() for path in asked.iterdir()]


@pytest.mark.skipif(sys.platform == "win32", reason="a script with a first line is no program")
def test_the_oldest_and_the_newest_versions_are_tried_and_hosts_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, asked = run("fine", 0, tmp_path, monkeypatch)
    assert failures == 0
    runs = [each for each in asked if each.startswith("run ")]
    assert len(runs) == 2
    assert sum("transformers~=5.19.0 --with numba~=0.65.0" in each for each in runs) == 1
    assert sum("--with transformers~=5.24.0 python" in each for each in runs) == 1
    assert all("tests/states" in each for each in runs)
    assert sum(each.endswith(" -") for each in asked) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="a script with a first line is no program")
def test_the_short_form_has_fewer_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, asked = run("fine", 0, tmp_path, monkeypatch, "--short")
    runs = [each for each in asked if each.startswith("run ")]
    assert len(runs) == 2
    assert all("test_custom_generate.py" in each and "tests/states" not in each for each in runs)


@pytest.mark.skipif(sys.platform == "win32", reason="a script with a first line is no program")
def test_the_resolver_alone_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, asked = run("fine", 0, tmp_path, monkeypatch, "--resolve")
    assert asked
    assert all(each.startswith("pip compile") for each in asked)


@pytest.mark.skipif(sys.platform == "win32", reason="a script with a first line is no program")
@pytest.mark.parametrize(("answer", "passes"), [("error sending request", True), ("no!", False)])
def test_only_an_index_that_is_not_there_is_no_failure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    passes: bool,
) -> None:
    failures, asked = run(answer, 1, tmp_path, monkeypatch, "--short")
    assert failures == (0 if passes else len(asked))
    lines = capsys.readouterr().out.splitlines()
    left_out = [line for line in lines if line.startswith("left out")]
    assert len(left_out) == (len(asked) if passes else 0)
