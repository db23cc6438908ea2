"""The cache of captured passes: one a size, the latest ones, and none of what has moved."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from treesnake.models.cuda_graphs import LARGEST_GRAPH, MOST_GRAPHS, GraphCache
from treesnake.testing.captures import RecordedCapture

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Number:
    """The inputs of a pass that adds one."""

    value: Tensor

    def copied_to(self, device: torch.device) -> "Number":
        return Number(self.value.to(device, copy=True))

    def overwrite(self, other: "Number") -> None:
        self.value.copy_(other.value)


@pytest.fixture
def recorder() -> RecordedCapture:
    return RecordedCapture()


@pytest.fixture
def graphs(recorder: RecordedCapture) -> GraphCache[int, Number]:
    return GraphCache(recorder, "cpu")


def run(graphs: GraphCache[int, Number], size: int, value: int, generation: int = 0) -> Tensor:
    number = Number(torch.tensor(value))
    return graphs.run(size, generation, number, lambda own: own.value + 1, CPU)


def test_a_pass_reads_what_it_is_told_this_time(graphs: GraphCache[int, Number]) -> None:
    assert [int(run(graphs, 1, value)) for value in (4, 9, 0)] == [5, 10, 1]


def test_a_size_is_captured_once(
    graphs: GraphCache[int, Number], recorder: RecordedCapture
) -> None:
    for size in (1, 2, 1, 2, 3):
        run(graphs, size, size)
    assert recorder.num_captured == len(graphs) == 3


def test_the_inputs_of_a_caller_are_left_alone(graphs: GraphCache[int, Number]) -> None:
    number = Number(torch.tensor(4))
    graphs.run(1, 0, number, lambda own: own.value.add_(1), CPU)
    assert int(number.value) == 4


def test_the_graph_that_was_not_used_for_longest_goes_first(
    graphs: GraphCache[int, Number], recorder: RecordedCapture
) -> None:
    for size in range(MOST_GRAPHS):
        run(graphs, size, 0)
    run(graphs, 0, 0)
    run(graphs, MOST_GRAPHS, 0)
    assert recorder.num_captured - 1 == len(graphs) == MOST_GRAPHS
    run(graphs, 0, 0)
    assert recorder.num_captured == MOST_GRAPHS + 1
    run(graphs, 1, 0)
    assert recorder.num_captured == MOST_GRAPHS + 2


def test_graphs_of_what_has_moved_are_forgotten(
    graphs: GraphCache[int, Number], recorder: RecordedCapture
) -> None:
    run(graphs, 1, 0)
    run(graphs, 2, 0)
    run(graphs, 1, 0, generation=1)
    assert (len(graphs), recorder.num_captured) == (1, 3)
    graphs.forget()
    run(graphs, 1, 0, generation=1)
    assert (len(graphs), recorder.num_captured) == (1, 4)


def test_a_copy_has_graphs_of_its_own(
    graphs: GraphCache[int, Number], recorder: RecordedCapture
) -> None:
    run(graphs, 1, 0)
    twin = copy.deepcopy(graphs)
    assert len(twin) == 0
    assert int(run(twin, 1, 7)) == 8
    assert recorder.num_captured == 2


def test_only_small_passes_on_the_right_device_are_captured() -> None:
    graphs: GraphCache[int, Number] = GraphCache()
    cuda = torch.device("cuda")
    assert graphs.serves(cuda, LARGEST_GRAPH)
    assert not graphs.serves(cuda, LARGEST_GRAPH + 1)
    assert not graphs.serves(CPU, 1)
