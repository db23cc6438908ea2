"""What a drafter learns changes what is drafted and never what is said."""

from itertools import product

import pytest

from treesnake import Pair, SamplingParams, SpeculativeDecoder
from treesnake.drafters.learner import Learner
from treesnake.drafters.learning import LearningDrafter
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.said_texts import SaidText, SameTokenReader
from treesnake.generate import generate
from treesnake.prompt import Prompt
from treesnake.sampling import Rng
from treesnake.search.static import StaticSearch
from treesnake.shape import LevelWidths, Priced, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TinyNetwork, enumerate_outcomes
from treesnake.testing.bigrams import BigramNetwork
from treesnake.testing.conformance import total_variation

PROMPT = Prompt((1, 0, 1))
NUM_NEW = 3
SHAPES = [chain(2), LevelWidths((2, 1)), Priced(2, (0.0, 0.3), (0.0, 0.1, 0.2))]


def teach(learner: Learner) -> None:
    """Gives a learner a text to learn from, and one to hold out."""
    for _ in range(2):
        learner.add(SaidText(PROMPT, [1, 0, 1], [{0: 1.0}, {1: 1.0}, {0: 1.0}], 1.0), 1.0)
        learner.learn()


def say(
    target: RecurrentModel, network: BigramNetwork, learner: Learner, shape: Shape, rng: Rng
) -> tuple[int, ...]:
    drafter = LearningDrafter(NetworkDrafterModel(network).new_session(), learner)
    steps = generate(
        NetworkTargetModel(TinyNetwork(target)).new_session(),
        drafter,
        PROMPT,
        search=StaticSearch(shape),
        params=SamplingParams(temperature=1.0),
        rng=rng,
        max_length=len(PROMPT) + NUM_NEW,
    )
    text = tuple(token for step in steps for token in step.emitted)
    drafter.finish()
    learner.wait()
    return text


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_texts_with_an_update_between_them_have_the_targets_distribution(
    shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jointly: what the drafter learned is what the first said by chance."""
    monkeypatch.setattr("treesnake.drafters.learner.PLACES_PER_UPDATE", 1)
    monkeypatch.setattr("treesnake.drafters.learner.HELD_OUT_EVERY", 2)
    target = RecurrentModel(2, seed=1)
    num_kept = 0

    def texts(rng: Rng) -> tuple[int, ...]:
        nonlocal num_kept
        network = BigramNetwork.of(2)
        learner = Learner(SameTokenReader(NetworkDrafterModel(network)), time_share=1e9)
        teach(learner)
        first = say(target, network, learner, shape, rng)
        second = say(target, network, learner, shape, rng)
        num_kept += learner.report.num_kept
        return first + second

    def alone(rng: Rng) -> tuple[int, ...]:
        network = BigramNetwork.of(2)
        learner = Learner(SameTokenReader(NetworkDrafterModel(network)), time_share=0.0)
        return say(target, network, learner, chain(0), rng)

    law, one = enumerate_outcomes(texts), enumerate_outcomes(alone)
    pairs = product(one.items(), repeat=2)
    expected = {first + second: p * q for (first, p), (second, q) in pairs}
    assert total_variation(law, expected) < 1e-5
    assert num_kept > 0


VOCAB_SIZE = 12
PROMPTS = [[number, 2, 3] for number in range(6)]


def learning_decoder() -> SpeculativeDecoder:
    target = NetworkTargetModel(TinyNetwork(RecurrentModel(VOCAB_SIZE, seed=3)))
    model = NetworkDrafterModel(BigramNetwork.of(VOCAB_SIZE))
    learner = Learner(SameTokenReader(model), time_share=1e9)
    return SpeculativeDecoder(Pair(target, model), learner=learner)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets learners learn after a few texts."""
    monkeypatch.setattr("treesnake.drafters.learner.PLACES_PER_UPDATE", 40)


def test_greedy_texts_are_the_targets_own_whatever_was_learned() -> None:
    decoder = learning_decoder()
    assert decoder.learner is not None
    plain = SpeculativeDecoder(decoder.pair, search="off")
    for prompt in PROMPTS:
        made = decoder.generate(prompt, max_new_tokens=30)
        decoder.learner.wait()
        assert made.token_ids == plain.generate(prompt, max_new_tokens=30).token_ids
    assert decoder.learner.report.num_kept > 0


def test_a_seed_gives_the_same_text_whatever_was_learned() -> None:
    params = SamplingParams(temperature=0.8, seed=7)
    decoder = learning_decoder()
    assert decoder.learner is not None
    before = [decoder.generate(prompt, params, max_new_tokens=12) for prompt in PROMPTS[:3]]
    for prompt in PROMPTS:
        decoder.generate(prompt, max_new_tokens=30)
        decoder.learner.wait()
    assert decoder.learner.report.num_kept > 0
    after = [decoder.generate(prompt, params, max_new_tokens=12) for prompt in PROMPTS[:3]]
    assert [text.token_ids for text in after] == [text.token_ids for text in before]
