"""Compiled kernels are kept on disk, and what is broken there is compiled anew."""

import hashlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from treesnake.kernels.cpu import jit

SOURCE = """
from treesnake.kernels.cpu.jit import entry_point

@entry_point
def twice(x):
    return {expression}
"""

NO_PICKLE = jit.COMPILED_FROM + b"x"


class Kernel:
    """A kernel in a file of its own, loaded as a new process would load it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.write("x + x")

    def write(self, expression: str) -> None:
        (self.folder / "kernel.py").write_text(SOURCE.format(expression=expression))

    def run(self) -> tuple[int, bool, list[str]]:
        """Returns what it computes, whether the cache had it, and the warnings."""
        jit._told.clear()
        sys.modules.pop("kernel", None)
        spec = importlib.util.spec_from_file_location("kernel", self.folder / "kernel.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["kernel"] = module
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            spec.loader.exec_module(module)
            result = module.twice(21)
        hits = sum(module.twice.stats.cache_hits.values())
        return result, hits > 0, [str(each.message) for each in caught]

    def files(self, suffix: str) -> list[Path]:
        return sorted(self.cache.rglob(f"*{suffix}"))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return Kernel(tmp_path)


def test_a_second_process_reads_what_the_first_compiled(kernel: Kernel) -> None:
    assert kernel.run() == (42, False, [])
    assert kernel.run() == (42, True, [])


def test_another_source_is_compiled_without_a_word(kernel: Kernel) -> None:
    kernel.run()
    kernel.write("x + x + 1")
    assert kernel.run() == (43, False, [])


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_what_was_compiled_from_other_sources_is_never_unpickled(
    suffix: str, kernel: Kernel
) -> None:
    kernel.run()
    stored = bytes(len(jit.COMPILED_FROM)) + b"a type that is gone"
    for path in kernel.files(suffix):
        path.write_bytes(hashlib.sha256(stored).digest() + stored)
    assert kernel.run() == (42, False, [])
    assert kernel.run() == (42, True, [])


@settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(suffix=st.sampled_from([".nbi", ".nbc"]), content=st.binary(max_size=60))
@example(suffix=".nbi", content=b"")
@example(suffix=".nbc", content=b"")
@example(suffix=".nbi", content=b"\x80\x04.")
@example(suffix=".nbc", content=hashlib.sha256(NO_PICKLE).digest() + NO_PICKLE)
def test_garbage_is_compiled_anew_with_one_warning(
    suffix: str, content: bytes, kernel: Kernel
) -> None:
    kernel.run()
    for path in kernel.files(suffix):
        path.write_bytes(content)
    result, is_cached, told = kernel.run()
    assert (result, is_cached, len(told)) == (42, False, 1)
    assert kernel.run() == (42, True, [])


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("spoil", [lambda b: b[:40], lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_a_cut_or_changed_file_is_compiled_anew(
    suffix: str, spoil: Callable[[bytes], bytes], kernel: Kernel
) -> None:
    kernel.run()
    (path,) = kernel.files(suffix)
    path.write_bytes(spoil(path.read_bytes()))
    result, is_cached, told = kernel.run()
    assert (result, is_cached, len(told)) == (42, False, 1)
    assert kernel.run() == (42, True, [])


def test_lost_code_is_compiled_anew(kernel: Kernel) -> None:
    kernel.run()
    kernel.files(".nbc")[0].unlink()
    assert kernel.run()[0] == 42
    assert kernel.run() == (42, True, [])


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_a_folder_in_the_place_of_a_file_is_told_once(suffix: str, kernel: Kernel) -> None:
    kernel.run()
    (path,) = kernel.files(suffix)
    path.unlink()
    path.mkdir()
    result, is_cached, told = kernel.run()
    assert (result, is_cached, len(told)) == (42, False, 1)
    assert "set NUMBA_CACHE_DIR" in told[0]


def test_a_full_disk_is_told_once(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jit._CheckedFiles, "_open_for_write", full)
    result, _, told = kernel.run()
    assert result == 42
    assert len(told) == 1
    assert "No space left on device" in told[0]


def test_no_folder_at_all_is_told_once(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(_function: object) -> None:
        raise RuntimeError("no locator available")

    monkeypatch.setattr(jit, "KernelCache", nowhere)
    result, is_cached, told = kernel.run()
    assert (result, is_cached, len(told)) == (42, False, 1)
    assert "neither the package nor the user's cache can be written" in told[0]


def test_a_file_that_another_process_wrote_over_is_not_taken(kernel: Kernel) -> None:
    kernel.run()
    (path,) = kernel.files(".nbc")
    files = jit._CheckedFiles(str(path.parent), "x", None)
    files._write(path, (("another", "key"), "its code"))
    assert kernel.run() == (42, False, [])
