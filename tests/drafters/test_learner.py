"""A drafter learns what the target says, as far as it serves texts that it was not taught."""

import os
import random
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from treesnake.drafters.kept_output import KeptOutput
from treesnake.drafters.learner import (
    HELD_OUT_EVERY,
    PLACES_PER_UPDATE,
    Learner,
)
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.said_texts import SaidText, SameTokenReader
from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt
from treesnake.testing import RecurrentModel, TinyNetwork
from treesnake.testing.bigrams import BigramNetwork

SIZE = 20
LENGTH = 64
PER_UPDATE = PLACES_PER_UPDATE // LENGTH
UNLIMITED = 1e9


def learner_for(network: TinyNetwork, kept: KeptOutput | None = None) -> Learner:
    return Learner(SameTokenReader(NetworkDrafterModel(network)), kept, UNLIMITED)


def text_of(begin: int, step: int = 3) -> SaidText:
    """Returns a text in which each token is a number behind the one before it."""
    tokens = [(begin + step * number) % SIZE for number in range(LENGTH + 1)]
    shares = [{token: 1.0} for token in tokens[1:]]
    return SaidText(Prompt((tokens[0],)), tokens[:-1], shares, 1.0)


def noise(chance: random.Random) -> SaidText:
    tokens = [chance.randrange(SIZE) for _ in range(LENGTH + 1)]
    shares = [{token: 1.0} for token in tokens[1:]]
    return SaidText(Prompt((tokens[0],)), tokens[:-1], shares, 1.0)


def teach(learner: Learner, num_texts: int, seconds: float = 1.0) -> None:
    for number in range(num_texts):
        learner.add(text_of(number), seconds)
        learner.learn()


def test_what_the_target_says_becomes_what_is_drafted() -> None:
    network = BigramNetwork.of(SIZE)
    learner = learner_for(network)
    teach(learner, 2 * PER_UPDATE)
    assert (learner.report.num_updates, learner.report.num_kept) == (2, 2)
    assert learner.report.loss_after < learner.report.loss_before
    best = network.new_state().extend([5], [-1]).argmax()
    assert int(best) == 8


def test_nothing_is_learned_before_there_is_enough() -> None:
    network = BigramNetwork.of(SIZE)
    learner = learner_for(network)
    teach(learner, PER_UPDATE - 1)
    assert learner.report.num_updates == 0
    assert not network.model.table.any()
    teach(learner, 1)
    assert learner.report.num_updates == 1
    assert learner.report.num_places == PER_UPDATE * LENGTH


def test_steps_that_do_not_serve_held_out_texts_are_undone_and_become_smaller() -> None:
    network = BigramNetwork.of(SIZE)
    learner = learner_for(network)
    for number in range(1, PER_UPDATE + 1):
        learner.add(text_of(number, 7 if number % HELD_OUT_EVERY == 0 else 3), 1.0)
    learner.learn()
    assert (learner.report.num_updates, learner.report.num_kept) == (1, 0)
    assert learner.report.loss_after > learner.report.loss_before
    assert not network.model.table.any()


def test_a_text_of_chance_changes_little_or_nothing() -> None:
    network = BigramNetwork.of(SIZE)
    learner, chance = learner_for(network), random.Random(0)
    teach(learner, 3 * PER_UPDATE)
    for _ in range(2 * PER_UPDATE):
        learner.add(noise(chance), 1.0)
        learner.learn()
    assert learner.report.loss_after < 4.0  # nats; a layer that believed in chance would have more


def test_learning_waits_until_it_is_a_small_part_of_the_time() -> None:
    network = BigramNetwork.of(SIZE)
    learner = Learner(SameTokenReader(NetworkDrafterModel(network)), time_share=0.02)
    teach(learner, 4 * PER_UPDATE, seconds=0.0)
    assert learner.report.num_places == learner.report.learning_s == 0
    teach(learner, 1, seconds=1000.0)
    report = learner.report
    assert report.num_updates > 0
    assert report.learning_s <= 0.02 * report.decoding_s


class Clock:
    """Says that each slice takes a second, without the time that anything takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 0.5
        return self.seconds


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("treesnake.drafters.learner.perf_counter", lambda: 2 * clock())


@pytest.mark.usefixtures("slow")
def test_a_text_is_followed_by_slices_for_its_own_seconds_and_no_more() -> None:
    network = BigramNetwork.of(SIZE)
    learner = Learner(SameTokenReader(NetworkDrafterModel(network)), time_share=0.1)
    taken = [0.0]
    for number, decoding_s in enumerate((100.0, 25.0, 0.0, 0.0, 10.0, 5.0)):
        if number == 0:
            for begin in range(10):
                learner.add(text_of(begin), 0.0)  # there is more than can be learned from
        learner.add(text_of(number), decoding_s)
        learner.learn()
        taken.append(learner.report.learning_s)
    slices = [after - before for before, after in pairwise(taken)]
    assert slices == [10, 3, 0, 0, 1, 0]  # the second began a slice that the fourth paid for


@pytest.mark.usefixtures("slow")
def test_what_was_not_needed_is_not_saved_up() -> None:
    network = BigramNetwork.of(SIZE)
    learner = Learner(SameTokenReader(NetworkDrafterModel(network)), time_share=0.1)
    learner.add(text_of(0), 1000.0)
    learner.learn()
    before = learner.report.learning_s
    for number in range(10):
        learner.add(text_of(number), 0.0)
    learner.add(text_of(0), 20.0)
    learner.learn()
    assert learner.report.learning_s - before == 2


@pytest.mark.usefixtures("slow")
def test_an_update_in_slices_is_that_of_one_go() -> None:
    tables = []
    for share in (UNLIMITED, 1.0):
        network = BigramNetwork.of(SIZE)
        learner = Learner(SameTokenReader(NetworkDrafterModel(network)), time_share=share)
        for number in range(PER_UPDATE):
            learner.add(text_of(number), 1.0)
            learner.learn()
        while learner.report.num_updates == 0:
            learner.add(text_of(0), 1.0)
            learner.learn()
        tables.append(network.model.table)
    assert torch.equal(*tables)
    assert tables[0].any()


def test_nobody_waits_for_what_is_learned_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    network = BigramNetwork.of(SIZE)
    learner = learner_for(network)
    may_go_on = threading.Event()
    inner = network.hidden_states

    def held_up(token_ids: Sequence[int]) -> Iterator[Tensor]:
        may_go_on.wait()
        return inner(token_ids)

    monkeypatch.setattr(BigramNetwork, "hidden_states", lambda _, token_ids: held_up(token_ids))
    for number in range(PER_UPDATE):
        learner.add(text_of(number), 1.0)
        learner.learn_aside()
    assert learner.report.num_updates == 0
    may_go_on.set()
    learner.wait()
    learner.learn_aside()  # what was added after the thread had looked for the last time
    learner.wait()
    assert learner.report.num_updates == 1


def test_a_process_that_ends_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_for(BigramNetwork.of(SIZE))
    ended = threading.Thread()
    with monkeypatch.context() as patched:
        patched.setattr("threading.main_thread", lambda: ended)
        teach(learner, PER_UPDATE)
        assert learner.report.learning_s == 0
    learner.learn()
    assert learner.report.num_updates == 1


def test_a_child_begins_anew_what_its_parent_was_in_the_middle_of() -> None:
    network = BigramNetwork.of(SIZE)
    learner = learner_for(network)
    began, may_go_on = threading.Event(), threading.Event()
    learner.add(text_of(0), 1.0)
    learner._slices = held_up_slices(began, may_go_on)
    learner.learn_aside()
    began.wait()
    child = os.fork()
    if child == 0:
        try:
            teach(learner, PER_UPDATE)
            os._exit(learner.report.num_updates)
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    may_go_on.set()
    learner.wait()
    assert os.waitstatus_to_exitcode(status) == 1


def held_up_slices(began: threading.Event, may_go_on: threading.Event) -> Iterator[None]:
    began.set()
    may_go_on.wait()
    yield


def test_texts_that_there_is_no_time_for_are_soon_enough() -> None:
    learner = Learner(SameTokenReader(NetworkDrafterModel(BigramNetwork.of(SIZE))), time_share=0.02)
    for number in range(PER_UPDATE):
        assert not learner.has_enough
        learner.add(text_of(number), 0.0)
    assert learner.has_enough
    learner.add(None, 1e6)
    learner.learn()
    assert learner.report.num_updates == 1
    assert not learner.has_enough


def test_what_was_learned_goes_on_in_the_next_process(tmp_path: Path) -> None:
    made_from = {"target": "tiny"}
    first = BigramNetwork.of(SIZE)
    teach(learner_for(first, KeptOutput(tmp_path, made_from)), PER_UPDATE)
    second = BigramNetwork.of(SIZE)
    learner_for(second, KeptOutput(tmp_path, made_from))
    assert torch.allclose(second.model.table, first.model.table, atol=1e-2)
    assert first.model.table.any()


def test_texts_of_which_nothing_can_be_said_teach_nothing() -> None:
    network = BigramNetwork.of(SIZE)
    learner = learner_for(network)
    empty = SaidText(Prompt((1,)), [1] * LENGTH, [{}] * LENGTH, 1.0)
    for _ in range(PER_UPDATE):
        learner.add(empty, 1.0)
    learner.learn()
    assert learner.report.num_updates == 0
    assert learner.report.num_places == PER_UPDATE * LENGTH


def test_a_network_whose_output_layer_stays_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="the output layer of a TinyNetwork cannot"):
        learner_for(TinyNetwork(RecurrentModel(SIZE)))
