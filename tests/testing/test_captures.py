"""The stand-ins for captures find what a CUDA graph would not do."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from treesnake.testing.captures import RecordedCapture, WatchedCapture

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_replay_reads_what_its_buffers_hold_now() -> None:
    inputs, kept = torch.tensor([1.0, 2.0]), torch.zeros(3, 2)
    rows = torch.tensor([1])

    def run() -> Tensor:
        total = inputs.clone()
        total.mul_(10)
        kept[rows] = total[None]
        return kept[1:].sum(0) + total.flip(0)[:1]

    replay = RecordedCapture()(run, CPU)
    for values, row in ([3.0, 4.0], 1), ([5.0, 6.0], 2), ([7.0, 8.0], 1):
        inputs.copy_(torch.tensor(values))
        rows.fill_(row)
        before = kept.clone()
        result = replay().clone()
        after = kept.clone()
        kept.copy_(before)
        assert torch.equal(result, run())
        assert torch.equal(after, kept)


def test_a_replay_overwrites_the_same_result() -> None:
    number = torch.tensor(4)
    replay = RecordedCapture()(lambda: number + 1, CPU)
    first = replay()
    number.fill_(8)
    assert replay() is first
    assert int(first) == 9


def test_a_number_that_python_read_stays_what_it_was() -> None:
    number = torch.tensor(4)
    replay = RecordedCapture()(lambda: torch.zeros(()) + number.item(), CPU)
    number.fill_(8)
    assert float(replay()) == 4


def test_watching_finds_who_waits_for_the_device() -> None:
    with FakeTensorMode():
        number = torch.zeros((), device=CUDA)
        with pytest.raises(DataDependentOutputException):
            WatchedCapture()(lambda: torch.zeros((), device=CUDA) + number.item(), CUDA)


def test_watching_finds_copies_between_devices() -> None:
    with FakeTensorMode():
        number, constant = torch.zeros((), device=CUDA), torch.ones(())
        for run in (lambda: number + constant, lambda: number + constant.to(CUDA)):
            with pytest.raises(AssertionError, match="moves between devices"):
                WatchedCapture()(run, CUDA)
