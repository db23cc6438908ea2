"""Selective state space and state space dual in Triton against their readable references."""

import importlib
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from treesnake.kernels.reference import ssd, ssm
from treesnake.kernels.tree_rows import TreeRows
from treesnake.states.tree_layout import RowsSize, tree_layout, tree_rows

CPU = torch.device("cpu")


def two_trees(num_new: int, device: torch.device) -> TreeRows:
    """Two trees in three slots of nine rows; the second tree is smaller, and never all new."""
    layouts = [tree_layout(parents, 4, CPU) for parents in ((-1, 0, 0, 1, 1, 2, 5, -1), (-1, 0, 1))]
    new = tree_rows(
        layouts, [num_new, min(num_new, 2)], [2, 0], RowsSize(2, num_new, nodes=8), spare_row=8
    )
    return TreeRows(**{name: rows.to(device) for name, rows in vars(new).items()})


@dataclass(frozen=True)
class Recurrence:
    """A recurrence by its name, and the axes of its inputs behind those of tokens."""

    name: str
    reference: ModuleType
    x: tuple[int, ...]
    dt: tuple[int, ...]
    A: tuple[int, ...]
    B: tuple[int, ...]
    state: tuple[int, ...]

    @property
    def forms(self) -> tuple[ModuleType, ModuleType]:
        """The form in Triton and the readable one."""
        return importlib.import_module(f"treesnake.kernels.triton.{self.name}"), self.reference

    def case(self, device: torch.device, *batch: int) -> list[Tensor]:
        """Draws x, dt, A, B, C, D and a state."""
        random = torch.Generator().manual_seed(0)

        def draw(*axes: int) -> Tensor:
            return torch.randn(axes, generator=random)

        parts = [
            draw(*batch, *self.x),
            F.softplus(draw(*batch, *self.dt)),
            -torch.rand(self.A, generator=random) * 8,
            draw(*batch, *self.B),
            draw(*batch, *self.B),
            draw(*self.dt),
            draw(*batch[:-1], *self.state),
        ]
        return [part.to(device) for part in parts]


RECURRENCES = [
    Recurrence("ssm", ssm, x=(36,), dt=(36,), A=(36, 10), B=(10,), state=(36, 10)),
    Recurrence("ssd", ssd, x=(4, 20), dt=(4,), A=(4,), B=(2, 24), state=(4, 20, 24)),
]
each_recurrence = pytest.mark.parametrize("recurrence", RECURRENCES, ids=lambda each: each.name)


@each_recurrence
@pytest.mark.parametrize("num_tokens", [1, 70])
def test_scans_equal_the_reference_and_so_do_their_gradients(
    recurrence: Recurrence, device: torch.device, num_tokens: int
) -> None:
    leaves = [part.requires_grad_() for part in recurrence.case(device, 2, num_tokens)]
    probe = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(1)).to(device)
    results, grads = [], []
    for form in recurrence.forms:
        y, last = form.scan(*leaves)
        results.append((y, last))
        grads.append(torch.autograd.grad((y * probe).sum() + last.square().sum(), leaves))
    for part, expected in zip(*results, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)
    for grad, expected in zip(*grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-3)


@each_recurrence
@pytest.mark.parametrize("num_new", [1, 3, 8])
def test_state_copies_equal_the_reference(
    recurrence: Recurrence, device: torch.device, num_new: int
) -> None:
    new = two_trees(num_new, device)
    x, dt, A, B, C, D, _ = recurrence.case(device, 2, num_new)
    results = []
    for form in recurrence.forms:
        random = torch.Generator().manual_seed(2)
        committed = torch.randn(3, *recurrence.state, generator=random).to(device)
        states = torch.randn(3, 9, *recurrence.state, generator=random).to(device)
        y = form.extend_copies(x, dt, A, B, C, D, committed, states, new)
        results.append((y, states))
    for part, expected in zip(*results, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)


@each_recurrence
@pytest.mark.parametrize("num_new", [1, 8])
def test_path_sums_equal_the_reference(
    recurrence: Recurrence, device: torch.device, num_new: int
) -> None:
    new = two_trees(num_new, device)
    x, dt, A, B, C, D, committed = recurrence.case(device, 3, 9)
    C = C[:2, :num_new]
    y, expected = (form.extend_sums(x, dt, A, B, C, D, committed, new) for form in recurrence.forms)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@each_recurrence
def test_commits_equal_the_reference(recurrence: Recurrence, device: torch.device) -> None:
    x, dt, A, B, _, _, committed = recurrence.case(device, 2, 3)
    layered = torch.stack([A, 2 * A])
    states = [committed.clone(), committed.clone()]
    for form, state in zip(recurrence.forms, states, strict=True):
        form.commit_sums(x, dt, layered, B, state)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
