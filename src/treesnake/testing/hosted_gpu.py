"""A GPU that keeps its memory on the host: its tensors are on CUDA, and have values.

So whole texts are generated in the way of a GPU where there is none, and it is counted how often
the host waits for the device. Kernels are those in plain torch. A captured pass is run again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import Mock, patch

import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from treesnake.kernels import dispatch
from treesnake.models import state_space, transformer_torch
from treesnake.models.cuda_graphs import Pass

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

aten = torch.ops.aten

READING = (aten._local_scalar_dense, aten.equal, aten.masked_select, aten.nonzero)
"""Operations whose results the host needs before it goes on."""

INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
"""Operations that are given a list of indices; those of the host are sent, masks are counted."""


class HostedTensor(Tensor):
    """A tensor on CUDA whose values are those of another one, on the host.

    Attributes:
        hosted: the other one.
    """

    hosted: Tensor

    @staticmethod
    @torch.inference_mode(mode=False)
    def __new__(cls, hosted: Tensor) -> "HostedTensor":
        """Returns one with the form of the other."""
        made = Tensor._make_wrapper_subclass(
            cls,
            hosted.shape,
            strides=hosted.stride(),
            storage_offset=hosted.storage_offset(),
            dtype=hosted.dtype,
            device=CUDA,
        )
        made.hosted = hosted
        return made

    def tolist(self) -> Any:
        """Returns numbers, after a copy to the host, which torch makes for its own kind alone."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Returns an array, if it may be a copy."""
        assert force, "arrays are on the host"
        return self.cpu().numpy()

    @classmethod
    def __torch_dispatch__(  # pyrefly: ignore[bad-override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Is reached where there is no such GPU any more."""
        raise AssertionError(f"{func} was called outside of hosted_gpu()")


class HostedGpu(TorchDispatchMode):
    """Runs what is asked of a GPU, and notes where the host waits for it.

    Attributes:
        waits: the operations for which it waited.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._pinned: dict[int, Tensor] = {}
        self._is_capturing = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own: dict[str, Any] = dict(kwargs or {})
        if func.overloadpacket is aten.is_pinned:
            return self._is_pinned(args[0])
        if func.overloadpacket is aten._pin_memory:
            func = aten.clone.default
            own["pin_memory"] = True
        given = [each for each in tree_leaves((args, own)) if isinstance(each, HostedTensor)]
        to = _destination(func, args, own, is_hosted=bool(given))
        if self._waits(func, args, own, to):
            if self._is_capturing:
                raise RuntimeError(f"{func} is not permitted when a stream is capturing")
            self.waits.append(func.__name__)
        is_pinned = own.pop("pin_memory", False)
        own.pop("non_blocking", None)  # asks the driver even where nothing is sent
        if own.get("device") is not None:
            own["device"] = CPU
        host_args, host_own = tree_map_only(HostedTensor, _on_host, (args, own))
        result = func(*host_args, **host_own)
        if is_pinned:
            self._pinned[_address(result)] = result
        if to == CPU:
            return result
        known = {id(each.hosted): each for each in given}

        def on_gpu(made: Tensor) -> HostedTensor:
            return known[id(made)] if id(made) in known else HostedTensor(made)

        return tree_map_only(Tensor, on_gpu, result)

    def capture(self, run: Pass, device: torch.device) -> Pass:
        """Captures a pass by running it again at each replay.

        Raises:
            RuntimeError: as CUDA does, if the pass waits.
        """

        def replay() -> Tensor:
            self._is_capturing = True
            try:
                return run()
            finally:
                self._is_capturing = False

        return replay

    def _waits(self, func: Any, args: Any, kwargs: dict[str, Any], to: torch.device) -> bool:
        """Tells whether the host waits: it reads, or sends what is not pinned."""
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        is_free = any(each is True for each in (kwargs.get("non_blocking"), *args[-1:]))
        if to == CPU:
            return any(isinstance(each, HostedTensor) for each in tensors) and not is_free
        if func.overloadpacket in READING:
            return True
        if func.overloadpacket in INDEXING:
            indices = [each for each in args[1] if each is not None]
            return any(each.dtype == torch.bool or each.device == CPU for each in indices)
        sent = [each for each in tensors if each.device == CPU and each.ndim]
        return any(not (is_free and self._is_pinned(each)) for each in sent)

    def _is_pinned(self, tensor: Tensor) -> bool:
        return _address(tensor) in self._pinned


class HostedEvent:
    """A mark in what a GPU is to do.

    Args:
        gpu: the GPU.
    """

    def __init__(self, gpu: HostedGpu) -> None:
        self._gpu = gpu
        self._num_waits = 0

    def record(self, stream: object) -> None:
        """Sets the mark behind what the GPU was asked for."""
        self._num_waits = len(self._gpu.waits)

    def synchronize(self) -> None:
        """Waits until the GPU is there, unless the host has waited for something since."""
        if len(self._gpu.waits) == self._num_waits:
            self._gpu.waits.append("Event.synchronize")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _on_host(tensor: HostedTensor) -> Tensor:
    return tensor.hosted


def _no_triton(name: str) -> None:
    """Finds no package, where networks look for Triton."""


def _destination(func: Any, args: Any, kwargs: dict[str, Any], *, is_hosted: bool) -> torch.device:
    """Returns where the result of an operation is."""
    if kwargs.get("device") is not None:
        return torch.device(torch.device(kwargs["device"]).type)
    if func.overloadpacket is aten.copy_:
        return args[0].device
    return CUDA if is_hosted and func.overloadpacket is not aten._local_scalar_dense else CPU


@contextmanager
def hosted_gpu() -> Iterator[HostedGpu]:
    """Lets CUDA be such a GPU, for networks of ours that are made and used meanwhile."""
    before = torch._C._only_lift_cpu_tensors()
    gpu = HostedGpu()
    with (
        patch.object(transformer_torch, "find_spec", _no_triton),
        patch.object(state_space, "find_spec", _no_triton),
        patch.object(dispatch, "find_spec", _no_triton),
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "_lazy_init", lambda: None),
        patch.object(torch.cuda, "Event", partial(HostedEvent, gpu)),
        patch.object(torch.cuda, "current_stream", Mock),
        gpu,
    ):
        torch._C._set_only_lift_cpu_tensors(True)
        torch._C._ensureCUDADeviceGuardSet()
        try:
            yield gpu
        finally:
            torch._C._set_only_lift_cpu_tensors(before)


def on_hosted_gpu(model: "transformers.PreTrainedModel") -> "transformers.PreTrainedModel":
    """Returns a copy of a model on such a GPU."""
    with CUDA:
        copy = type(model)(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return copy
