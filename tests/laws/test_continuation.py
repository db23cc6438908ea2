"""After any end of a generation the sessions are as if the text had been given as a prompt.

So a conversation can go on, and a caller may stop reading at any time.
"""

import random
from collections.abc import Generator, Sequence
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.generate import generate
from treesnake.outcome import Step
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, Target
from treesnake.sampling import SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import BestFirst, LevelWidths, Shape, chain
from treesnake.stopping import EndTokens, StopRule, StopStrings
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import AttentionModel, RecurrentModel, TableModel, TinyNetwork
from treesnake.tree import TokenTree

VOCAB_SIZE = 4
NUM_NEW = 10
KINDS = st.sampled_from([TableModel, RecurrentModel, AttentionModel])
SEEDS = st.integers(0, 10**6)
TEMPERATURES = st.sampled_from([0.0, 1.0])
SHAPES = st.sampled_from(
    [chain(3), LevelWidths((2, 2)), BestFirst(2, 3, 5), LevelWidths((2, 1), sampled=False)]
)


def decode(token_ids: Sequence[int]) -> str:
    return "".join("abcd"[token] for token in token_ids)


class Conversation:
    """One pair of sessions and the text that they hold."""

    def __init__(self, kinds: tuple[type, type], seed: int, shape: Shape) -> None:
        self._shape = shape
        self.target_model = NetworkTargetModel(TinyNetwork(kinds[0](VOCAB_SIZE, seed=seed)))
        # A drafter near the target, so that stops fall inside accepted paths.
        drafter = kinds[0] if seed % 2 else kinds[1]
        self.drafter_model = NetworkDrafterModel(TinyNetwork(drafter(VOCAB_SIZE, seed=seed)))
        self.target: Target = self.target_model.new_session()
        self.drafter: Drafter = self.drafter_model.new_session()
        self.text: list[int] = []
        self._num_steps = 0

    def say(self, token_ids: Sequence[int]) -> None:
        self.text += token_ids

    def listen(
        self,
        temperature: float,
        seed: int,
        stop_rules: Sequence[StopRule] = (),
        num_steps: int | None = None,
    ) -> list[Step]:
        steps = generate(
            self.target,
            self.drafter,
            Prompt.of(self.text),
            search=StaticSearch(self._shape),
            params=SamplingParams(temperature=temperature),
            rng=TorchRng(seed),
            max_length=len(self.text) + NUM_NEW,
            stop_rules=stop_rules,
        )
        taken = list(islice(steps, num_steps))
        assert isinstance(steps, Generator)
        steps.close()
        self._num_steps = len(taken)
        self.text += [token for step in taken for token in step.emitted]
        return taken

    def assert_consistent(self) -> None:
        """What the sessions hold is all of the text but its last token."""
        anchor = self.text[-1]
        fresh = self.target_model.new_session()
        fresh.prefill(Prompt.of(self.text))
        tree = TokenTree.chain([anchor, 1])
        torch.testing.assert_close(self.target.score(tree), fresh.score(tree))

        if self._num_steps < 2:  # the drafter reads the prompt before the second step
            self.drafter.prefill(Prompt.of(self.text))
        drafter = self.drafter_model.new_session()
        drafter.prefill(Prompt.of(self.text))
        params = SamplingParams(temperature=1.0)
        actual, expected = (
            session.draft(anchor, LevelWidths((2, 1)), params, TorchRng(0))
            for session in (self.drafter, drafter)
        )
        assert actual.tree.tokens == expected.tree.tokens
        assert actual.draft_probs is not None
        assert expected.draft_probs is not None
        torch.testing.assert_close(actual.draft_probs, expected.draft_probs)


@settings(max_examples=40)
@given(SEEDS, KINDS, KINDS, SHAPES, TEMPERATURES, st.integers(0, 6))
def test_sessions_hold_the_text_whichever_step_the_caller_stops_at(
    seed: int, target: type, drafter: type, shape: Shape, temperature: float, num_steps: int
) -> None:
    conversation = Conversation((target, drafter), seed, shape)
    conversation.say([seed % VOCAB_SIZE, 1])
    conversation.listen(temperature, seed, num_steps=num_steps + 1)
    conversation.assert_consistent()


@settings(max_examples=40)
@given(SEEDS, KINDS, KINDS, SHAPES, TEMPERATURES)
def test_sessions_hold_the_text_after_any_stop(
    seed: int, target: type, drafter: type, shape: Shape, temperature: float
) -> None:
    conversation = Conversation((target, drafter), seed, shape)
    conversation.say([seed % VOCAB_SIZE, 1])
    rules = [EndTokens([2]), StopStrings(("ab", "dda"), decode)]
    conversation.listen(temperature, seed, rules)
    conversation.assert_consistent()


@settings(max_examples=40)
@given(SEEDS, KINDS, KINDS, SHAPES, TEMPERATURES)
def test_a_conversation_gives_what_fresh_sessions_give_on_the_longer_text(
    seed: int, target: type, drafter: type, shape: Shape, temperature: float
) -> None:
    """Turn by turn, ended by stop rules or by the caller, with new text in between or none."""
    chance = random.Random(seed)
    conversation = Conversation((target, drafter), seed, shape)
    conversation.say([3])
    for turn in range(3):
        num_steps = chance.choice([None, 1, 2])
        rules = [EndTokens([chance.randrange(VOCAB_SIZE)])]
        conversation.say([chance.randrange(VOCAB_SIZE) for _ in range(chance.randrange(3))])

        fresh = Conversation((target, drafter), seed, shape)
        fresh.say(conversation.text)
        for side in (conversation, fresh):
            side.listen(temperature, turn, rules, num_steps)
        assert conversation.text == fresh.text


@settings(max_examples=40)
@given(SEEDS, KINDS, KINDS, SHAPES, TEMPERATURES, st.integers(1, 4))
def test_a_generation_that_was_closed_early_is_the_beginning_of_the_whole_one(
    seed: int, target: type, drafter: type, shape: Shape, temperature: float, num_steps: int
) -> None:
    whole, closed = (Conversation((target, drafter), seed, shape) for _ in range(2))
    for side in (whole, closed):
        side.say([0])
    emitted = [step.emitted for step in whole.listen(temperature, seed)]
    taken = [step.emitted for step in closed.listen(temperature, seed, num_steps=num_steps)]
    assert taken == emitted[:num_steps]
    closed.assert_consistent()


@settings(max_examples=20)
@given(SEEDS, KINDS, KINDS, SHAPES)
def test_a_shorter_or_other_text_is_started_afresh(
    seed: int, target: type, drafter: type, shape: Shape
) -> None:
    """Editing what was said earlier."""
    conversation = Conversation((target, drafter), seed, shape)
    conversation.say([1, 2, 3])
    conversation.listen(0.0, seed)
    for text in (conversation.text[:4], [2, 2], [1, 2, 3]):
        conversation.text = list(text)
        fresh = Conversation((target, drafter), seed, shape)
        fresh.say(text)
        for side in (conversation, fresh):
            side.listen(0.0, seed)
        assert conversation.text == fresh.text


@pytest.mark.parametrize("num_new", [0, 1, 2, 5])
def test_a_text_never_grows_beyond_its_longest_length(num_new: int) -> None:
    model = RecurrentModel(VOCAB_SIZE, seed=0)
    prompt = Prompt((1, 2, 3))
    steps = list(
        generate(
            NetworkTargetModel(TinyNetwork(model)).new_session(),
            NetworkDrafterModel(TinyNetwork(model)).new_session(),
            prompt,
            search=StaticSearch(chain(4)),
            params=SamplingParams(),
            rng=TorchRng(0),
            max_length=len(prompt) + num_new,
        )
    )
    assert sum(len(step.emitted) for step in steps) == num_new
    assert all(step.tree.depth < num_new for step in steps), "no draft beyond the room left"


def test_a_prompt_that_is_longer_than_the_text_may_be_gives_nothing() -> None:
    conversation = Conversation((TableModel, TableModel), 0, chain(2))
    steps = generate(
        conversation.target,
        conversation.drafter,
        Prompt((1, 2, 3)),
        search=StaticSearch(chain(2)),
        params=SamplingParams(),
        rng=TorchRng(0),
        max_length=2,
    )
    assert list(steps) == []
