"""The gated delta rule in Triton against its readable reference."""

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor

from treesnake.kernels.reference import gated_delta as reference
from treesnake.states.tree_layout import tree_layout

HEADS, KEY_DIM, VALUE_DIM = 3, 12, 20
PARENTS = (-1, 0, 0, 1, 1, 2, -1, 6, 7)

each_kind_of_decay = pytest.mark.parametrize("decays", [1, KEY_DIM])


@pytest.fixture(scope="module")
def triton_form() -> ModuleType:
    return importlib.import_module("treesnake.kernels.triton.gated_delta")


def rows(count: int, decays: int, device: torch.device) -> list[Tensor]:
    """Draws query, key, value, log decay and beta."""
    random = torch.Generator().manual_seed(count)

    def draw(*axes: int) -> Tensor:
        return torch.randn(count, HEADS, *axes, generator=random)

    key = torch.nn.functional.normalize(draw(KEY_DIM), dim=-1)
    parts = draw(KEY_DIM), key, draw(VALUE_DIM), -draw(decays).exp(), 2 * draw().sigmoid()
    return [part.to(device) for part in parts]


def first_state(device: torch.device) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(HEADS, KEY_DIM, VALUE_DIM, generator=random).to(device)


@each_kind_of_decay
@pytest.mark.parametrize("num_tokens", [1, 70])
def test_a_text_equals_the_reference(
    triton_form: ModuleType, device: torch.device, num_tokens: int, decays: int
) -> None:
    given = rows(num_tokens, decays, device)
    for part, expected in zip(
        triton_form.scan(*given, first_state(device)),
        reference.scan(*given, first_state(device)),
        strict=True,
    ):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)


@each_kind_of_decay
@pytest.mark.parametrize("num_new", [1, 4, len(PARENTS)])
def test_a_tree_equals_the_reference(
    triton_form: ModuleType, device: torch.device, num_new: int, decays: int
) -> None:
    query, *moving = rows(len(PARENTS), decays, device)
    mask = tree_layout(PARENTS, 1, torch.device("cpu")).ancestor_mask.to(device)
    given = query[-num_new:], *moving, mask, first_state(device)
    torch.testing.assert_close(
        triton_form.extend_sums(*given), reference.extend_sums(*given), rtol=1e-4, atol=1e-4
    )


@each_kind_of_decay
def test_a_path_is_committed_as_by_the_reference(
    triton_form: ModuleType, device: torch.device, decays: int
) -> None:
    _, *moving = rows(5, decays, device)
    committed = first_state(device)
    moved = triton_form.commit_sums(*moving, committed)
    expected = reference.commit_sums(*moving, committed)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)
    assert committed.equal(first_state(device)), "the state is not moved in place"
