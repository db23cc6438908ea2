"""Matrix products: each form against the definition, and the same bits for any number of rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.cpu.jit import entry_point
from treesnake.kernels.cpu.linear import REPLACE, TILES, linear_rows, padded_rows
from treesnake.kernels.reference import linear as reference
from treesnake.models.weight_stack import WeightStack, new_stack

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@entry_point
def _linear(x, num_rows, values, out):
    linear_rows(x, num_rows, values, 0, values.shape[0], out, REPLACE)


def linear(x: Float[Tensor, "rows inputs"], weight: WeightStack) -> Float[Tensor, "rows outputs"]:
    (num_rows, num_inputs), (outputs, width) = x.shape, weight.array[0].shape
    inputs = np.zeros((padded_rows(num_rows), width), np.float32)
    inputs[:num_rows, :num_inputs] = x.numpy()
    out = np.empty((len(inputs), outputs), np.float32)
    _linear(inputs, num_rows, weight.array[0], out)
    return torch.from_numpy(out[:num_rows])


def packed(weight: Float[Tensor, "outputs inputs"], dtype: torch.dtype) -> WeightStack:
    stack = new_stack(1, *weight.shape, dtype)
    stack.write(0, weight)
    return stack


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (7, 16), (50, 100), (200, 17)])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 29])
def test_products_are_those_of_the_rounded_weight(
    dtype: torch.dtype, outputs: int, inputs: int, rows: int
) -> None:
    random = torch.Generator().manual_seed(outputs + rows)
    x = torch.randn(rows, inputs, generator=random)
    weight = torch.randn(outputs, inputs, generator=random)
    expected = reference.linear(x, weight.to(dtype))
    result = linear(x, packed(weight, dtype))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30)
@given(num_rows=st.integers(1, 64), begin=st.integers(0, 63), seed=st.integers(0, 2**31))
def test_the_bits_of_a_row_do_not_depend_on_the_others(
    dtype: torch.dtype, num_rows: int, begin: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 96, generator=random)
    weight = packed(torch.randn(53, 96, generator=random), dtype)
    together = linear(x, weight)
    assert torch.equal(linear(x[begin : begin + num_rows], weight), together[begin:][:num_rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_an_output_do_not_depend_on_the_others(dtype: torch.dtype) -> None:
    x, weight = torch.randn(11, 80), torch.randn(61, 80)
    together = linear(x, packed(weight, dtype))
    for begin, end in [(0, 1), (3, 50), (60, 61)]:
        some = linear(x, packed(weight[begin:end], dtype))
        assert torch.equal(some, together[:, begin:end])


@pytest.mark.parametrize("dtype", DTYPES)
def test_broken_numbers_stay_in_their_row(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 32), packed(torch.randn(6, 32), dtype)
    whole = linear(x, weight)
    x[2, 3] = torch.nan
    broken = linear(x, weight)
    assert broken[2].isnan().all()
    kept = [0, 1, 3, 4]
    assert torch.equal(broken[kept], whole[kept])


def test_rows_for_whole_tiles_are_enough_and_few() -> None:
    for num_rows in range(1, 100):
        assert num_rows <= padded_rows(num_rows) < num_rows + TILES[0][0]
