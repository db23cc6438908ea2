"""Kernels are compiled in another process, and by the caller where there is none."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numba
import pytest

from treesnake.kernels.cpu import compilation
from treesnake.kernels.cpu.compilation import compile_apart

SOURCE = """
from treesnake.kernels.cpu.jit import entry_point

@entry_point
def twice(x):
    return x + x
"""


@pytest.fixture
def twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A kernel in a module of its own, with an empty cache."""
    (tmp_path / "kernel_of_its_own.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kernel_of_its_own", raising=False)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return importlib.import_module("kernel_of_its_own").twice


def test_what_another_process_compiled_is_read_from_disk(
    twice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_apart(twice, 21)
    assert not twice.signatures
    assert twice(21) == 42
    assert sum(twice.stats.cache_hits.values()) == 1
    monkeypatch.setattr(compilation, "_ask_process", pytest.fail)
    compile_apart(twice, 21)


def test_the_caller_compiles_where_no_other_process_can(
    twice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    compile_apart(twice, 21)
    assert twice(21) == 42
    assert sum(twice.stats.cache_misses.values()) == 1
