"""Triton kernels as passes call them, compiled for devices that are not there.

Passes run over tensors that have a device and no values, and whoever launches a kernel is noted
instead. Triton's compiler and assemblers need no device.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

KERNELS = "treesnake.kernels.triton"
ALIGNMENT = 16
"""Triton compiles anew for addresses and sizes that are multiples of this, and for ones."""

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class DeviceKind:
    """A kind of device that Triton compiles for.

    Attributes:
        name: what its assembler calls it.
        backend: "cuda" or "hip".
        arch: what Triton calls it.
        warp_size: threads that go together.
        shared_bytes: that a program can have.
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int


DEVICES = (
    DeviceKind("sm_80", "cuda", 80, 32, 99 << 10),
    DeviceKind("sm_90", "cuda", 90, 32, 227 << 10),
    DeviceKind("gfx942", "hip", "gfx942", 64, 64 << 10),
)
"""A100, H100 and H200, MI300. RTX 3090 and 4090 run what the A100 does in less shared memory."""


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes of a device.

    Attributes:
        registers: of each thread.
        spilled_bytes: of each thread, for which there were no registers.
        shared_bytes: of each program, shared by its threads.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class KernelCall:
    """A kernel and all that its machine code depends on.

    Attributes:
        name: module and function.
        signature: the type of each argument.
        constants: the arguments that are compiled in.
        aligned: the arguments that are multiples of 16.
        options: of the compiler.
        kernel: what Triton made of the function.
    """

    name: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    kernel: Any = field(compare=False, repr=False)

    @classmethod
    def of(cls, kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> "KernelCall":
        """Reads the arguments of a launch as Triton does."""
        given = dict(zip(kernel.arg_names, args, strict=False))
        given |= {name: value for name, value in options.items() if name in kernel.arg_names}
        fixed = {each.name for each in kernel.params if each.is_constexpr}
        fixed |= {name for name, value in given.items() if type(value) is int and value == 1}
        kinds = {
            name: "constexpr" if name in fixed else _type(each) for name, each in given.items()
        }
        return cls(
            f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}",
            tuple(kinds.items()),
            tuple((name, given[name]) for name in given if name in fixed),
            tuple(name for name in given if name not in fixed and _is_aligned(given[name])),
            tuple((name, value) for name, value in options.items() if name not in given),
            kernel,
        )

    def compiled(self, device: DeviceKind) -> Compiled:
        """Compiles it down to machine code."""
        compiler = import_module("triton.compiler")
        target = import_module("triton.backends.compiler").GPUTarget(
            device.backend, device.arch, device.warp_size
        )
        index = self.kernel.arg_names.index
        divisibility = [["tt.divisibility", ALIGNMENT]]
        source = compiler.ASTSource(
            self.kernel,
            dict(self.signature),
            dict(self.constants),
            {(index(name),): divisibility for name in self.aligned},
        )
        binary = compiler.compile(source, target=target, options=dict(self.options))
        if device.backend == "hip":
            registers, spilled = _taken_of_amd(binary.asm["amdgcn"])
        else:
            registers, spilled = _taken_of_nvidia(binary.asm["cubin"])
        return Compiled(registers, spilled, binary.metadata.shared)


@contextmanager
def noted_launches() -> Iterator[list[KernelCall]]:
    """Notes launches of kernels, which do not happen; results keep the values that memory had."""
    calls: list[KernelCall] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        calls.append(KernelCall.of(kernel, args, options))

    with patch.object(import_module("triton.runtime").JITFunction, "run", run):
        yield calls


def kernel_names() -> set[str]:
    """Returns the names of all kernels that the package has, whoever calls them."""
    jit_function = import_module("triton.runtime").JITFunction
    package = import_module(KERNELS)
    return {
        f"{module.name}.{name}"
        for module in iter_modules(package.__path__)
        for name, value in vars(import_module(f"{KERNELS}.{module.name}")).items()
        if isinstance(value, jit_function)
        and value.__module__ == f"{KERNELS}.{module.name}"
        and name.endswith("_kernel")
    }


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int), f"kernels take tensors and numbers, not {value!r}"
    return "i32" if value < 2**31 else "i64"


def _is_aligned(value: object) -> bool:
    """Allocations of CUDA are aligned; what begins within one may not be."""
    if isinstance(value, Tensor):
        return int(value.storage_offset()) * value.element_size() % ALIGNMENT == 0
    return isinstance(value, int) and value % ALIGNMENT == 0


def _taken_of_nvidia(cubin: bytes) -> tuple[int, int]:
    """Returns registers and spilled bytes of a thread."""
    tool = import_module("triton").knobs.nvidia.cuobjdump.path
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [tool, "--dump-resource-usage", str(path)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _number("REG:", told), _number("STACK:", told)


def _taken_of_amd(assembly: str) -> tuple[int, int]:
    """Returns registers and spilled bytes of a thread."""
    return (
        _number(r"\.vgpr_count: *", assembly),
        _number(r"\.private_segment_fixed_size: *", assembly),
    )


def _number(name: str, text: str) -> int:
    found = re.search(rf"{name}(\d+)", text)
    assert found, f"the assembler says nothing of {name}"
    return int(found[1])
