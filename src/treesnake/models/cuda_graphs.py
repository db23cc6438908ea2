"""CUDA graphs: a pass that is captured once and replayed without Python between its kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

Pass = Callable[[], Tensor]
"""Reads and writes tensors at addresses that stay, and never waits for the device."""


def capture(run: Pass, device: torch.device) -> Pass:
    """Captures a pass and returns its replay, whose result the next replay overwrites.

    The pass runs once before; the capture itself computes nothing.
    """
    # Libraries choose algorithms and allocate at their first calls, which cannot be captured.
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
