"""Triton kernels compile for the devices that people have, on a machine without."""

import pytest
import torch

from treesnake.testing.gpu_passes import MISTRAL_7B, QWEN3_8B, kernel_calls
from treesnake.testing.triton_kernels import DEVICES, DeviceKind, kernel_names

pytest.importorskip("triton")

MOST_SPILLED = 128
"""Bytes of a thread, next to a thousand of registers."""


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_kernels_compile_as_passes_call_them_and_have_enough_registers(device: DeviceKind) -> None:
    calls = kernel_calls(torch.bfloat16, device, (MISTRAL_7B, QWEN3_8B))
    assert {call.name for call in calls} == kernel_names(), "no pass of gpu_passes calls a kernel"
    spilled = [(call, call.compiled(device).spilled_bytes) for call in calls]
    assert [each for each in spilled if each[1] > MOST_SPILLED] == []
