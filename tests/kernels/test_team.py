"""A team of threads: every unit is done once, whoever calls, and nobody waits for a lost thread."""

import multiprocessing
import threading
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numba.core.errors import NumbaError

from treesnake.kernels.cpu.team import TEAM, ThreadTeam, finish_unit, next_unit, together, wait

NUM_UNITS = 7


@together
def count(barrier: Any, num_steps: Any, counts: Any, sums: Any) -> None:
    """Counts how often each unit of each step is done, and what it sees of the step before."""
    step = 0
    for _ in range(num_steps):
        unit = next_unit(barrier, step)
        while unit < NUM_UNITS:
            counts[step, unit] += 1
            if step > 0:
                sums[step, unit] = counts[step - 1].sum()
            unit = finish_unit(barrier, step)
        step = wait(barrier, step, NUM_UNITS)


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(team: ThreadTeam, num_steps: int = 50, said: int | None = None) -> None:
    counts = np.zeros((num_steps, NUM_UNITS), np.int64)
    sums = np.zeros((num_steps, NUM_UNITS), np.int64)
    team.run(count, num_steps if said is None else said, num_steps, counts, sums)
    assert (counts == 1).all()
    assert (sums[1:] == NUM_UNITS).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_unit_is_done_once_and_after_those_of_the_step_before(threads: int) -> None:
    torch.set_num_threads(threads)
    team = ThreadTeam()
    for _ in range(20):
        run(team)


@pytest.mark.parametrize("num_steps", [51, 100])
def test_more_steps_than_a_call_says_are_an_error(num_steps: int) -> None:
    with pytest.raises(AssertionError, match="more steps than it says"):
        run(ThreadTeam(), num_steps, said=50)


def test_python_threads_may_call_at_the_same_time() -> None:
    torch.set_num_threads(2)
    failures: list[BaseException] = []

    def call() -> None:
        try:
            for _ in range(20):
                run(TEAM)
        except BaseException as error:  # noqa: BLE001 - to be seen by the test
            failures.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


def test_threads_that_never_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)

    def never(thread: threading.Thread) -> None:
        """Is called in place of what starts a thread."""

    monkeypatch.setattr(threading.Thread, "start", never)
    run(ThreadTeam())


def test_a_call_that_was_interrupted_before_it_began_was_never_begun() -> None:
    torch.set_num_threads(2)
    team, counts = ThreadTeam(), np.zeros((1, NUM_UNITS), np.int64)

    def interrupted(*_arguments: object) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        team.run(interrupted, 1, 1, counts, counts)
    run(team)
    assert not counts.any()


def test_threads_that_fell_asleep_are_woken() -> None:
    torch.set_num_threads(3)
    team = ThreadTeam()
    run(team)
    while not all(helper._is_asleep for helper in team._helpers):
        threading.Event().wait(0.001)
    for _ in range(5):
        run(team)


def test_what_a_call_was_given_is_let_go_once_nobody_is_inside() -> None:
    torch.set_num_threads(2)
    team = ThreadTeam()
    counts = np.zeros((1, NUM_UNITS), np.int64)
    watched = weakref.ref(counts)
    team.run(count, 1, 1, counts, counts)
    del counts
    while watched() is not None:  # one that was late keeps it until its slot serves another call
        run(team)


def test_short_calls_in_a_row_are_each_done_once() -> None:
    torch.set_num_threads(3)
    team = ThreadTeam()
    for _ in range(2000):  # threads come while calls open, run and close
        run(team, num_steps=1)


@together
def add_up(barrier: Any, numbers: Any, factor: Any, flag: Any, sums: Any) -> None:
    unit = next_unit(barrier, 0)
    while unit < NUM_UNITS:
        if flag:
            for index in range(numbers.a.shape[0]):
                sums[unit] += factor * (numbers.a[index] + numbers.b[index])
        unit = finish_unit(barrier, 0)
    wait(barrier, 0, NUM_UNITS)


class Numbers(NamedTuple):
    a: np.ndarray
    b: np.ndarray


def test_all_threads_are_given_the_same_arguments_whatever_their_types() -> None:
    torch.set_num_threads(3)
    team = ThreadTeam()
    for round_ in range(50):
        numbers = Numbers(np.arange(1000.0), np.ones(1000, np.float32))
        sums = np.zeros(NUM_UNITS)
        team.run(add_up, 1, numbers, np.float32(0.5), True, sums)
        assert (sums == 0.5 * (np.arange(1000).sum() + 1000)).all(), round_


def test_arguments_that_the_board_cannot_hold_are_refused() -> None:
    arrays = tuple(np.zeros(1) for _ in range(400))
    with pytest.raises(NumbaError, match="the arguments of a team's call take"):
        ThreadTeam().run(add_up, 1, Numbers(*arrays[:2]), 1.0, arrays, arrays[0])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_team_of_its_own() -> None:
    torch.set_num_threads(2)
    run(TEAM)
    child = multiprocessing.get_context("fork").Process(target=run, args=(TEAM,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
