"""Memory."""

from dataclasses import dataclass, field
from mmap import PAGESIZE, mmap

import numpy as np
import pytest
import torch

from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.evaluation import memory
from treesnake.evaluation.memory import held_bytes, watch_memory_growth
from treesnake.prompt import Prompt

NUM_TOUCHED = 1 << 26


@dataclass
class Session:
    weights: list[torch.Tensor]
    rows: dict[str, object] = field(default_factory=dict)


Session.__module__ = "treesnake.something"


def test_bytes_count_once_and_weights_not_at_all() -> None:
    weights = [torch.zeros(100)]
    state = torch.zeros(10, 4)
    session = Session(weights, {"a": state, "b": state[2:], "c": np.zeros(5, np.int8)[1:]})
    assert held_bytes(session, weights) == 160 + 5
    assert held_bytes(session) == 400 + 160 + 5


def test_a_session_without_numbers_holds_none() -> None:
    session = NgramDrafterModel().new_session()
    session.prefill(Prompt((1, 2, 3)))
    assert held_bytes(session) == 0


@pytest.mark.skipif(not memory.PEAK_FILE.exists(), reason="only Linux tells the peak")
def test_growth_is_at_least_what_was_touched() -> None:
    # From the system itself: an allocator hands out again what was freed before.
    with mmap(-1, NUM_TOUCHED) as pages, watch_memory_growth(torch.device("cpu")) as growth:
        for start in range(0, NUM_TOUCHED, PAGESIZE):
            pages[start] = 1
    assert growth.num_bytes is not None
    assert growth.num_bytes > NUM_TOUCHED // 2


def test_growth_is_unknown_where_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_peak", lambda: False)
    with watch_memory_growth(torch.device("cpu")) as growth:
        pass
    assert growth.num_bytes is None
