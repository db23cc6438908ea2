"""Selective state space and state space dual: every form against the recurrence, step by step.

On a CPU only the scan of Mamba-1 is compiled for torch modules. All other compiled recurrences have
no form on tensors: packed networks run them, and tests/models/test_state_space_cpu.py compares
these with the torch modules.
"""

from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from treesnake.kernels.cpu import ssm as cpu_ssm
from treesnake.kernels.dispatch import SsmKernels
from treesnake.kernels.reference import ssd as reference_ssd
from treesnake.kernels.reference import ssm as reference_ssm
from treesnake.states.tree_layout import tree_layout

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    state: Tensor


@dataclass(frozen=True)
class Recurrence:
    """One of its forms, the readable one, and the axes of its inputs behind those of tokens."""

    form: SsmKernels
    reference: ModuleType
    x: tuple[int, ...]
    dt: tuple[int, ...]
    A: tuple[int, ...]
    B: tuple[int, ...]
    state: tuple[int, ...]

    def case(self, num_tokens: int, step_scale: float = 1.0) -> Case:
        random = torch.Generator().manual_seed(num_tokens)

        def draw(*axes: int) -> Tensor:
            return torch.randn(*axes, generator=random)

        return Case(
            x=draw(num_tokens, *self.x),
            dt=F.softplus(draw(num_tokens, *self.dt) * step_scale),
            A=-torch.rand(*self.A, generator=random) * 16,
            B=draw(num_tokens, *self.B),
            C=draw(num_tokens, *self.B),
            D=draw(*self.dt),
            state=draw(*self.state),
        )

    def run_path(self, case: Case, path: list[int]) -> tuple[Tensor, Tensor]:
        """Steps along some tokens; returns the last output and state."""
        y, state = torch.empty(0), case.state
        for token in path:
            y, state = self.reference.step(
                case.x[token], case.dt[token], case.A, case.B[token], case.C[token], case.D, state
            )
        return y, state


SSM = {"x": (20,), "dt": (20,), "A": (20, 16), "B": (16,), "state": (20, 16)}
SSD = {"x": (4, 10), "dt": (4,), "A": (4,), "B": (2, 24), "state": (4, 10, 24)}
RECURRENCES = {
    "ssm-reference": Recurrence(reference_ssm, reference_ssm, **SSM),
    "ssd-reference": Recurrence(reference_ssd, reference_ssd, **SSD),
}
SCANS = RECURRENCES | {"ssm-cpu": Recurrence(cpu_ssm, reference_ssm, **SSM)}
each_recurrence = pytest.mark.parametrize("recurrence", RECURRENCES.values(), ids=RECURRENCES)
each_scan = pytest.mark.parametrize("recurrence", SCANS.values(), ids=SCANS)


def path_to(node: int, parents: tuple[int, ...]) -> list[int]:
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def draw_tree(data: st.DataObject, max_nodes: int = 14) -> tuple[tuple[int, ...], int]:
    """Draws the parents of a tree, and how many of its last nodes are new."""
    num_nodes = data.draw(st.integers(1, max_nodes))
    parents = tuple(data.draw(st.integers(-1, node - 1)) for node in range(num_nodes))
    return parents, data.draw(st.integers(1, num_nodes))


def test_the_compiled_scan_is_a_form_of_its_own() -> None:
    assert cpu_ssm.scan is not reference_ssm.scan


@each_scan
@pytest.mark.parametrize("num_tokens", [1, 2, 31, 32, 33, 64, 65, 130])
def test_a_scan_equals_stepping(recurrence: Recurrence, num_tokens: int) -> None:
    """Texts end before, at and behind the ends of the chunks that the forms cut them into."""
    case = recurrence.case(num_tokens)
    y, state = recurrence.form.scan(case.x, case.dt, case.A, case.B, case.C, case.D, case.state)
    last = case.state
    for token in range(num_tokens):
        expected, last = recurrence.run_path(replace(case, state=last), [token])
        torch.testing.assert_close(y[token], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-4)


@each_scan
def test_a_scan_in_two_parts_equals_one(recurrence: Recurrence) -> None:
    case, scan = recurrence.case(100), recurrence.form.scan
    whole, last = scan(case.x, case.dt, case.A, case.B, case.C, case.D, case.state)
    state, parts = case.state, []
    for part in (slice(0, 45), slice(45, 100)):
        y, state = scan(
            case.x[part], case.dt[part], case.A, case.B[part], case.C[part], case.D, state
        )
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-4)


@each_scan
def test_large_steps_neither_overflow_nor_give_nans(recurrence: Recurrence) -> None:
    case = recurrence.case(64, step_scale=1e4)
    y, state = recurrence.form.scan(case.x, case.dt, case.A, case.B, case.C, case.D, case.state)
    assert y.isfinite().all()
    assert state.isfinite().all()


@each_scan
def test_a_batch_is_scanned_and_differentiated_as_its_members_are(recurrence: Recurrence) -> None:
    members = [recurrence.case(40), recurrence.case(41)]
    x, dt, B, C = (
        torch.stack([getattr(member, name)[:40] for member in members]).requires_grad_()
        for name in ("x", "dt", "B", "C")
    )
    A, D = members[0].A.requires_grad_(), members[0].D.requires_grad_()
    state = torch.stack([member.state for member in members]).requires_grad_()
    leaves = (x, dt, A, B, C, D, state)
    probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    y, last = recurrence.form.scan(*leaves)
    grads = torch.autograd.grad((y * probe).sum() + last.square().sum(), leaves)

    outputs, running = [], state
    for token in range(40):
        stepped, running = recurrence.reference.step(
            x[:, token], dt[:, token], A, B[:, token], C[:, token], D, running
        )
        outputs.append(stepped)
    expected = torch.stack(outputs, dim=1)
    expected_grads = torch.autograd.grad((expected * probe).sum() + running.square().sum(), leaves)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-3)


@each_recurrence
@given(data=st.data())
def test_state_copies_equal_stepping_each_path(recurrence: Recurrence, data: st.DataObject) -> None:
    parents, num_new = draw_tree(data)
    num_nodes = len(parents)
    case = recurrence.case(num_nodes)
    states = torch.full((num_nodes, *case.state.shape), float("nan"))
    for node in range(num_nodes - num_new):
        states[node] = recurrence.run_path(case, path_to(node, parents))[1]
    new = slice(num_nodes - num_new, None)
    y = recurrence.form.extend_copies(
        case.x[new],
        case.dt[new],
        case.A,
        case.B[new],
        case.C[new],
        case.D,
        case.state,
        states,
        torch.tensor(parents),
    )
    for row, node in enumerate(range(num_nodes - num_new, num_nodes)):
        expected, state = recurrence.run_path(case, path_to(node, parents))
        torch.testing.assert_close(y[row], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states[node], state, rtol=1e-4, atol=1e-4)


@each_recurrence
@given(data=st.data())
def test_path_sums_equal_stepping_each_path(recurrence: Recurrence, data: st.DataObject) -> None:
    parents, num_new = draw_tree(data)
    num_nodes, form = len(parents), recurrence.form
    case = recurrence.case(num_nodes)
    mask = tree_layout(parents, 4, CPU).ancestor_mask
    new_C = case.C[num_nodes - num_new :]
    y = form.extend_sums(case.x, case.dt, case.A, case.B, new_C, case.D, case.state, mask)
    for row, node in enumerate(range(num_nodes - num_new, num_nodes)):
        path = path_to(node, parents)
        expected, state = recurrence.run_path(case, path)
        torch.testing.assert_close(y[row], expected, rtol=1e-4, atol=1e-4)
        committed = case.state[None].clone()
        form.commit_sums(
            case.x[None, path], case.dt[None, path], case.A[None], case.B[None, path], committed
        )
        torch.testing.assert_close(committed[0], state, rtol=1e-4, atol=1e-4)


@each_recurrence
def test_path_sums_do_not_overflow_across_branches(recurrence: Recurrence) -> None:
    """The decay from a node to one on another branch has no bound; it must never be computed."""
    case = recurrence.case(3)
    steps = torch.tensor([[0.1], [1e3], [0.1]]).expand(case.dt.shape).contiguous()
    mask = tree_layout((-1, 0, 0), 4, CPU).ancestor_mask
    y = recurrence.form.extend_sums(case.x, steps, case.A, case.B, case.C, case.D, case.state, mask)
    assert y.isfinite().all()
