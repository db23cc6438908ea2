"""How much memory something takes, as exactly as a process can tell of itself."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

PEAK_FILE = Path("/proc/self/clear_refs")
STATUS_FILE = Path("/proc/self/status")


@dataclasses.dataclass
class MemoryGrowth:
    """By how much memory grew at its peak; None while that is not known, or where it cannot be."""

    num_bytes: int | None = None


@contextmanager
def watch_memory_growth(device: torch.device) -> Iterator[MemoryGrowth]:
    """Measures the peak of memory above what is in use when the block begins.

    On a GPU that is what torch's allocator handed out. On a CPU it is the process's resident
    memory, by Linux' own high-water mark, which costs nothing while the block runs; memory that was
    freed before and is used again does not count, so it is a lower bound. Elsewhere it is not
    known.
    """
    growth = MemoryGrowth()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield growth
        growth.num_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    is_known = device.type == "cpu" and _reset_peak()
    before = psutil.Process().memory_info().rss
    yield growth
    peak = _peak_bytes() if is_known else None
    growth.num_bytes = None if peak is None else max(0, peak - before)


def held_bytes(session: object, shared: object = None) -> int:
    """Returns the bytes of all tensors and arrays that a session holds and its model does not.

    Tensors that share their memory count once. It walks through the attributes of our own objects
    and through containers, which takes milliseconds: not for a loop that is timed.
    """
    seen: set[int] = set()
    known = dict(_storages(shared, seen))
    found = dict(_storages(session, seen))
    return sum(size for address, size in found.items() if address not in known)


def _storages(root: object, seen: set[int]) -> Iterator[tuple[int, int]]:
    """Yields address and size of every block of numbers that can be reached."""
    stack: list[Any] = [root]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()
        elif isinstance(value, np.ndarray):
            while isinstance(value.base, np.ndarray):
                value = value.base
            yield value.__array_interface__["data"][0], value.nbytes
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            stack.extend(value)
        else:
            stack.extend(_attributes(value))


def _attributes(value: object) -> list[Any]:
    if not type(value).__module__.startswith(("treesnake", "transformers", "torch.nn")):
        return []
    slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
    return [*getattr(value, "__dict__", {}).values(), *slots]


def _reset_peak() -> bool:
    try:
        PEAK_FILE.write_text("5")  # see proc(5): resets VmHWM
    except OSError:
        return False
    return True


def _peak_bytes() -> int | None:
    for line in STATUS_FILE.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
