"""What do the Triton kernels take of a GPU? Compiled for devices that are not there.

    uv run python benchmarks/triton_kernels.py --output results/triton_kernels.json

Passes of drafters and targets run over tensors without values, and each kernel is compiled with the
arguments that they gave it, down to machine code. The assemblers say how many registers a thread
takes and how many bytes of it spill, and Triton how much memory the threads of a program share.
"""

from argparse import Namespace
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from frame import Result, print_table, run

from treesnake.testing.gpu_passes import kernel_calls
from treesnake.testing.triton_kernels import DEVICES, DeviceKind

DTYPE = torch.bfloat16


def measure(arguments: Namespace) -> Result:
    """Compiles every call for every device."""
    return {
        "triton": version("triton"),
        "dtype": str(DTYPE).removeprefix("torch."),
        "devices": {device.name: _compiled(device) for device in DEVICES},
    }


def _compiled(device: DeviceKind) -> list[dict[str, Any]]:
    return [
        {
            "kernel": call.name,
            "signature": dict(call.signature),
            "constants": dict(call.constants),
            "aligned": list(call.aligned),
            "options": dict(call.options),
            **asdict(call.compiled(device)),
        }
        for call in kernel_calls(DTYPE, device)
    ]


def show(result: Result) -> None:
    """Prints what the calls take, device by device."""
    for name, calls in result["devices"].items():
        fields = ("registers", "spilled_bytes", "shared_bytes")
        rows = [[call["kernel"], *(str(call[field]) for field in fields)] for call in calls]
        print_table(name, ["kernel", *(field.replace("_", " ") for field in fields)], rows)


if __name__ == "__main__":
    run(__doc__, measure, show=show)
