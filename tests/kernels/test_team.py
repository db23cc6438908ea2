"""A team of threads: every unit is done once, whoever calls, and nobody waits for a lost thread."""

import multiprocessing
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from treesnake.kernels.cpu.jit import entry_point
from treesnake.kernels.cpu.team import TEAM, ThreadTeam, finish_unit, next_unit, wait

NUM_UNITS = 7


@entry_point
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


def run(team: ThreadTeam, num_steps: int = 50) -> None:
    counts = np.zeros((num_steps, NUM_UNITS), np.int64)
    sums = np.zeros((num_steps, NUM_UNITS), np.int64)
    team.run(count, num_steps, num_steps, counts, sums)
    assert (counts == 1).all()
    assert (sums[1:] == NUM_UNITS).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_unit_is_done_once_and_after_those_of_the_step_before(threads: int) -> None:
    torch.set_num_threads(threads)
    team = ThreadTeam()
    for _ in range(20):
        run(team)


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


def test_an_interrupted_call_ends_its_work_before_the_error_is_seen() -> None:
    torch.set_num_threads(1)
    counts = np.zeros((1, NUM_UNITS), np.int64)
    interruptions = [KeyboardInterrupt()]

    def interrupted(*arguments: object) -> None:
        if interruptions:
            raise interruptions.pop()
        count(*arguments)

    with pytest.raises(KeyboardInterrupt):
        ThreadTeam().run(interrupted, 1, 1, counts, counts)
    assert (counts == 1).all()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_team_of_its_own() -> None:
    torch.set_num_threads(2)
    run(TEAM)
    child = multiprocessing.get_context("fork").Process(target=run, args=(TEAM,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
