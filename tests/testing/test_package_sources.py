"""Signatures, fields and calls of a package are read from its files."""

from pathlib import Path

import pytest

from treesnake.testing.package_sources import (
    calls,
    definition,
    fields,
    is_installed,
    methods,
    parameters,
    set_attributes,
    source_of,
    takes,
)

SOURCE = """
class Engine:
    size: int
    name: str = "x"

    def __init__(self, size, *, name):
        self.size, self.name = size, name

    async def run(self, text, /, most=1, *, seed=None):
        self.worker.propose(text, most, seed=seed)
        raise AssertionError("nobody imports this")

raise ImportError("nobody imports this")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"engine_{tmp_path.name}"
    (tmp_path / name / "inner").mkdir(parents=True)
    (tmp_path / name / "inner" / "engine.py").write_text(SOURCE)
    (tmp_path / name / "__init__.py").write_text("raise ImportError")
    (tmp_path / name / "inner" / "__init__.py").write_text("one = 1")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_what_is_defined_is_read_and_nothing_is_imported(package: str) -> None:
    module = f"{package}.inner.engine"
    assert is_installed(package)
    assert parameters(module, "Engine.run") == ["self", "text", "most", "seed"]
    assert fields(module, "Engine") == {"size", "name"}
    assert methods(module, "Engine") == {"__init__", "run"}
    assert set_attributes(module, "Engine.__init__") == {"size", "name"}
    assert len(source_of(f"{package}.inner").body) == 1


def test_a_call_fits_a_function_or_does_not(package: str) -> None:
    [call] = calls(f"{package}.inner.engine", "propose")
    assert takes(lambda text, most, seed: None, call)
    assert not takes(lambda text, most: None, call)


def test_what_is_not_there_is_said(package: str) -> None:
    assert not is_installed("a_package_that_nobody_has")
    with pytest.raises(ModuleNotFoundError, match="has no module"):
        source_of(f"{package}.outer")
    with pytest.raises(AttributeError, match=r"defines no Engine\.walk"):
        definition(f"{package}.inner.engine", "Engine.walk")
