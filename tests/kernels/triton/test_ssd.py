"""The state space dual in Triton against its readable reference."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from treesnake.kernels.reference import ssd as reference
from treesnake.states.topology import topology

PARENTS = (-1, 0, 0, 1, 1, 2, 5, -1)


HEADS, HEAD_DIM, GROUPS, STATE_DIM = 4, 20, 2, 24


def random_case(device: torch.device, *batch: int) -> list[Tensor]:
    """Draws x, dt, A, B, C, D and a state."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    parts = [
        draw(*batch, HEADS, HEAD_DIM),
        F.softplus(draw(*batch, HEADS)),
        -torch.rand(HEADS, generator=random) * 8,
        draw(*batch, GROUPS, STATE_DIM),
        draw(*batch, GROUPS, STATE_DIM),
        draw(HEADS),
        draw(*batch[:-1], HEADS, HEAD_DIM, STATE_DIM),
    ]
    return [part.to(device) for part in parts]


@pytest.mark.parametrize("num_tokens", [1, 70])
def test_scans_equal_the_reference_and_so_do_their_gradients(
    ssd: ModuleType, device: torch.device, num_tokens: int
) -> None:
    leaves = [part.requires_grad_() for part in random_case(device, 2, num_tokens)]
    random = torch.Generator().manual_seed(1)
    probe = torch.randn(2, num_tokens, HEADS, HEAD_DIM, generator=random).to(device)
    results, grads = [], []
    for form in (ssd, reference):
        y, last = form.scan(*leaves)
        results.append((y, last))
        grads.append(torch.autograd.grad((y * probe).sum() + last.square().sum(), leaves))
    for part, expected in zip(*results, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)
    for grad, expected in zip(*grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_new", [1, 3, 8])
def test_state_copies_equal_the_reference(
    ssd: ModuleType, device: torch.device, num_new: int
) -> None:
    x, dt, A, B, C, D, committed = random_case(device, 8)
    new = slice(8 - num_new, None)
    parents = torch.tensor(PARENTS, device=device)
    results = []
    for form in (ssd, reference):
        states = torch.randn(8, *committed.shape, generator=torch.Generator().manual_seed(2))
        states = states.to(device)
        y = form.extend_copies(x[new], dt[new], A, B[new], C[new], D, committed, states, parents)
        results.append((y, states))
    for part, expected in zip(*results, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_new", [1, 8])
def test_path_sums_equal_the_reference(ssd: ModuleType, device: torch.device, num_new: int) -> None:
    x, dt, A, B, C, D, committed = random_case(device, 8)
    mask = topology(PARENTS, 4, device).ancestor_mask
    inputs = (x, dt, A, B, C[-num_new:], D, committed, mask)
    torch.testing.assert_close(
        ssd.extend_sums(*inputs), reference.extend_sums(*inputs), rtol=1e-4, atol=1e-4
    )


def test_commits_equal_the_reference(ssd: ModuleType, device: torch.device) -> None:
    x, dt, A, B, _, _, committed = random_case(device, 2, 3)
    layered = torch.stack([A, 2 * A])
    states = [committed.clone(), committed.clone()]
    for form, state in zip((ssd, reference), states, strict=True):
        form.commit_sums(x, dt, layered, B, state)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
