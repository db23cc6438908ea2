"""A session sees what the target says, and hands it to who learns."""

import pytest
import torch

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.learner import Learner
from treesnake.drafters.learning import LearningDrafter, learner_of
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.drafters.said_texts import SaidText, SameTokenReader
from treesnake.errors import InvalidInputError
from treesnake.pairs import Pair
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TinyNetwork, check_drafter
from treesnake.testing.bigrams import BigramNetwork

SIZE = 12
TARGET = NetworkTargetModel(TinyNetwork(RecurrentModel(SIZE, seed=1)))


class Noting(Learner):
    """Takes note of the texts that it is given."""

    def __init__(self) -> None:
        super().__init__(SameTokenReader(NetworkDrafterModel(BigramNetwork.of(SIZE))))
        self.texts: list[SaidText] = []
        self.num_asked = 0
        self.decoding_s = 0.0

    def add(self, text: SaidText | None, decoding_s: float) -> None:
        if text is not None:
            self.texts.append(text)
        assert decoding_s > 0
        self.decoding_s += decoding_s

    def learn_aside(self) -> None:
        self.num_asked += 1


def decoder_of(learner: Learner) -> SpeculativeDecoder:
    pair = Pair(TARGET, NetworkDrafterModel(BigramNetwork.of(SIZE)))
    return SpeculativeDecoder(pair, search="chain(2)", learner=learner)


def test_an_answer_is_handed_over_with_what_the_target_held_probable() -> None:
    learner = Noting()
    made = decoder_of(learner).generate([1, 2, 3], max_new_tokens=20)
    (text,) = learner.texts
    assert text.prompt.token_ids == (1, 2, 3)
    assert text.token_ids == [3, *made.token_ids[:-1]]
    known = [next(iter(shares)) for shares in text.shares[1:]]
    assert known == list(made.token_ids[1:])
    assert text.shares[0] == {}  # the first step drafts nothing
    assert text.temperature == 1


def test_sampled_text_tells_the_targets_probabilities_at_its_temperature() -> None:
    learner = Noting()
    params = SamplingParams(temperature=0.5, seed=0)
    decoder_of(learner).generate([1, 2, 3], params, max_new_tokens=10)
    (text,) = learner.texts
    assert text.temperature == 0.5
    assert all(sum(shares.values()) == pytest.approx(1) for shares in text.shares[1:])
    state = TARGET.network.new_state()
    tokens = [*text.prompt.token_ids[:-1], *text.token_ids]
    logits = state.extend(tokens, range(-1, len(tokens) - 1))[len(text.prompt) - 1 :]
    for row, shares in zip((logits / 0.5).softmax(-1)[1:], text.shares[1:], strict=True):
        probable = row[row >= 0.05 * row.max()]
        assert sorted(shares.values()) == pytest.approx(
            sorted((probable / probable.sum()).tolist())
        )


def test_learning_begins_behind_the_last_step() -> None:
    learner = Noting()
    for step in decoder_of(learner).stream([1, 2, 3], max_new_tokens=6):
        del step
    assert learner.num_asked == len(learner.texts) == 1


def test_a_text_that_is_not_to_be_remembered_is_not_learned_from() -> None:
    learner = Noting()
    decoder = decoder_of(learner)
    decoder.generate([1, 2], max_new_tokens=5, session=decoder.new_session(memory=False))
    assert learner.texts == []


def test_a_session_that_begins_another_text_hands_over_the_one_before() -> None:
    learner = Noting()
    decoder = decoder_of(learner)
    session = decoder.new_session()
    stream = decoder.stream([1, 2, 3], max_new_tokens=20, session=session)
    next(stream), next(stream), next(stream)
    decoder.generate([4, 5], max_new_tokens=4, session=session)
    assert [text.prompt.token_ids for text in learner.texts] == [(1, 2, 3), (4, 5)]


def test_no_notes_are_taken_while_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Noting()
    decoder = decoder_of(learner)
    monkeypatch.setattr(Noting, "has_enough", True)
    decoder.generate([1, 2, 3], max_new_tokens=20)
    assert learner.texts == []
    assert learner.decoding_s > 0  # it allows for learning from those that wait
    monkeypatch.undo()
    decoder.generate([1, 2, 3], max_new_tokens=20)
    assert len(learner.texts) == 1


def test_it_keeps_the_promises_of_drafters() -> None:
    class Model:
        def new_session(self) -> LearningDrafter:
            return LearningDrafter(NoDrafterModel().new_session(), Noting())

    check_drafter(Model(), SIZE, num_steps=3)


def test_the_network_is_found_beside_prompt_lookup() -> None:
    network = NetworkDrafterModel(BigramNetwork.of(SIZE))
    learner_of(CompositeDrafterModel(network, NgramDrafterModel()))
    for drafter in (NgramDrafterModel(), NoDrafterModel(), CompositeDrafterModel(network, network)):
        with pytest.raises(InvalidInputError, match="that can learn: choose another drafter"):
            learner_of(drafter)


def test_a_decoder_learns_from_its_own_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treesnake.drafters.learner.PLACES_PER_UPDATE", 200)
    network = BigramNetwork.of(SIZE)
    model = NetworkDrafterModel(network)
    learner = Learner(SameTokenReader(model), time_share=1e9)
    decoder = SpeculativeDecoder(Pair(TARGET, model), search="chain(1)", learner=learner)
    for number in range(SIZE):
        decoder.generate([number, 1, 2], max_new_tokens=64)
        learner.wait()
    assert learner.report.num_kept > 0
    assert torch.any(network.model.table != 0)
