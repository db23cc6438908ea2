"""Compares the memory that weights take with what is free, and gives back what loading left."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from treesnake.errors import LoadError
from treesnake.loading.checkpoint import Checkpoint
from treesnake.models.gguf import format_of, stored_parts
from treesnake.models.weights import Weights

BYTES_OF_BITS = {4: 20 / 32, 5: 24 / 32, 6: 28 / 32, 8: 34 / 32}
"""What a value of a packed matrix takes, its share of a group's scale and minimum included."""

CGROUP = Path("/sys/fs/cgroup")

M_MMAP_THRESHOLD = -3
"""The option of glibc's malloc: from which size on a block is memory of its own."""

LARGE_BYTES = 4 << 20
"""Keys and values of a text are larger, logits of a step are not: those are asked for too often."""


def weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype | None) -> int:
    """Returns what the weights take in memory; a quantised checkpoint keeps its stored types.

    Without a dtype the matrices of a GGUF file stay the integers that they are.
    """
    weights = checkpoint.weights
    if dtype is None:
        assert isinstance(weights, Weights), "other checkpoints have a dtype"
        parts = stored_parts(weights.entries)
        return sum(int(part.num_elements * BYTES_OF_BITS[format_of(part)[1]]) for part in parts)
    quantised = getattr(checkpoint.config, "quantization_config", None) is not None
    if quantised and isinstance(weights, Weights):
        return weights.num_bytes
    if isinstance(weights, Weights):
        return weights.num_bytes_as(dtype)
    return sum(tensor.numel() * dtype.itemsize for tensor in weights.values())


def check_memory(checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device) -> None:
    """Refuses weights that do not fit, in a dtype or as they are stored.

    Raises:
        LoadError: with the numbers, and a smaller dtype if that would fit.
    """
    needed, free = weight_bytes(checkpoint, dtype), free_bytes(device)
    if needed <= free:
        return
    half = weight_bytes(checkpoint, torch.bfloat16)
    advice = "choose a smaller model or another device"
    if half <= free:
        advice = f"dtype='bfloat16' would take {half / 1e9:.2f} GB"
    kind = "as it is stored" if dtype is None else f"in {str(dtype).removeprefix('torch.')}"
    raise LoadError(
        f"{checkpoint.name} takes {needed / 1e9:.2f} GB {kind}, and {free / 1e9:.2f} GB are free "
        f"on {device}; {advice}"
    )


def free_bytes(device: torch.device) -> int:
    """Returns the free memory of a device, or of the machine and the container around us."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available: int = psutil.virtual_memory().available
    left = _container_bytes()
    return available if left is None else min(available, left)


def give_back_memory() -> None:
    """Gives the system what reading weights has left free, where the C library can do that.

    What is read is freed piece by piece, between weights that stay, and glibc keeps such pieces.
    """
    trim = _from_glibc("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def give_back_large_blocks() -> None:
    """Lets glibc give each block of `LARGE_BYTES` or more back as soon as it is free.

    By itself it raises that limit to the largest block that it sees freed. So it keeps the keys and
    values of texts that have ended, in a heap for each thread.
    """
    set_option = _from_glibc("mallopt")
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, LARGE_BYTES)


def _from_glibc(name: str) -> Callable[..., object] | None:
    """Returns a function of the C library; musl has none of these."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _container_bytes() -> int | None:
    """Returns what a container's limit leaves (control groups, version 2) beside file caches."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):  # no container, or no limit ("max")
        return None
