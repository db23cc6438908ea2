"""Captures of passes that need no CUDA, so that all but CUDA itself is tested."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from treesnake.models.cuda_graphs import Pass


class RecordedCapture:
    """Captures passes by keeping them, and counts them; results stay where they are.

    Attributes:
        num_captured: the passes so far.
    """

    def __init__(self) -> None:
        self.num_captured = 0

    def __call__(self, run: Pass, device: torch.device) -> Pass:
        """Runs a pass; its replay runs it again and writes to the same result."""
        self.num_captured += 1
        result = run()
        return lambda: result.copy_(run())


class WatchedCapture:
    """Captures passes over tensors without values: whoever waits for the device raises.

    Attributes:
        num_captured: the passes so far.
    """

    def __init__(self) -> None:
        self.num_captured = 0

    def __call__(self, run: Pass, device: torch.device) -> Pass:
        """Runs a pass once.

        Raises:
            AssertionError: if anything moves between devices, or the result is not on CUDA.
        """
        self.num_captured += 1
        with _NoCopies():
            result = run()
        assert result.device.type == "cuda"
        return lambda: result


class _NoCopies(TorchDispatchMode):
    """Refuses to move anything between host and device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {each.device.type for each in _tensors((args, kwargs, result))}
        assert len(devices) <= 1, f"{func} moves between devices"
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor))
