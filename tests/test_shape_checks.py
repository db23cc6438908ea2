"""While tests run, calls with wrong types or axes are refused."""

from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from treesnake.acceptance.residual import residual
from treesnake.draft import Draft
from treesnake.tree import TokenTree

A_NODE: Any = (TokenTree((0,), (-1,)), (False,))


@pytest.mark.parametrize(
    "draft_probs", [[[0.5, 0.5]], torch.ones(2), torch.ones(1, 2, dtype=torch.int64)]
)
def test_a_dataclass_takes_arrays_of_its_axes_and_dtype_alone(draft_probs: Any) -> None:
    tree, sampled_mask = A_NODE
    assert Draft(tree, torch.ones(1, 2), sampled_mask)
    with pytest.raises(TypeCheckError):
        Draft(tree, draft_probs, sampled_mask)


def test_a_function_takes_values_of_its_types_alone() -> None:
    wrong: Any = "0"
    with pytest.raises(TypeCheckError):
        Draft.nothing(wrong)


def test_axes_of_one_name_are_equally_long_within_a_call() -> None:
    assert residual(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])) is not None
    with pytest.raises(TypeCheckError):
        residual(torch.tensor([0.5, 0.5]), torch.tensor([1.0]))
