"""CUDA graphs: passes that are captured once and replayed without Python between their kernels.

A graph reads its inputs at addresses of its own, and storage that many texts share. So there is one
graph for each size of a pass, whichever texts take part in it. Targets and drafters keep their
graphs in the same kind of cache.

Source: Mamba Drafters (Choi et al. 2025), "graph caching".
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from treesnake.threads import new_lock

MOST_GRAPHS = 128
"""Graphs of one network; the one that was not used for longest goes first."""

LARGEST_GRAPH = 256
"""Nodes of all slots together; larger passes have enough work to hide what launching it costs."""

Pass = Callable[[], Tensor]
"""Reads and writes tensors at addresses that stay, and never waits for the device."""

Capture = Callable[[Pass, torch.device], Pass]
"""Makes a replay of a pass."""

_ONE_CAPTURE = new_lock()


def capture(run: Pass, device: torch.device) -> Pass:
    """Captures a pass and returns its replay, whose result the next replay overwrites.

    The pass runs once before; the capture itself computes nothing.
    """
    side = torch.cuda.Stream(device)
    graph = torch.cuda.CUDAGraph()
    # A capture begins by waiting for the whole device, which would end that of another thread.
    with _ONE_CAPTURE:
        # Libraries choose algorithms and allocate at their first calls, which cannot be captured.
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream(device).wait_stream(side)
        # Other threads go on with their passes meanwhile, and may allocate.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


Size = TypeVar("Size", bound=Hashable)

ALIGNMENT = 16
"""Bytes; kernels read what is so aligned in fewer instructions."""


@dataclass(frozen=True, eq=False)
class PackedInputs:
    """Tensors that lie in one block of memory, so that one copy moves them all.

    Attributes:
        block: the memory.
        tensors: parts of it, by name.
    """

    block: UInt8[Tensor, " bytes"]
    tensors: Mapping[str, Tensor]

    @classmethod
    def packed(cls, tensors: Mapping[str, Tensor]) -> "PackedInputs":
        """Returns copies of tensors of a host, in memory from which a GPU copies by itself."""
        num_bytes = sum(_room(tensor) for tensor in tensors.values())
        block = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        packed = cls(block, _parts(block, tensors))
        for name, tensor in tensors.items():
            packed.tensors[name].copy_(tensor)
        return packed

    def copied_to(self, device: torch.device) -> "PackedInputs":
        """Returns a copy on a device, at addresses of its own."""
        block = self.block.to(device, copy=True, non_blocking=True)
        return PackedInputs(block, _parts(block, self.tensors))

    def overwrite(self, other: "PackedInputs") -> None:
        """Takes the values of other inputs of the same size, wherever these are."""
        self.block.copy_(other.block, non_blocking=True)


def _parts(block: UInt8[Tensor, " bytes"], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns parts of a block in the form of some tensors."""
    parts: dict[str, Tensor] = {}
    begin = 0
    for name, tensor in tensors.items():
        part = block[begin : begin + tensor.nbytes].view(tensor.dtype)
        parts[name] = part.view(tensor.shape)
        begin += _room(tensor)
    return parts


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


Step = Callable[[Mapping[str, Tensor]], Tensor]
"""A pass, given what it is told in tensors whose shapes follow from its size."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured pass and the inputs that it reads."""

    inputs: PackedInputs
    replay: Pass


class GraphCache(Generic[Size]):
    """The passes of one network that were captured, by their sizes.

    Only one thread at a time may use it.

    Args:
        capture: how a pass is captured; another one than of CUDA graphs is for tests.
        device_type: where it is.
    """

    def __init__(self, capture: Capture = capture, device_type: str = "cuda") -> None:
        self._capture = capture
        self._device_type = device_type
        self._graphs: dict[Size, Graph] = {}
        self._generation = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphCache[Size]":
        """Returns one without graphs, which read the weights that they were captured from."""
        return GraphCache(self._capture, self._device_type)

    def serves(self, device: torch.device, num_nodes: int) -> bool:
        """Tells whether a pass with so many nodes in all its slots is worth a graph."""
        return device.type == self._device_type and num_nodes <= LARGEST_GRAPH

    def run(
        self,
        size: Size,
        generation: int,
        inputs: Mapping[str, Tensor],
        step: Step,
        device: torch.device,
    ) -> Tensor:
        """Runs a pass, which is captured if its size is new; the next pass overwrites the result.

        Args:
            size: what the shapes of all tensors in the pass follow from.
            generation: how often the storage moved that the pass reads and writes beside its
                inputs. Graphs of another generation are forgotten.
            inputs: what the pass is told this time, on the host.
            step: the pass. It may run more than once with the same inputs.
            device: where it runs.
        """
        if generation != self._generation:
            self.forget()
            self._generation = generation
        packed = PackedInputs.packed(inputs)
        graph = self._graphs.pop(size, None) or self._captured(packed, step, device)
        self._graphs[size] = graph
        if len(self._graphs) > MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        graph.inputs.overwrite(packed)
        return graph.replay()

    def forget(self) -> None:
        """Drops all graphs, because what they read has moved."""
        self._graphs.clear()

    def _captured(self, inputs: PackedInputs, step: Step, device: torch.device) -> Graph:
        own = inputs.copied_to(device)
        return Graph(own, self._capture(lambda: step(own.tensors), device))
