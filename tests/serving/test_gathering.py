"""States that share passes are states; texts that wait together run together."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from treesnake.clock import num_sharing, waited_s, work_clock
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.mixture import MixtureDrafterModel, Stream
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.text import TextDrafterModel, Translation
from treesnake.errors import InvalidInputError
from treesnake.models.tree_network import Part
from treesnake.pairs import Pair, SelfPair
from treesnake.pauses import pause
from treesnake.prompt import Prompt
from treesnake.serving import gathering
from treesnake.serving.gathering import (
    DRAFTER,
    TARGET,
    GatheredNetwork,
    Gatherer,
    PassCosts,
    TextGivenUpError,
    gathered,
)
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing.networks import check_network
from treesnake.testing.tiny import AttentionModel, RecurrentModel, TinyNetwork
from treesnake.testing.tokenizers import byte_level


class CountingNetwork(TinyNetwork):
    """Notes how many texts each pass has."""

    def extend_all(self, parts):
        NOTED.append((self.model, len(parts)))
        return super().extend_all(parts)


NOTED: list[tuple[Any, int]] = []


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


def gathered_runs(gatherer: Gatherer, runs: Sequence[Callable[[], Any]]) -> list[Future[Any]]:
    """Runs functions as live texts that all are there before the first one gets its turn."""

    def live(run: Callable[[], Any]) -> Any:
        with gatherer.live():
            return run()

    with ThreadPoolExecutor(len(runs)) as pool, gatherer.live():
        results = [pool.submit(live, run) for run in runs]
        while gatherer.num_waiting < len(runs):
            assert not any(result.done() for result in results)
    return results


def test_texts_that_all_wait_share_a_pass_and_drafters_go_first() -> None:
    gatherer = Gatherer()
    slow, quick = CountingNetwork(AttentionModel(7)), CountingNetwork(RecurrentModel(7))
    target = GatheredNetwork(slow, gatherer, TARGET)
    drafter = GatheredNetwork(quick, gatherer, DRAFTER)
    networks = (target, drafter, target, drafter)
    states = [network.new_state() for network in networks]
    results = gathered_runs(gatherer, [partial(state.extend, [1], [-1]) for state in states])
    assert all(result.result().shape == (1, 7) for result in results)
    assert [(quick.model, 2), (slow.model, 2)] == NOTED
    assert (gatherer.num_passes, gatherer.num_parts) == (2, 4)


def test_texts_that_draft_meet_the_others_in_the_targets_pass() -> None:
    gatherer = Gatherer()
    slow, quick = CountingNetwork(AttentionModel(7)), CountingNetwork(RecurrentModel(7))
    target = GatheredNetwork(slow, gatherer, TARGET)
    drafter = GatheredNetwork(quick, gatherer, DRAFTER)

    def step(num_levels: int) -> None:
        draft, score = drafter.new_state(), target.new_state()
        for level in range(num_levels):
            draft.extend([1], [level - 1])
        score.extend([1], [-1])

    for result in gathered_runs(gatherer, [partial(step, levels) for levels in (0, 1, 3)]):
        result.result()
    assert [(quick.model, 2), (quick.model, 1), (quick.model, 1), (slow.model, 3)] == NOTED


class ReadingNetwork(TinyNetwork):
    """Reads prompts token by token, and notes whose token it reads."""

    def new_state(self) -> Any:
        state = super().new_state()
        prefill = state.prefill

        def read(prompt: Prompt) -> None:
            for length in range(2, len(prompt) + 1):
                pause()
                NOTED.append((prompt.token_ids[0], length))
                prefill(Prompt(prompt.token_ids[:length]))

        state.prefill = read  # type: ignore[method-assign]
        return state

    def extend_all(self, parts):
        NOTED.append(("pass", len(parts)))
        return super().extend_all(parts)


def test_prompts_are_read_by_turns_and_others_go_on_in_between() -> None:
    gatherer = Gatherer()
    network = GatheredNetwork(ReadingNetwork(RecurrentModel(7)), gatherer, TARGET)

    def read(token: int, length: int) -> None:
        network.new_state().prefill(Prompt((token,) * length))

    def go_on() -> None:
        state = network.new_state()
        for _ in range(4):
            state.extend([1], [-1])

    runs = [partial(read, 1, 4), partial(read, 2, 3), go_on]
    for result in gathered_runs(gatherer, runs):
        result.result()
    parts = [noted for noted in NOTED if noted[0] != "pass"]
    assert [text for text, _ in parts] in ([1, 2, 1, 2, 1], [2, 1, 2, 1, 1])
    passes = [number for number, (what, _) in enumerate(NOTED) if what == "pass"]
    assert passes[0] < NOTED.index((1, 4)), "the text past its prompt waits for a part at most"
    assert len(passes) == 4


def test_passes_are_owed_time_after_a_part_of_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    gatherer = Gatherer()
    network = GatheredNetwork(ReadingNetwork(RecurrentModel(7)), gatherer, TARGET)
    seconds = iter(range(1000))
    monkeypatch.setattr(gathering, "perf_counter", lambda: float(next(seconds)))
    monkeypatch.setattr(gathering, "PASSES_FOR_READING", 1e9)
    results = gathered_runs(
        gatherer,
        [
            lambda: network.new_state().prefill(Prompt((1,) * 5)),
            lambda: [network.new_state().extend([1], [-1]) for _ in range(5)],
        ],
    )
    for result in results:
        result.result()
    parts = [number for number, (what, _) in enumerate(NOTED) if what != "pass"]
    assert parts[1:] == list(range(len(NOTED) - 3, len(NOTED))), (
        "once a part was read, all passes come before the next one"
    )


def test_a_text_that_is_given_up_stops_reading_its_prompt() -> None:
    gatherer = Gatherer()
    network = GatheredNetwork(ReadingNetwork(RecurrentModel(7)), gatherer, TARGET)
    with pytest.raises(TextGivenUpError), gatherer.live(lambda: len(NOTED) == 2):
        network.new_state().prefill(Prompt((1,) * 9))
    assert [*NOTED] == [(1, 2), (1, 3)]
    with gatherer.live():
        assert network.new_state().extend([1], [-1]).shape == (1, 7)


def test_a_part_that_cannot_run_hurts_no_other() -> None:
    gatherer = Gatherer()
    network = GatheredNetwork(TinyNetwork(RecurrentModel(7)), gatherer, TARGET)
    right, wrong = network.new_state(), network.new_state()
    good, bad = gathered_runs(
        gatherer, [partial(right.extend, [1], [-1]), partial(wrong.extend, [1], [5])]
    )
    with pytest.raises(InvalidInputError, match="cannot continue"):
        bad.result()
    assert good.result().shape == (1, 7)


def test_waiting_for_others_is_no_work() -> None:
    gatherer = Gatherer()
    network = GatheredNetwork(TinyNetwork(RecurrentModel(7)), gatherer, TARGET)

    def timed() -> tuple[float, float]:
        work, waited = work_clock(), waited_s()
        network.new_state().extend([1], [-1])
        return work_clock() - work, waited_s() - waited

    results = gathered_runs(gatherer, [timed, timed])
    assert all(work_s > 0 and booked_s > 0 for work_s, booked_s in map(Future.result, results))


def test_each_text_is_told_how_many_shared_its_last_pass() -> None:
    gatherer = Gatherer()
    network = GatheredNetwork(TinyNetwork(RecurrentModel(7)), gatherer, TARGET)

    def told(num_passes: int) -> list[int]:
        state = network.new_state()
        told = []
        for _ in range(num_passes):
            state.extend([1], [-1])
            told.append(num_sharing())
        return told

    results = gathered_runs(gatherer, [partial(told, 1), partial(told, 1), partial(told, 2)])
    assert [result.result() for result in results] == [[3], [3], [3, 1]]


def test_texts_are_at_rest_once_for_each_pass() -> None:
    gatherer = Gatherer()
    rests: list[int] = []
    gatherer.call_at_rest(lambda: rests.append(gatherer.num_passes))
    network = GatheredNetwork(TinyNetwork(RecurrentModel(7)), gatherer, TARGET)

    def go_on(num_passes: int) -> None:
        state = network.new_state()
        for _ in range(num_passes):
            state.extend([1], [-1])

    for result in gathered_runs(gatherer, [partial(go_on, 3)] * 4):
        result.result()
    assert rests == [0, 1, 2, 3], "before each pass of four texts, and behind the last one"


def test_a_tree_costs_its_rows_and_an_even_share_of_the_weights() -> None:
    costs = PassCosts()
    assert costs.split([1, 3], 4.0) == [2.0, 2.0], "nothing is known yet"
    for _ in range(30):
        for rows in (1, 2, 8, 12):
            costs.observe(rows, 5.0 + 0.5 * rows)
    shares = costs.split([1, 1, 6], 9.0)
    assert sum(shares) == pytest.approx(9.0)
    assert shares[2] - shares[0] == pytest.approx(5 * 0.5, rel=0.1)
    same = PassCosts()
    for _ in range(30):
        same.observe(8, 4.0)
    assert same.split([1] * 8, 4.0) == pytest.approx([0.5] * 8)
    assert same.split([1, 7], 4.0) == pytest.approx([1.25, 2.75]), "half of it is rows"


def test_a_state_outside_of_a_live_text_waits_for_its_turn() -> None:
    gatherer = Gatherer()
    network = GatheredNetwork(TinyNetwork(RecurrentModel(7)), gatherer, TARGET)
    state = network.new_state()
    state.prefill(Prompt((1, 2)))
    assert state.extend([1], [-1]).shape == (1, 7)


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


def test_the_networks_of_mixtures_texts_and_copies_share_passes() -> None:
    network = TinyNetwork(RecurrentModel(7))
    target = NetworkTargetModel(network)
    gatherer = Gatherer()
    streams = (Stream("a", network), Stream("b", network))
    mixture = gathered(Pair(target, MixtureDrafterModel(streams)), gatherer)
    assert isinstance(mixture, Pair)
    assert isinstance(mixture.drafter, MixtureDrafterModel)
    first, second = (stream.network for stream in mixture.drafter.streams)
    assert first is second, "streams of one network share its passes"
    assert isinstance(first, GatheredNetwork)
    tokenizer = byte_level()
    text = TextDrafterModel(NetworkDrafterModel(network), Translation(tokenizer, tokenizer))
    written = gathered(Pair(target, text), gatherer)
    assert isinstance(written, Pair)
    assert isinstance(written.drafter, TextDrafterModel)
    assert isinstance(written.drafter.own.network, GatheredNetwork)
    copied = gathered(SelfPair(target, network), gatherer)
    assert isinstance(copied, SelfPair)
    assert isinstance(copied.copy, GatheredNetwork)
    assert isinstance(copied.target.network, GatheredNetwork)
    with pytest.raises(InvalidInputError, match="not lent"):
        copied.new_sessions()
