"""Greedy output is the target's own, whatever is drafted, by the whole loop on the toy models."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.chance import TorchRng
from treesnake.constraints import BannedTokens, Constraint, RepetitionPenalty
from treesnake.draft import Draft, Scored
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.generate import generate
from treesnake.outcome import FinishReason, Step
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import BestFirst, LevelWidths, Shape
from treesnake.stopping import EndTokens, StopRule, StopStrings
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import AttentionModel, RecurrentModel, TableModel, TinyModel, TinyNetwork
from treesnake.tree import TokenTree

VOCAB_SIZE = 4
KINDS = (TableModel, RecurrentModel, AttentionModel)

SEEDS = st.integers(0, 10**6)
PROMPTS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=4).map(Prompt.of)
SHAPES = st.builds(
    LevelWidths, st.lists(st.integers(1, 3), max_size=3).map(tuple), st.booleans()
) | st.builds(BestFirst, st.integers(1, 3), st.integers(0, 4), st.integers(0, 8))


@dataclass
class RandomShapes:
    """Another shape at every step."""

    chance: random.Random

    def choose(self, context_length: int) -> Shape:
        depth = self.chance.randrange(4)
        return LevelWidths(
            tuple(self.chance.randrange(1, 4) for _ in range(depth)), self.chance.random() < 0.5
        )

    def observe(self, step: Step) -> None:
        assert step.emitted


@dataclass
class RandomDrafter:
    """Any tree at all within the depth of the shape, also with the same child twice.

    It cheats by knowing the target's own text, so that deep paths are accepted too.
    """

    chance: random.Random
    own_text: Sequence[int]
    text: list[int]

    def prefill(self, prompt: Prompt) -> None:
        self.text = list(prompt.token_ids)

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        assert anchor == self.text[-1]
        tokens, parents, depths = [anchor], [-1], [0]
        for _ in range(self.chance.randrange(12)):
            parent = self.chance.randrange(len(tokens))
            if depths[parent] >= shape.depth:
                continue
            index = len(self.text) + depths[parent]
            knows = self.chance.random() < 0.7 and index < len(self.own_text)
            tokens.append(self.own_text[index] if knows else self.chance.randrange(VOCAB_SIZE))
            parents.append(parent)
            depths.append(depths[parent] + 1)
        return Draft.chosen(TokenTree.of(tokens, parents))

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        assert token_ids[0] == self.text[-1]
        self.text += [*token_ids[1:], self.own_text[len(self.text) + len(token_ids) - 1]]


def plain_greedy(
    model: TinyModel, prompt: Prompt, max_length: int, constraints: Sequence[Constraint] = ()
) -> list[int]:
    """The definition: the whole text so far through the model for every token."""
    text = list(prompt.token_ids)
    while len(text) < max_length:
        state = model.initial()
        for token in text[:-1]:
            state, _ = model.step(state, token)
        logits = model.step(state, text[-1])[1]
        for constraint in constraints:
            logits = constraint(text, logits)
        text.append(int(logits.argmax()))
    return text


def speculative(
    target: TinyModel,
    drafter: Drafter,
    prompt: Prompt,
    max_length: int,
    *,
    chance: random.Random,
    constraints: Sequence[Constraint] = (),
    stop_rules: Sequence[StopRule] = (),
) -> list[Step]:
    return list(
        generate(
            NetworkTargetModel(TinyNetwork(target)).new_session(),
            drafter,
            prompt,
            search=RandomShapes(chance),
            params=SamplingParams(),
            rng=TorchRng(0),
            max_length=max_length,
            constraints=constraints,
            stop_rules=stop_rules,
        )
    )


def text_of(prompt: Prompt, steps: Sequence[Step]) -> list[int]:
    return [*prompt.token_ids, *(token for step in steps for token in step.emitted)]


@pytest.mark.parametrize("drafter_kind", KINDS)
@pytest.mark.parametrize("target_kind", KINDS)
@settings(max_examples=15)
@given(SEEDS, PROMPTS, st.integers(0, 14))
def test_greedy_output_is_the_targets_own(
    target_kind: type, drafter_kind: type, seed: int, prompt: Prompt, num_new: int
) -> None:
    target, drafter = target_kind(VOCAB_SIZE, seed=seed), drafter_kind(VOCAB_SIZE, seed=seed + 1)
    max_length = len(prompt) + num_new
    session = NetworkDrafterModel(TinyNetwork(drafter)).new_session()
    steps = speculative(target, session, prompt, max_length, chance=random.Random(seed))
    assert text_of(prompt, steps) == plain_greedy(target, prompt, max_length)
    assert all(step.finish_reason is None for step in steps)


@pytest.mark.parametrize("target_kind", KINDS)
@settings(max_examples=40)
@given(SEEDS, PROMPTS)
def test_any_tree_of_any_drafter_leaves_greedy_output_as_it_is(
    target_kind: type, seed: int, prompt: Prompt
) -> None:
    target, chance = target_kind(VOCAB_SIZE, seed=seed), random.Random(seed)
    max_length = len(prompt) + 12
    own_text = plain_greedy(target, prompt, max_length + 1)
    drafter = RandomDrafter(chance, own_text, [])
    steps = speculative(target, drafter, prompt, max_length, chance=chance)
    assert text_of(prompt, steps) == own_text[:max_length]


@settings(max_examples=40)
@given(SEEDS, PROMPTS, st.sampled_from(KINDS))
def test_constrained_greedy_output_is_that_of_the_constrained_target(
    seed: int, prompt: Prompt, target_kind: type
) -> None:
    target = target_kind(VOCAB_SIZE, seed=seed)
    constraints = [RepetitionPenalty(1.5), BannedTokens([seed % VOCAB_SIZE])]
    max_length = len(prompt) + 10
    own_text = plain_greedy(target, prompt, max_length, constraints)
    for drafter in (
        NetworkDrafterModel(TinyNetwork(TableModel(VOCAB_SIZE, seed=seed + 1))).new_session(),
        RandomDrafter(random.Random(seed), [*own_text, 0], []),
    ):
        chance = random.Random(seed)
        steps = speculative(
            target, drafter, prompt, max_length, chance=chance, constraints=constraints
        )
        assert text_of(prompt, steps) == own_text


@settings(max_examples=30)
@given(SEEDS, PROMPTS, SHAPES)
def test_a_drafter_that_is_the_target_is_accepted_to_the_last_token(
    seed: int, prompt: Prompt, shape: Shape
) -> None:
    model = RecurrentModel(VOCAB_SIZE, seed=seed)

    @dataclass
    class OneShape:
        def choose(self, context_length: int) -> Shape:
            return shape

        def observe(self, step: Step) -> None:
            """Learns nothing."""

    steps = list(
        generate(
            NetworkTargetModel(TinyNetwork(model)).new_session(),
            NetworkDrafterModel(TinyNetwork(model)).new_session(),
            prompt,
            search=OneShape(),
            params=SamplingParams(),
            rng=TorchRng(0),
            max_length=len(prompt) + 10,
        )
    )
    if isinstance(shape, LevelWidths):
        assert all(step.num_accepted == step.shape.depth for step in steps)
    assert text_of(prompt, steps) == plain_greedy(model, prompt, len(prompt) + 10)


def decode(token_ids: Sequence[int]) -> str:
    return "".join("abcd"[token] for token in token_ids)


@pytest.mark.parametrize("target_kind", KINDS)
@settings(max_examples=40)
@given(
    SEEDS,
    PROMPTS,
    st.sets(st.integers(0, VOCAB_SIZE - 1), max_size=1),
    st.lists(st.text("abcd", min_size=2, max_size=3), max_size=2).map(tuple),
)
def test_output_ends_where_the_targets_own_text_would(
    target_kind: type, seed: int, prompt: Prompt, end_tokens: set[int], strings: tuple[str, ...]
) -> None:
    """Nothing after a stop and nothing lost before it, mostly inside an accepted path."""
    target, chance = target_kind(VOCAB_SIZE, seed=seed), random.Random(seed)
    max_length = len(prompt) + 12
    own_text = plain_greedy(target, prompt, max_length + 1)
    expected = own_text[:max_length]
    for length in range(len(prompt) + 1, max_length + 1):
        generated = own_text[len(prompt) : length]
        if generated[-1] in end_tokens or any(string in decode(generated) for string in strings):
            expected = own_text[:length]
            break

    rules = [EndTokens(end_tokens), StopStrings(strings, decode)]
    drafter = RandomDrafter(chance, own_text, [])
    steps = speculative(target, drafter, prompt, max_length, chance=chance, stop_rules=rules)

    assert text_of(prompt, steps) == expected
    reasons = [step.finish_reason for step in steps if step.finish_reason]
    assert len(reasons) <= 1
    assert (reasons == []) == (
        expected[-1] not in end_tokens
        and not any(string in decode(expected[len(prompt) :]) for string in strings)
    )
    if expected[-1] in end_tokens:
        assert reasons == [FinishReason.END_TOKEN]
