"""The cache of captured passes: one a size, the latest ones, and none of what has moved."""

import copy

import pytest
import torch
from torch import Tensor

from treesnake.models.cuda_graphs import (
    ALIGNMENT,
    LARGEST_GRAPH,
    MOST_GRAPHS,
    GraphCache,
    PackedInputs,
)
from treesnake.testing.captures import RecordedCapture

CPU = torch.device("cpu")


@pytest.fixture
def recorder() -> RecordedCapture:
    return RecordedCapture()


@pytest.fixture
def graphs(recorder: RecordedCapture) -> GraphCache[int]:
    return GraphCache(recorder, "cpu")


def run(graphs: GraphCache[int], size: int, value: int, generation: int = 0) -> Tensor:
    told = {"value": torch.tensor(value)}
    return graphs.run(size, generation, told, lambda own: own["value"] + 1, CPU)


def test_a_pass_reads_what_it_is_told_this_time(graphs: GraphCache[int]) -> None:
    assert [int(run(graphs, 1, value)) for value in (4, 9, 0)] == [5, 10, 1]


def test_a_size_is_captured_once(graphs: GraphCache[int], recorder: RecordedCapture) -> None:
    for size in (1, 2, 1, 2, 3):
        run(graphs, size, size)
    assert recorder.num_captured == len(graphs) == 3


def test_the_inputs_of_a_caller_are_left_alone(graphs: GraphCache[int]) -> None:
    told = {"value": torch.tensor(4)}
    graphs.run(1, 0, told, lambda own: own["value"].add_(1), CPU)
    assert int(told["value"]) == 4


def test_the_graph_that_was_not_used_for_longest_goes_first(
    graphs: GraphCache[int], recorder: RecordedCapture
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
    graphs: GraphCache[int], recorder: RecordedCapture
) -> None:
    run(graphs, 1, 0)
    run(graphs, 2, 0)
    run(graphs, 1, 0, generation=1)
    assert (len(graphs), recorder.num_captured) == (1, 3)
    graphs.forget()
    run(graphs, 1, 0, generation=1)
    assert (len(graphs), recorder.num_captured) == (1, 4)


def test_a_copy_has_graphs_of_its_own(graphs: GraphCache[int], recorder: RecordedCapture) -> None:
    run(graphs, 1, 0)
    twin = copy.deepcopy(graphs)
    assert len(twin) == 0
    assert int(run(twin, 1, 7)) == 8
    assert recorder.num_captured == 2


def test_only_small_passes_on_the_right_device_are_captured() -> None:
    graphs: GraphCache[int] = GraphCache()
    cuda = torch.device("cuda")
    assert graphs.serves(cuda, LARGEST_GRAPH)
    assert not graphs.serves(cuda, LARGEST_GRAPH + 1)
    assert not graphs.serves(CPU, 1)


def test_packed_inputs_move_in_one_piece_and_keep_their_values() -> None:
    tensors = {
        "bools": torch.tensor([[True, False, True]]),
        "numbers": torch.tensor([3, -(2**40)]),
        "nothing": torch.zeros(0, 2),
        "small": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
    }
    packed = PackedInputs.packed(tensors)
    twin = packed.copied_to(CPU)
    packed.tensors["numbers"].zero_()
    for name, tensor in tensors.items():
        assert torch.equal(twin.tensors[name], tensor)
        assert twin.tensors[name].storage_offset() * tensor.element_size() % ALIGNMENT == 0
    twin.overwrite(packed)
    assert twin.tensors["numbers"].tolist() == [0, 0]
    assert torch.equal(twin.tensors["bools"], tensors["bools"])
