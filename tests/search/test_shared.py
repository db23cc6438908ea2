"""What every search promises to the texts that share it."""

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from treesnake.outcome import Acceptance, Step, StepSeconds
from treesnake.protocols import TreeSearch
from treesnake.search.by_name import SEARCHES, SELF_TUNING, search_by_name
from treesnake.shape import Shape
from treesnake.tree import TokenTree

EVERY_SEARCH = pytest.mark.parametrize("name", [SELF_TUNING, *SEARCHES, "chain(2)"])


def step_of(shape: Shape, chance: random.Random, clock: random.Random) -> Step:
    """A step that accepts and takes anything."""
    depth = min(shape.depth, 3)
    tree = TokenTree.of(range(1 + depth), range(-1, depth))
    path = tuple(range(1 + chance.randint(0, depth)))
    return Step(
        shape,
        tree,
        Acceptance(path, 9),
        (9,) * len(path),
        StepSeconds(clock.random() * depth, clock.random(), 0.0, 0.0),
        node_probs=(1.0, *[0.5] * depth),
        num_expanded=(1,) * depth,
    )


def play(session: TreeSearch, num_steps: int, *, seed: int, clock_seed: int = 0) -> list[Shape]:
    chance, clock = random.Random(seed), random.Random(clock_seed)
    shapes, length = [], 10
    for _ in range(num_steps):
        step = step_of(session.choose(length), chance, clock)
        session.observe(step)
        shapes.append(step.shape)
        length += len(step.emitted)
    return shapes


@pytest.fixture
def threads_that_interrupt_each_other() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@EVERY_SEARCH
@pytest.mark.usefixtures("threads_that_interrupt_each_other")
def test_sessions_of_one_search_run_in_many_threads(name: str) -> None:
    search = search_by_name(name)

    def run(seed: int) -> int:
        return sum(len(play(search.new_session(), 20, seed=seed)) for _ in range(3))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [60] * 8
