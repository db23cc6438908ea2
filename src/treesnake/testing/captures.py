"""Captures of passes that need no CUDA, so that all but CUDA itself is tested."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from treesnake.models.cuda_graphs import Pass


class RecordedCapture:
    """Captures passes by noting their operations; a replay runs these again, and no Python.

    Like a CUDA graph, a replay reads and writes the tensors of the pass that was captured. What
    Python took from a tensor then, a number or a shape, stays what it was.

    Attributes:
        num_captured: the passes so far.
    """

    def __init__(self) -> None:
        self.num_captured = 0

    def __call__(self, run: Pass, device: torch.device) -> Pass:
        """Runs a pass; its replay overwrites the same result."""
        self.num_captured += 1
        tape = _Tape()
        with tape:
            result = run()

        def replay() -> Tensor:
            tape.replay()
            return result

        return replay


class _Tape(TorchDispatchMode):
    """Notes operations and what they returned."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Runs the operations again, in the tensors that they had and made."""
        for func, args, kwargs, made in self._operations:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(made), _tensors(again), strict=True):
                if _address(old) != _address(new):  # else it is a view, or was written in place
                    old.copy_(new)


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


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
