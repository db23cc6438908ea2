"""Triton kernels compile for the devices that people have, on a machine without."""

import pytest
import torch

from treesnake.testing.gpu_passes import MISTRAL_7B, QWEN3_8B, kernel_calls
from treesnake.testing.triton_kernels import DEVICES, DeviceKind, kernel_names

pytest.importorskip("triton")

MOST_SPILLED = 128
"""Bytes of a thread, next to a thousand of registers."""


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_kernels_compile_as_passes_call_them_and_fit_a_device(device: DeviceKind) -> None:
    calls = kernel_calls(torch.bfloat16, device, (MISTRAL_7B, QWEN3_8B))
    assert {call.name for call in calls} == kernel_names(), "no pass of gpu_passes calls a kernel"
    taken = [(call, call.compiled(device)) for call in calls]
    assert [each for each in taken if each[1].spilled_bytes > MOST_SPILLED] == []
    assert [each for each in taken if each[1].shared_bytes > device.shared_bytes] == []


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_layers_of_a_target_in_float32_fit_a_device(device: DeviceKind) -> None:
    calls = [
        call
        for call in kernel_calls(torch.float32, device, (MISTRAL_7B,))
        if call.name.startswith(("attention", "fused_linear"))
    ]
    shared = [(call, call.compiled(device).shared_bytes) for call in calls]
    assert [each for each in shared if each[1] > device.shared_bytes] == []
