"""Stacks of matrices: floats, and integers in groups, each layer with a form of its own."""

import numpy as np
import pytest
import torch

from treesnake.kernels.cpu.grouped import BLOCK, BLOCK_OUTPUTS, PLAIN_BLOCK, widen_output
from treesnake.kernels.cpu.jit import entry_point
from treesnake.kernels.grouped_weight import GroupedWeight
from treesnake.kernels.matrices import INT4, round_to_groups
from treesnake.models.weight_stack import count_bytes, new_stack, write_parts


@entry_point
def _widen(blocks, width, out):
    for output in range(out.shape[0]):
        widen_output(blocks, output, width, out, output)


def widened(blocks: np.ndarray, outputs: int, inputs: int) -> np.ndarray:
    out = np.zeros((outputs, inputs), np.float32)
    _widen(blocks, inputs, out)
    return out


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [INT4, torch.int8])
def test_floats_become_groups_of_the_width_asked_for(dtype: torch.dtype) -> None:
    weight, bits = normal(37, 70), 4 if dtype == INT4 else 8
    stack = new_stack(1, 37, 70, dtype)
    stack.write(0, weight)
    expected = round_to_groups(weight, bits).to_floats()[:, :70]
    assert np.array_equal(widened(stack.array[0], 37, 70), expected)


def test_parts_of_a_matrix_keep_forms_of_their_own() -> None:
    random = np.random.default_rng(0)
    values = random.integers(-32, 32, (BLOCK_OUTPUTS, 64)).astype(np.int8)
    six_bits = GroupedWeight(
        6, values, random.standard_normal((BLOCK_OUTPUTS, 4)).astype(np.float16)
    )
    minimums = random.standard_normal((BLOCK_OUTPUTS, 2)).astype(np.float16)
    scales = random.standard_normal((BLOCK_OUTPUTS, 2)).astype(np.float16)
    parts = [
        round_to_groups(normal(BLOCK_OUTPUTS, 64), 4),
        six_bits,
        GroupedWeight(5, values & 31, scales, minimums),
        GroupedWeight(5, values >> 1, scales),
        normal(7, 64),
    ]
    outputs = 4 * BLOCK_OUTPUTS + 7
    stack = new_stack(2, outputs, 64, torch.int8)
    write_parts(stack, 1, parts)
    floats = [part.to_floats() for part in parts[:4]] + [round_to_groups(parts[4], 8).to_floats()]
    assert len(set(stack.array[1]["form"])) == 5
    assert np.array_equal(widened(stack.array[1], outputs, 64), np.concatenate(floats))


def test_tables_without_planes_are_told_by_their_type() -> None:
    stack = new_stack(1, 2 * BLOCK_OUTPUTS, 64, torch.int8)
    stack.write(0, round_to_groups(normal(BLOCK_OUTPUTS, 64), 4))
    stack.write(0, normal(BLOCK_OUTPUTS, 64), BLOCK_OUTPUTS)
    assert stack.array.dtype == PLAIN_BLOCK
    values = np.zeros((BLOCK_OUTPUTS, 64), np.int8)
    stack.write(0, GroupedWeight(6, values, np.ones((BLOCK_OUTPUTS, 4), np.float16)))
    assert stack.array.dtype == BLOCK


def test_grouped_weights_can_be_asked_for_as_floats() -> None:
    weight = round_to_groups(normal(5, 40), 4)
    stack = new_stack(1, 5, 40, torch.float32)
    stack.write(0, weight)
    assert np.array_equal(stack.array[0, :, :40], weight.to_floats()[:, :40])
    assert not stack.array[0, :, 40:].any()


def test_bytes_are_those_of_the_integers_their_scales_and_each_array_once() -> None:
    stack = new_stack(1, 32, 64, INT4)
    stack.write(0, normal(32, 64))
    packed = 32 * (64 // 2 + 2 * 2 * 2)
    assert stack.num_bytes == packed
    floats = new_stack(1, 2, 16, torch.float16)
    vector = np.zeros(3, np.float32)
    assert (
        count_bytes([stack, floats, stack], [stack.array[0], floats.array, vector])
        == packed + 64 + 12
    )
