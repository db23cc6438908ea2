"""A memory changes what is drafted and never what is said."""

from itertools import product

import pytest

from treesnake import Pair, SamplingParams, SpeculativeDecoder
from treesnake.drafters.composite import CompositeDrafter
from treesnake.drafters.memory import MemoryDrafter
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.generate import generate
from treesnake.memory.text_memory import TextMemory
from treesnake.prompt import Prompt
from treesnake.sampling import Rng
from treesnake.search.static import StaticSearch
from treesnake.shape import LevelWidths, Priced, Shape, chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TableModel, TinyNetwork, enumerate_outcomes
from treesnake.testing.conformance import total_variation

PROMPT = Prompt((1, 0, 1) * 7)
NUM_NEW = 2
SHAPES = [chain(2), LevelWidths((2, 1)), Priced(2, (0.0, 0.3), (0.0, 0.1, 0.2))]


def say(
    memory: TextMemory | None, target: RecurrentModel, shape: Shape, rng: Rng
) -> tuple[int, ...]:
    drafter = NetworkDrafterModel(TinyNetwork(TableModel(2, seed=2))).new_session()
    recalling = None if memory is None else MemoryDrafter(memory)
    steps = generate(
        NetworkTargetModel(TinyNetwork(target)).new_session(),
        drafter if recalling is None else CompositeDrafter(drafter, recalling),
        PROMPT,
        search=StaticSearch(shape),
        params=SamplingParams(temperature=1.0),
        rng=rng,
        max_length=len(PROMPT) + NUM_NEW,
    )
    text = tuple(token for step in steps for token in step.emitted)
    if recalling is not None:
        recalling.remember()
    return text


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_texts_with_a_memory_between_them_have_the_targets_distribution(shape: Shape) -> None:
    """Jointly: what the second draws on is what the first said by chance."""
    target = RecurrentModel(2, seed=1)

    def two_texts(rng: Rng) -> tuple[int, ...]:
        memory = TextMemory()
        memory.add([*PROMPT.token_ids, 0, 1])
        return say(memory, target, shape, rng) + say(memory, target, shape, rng)

    alone = enumerate_outcomes(lambda rng: say(None, target, chain(0), rng))
    law = enumerate_outcomes(two_texts)
    pairs = product(alone.items(), repeat=2)
    expected = {first + second: p * q for (first, p), (second, q) in pairs}
    assert total_variation(law, expected) < 1e-5


@pytest.fixture
def decoder() -> SpeculativeDecoder:
    network = TinyNetwork(RecurrentModel(40, seed=3))
    pair = Pair(NetworkTargetModel(network), NgramDrafterModel())
    return SpeculativeDecoder(pair, memory=TextMemory())


PROMPTS = [[number, 2, 3, 4] for number in range(6)]


def test_greedy_texts_are_the_targets_own_with_any_memory(decoder: SpeculativeDecoder) -> None:
    plain = SpeculativeDecoder(decoder.pair, search="off")
    for prompt in [*PROMPTS, *PROMPTS]:
        made = decoder.generate(prompt, max_new_tokens=40)
        assert made.token_ids == plain.generate(prompt, max_new_tokens=40).token_ids


def test_a_text_that_was_said_takes_fewer_steps(decoder: SpeculativeDecoder) -> None:
    first, second = (
        decoder.generate(PROMPTS[0], max_new_tokens=30, session=decoder.new_session())
        for _ in range(2)
    )
    assert len(second.steps) < len(first.steps)


def test_a_seed_gives_the_same_text_with_any_memory(decoder: SpeculativeDecoder) -> None:
    params = SamplingParams(temperature=0.3, seed=7)
    before = [decoder.generate(prompt, params, max_new_tokens=20) for prompt in PROMPTS]
    for prompt in PROMPTS:
        decoder.generate(prompt, max_new_tokens=40)
        decoder.generate(prompt, SamplingParams(temperature=0.3), max_new_tokens=40)
    after = [decoder.generate(prompt, params, max_new_tokens=20) for prompt in PROMPTS]
    assert [text.token_ids for text in after] == [text.token_ids for text in before]


def test_texts_of_sessions_without_a_memory_are_not_remembered(
    decoder: SpeculativeDecoder,
) -> None:
    assert decoder.memory is not None
    decoder.generate(PROMPTS[0], max_new_tokens=30, session=decoder.new_session(memory=False))
    assert len(decoder.memory) == 0
    other = TextMemory()
    decoder.generate(PROMPTS[0], max_new_tokens=30, session=decoder.new_session(memory=other))
    assert (len(decoder.memory), len(other) > 0) == (0, True)
