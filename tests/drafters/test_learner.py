"""A drafter learns what the target says, as far as it serves texts that it was not taught."""

import random
from pathlib import Path

import pytest
import torch

from treesnake.drafters.kept_output import KeptOutput
from treesnake.drafters.learner import (
    HELD_OUT_EVERY,
    MOST_WAITING,
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
        learner.learn_if_due()


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
    learner.learn_if_due()
    assert (learner.report.num_updates, learner.report.num_kept) == (1, 0)
    assert learner.report.loss_after > learner.report.loss_before
    assert not network.model.table.any()


def test_a_text_of_chance_changes_little_or_nothing() -> None:
    network = BigramNetwork.of(SIZE)
    learner, chance = learner_for(network), random.Random(0)
    teach(learner, 3 * PER_UPDATE)
    for _ in range(2 * PER_UPDATE):
        learner.add(noise(chance), 1.0)
        learner.learn_if_due()
    assert learner.report.loss_after < 4.0  # nats; a layer that believed in chance would have more


def test_learning_waits_until_it_is_a_small_part_of_the_time() -> None:
    network = BigramNetwork.of(SIZE)
    learner = Learner(SameTokenReader(NetworkDrafterModel(network)), time_share=0.02)
    teach(learner, 4 * PER_UPDATE, seconds=0.0)
    assert learner.report.num_updates == 0
    teach(learner, 1, seconds=1000.0)
    report = learner.report
    assert report.num_updates == 1
    assert report.learning_s <= 0.02 * report.decoding_s


def test_texts_that_wait_too_long_are_dropped_the_oldest_first() -> None:
    learner = Learner(SameTokenReader(NetworkDrafterModel(BigramNetwork.of(SIZE))), time_share=0.02)
    teach(learner, 3 * MOST_WAITING // LENGTH, seconds=0.0)
    learner.add(text_of(0), 1e6)
    num_updates = 0
    while learner.report.num_updates == num_updates:
        learner.learn_if_due()
        num_updates += 1
    assert learner.report.num_places <= MOST_WAITING + LENGTH


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
    learner.learn_if_due()
    assert learner.report.num_updates == 0
    assert learner.report.num_places == PER_UPDATE * LENGTH


def test_a_network_whose_output_layer_stays_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="the output layer of a TinyNetwork cannot"):
        learner_for(TinyNetwork(RecurrentModel(SIZE)))
