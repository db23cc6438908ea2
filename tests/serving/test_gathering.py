"""States that share passes are states; texts that wait together run together."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from treesnake.clock import waited_s, work_clock
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.models.tree_network import Part
from treesnake.pairs import Pair
from treesnake.serving.gathering import DRAFTER, TARGET, GatheredNetwork, Gatherer, gathered
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing.networks import check_network
from treesnake.testing.tiny import AttentionModel, RecurrentModel, TinyNetwork


class CountingNetwork(TinyNetwork):
    """Notes how many texts each pass has."""

    def extend_all(self, parts):
        NOTED.append((self.model, len(parts)))
        return super().extend_all(parts)


NOTED: list[tuple[object, int]] = []


@pytest.fixture(autouse=True)
def nothing_noted() -> None:
    NOTED.clear()


@pytest.mark.parametrize("kind", [AttentionModel, RecurrentModel])
def test_a_gathered_network_is_a_network(kind: type) -> None:
    check_network(GatheredNetwork(TinyNetwork(kind(7)), Gatherer(), TARGET))


def test_a_lone_text_does_not_wait() -> None:
    gatherer = Gatherer()
    state = GatheredNetwork(TinyNetwork(RecurrentModel(7)), gatherer, TARGET).new_state()
    with gatherer.live():
        state.extend([1], [-1])
    assert (gatherer.num_passes, gatherer.num_parts) == (1, 1)


def test_texts_that_all_wait_share_a_pass_and_drafters_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("treesnake.serving.gathering.PATIENCE_S", 60.0)
    gatherer = Gatherer()
    slow, quick = CountingNetwork(AttentionModel(7)), CountingNetwork(RecurrentModel(7))
    target = GatheredNetwork(slow, gatherer, TARGET)
    drafter = GatheredNetwork(quick, gatherer, DRAFTER)
    states = [target.new_state() for _ in range(3)]
    with gatherer.live(3), ThreadPoolExecutor(3) as pool:
        logits = list(pool.map(lambda state: state.extend([1], [-1]), states))
    assert all((each == logits[0]).all() for each in logits)
    assert NOTED[0] == (slow.model, 3)
    states = [network.new_state() for network in (target, target, drafter, drafter)]
    with gatherer.live(2), ThreadPoolExecutor(4) as pool:
        with gatherer.live(2):
            asked = [pool.submit(state.extend, [1], [-1]) for state in states]
            # The others' turn comes once those that have ended do not count any more.
            for each in asked[2:]:
                each.result(timeout=60)
        for each in asked:
            each.result(timeout=60)
    assert NOTED[1:] == [(quick.model, 2), (slow.model, 2)]


def test_a_part_that_cannot_run_hurts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treesnake.serving.gathering.PATIENCE_S", 60.0)
    gatherer = Gatherer()
    network = GatheredNetwork(TinyNetwork(RecurrentModel(7)), gatherer, TARGET)
    right, wrong = network.new_state(), network.new_state()
    with gatherer.live(2), ThreadPoolExecutor(2) as pool:
        good, bad = pool.submit(right.extend, [1], [-1]), pool.submit(wrong.extend, [1], [5])
        with pytest.raises(InvalidInputError, match="cannot continue"):
            bad.result(timeout=60)
        assert good.result(timeout=60).shape == (1, 7)


def test_waiting_for_others_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treesnake.serving.gathering.PATIENCE_S", 60.0)
    gatherer = Gatherer()
    network = GatheredNetwork(TinyNetwork(RecurrentModel(7)), gatherer, TARGET)
    states = [network.new_state(), network.new_state()]
    begun = threading.Event()

    def timed() -> tuple[float, float]:
        work, waited = work_clock(), waited_s()
        begun.set()
        states[0].extend([1], [-1])
        return work_clock() - work, waited_s() - waited

    with gatherer.live(2), ThreadPoolExecutor(1) as pool:
        first = pool.submit(timed)
        assert begun.wait(timeout=60)
        states[1].extend([1], [-1])
        work_s, booked_s = first.result(timeout=60)
    assert work_s > 0
    assert booked_s > 0


def test_networks_of_a_pair_are_gathered_and_all_else_stays() -> None:
    network = TinyNetwork(RecurrentModel(7))
    lookup = NgramDrafterModel()
    pair = Pair(
        NetworkTargetModel(network), CompositeDrafterModel(NetworkDrafterModel(network), lookup)
    )
    found = gathered(pair, Gatherer())
    assert isinstance(found, Pair)
    assert isinstance(found.target, NetworkTargetModel)
    assert isinstance(found.target.network, GatheredNetwork)
    assert isinstance(found.drafter, CompositeDrafterModel)
    assert isinstance(found.drafter.first, NetworkDrafterModel)
    assert isinstance(found.drafter.first.network, GatheredNetwork)
    assert found.drafter.second is lookup
    other = Pair(found.target, lookup)
    assert gathered(other, Gatherer()).drafter is lookup  # pyrefly: ignore[missing-attribute]


def test_a_gathered_network_runs_parts_that_are_given_to_it() -> None:
    network = GatheredNetwork(TinyNetwork(RecurrentModel(7)), Gatherer(), TARGET)
    state = network.new_state()
    [logits] = network.extend_all([Part(state, [1], [-1])])
    assert logits.shape == (1, 7)
