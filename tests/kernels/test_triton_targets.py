"""Triton kernels of tree targets compile for the devices that people have, on a machine without."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from treesnake.states.tree_layout import RowsSize, tree_layout, tree_rows

pytest.importorskip("triton")

CPU = torch.device("cpu")
TYPES = {
    torch.float32: "*fp32",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
DEVICES = {"A100": ("cuda", 80, 32), "H100": ("cuda", 90, 32), "MI300": ("hip", "gfx942", 64)}
PARENTS = (-1, 0, 0, 1)


@pytest.fixture(params=DEVICES.values(), ids=DEVICES.keys())
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets kernels be compiled for a device, and not run; their names are collected."""
    compiler = importlib.import_module("triton.compiler")
    runtime = importlib.import_module("triton.runtime")
    target = importlib.import_module("triton.backends.compiler").GPUTarget(*request.param)
    names: list[str] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        del grid, warmup
        given = dict(zip(kernel.arg_names, args, strict=False))
        given |= {name: options.pop(name) for name in kernel.arg_names if name in options}
        fixed = {each.name for each in kernel.params if each.is_constexpr}
        constants = {name: given[name] for name in fixed}
        signature = {name: "constexpr" if name in fixed else kind(given[name]) for name in given}
        source = compiler.ASTSource(kernel, signature, constants)
        compiler.compile(source, target=target, options=options)
        names.append(kernel.__name__)

    def kind(value: object) -> str:
        return TYPES[value.dtype] if isinstance(value, Tensor) else "i32"

    monkeypatch.setattr(runtime.JITFunction, "run", run)
    if request.param[0] == "hip":
        ssd = importlib.import_module("treesnake.kernels.triton.ssd")
        monkeypatch.setattr(ssd, "PRECISION", ssd.PRECISION_ON_AMD)
    return names


def form(name: str) -> Any:
    return importlib.import_module(f"treesnake.kernels.triton.{name}")


def rows() -> Any:
    layout = tree_layout(PARENTS, 4, CPU)
    return tree_rows([layout], [4], [0], RowsSize(trees=1, new=4, nodes=4), spare_row=4)


def test_the_convolution(compiled: list[str]) -> None:
    inputs, weight, history = torch.zeros(1, 5, 64), torch.zeros(64, 4), torch.zeros(1, 3, 64)
    form("conv").causal_filter(inputs[0], weight, None, history[0])
    form("conv").tree_filter(inputs, weight, weight[:, 0], history, rows())
    assert compiled == ["_conv_kernel"] * 2


def test_the_state_space_dual(compiled: list[str]) -> None:
    x, dt, A = torch.zeros(1, 5, 2, 64), torch.zeros(1, 5, 2), torch.zeros(2)
    B, state = torch.zeros(1, 5, 1, 64), torch.zeros(1, 2, 64, 64)
    form("ssd")._scan(x[0], dt[0], A, B[0], B[0], A, state[0])
    form("ssd").extend_sums(x, dt, A, B, B[:, :4], A, state, rows())
    form("ssd").commit_sums(x[:, :2], dt[:, :2], A[None], B[:, :2], state)
    assert compiled == ["_scan_kernel", "_extend_sums_kernel", "_commit_sums_kernel"]


def test_the_selective_scan(compiled: list[str]) -> None:
    x, B, A = torch.zeros(1, 4, 64), torch.zeros(1, 4, 16), torch.zeros(64, 16)
    states = torch.zeros(1, 5, 64, 16)
    form("ssm").extend_copies(x, x, A, B, B, A[:, 0], states[:, 0], states, rows())
    form("ssm").commit_sums(x, x, A[None], B, states[:, 0].contiguous())
    assert compiled == ["_extend_copies_kernel", "_commit_sums_kernel"]


@pytest.mark.parametrize("decays", [1, 64])
def test_the_gated_delta_rule(compiled: list[str], decays: int) -> None:
    key, value, beta = torch.zeros(4, 2, 64), torch.zeros(4, 2, 64), torch.zeros(4, 2)
    log_decay, state = torch.zeros(4, 2, decays), torch.zeros(2, 64, 64)
    moving = key, value, log_decay, beta
    form("gated_delta").scan(key, *moving, state)
    mask = tree_layout(PARENTS, 1, CPU).ancestor_mask
    form("gated_delta").extend_sums(key, *moving, mask, state)
    form("gated_delta").commit_sums(*moving, state)
    assert compiled == ["_step_kernel", "_extend_sums_kernel", "_step_kernel"]
