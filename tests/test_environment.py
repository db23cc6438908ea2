"""Facts about the machine and the source are read, not guessed."""

import subprocess
from pathlib import Path

import pytest

from treesnake import environment
from treesnake.environment import (
    describe_environment,
    describe_processor,
    package_versions,
    processor_name,
    source_commit,
)

CPU_INFO = """\
processor\t: 0
model name\t: Some CPU @ 2 GHz
cpu family\t: 6
model\t\t: 207
flags\t\t: fpu avx2 avx512_vnni avx2_not

processor\t: 1
model name\t: Some CPU @ 2 GHz
cpu family\t: 6
model\t\t: 207
flags\t\t: fpu avx2 avx512_vnni avx2_not
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose file src/environment.py takes the place of ours."""
    source = tmp_path / "src" / "environment.py"
    source.parent.mkdir()
    source.write_text("")
    git(tmp_path, "init", "--quiet")
    monkeypatch.setattr(environment, "__file__", str(source))
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    settings = ("user.name=nobody", "user.email=nobody@example.org", "commit.gpgsign=false")
    options = [option for setting in settings for option in ("-c", setting)]
    command = ["git", "-C", str(folder), *options, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_processor_is_called_as_linux_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(CPU_INFO)
    monkeypatch.setattr(environment, "CPU_INFO", file)
    assert processor_name() == "Some CPU @ 2 GHz"
    assert describe_processor() == "Some CPU @ 2 GHz (family 6, model 207; avx2 avx512_vnni)"


def test_a_processor_that_linux_does_not_name_goes_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert processor_name() == describe_processor() == "arm64"


def test_the_commit_is_that_of_the_source_and_says_whether_it_was_changed(checkout: Path) -> None:
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "first")
    (checkout / "README.md").write_text("not the source")
    commit = source_commit()
    assert commit is not None
    assert (commit.hash, commit.is_changed) == (git(checkout, "rev-parse", "HEAD"), False)
    (checkout / "src" / "new.py").write_text("")
    changed = source_commit()
    assert changed is not None
    assert changed.is_changed
    described = describe_environment()
    assert described["commit"] == commit.hash[:7]
    assert described["uncommitted_changes"]


def test_a_source_that_a_repository_does_not_hold_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source_commit() is None, "it was never added"
    git(checkout, "add", ".")
    assert source_commit() is None, "nothing was ever committed"
    monkeypatch.setattr(environment, "__file__", str(checkout.parent / "elsewhere.py"))
    assert source_commit() is None
    assert describe_environment()["commit"] == ""


def test_what_is_not_installed_has_no_version() -> None:
    versions = package_versions(["torch", "no-such-package"])
    assert versions["torch"]
    assert versions["no-such-package"] is None
