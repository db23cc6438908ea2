import ctypes
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from treesnake.errors import LoadError
from treesnake.loading import memory
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.memory import (
    check_memory,
    free_bytes,
    give_back_large_blocks,
    give_back_memory,
    weight_bytes,
)

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """What the system says is available; outside of any container."""
    system = SimpleNamespace(available=10**12)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: system)
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "cgroup")
    return system


def set_container(limit: str, used: int, file_cache: int) -> None:
    memory.CGROUP.mkdir(exist_ok=True)
    (memory.CGROUP / "memory.max").write_text(f"{limit}\n")
    (memory.CGROUP / "memory.current").write_text(f"{used}\n")
    (memory.CGROUP / "memory.stat").write_text(f"anon 5\ninactive_file {file_cache}\n")


def test_weights_take_the_size_of_the_dtype(tiny_llama_folder: Path) -> None:
    checkpoint = find_checkpoint(str(tiny_llama_folder))
    num_values = sum(entry.num_elements for entry in checkpoint.weights.entries.values())
    assert weight_bytes(checkpoint, torch.float32) == 4 * num_values
    assert weight_bytes(checkpoint, torch.bfloat16) == 2 * num_values


def test_quantised_weights_keep_their_size(tiny_llama_folder: Path) -> None:
    path = tiny_llama_folder / "config.json"
    quantised = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    path.write_text(json.dumps(quantised))
    checkpoint = find_checkpoint(str(tiny_llama_folder))
    assert weight_bytes(checkpoint, torch.float32) == weight_bytes(checkpoint, torch.float16)


def test_what_fits_is_not_refused(tiny_llama_folder: Path, free: SimpleNamespace) -> None:
    checkpoint = find_checkpoint(str(tiny_llama_folder))
    free.available = weight_bytes(checkpoint, torch.float32)
    check_memory(checkpoint, torch.float32, CPU)


def test_what_does_not_fit_is_refused_with_numbers_and_a_dtype_that_would(
    tiny_llama_folder: Path, free: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = find_checkpoint(str(tiny_llama_folder))
    sizes = {torch.float32: 28_000_000_000, torch.bfloat16: 14_000_000_000}
    monkeypatch.setattr(memory, "weight_bytes", lambda _checkpoint, dtype: sizes[dtype])
    free.available = 16_000_000_000
    with pytest.raises(LoadError) as refusal:
        check_memory(checkpoint, torch.float32, CPU)
    assert str(refusal.value).endswith(
        "takes 28.00 GB in float32, and 16.00 GB are free on cpu; "
        "dtype='bfloat16' would take 14.00 GB"
    )
    free.available = 8_000_000_000
    with pytest.raises(LoadError, match="choose a smaller model or another device"):
        check_memory(checkpoint, torch.float32, CPU)


def test_a_containers_limit_counts(free: SimpleNamespace) -> None:
    set_container("1000", used=700, file_cache=100)
    assert free_bytes(CPU) == 400
    free.available = 50
    assert free_bytes(CPU) == 50


def test_without_a_container_or_a_limit_the_system_counts(free: SimpleNamespace) -> None:
    assert free_bytes(CPU) == free.available
    set_container("max", used=700, file_cache=100)
    assert free_bytes(CPU) == free.available


@pytest.mark.parametrize(
    ("platform", "has_it", "calls"),
    [("linux", True, 1), ("linux", False, 0), ("win32", True, 0)],
    ids=["glibc", "another C library", "another system"],
)
def test_free_memory_is_given_back_where_the_c_library_can(
    platform: str, has_it: bool, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed: list[int] = []
    options: list[tuple[int, int]] = []
    library = SimpleNamespace(
        malloc_trim=lambda size: trimmed.append(size.value),
        mallopt=lambda option, value: options.append((option, value)),
    )
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: library if has_it else SimpleNamespace())
    give_back_memory()
    give_back_large_blocks()
    assert trimmed == [0] * calls
    assert options == [(-3, 4 << 20)] * calls
