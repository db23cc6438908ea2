"""Code that is optimised once has the same bits; where that fails, callers compile as usual."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from treesnake.kernels.cpu.compilation import compile_apart

RUN_GATED_DELTA = """
import hashlib, sys
import torch
from treesnake.kernels.cpu import compilation, gated_delta

if sys.argv[1] == "usual":
    compilation.COMPILER = "there_is_no_such_program"
random = torch.Generator().manual_seed(0)
def draw(*axes):
    return torch.randn(70, 3, *axes, generator=random)
rows = draw(16), draw(16) / 9, draw(40), -draw(1).exp(), 2 * draw().sigmoid()
outputs, state = gated_delta.scan(*rows, torch.zeros(3, 16, 40))
path = torch.ones(70, 70, dtype=torch.bool).tril()
newest = gated_delta.extend_sums(rows[0][-9:], *rows[1:], path, state)
stats = gated_delta._run.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
for each in (outputs, state, newest):
    print(hashlib.sha256(each.contiguous().numpy()).hexdigest())
"""

NAMESAKES = """
from treesnake.kernels.cpu.jit import by_type, entry_point, inlined, kernel

@kernel
def add(x, y):
    return x + y

@kernel
def subtract(x, y):
    return x - y

@inlined
def both(x, y):
    return 100 * add(x, y) + subtract(x, y)

def choose(x):
    raise NotImplementedError

@by_type(choose)
def _choose(x):
    @kernel
    def chosen(x):
        return add(x, 1)
    return lambda x: chosen(x)

@entry_point
def run(x, y):
    return both(x, y), choose(x)
"""

BREAKS = """
import sys
from treesnake.kernels.cpu.jit import entry_point, kernel

program = sys.modules["__main__"]
if program.__spec__ and program.__spec__.name == "treesnake.kernels.cpu.entry_compiler":
    del program._dynfunc.make_function

@kernel
def add(x, y):
    return x + y

@entry_point
def run(x, y):
    return add(x, y)
"""


def run_gated_delta(way: str, cache: Path) -> list[str]:
    """Returns how often the disk had the kernel and had it not, and digests of results."""
    finished = subprocess.run(
        [sys.executable, "-c", RUN_GATED_DELTA, way],
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.splitlines()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Imports a module that is written for one test, with an empty cache."""

    def write_and_import(name: str, source: str):
        (tmp_path / f"{name}.py").write_text(source)
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return write_and_import


def test_the_bits_are_those_of_code_that_numba_optimises_function_by_function(
    tmp_path: Path,
) -> None:
    calls, *once = run_gated_delta("once", tmp_path / "once")
    assert calls == "1 0"
    calls, *usual = run_gated_delta("usual", tmp_path / "usual")
    assert calls == "0 1"
    assert once == usual


def test_kernels_of_one_signature_are_told_apart(load) -> None:
    module = load("kernels_of_one_signature", NAMESAKES)
    compile_apart(module.run, 7, 3)
    assert module.run(7, 3) == (1004, 8)
    assert sum(module.run.stats.cache_hits.values()) == 1


def test_the_caller_compiles_as_usual_where_numba_is_not_as_expected(load) -> None:
    module = load("kernels_that_numba_cannot_defer", BREAKS)
    compile_apart(module.run, 7, 3)
    assert module.run(7, 3) == 10
    assert sum(module.run.stats.cache_misses.values()) == 1


def test_networks_are_compiled_without_torch() -> None:
    code = (
        "import sys; import treesnake.kernels.cpu.entry_compiler, treesnake.kernels.cpu.hybrid; "
        "import treesnake.kernels.cpu.mamba; print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
