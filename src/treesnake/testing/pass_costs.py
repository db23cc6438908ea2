"""What passes cost a GPU by counting: kernels, the bytes that they move, and arithmetic.

An operation of PyTorch counts as one kernel unless it only looks at memory in another way. Each
kernel reads its inputs and writes its outputs once. So times that are made of it are the least that
a device of some bandwidth can take, not what it takes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from treesnake.models.cuda_graphs import Pass

SECONDS_IN_A_GRAPH = 2.5e-6
"""What a kernel takes at least where it is replayed, as it is usually measured."""

SECONDS_LAUNCHED = 8e-6
"""What a kernel takes at least where Python launches it."""


@dataclass(frozen=True)
class KernelCost:
    """One kernel of a pass.

    Attributes:
        name: of the operation, or of the Triton kernel.
        num_bytes: that it reads and writes.
        flops: of its matrix products.
    """

    name: str
    num_bytes: int
    flops: int = 0


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet.

    Attributes:
        name: of the product.
        bytes_per_s: of its memory.
        flops_per_s: of matrix products in half precision, without sparsity.
    """

    name: str
    bytes_per_s: float
    flops_per_s: float

    def seconds(self, kernels: Sequence[KernelCost], least: float = SECONDS_IN_A_GRAPH) -> float:
        """Returns what kernels take at least, one after the other."""
        return sum(max(least, self.busy_seconds([kernel])) for kernel in kernels)

    def busy_seconds(self, kernels: Sequence[KernelCost]) -> float:
        """Returns what bytes and arithmetic alone take."""
        return sum(
            max(kernel.num_bytes / self.bytes_per_s, kernel.flops / self.flops_per_s)
            for kernel in kernels
        )


GPUS = (
    Gpu("H200", 4.8e12, 989e12),
    Gpu("A100", 2.04e12, 312e12),
    Gpu("RTX 4090", 1.01e12, 165e12),
    Gpu("RTX 3090", 0.94e12, 71e12),
)


class CountedCapture:
    """Captures passes by counting their kernels.

    Attributes:
        kernels: those of the last pass that was captured.
    """

    def __init__(self) -> None:
        self.kernels: list[KernelCost] = []

    def __call__(self, run: Pass, device: torch.device) -> Pass:
        """Runs a pass once; the replay does nothing."""
        with counted_kernels() as self.kernels:
            result = run()
        return lambda: result


@contextmanager
def counted_kernels() -> Iterator[list[KernelCost]]:
    """Counts the kernels that are launched; those in Triton do not run."""
    kernels: list[KernelCost] = []

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False))
        moved = sum({id(each): each.nbytes for each in args if isinstance(each, Tensor)}.values())
        kernels.append(KernelCost(kernel.__name__, moved, _triton_flops(given)))

    jit_function = import_module("triton.runtime").JITFunction
    with patch.object(jit_function, "run", launch), _Counter(kernels):
        yield kernels


class _Counter(TorchDispatchMode):
    """Counts operations of PyTorch."""

    def __init__(self, kernels: list[KernelCost]) -> None:
        super().__init__()
        self._kernels = kernels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs, outputs = list(_tensors((args, kwargs))), list(_tensors(result))
        if _is_kernel(func, name, inputs, outputs):
            count = GATHERED.get(name, _all_bytes)
            flops = FLOPS[name](*args) if name in FLOPS else 0
            self._kernels.append(KernelCost(name, count(inputs, outputs), flops))
        return result


def _is_kernel(func: Any, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Views and empty memory take no kernel; what is written in place does."""
    if name in NO_KERNEL or not outputs or not any(each.numel() for each in outputs):
        return False
    if func._schema.is_mutable:
        return True
    held = {each.untyped_storage()._cdata for each in inputs}
    return any(each.untyped_storage()._cdata not in held for each in outputs)


NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "lift_fresh", "alias"}


def _all_bytes(inputs: list[Tensor], outputs: list[Tensor]) -> int:
    tensors = {id(each): each for each in (*inputs, *outputs)}
    return sum(_bytes(each) for each in tensors.values())


def _bytes(tensor: Tensor) -> int:
    """Returns the bytes of a tensor; one that is expanded is no larger than its memory."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def _gathered(inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Counts the rows that are read and written, and not the whole table."""
    return 2 * sum(map(_bytes, outputs)) + sum(map(_bytes, inputs[1:]))


def _scattered(inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Counts the rows that are written, and not the whole table."""
    return 2 * _bytes(inputs[-1]) + sum(map(_bytes, inputs[1:-1]))


def _embedded(inputs: list[Tensor], outputs: list[Tensor]) -> int:
    return 2 * sum(map(_bytes, outputs)) + _bytes(inputs[-1])


GATHERED: dict[str, Callable[[list[Tensor], list[Tensor]], int]] = {
    "embedding": _embedded,
    "index": _gathered,
    "index_select": _gathered,
    "index_put_": _scattered,
    "_index_put_impl_": _scattered,
    "index_copy_": _scattered,
    "scatter_": _scattered,
}


def _linear_flops(x: Tensor, weight: Tensor, *others: Any) -> int:
    return 2 * x.numel() * len(weight)


def _product_flops(one: Tensor, other: Tensor, *others: Any) -> int:
    return 2 * one.numel() * other.shape[-1]


def _sum_flops(added: Tensor, one: Tensor, other: Tensor, *others: Any) -> int:
    return _product_flops(one, other)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *others: Any) -> int:
    return 4 * query.numel() * key.shape[-2]


FLOPS: dict[str, Callable[..., int]] = {
    "linear": _linear_flops,
    "mm": _product_flops,
    "bmm": _product_flops,
    "matmul": _product_flops,
    "addmm": _sum_flops,
    "scaled_dot_product_attention": _attention_flops,
    "_scaled_dot_product_flash_attention": _attention_flops,
    "_scaled_dot_product_efficient_attention": _attention_flops,
    "_scaled_dot_product_attention_math": _attention_flops,
}


def _triton_flops(given: dict[str, Any]) -> int:
    """Returns the arithmetic of the kernels that multiply matrices."""
    if "residual" in given:
        return 2 * given["num_rows"] * prod(given["weight"].shape)
    if "tree_mask" in given:
        return 4 * given["queries"].numel() * given["num_rows"]
    return 0


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor))
