"""Constrained generation is as exact as free generation, and constraints see no other texts."""

from collections.abc import Iterator, Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from treesnake.chance import TorchRng
from treesnake.constraints import (
    AllowedTokens,
    BannedTokens,
    Constraint,
    LogitBias,
    OccurrencePenalty,
    RepetitionPenalty,
)
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.generate import generate
from treesnake.outcome import Step
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams, to_probs
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape, chain
from treesnake.stopping import EndTokens, StopRule
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import AttentionModel, RecurrentModel, TableModel, TinyModel, TinyNetwork
from treesnake.tree import TokenTree

A, B, OPEN, CLOSE, END = range(5)
VOCAB_SIZE = 5
PROMPT = (A,)

SHAPES = st.sampled_from(
    [chain(4), LevelWidths((3, 2)), LevelWidths((2, 2, 1), sampled=False), BestFirst(3, 4, 9)]
)
TEMPERATURES = st.sampled_from([0.0, 1.0])
SEEDS = st.integers(0, 10**4)


class TextAfterItsEndError(Exception):
    """A grammar's state machine was asked to go on after it had finished."""


def balanced_tokens(prefix: Sequence[int]) -> Tensor:
    """Allows balanced brackets, and the end where all are closed; nothing is known beyond it."""
    if END in prefix:
        raise TextAfterItsEndError
    depth = prefix.count(OPEN) - prefix.count(CLOSE)
    mask = torch.ones(VOCAB_SIZE, dtype=torch.bool)
    mask[CLOSE], mask[END], mask[OPEN] = depth > 0, depth == 0, depth < 2
    return mask


def is_balanced(text: Sequence[int]) -> bool:
    depths = [text[:end].count(OPEN) - text[:end].count(CLOSE) for end in range(len(text) + 1)]
    return min(depths) >= 0 and max(depths) <= 2 and (END not in text or depths[-1] == 0)


def run(
    models: tuple[TinyModel, TinyModel],
    shape: Shape,
    constraints: Sequence[Constraint],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop_rules: Sequence[StopRule] = (EndTokens([END]),),
) -> Iterator[Step]:
    target, drafter = models
    return generate(
        NetworkTargetModel(TinyNetwork(target)).new_session(),
        NetworkDrafterModel(TinyNetwork(drafter)).new_session(),
        Prompt(PROMPT),
        search=StaticSearch(shape),
        params=SamplingParams(temperature=temperature),
        rng=TorchRng(seed),
        max_length=len(PROMPT) + 12,
        constraints=constraints,
        stop_rules=stop_rules,
    )


def emitted_by(steps: Iterator[Step]) -> list[int]:
    return [token for step in steps for token in step.emitted]


def plain_constrained(model: TinyModel, constraints: Sequence[Constraint]) -> list[int]:
    """Greedy decoding one token at a time, written down on its own."""
    session = NetworkTargetModel(TinyNetwork(model)).new_session()
    session.prefill(Prompt(PROMPT))
    text = list(PROMPT)
    while len(text) < len(PROMPT) + 12 and text[-1] != END:
        logits = session.score(TokenTree.chain(text[-1:]))[0]
        session.commit((0,))
        for constraint in constraints:
            logits = constraint(text, logits)
        text.append(int(logits.argmax()))
    return text[len(PROMPT) :]


def toy_models(seed: int) -> tuple[TinyModel, TinyModel]:
    kinds = (TableModel, RecurrentModel, AttentionModel)
    return (
        kinds[seed % 3](VOCAB_SIZE, seed=seed),
        kinds[seed // 3 % 3](VOCAB_SIZE, seed=seed + 1),
    )


@settings(max_examples=60)
@given(SEEDS, SHAPES, TEMPERATURES)
def test_a_grammar_gives_its_own_texts_only(seed: int, shape: Shape, temperature: float) -> None:
    """The grammar refuses to be asked about forbidden texts and about finished ones."""
    steps = run(
        toy_models(seed),
        shape,
        [AllowedTokens(balanced_tokens)],
        temperature=temperature,
        seed=seed,
    )
    assert is_balanced(emitted_by(steps))


@settings(max_examples=60)
@given(SEEDS, SHAPES)
def test_constrained_greedy_text_is_that_of_plain_constrained_decoding(
    seed: int, shape: Shape
) -> None:
    constraints = [
        RepetitionPenalty(1.3),
        OccurrencePenalty(len(PROMPT), presence=0.3, frequency=0.6),
        LogitBias({A: 0.5}),
        BannedTokens([B]),
        AllowedTokens(balanced_tokens),
    ]
    models = toy_models(seed)
    assert emitted_by(run(models, shape, constraints)) == plain_constrained(models[0], constraints)


@settings(max_examples=30)
@given(SEEDS, SHAPES)
def test_constraints_see_texts_that_can_still_come_about(seed: int, shape: Shape) -> None:
    seen: list[tuple[int, ...]] = []

    def noting(prefix: Sequence[int], logits: Tensor) -> Tensor:
        seen.append(tuple(prefix))
        return BannedTokens([OPEN])(prefix, logits)

    emitted_by(run(toy_models(seed), shape, [noting], temperature=1.0, seed=seed))
    assert all(OPEN not in prefix and END not in prefix for prefix in seen)


@settings(max_examples=60)
@given(SEEDS, SHAPES)
def test_a_dead_end_is_met_where_plain_decoding_meets_it(seed: int, shape: Shape) -> None:
    """After two brackets of one text nothing is allowed; a branch may go there for nothing."""

    def until_open(prefix: Sequence[int]) -> Tensor:
        return torch.full((VOCAB_SIZE,), prefix.count(OPEN) < 2)

    def text_of(shape: Shape) -> tuple[list[int], bool]:
        tokens: list[int] = []
        try:
            for step in run(toy_models(seed), shape, [AllowedTokens(until_open)]):
                tokens += step.emitted
        except InvalidInputError:
            return tokens, True
        return tokens, False

    assert text_of(shape) == text_of(OFF)


def test_what_comes_after_a_text_depends_on_the_constraint_and_not_on_the_draft() -> None:
    """Exact sampling from the constrained target: all its mass is on the one text it allows."""
    only = (B, B, A, END)
    constraint = AllowedTokens(
        lambda prefix: torch.arange(VOCAB_SIZE) == only[len(prefix) - len(PROMPT)]
    )
    for shape in (chain(3), LevelWidths((2, 2))):
        steps = run(toy_models(4), shape, [constraint], temperature=1.0)
        assert emitted_by(steps) == list(only)


def test_constrained_probabilities_are_those_of_the_allowed_tokens_renormalized() -> None:
    logits = torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(temperature=0.8)
    mask = balanced_tokens([A, OPEN])
    probs = to_probs(AllowedTokens(balanced_tokens)([A, OPEN], logits), params)
    free = to_probs(logits, params) * mask
    torch.testing.assert_close(probs, free / free.sum())
