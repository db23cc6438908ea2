"""Comparisons of searches, and the files that they start from."""

import gzip
from pathlib import Path

import pytest

from treesnake.errors import LoadError
from treesnake.evaluation.simulation.comparison import (
    best_fixed,
    by_category,
    rate,
    relative_rate,
    run,
)
from treesnake.evaluation.simulation.machines import BIG_GPU, CPU
from treesnake.evaluation.simulation.replay import Replayed
from treesnake.evaluation.simulation.synthetic import synthetic_trace
from treesnake.evaluation.simulation.trace import read_traces, write_traces
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, chain

TRACES = [
    synthetic_trace(40, lambda chance: chance.random(), seed=seed, category="ab"[seed % 2])
    for seed in range(6)
]
SEARCHES = {"off": lambda: StaticSearch(OFF), "chain": lambda: StaticSearch(chain(2))}


def test_traces_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "traces.jsonl.gz"
    write_traces(path, TRACES)
    assert read_traces([path, path]) == TRACES * 2
    assert [each.name for each in path.parent.iterdir()] == [path.name]


NO_TRACES = (
    b"[" * 100_000,
    b"[]",
    b"{}",
    b'{"trees": [1], "ranks": []}',
    b'{"trees": [], "ranks": 1}',
)


@pytest.mark.parametrize(
    "content",
    # Processes that share the tests must find the same names, so no time may be in them.
    [None, b"text", b"\x1f\x8b broken", *(gzip.compress(each, mtime=0) for each in NO_TRACES)],
)
def test_what_holds_no_traces_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "traces.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match="holds no traces"):
        read_traces([path])


def test_a_made_up_drafter_is_right_as_often_as_it_says() -> None:
    trace = synthetic_trace(600, lambda _: 0.6, seed=1)
    assert trace.ranks.count(0) / len(trace) == pytest.approx(0.6, abs=0.06)
    useless = synthetic_trace(20, lambda _: 0.6, truth=0.0)
    assert set(useless.ranks) == {-1}
    assert {tree.path for tree in useless.trees} == {(0,)}


def test_every_search_gets_all_texts_on_the_same_machine() -> None:
    results = run(TRACES, SEARCHES, BIG_GPU)
    assert {name: len(replayed) for name, replayed in results.items()} == {"off": 6, "chain": 6}
    assert best_fixed(results, list(SEARCHES)) == "chain"
    assert best_fixed(run(TRACES, SEARCHES, CPU, noise=0.0), ["off"]) == "off"


def test_categories_are_told_apart() -> None:
    parts = by_category(TRACES, run(TRACES, SEARCHES, CPU))
    assert {name: len(results["off"]) for name, results in parts.items()} == {"a": 3, "b": 3}


def test_a_relative_rate_lies_in_its_interval() -> None:
    slow = [Replayed(10, seconds, 1) for seconds in (1.0, 2.0, 3.0, 4.0)]
    fast = [Replayed(10, each.seconds / 2, 1) for each in slow]
    same = relative_rate(slow, slow)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    double = relative_rate(fast, slow)
    assert double.value == pytest.approx(2.0)
    mixed = relative_rate([*fast[:2], *slow[2:]], slow)
    assert 1.0 <= mixed.low < mixed.value < mixed.high <= 2.0
    assert rate(slow) == pytest.approx(4.0)
