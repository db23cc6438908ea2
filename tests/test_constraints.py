"""Constraints one by one, and how they reach the nodes of a tree."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from treesnake.constraints import (
    AllowedTokens,
    BannedTokens,
    Constraint,
    EarliestEnd,
    LogitBias,
    OccurrencePenalty,
    RepetitionPenalty,
    as_constraints,
    constrain,
    num_allowed,
)
from treesnake.errors import InvalidInputError
from treesnake.tree import TokenTree

VOCAB_SIZE = 5
CONTEXT = (4, 2, 0)
TREE = TokenTree.of([0, 1, 2, 3, 1, 1], [-1, 0, 0, 1, 1, 3])
FORBIDDEN = float("-inf")


def random_logits(seed: int, *axes: int) -> Tensor:
    return torch.randn(*axes, generator=torch.Generator().manual_seed(seed))


class _Recording:
    """Forbids some tokens and notes every text that it is asked about."""

    def __init__(self, *banned: int) -> None:
        self._banned = BannedTokens(banned)
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, prefix: Sequence[int], logits: Tensor) -> Tensor:
        self.seen.append(tuple(prefix))
        return self._banned(prefix, logits)


def test_every_constraint_is_one() -> None:
    everything = AllowedTokens(lambda prefix: torch.ones(VOCAB_SIZE, dtype=torch.bool))
    for constraint in (RepetitionPenalty(1.2), BannedTokens([1]), everything, _Recording()):
        assert isinstance(constraint, Constraint)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 8), min_size=1), st.floats(0.25, 4))
def test_the_repetition_penalty_is_that_of_transformers(
    seed: int, prefix: list[int], penalty: float
) -> None:
    logits = random_logits(seed, 9)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.LongTensor([prefix]), logits[None].clone())[0]
    torch.testing.assert_close(RepetitionPenalty(penalty)(prefix, logits), expected)


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_a_penalty_that_is_not_positive_is_refused(penalty: float) -> None:
    with pytest.raises(InvalidInputError, match="above 0"):
        RepetitionPenalty(penalty)


def test_banned_tokens_are_forbidden_and_others_untouched() -> None:
    logits = random_logits(0, VOCAB_SIZE)
    constrained = BannedTokens({1, 3})((), logits)
    assert constrained[[1, 3]].tolist() == [FORBIDDEN, FORBIDDEN]
    assert torch.equal(constrained[[0, 2, 4]], logits[[0, 2, 4]])
    assert torch.isfinite(logits).all(), "the logits that were given stay as they are"


@given(st.integers(0, 10**6), st.dictionaries(st.integers(0, 8), st.floats(-99, 99), min_size=1))
def test_a_bias_is_that_of_transformers(seed: int, biases: dict[int, float]) -> None:
    logits = random_logits(seed, 9)
    processor = SequenceBiasLogitsProcessor({(token,): bias for token, bias in biases.items()})
    expected = processor(torch.LongTensor([[1]]), logits[None].clone())[0]
    assert torch.equal(LogitBias(biases)([1], logits), expected)
    assert torch.equal(logits, random_logits(seed, 9))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=9), st.integers(1, 5))
def test_an_end_is_as_early_as_in_transformers(prefix: list[int], least: int) -> None:
    logits = random_logits(0, 9)
    text = torch.LongTensor([prefix])
    processor = MinNewTokensLengthLogitsProcessor(2, least, [3, 5], device=torch.device("cpu"))
    expected = processor(text, logits[None].clone())[0]
    assert torch.equal(EarliestEnd(2 + least, [3, 5])(prefix, logits), expected)


def test_occurrences_are_counted_in_the_answer_alone() -> None:
    """The formula of OpenAI's API reference, by hand."""
    logits = random_logits(0, VOCAB_SIZE)
    constrained = OccurrencePenalty(2, presence=0.5, frequency=0.25)([4, 4, 1, 3, 1], logits)
    taken = torch.tensor([0.0, 0.5 + 2 * 0.25, 0.0, 0.5 + 0.25, 0.0])
    torch.testing.assert_close(constrained, logits - taken)
    assert torch.equal(OccurrencePenalty(2, presence=0.5)([4, 4], logits), logits)


def test_numbers_that_are_no_biases_are_refused() -> None:
    wrong: Any = {"5": 1.0}
    for biases in ({5: 101.0}, {5: float("nan")}):
        with pytest.raises(InvalidInputError, match="a bias must be from -100 to 100"):
            LogitBias(biases)
    with pytest.raises((InvalidInputError, TypeCheckError), match=r"token id|violates"):
        LogitBias(wrong)
    with pytest.raises(InvalidInputError, match="the model has tokens 0 to 4"):
        LogitBias({5: 1.0})((), random_logits(0, VOCAB_SIZE))
    with pytest.raises(InvalidInputError, match="a presence penalty must be from"):
        OccurrencePenalty(0, presence=float("inf"))
    with pytest.raises(InvalidInputError, match="num_prompt_tokens must be at least 0"):
        OccurrencePenalty(-1)


def test_allowed_tokens_depend_on_the_text() -> None:
    """No token may come twice in a row."""
    constraint = AllowedTokens(lambda prefix: torch.arange(VOCAB_SIZE) != prefix[-1])
    constrained = constraint((0, 3), random_logits(0, VOCAB_SIZE))
    assert (constrained == FORBIDDEN).nonzero().tolist() == [[3]]


def test_a_text_after_which_nothing_is_allowed_is_refused() -> None:
    nothing = AllowedTokens(lambda prefix: torch.zeros(VOCAB_SIZE, dtype=torch.bool))
    logits = random_logits(0, len(TREE), VOCAB_SIZE)
    with pytest.raises(InvalidInputError, match="no token after 3 tokens"):
        constrain(logits, TREE, CONTEXT, [nothing])


def test_constraints_that_together_allow_nothing_are_refused() -> None:
    """Each leaves something over; at temperature 0 the first token would win silently."""
    even = AllowedTokens(lambda prefix: torch.arange(VOCAB_SIZE) % 2 == 0)
    logits = random_logits(0, len(TREE), VOCAB_SIZE)
    with pytest.raises(InvalidInputError, match="no token after 3 tokens"):
        constrain(logits, TREE, CONTEXT, [BannedTokens([0, 2, 4]), even])


def test_a_dead_end_of_a_branch_is_noted_and_keeps_its_logits() -> None:
    """Node 1 and node 4 have the text (4, 2, 0, 1) and one that begins so."""

    def allowed(prefix: Sequence[int]) -> Tensor:
        assert len(prefix) < 5, "nothing below a dead end is asked about"
        return torch.full((VOCAB_SIZE,), prefix[-1] != 1)

    logits = random_logits(0, len(TREE), VOCAB_SIZE)
    constrained, dead_ends = constrain(logits, TREE, CONTEXT, [AllowedTokens(allowed)])
    assert dead_ends == {1}
    assert torch.equal(constrained, logits)


def test_tokens_are_emitted_up_to_the_first_dead_end() -> None:
    assert num_allowed((0, 1, 4), ()) == 3
    assert num_allowed((0, 1, 4), {4}) == 2
    assert num_allowed((0, 1, 4), {1, 4}) == 1
    assert num_allowed((0, 2), {1, 4}) == 2


def test_no_constraint_leaves_the_logits_as_they_are() -> None:
    logits = random_logits(0, len(TREE), VOCAB_SIZE)
    constrained, dead_ends = constrain(logits, TREE, CONTEXT, [])
    assert constrained is logits
    assert not dead_ends


def test_each_node_is_constrained_by_its_own_text() -> None:
    recording = _Recording()
    constrain(random_logits(0, len(TREE), VOCAB_SIZE), TREE, CONTEXT, [recording])
    assert recording.seen == [(*CONTEXT[:-1], *TREE.path_tokens(node)) for node in range(len(TREE))]


def test_constraints_apply_one_after_the_other() -> None:
    logits = random_logits(0, len(TREE), VOCAB_SIZE)
    penalty, banned = RepetitionPenalty(2.0), BannedTokens([4])
    constrained, _ = constrain(logits, TREE, CONTEXT, [penalty, banned])
    for node in range(len(TREE)):
        prefix = [*CONTEXT[:-1], *TREE.path_tokens(node)]
        assert torch.equal(constrained[node], banned(prefix, penalty(prefix, logits[node])))


def test_a_constraint_never_sees_a_text_that_it_forbids() -> None:
    recording = _Recording(1)
    constrain(random_logits(0, len(TREE), VOCAB_SIZE), TREE, CONTEXT, [recording])
    assert recording.seen == [(4, 2, 0), (4, 2, 0, 2)]


def test_a_constraint_never_sees_a_text_that_the_target_rules_out() -> None:
    logits = random_logits(0, len(TREE), VOCAB_SIZE)
    logits[0, 1] = FORBIDDEN
    recording = _Recording()
    constrain(logits, TREE, CONTEXT, [recording])
    assert recording.seen == [(4, 2, 0), (4, 2, 0, 2)]


PREFIX = (4, 2, 0)
SHORT = TokenTree.of([0], [-1])


def allowed_after(mask: Any) -> list[int]:
    """The tokens that a grammar with this mask leaves of seven."""
    grammar: Any = AllowedTokens(lambda prefix: mask)
    logits, _ = constrain(torch.zeros(1, 7), SHORT, PREFIX, [grammar])
    return [token for token in range(7) if logits[0, token] > FORBIDDEN]


@pytest.mark.parametrize(
    "as_form", [torch.tensor, list, tuple, np.array], ids=["tensor", "list", "tuple", "array"]
)
def test_a_mask_as_long_as_the_tokenizer_forbids_the_rest(as_form: Any) -> None:
    mask = as_form([True, False, True, False, True])
    if isinstance(mask, torch.Tensor | np.ndarray):
        assert allowed_after(mask) == [0, 2, 4]
    else:
        grammar: Any = AllowedTokens(lambda prefix: mask)
        with suppress(TypeCheckError):  # types are checked before our own checks, in tests
            logits, _ = constrain(torch.zeros(1, 7), SHORT, PREFIX, [grammar])
            assert (logits[0] > FORBIDDEN).tolist() == [True, False] * 2 + [True] + [False] * 2


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(8, dtype=torch.bool),
        torch.ones(1, dtype=torch.bool),
        torch.ones(4, dtype=torch.bool),
        torch.ones(0, dtype=torch.bool),
        torch.ones(7),
        torch.ones(7, dtype=torch.int64),
        torch.ones(1, 7, dtype=torch.bool),
        np.ones(7),
        None,
        [1, 0, 1, 0, 1, 0, 1],
        "1111111",
    ],
    ids=["long", "one", "short", "none", "float", "int", "2d", "numpy", "nothing", "ints", "text"],
)
def test_a_mask_that_says_something_else_is_refused(mask: Any) -> None:
    with pytest.raises((InvalidInputError, TypeCheckError), match=r"mask|violates"):
        allowed_after(mask)


@pytest.mark.parametrize("banned", [[7], [-1], [3, 400]])
def test_tokens_that_do_not_exist_cannot_be_banned(banned: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="the model has tokens 0 to 6"):
        constrain(torch.zeros(1, 7), SHORT, PREFIX, [BannedTokens(banned)])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_constraint_that_returns_no_logits_is_named(value: float) -> None:
    class Odd:
        def __call__(self, prefix: Sequence[int], logits: Tensor) -> Tensor:
            return logits.index_fill(0, torch.tensor([1]), value)

    with pytest.raises(InvalidInputError, match=f"the constraint Odd returned.*{value}"):
        constrain(torch.zeros(1, 7), SHORT, PREFIX, [Odd()])


@pytest.mark.parametrize(
    "row",
    [None, [0.0] * 7, torch.zeros(6), torch.zeros(1, 7), torch.zeros(7, device="meta")],
)
def test_a_constraint_that_returns_another_shape_is_named(row: Any) -> None:
    def odd(prefix: Sequence[int], logits: Tensor) -> Any:
        return row

    with pytest.raises(InvalidInputError, match="a logit for each of 7 tokens"):
        constrain(torch.zeros(1, 7), SHORT, PREFIX, [odd])


def test_a_constraint_may_return_logits_that_know_their_gradients() -> None:
    def learned(prefix: Sequence[int], logits: Tensor) -> Tensor:
        return logits.clone().requires_grad_()

    logits, _ = constrain(torch.zeros(1, 7), SHORT, PREFIX, [learned])
    assert not logits.requires_grad


def test_a_constraint_may_write_into_what_it_is_given() -> None:
    def careless(prefix: Sequence[int], logits: Tensor) -> Tensor:
        logits.fill_(FORBIDDEN)
        return logits

    logits = torch.zeros(len(TREE), VOCAB_SIZE)
    with pytest.raises(InvalidInputError, match="allow no token"):
        constrain(logits, TREE, CONTEXT, [careless])
    assert (logits == 0).all()


def test_greedy_text_asks_once_for_each_of_its_tokens_in_order() -> None:
    recording = _Recording()
    logits = torch.zeros(len(TREE), VOCAB_SIZE)
    logits[0, 2] = logits[2, 4] = 1.0  # the path is the anchor and node 2, which is a leaf
    constrain(logits, TREE, CONTEXT, [recording], is_greedy=True)
    assert recording.seen == [CONTEXT, (*CONTEXT, 2)]


@pytest.mark.parametrize("given", [BannedTokens([1]), 5, [5], [BannedTokens], "x"])
def test_constraints_come_as_a_list(given: Any) -> None:
    with pytest.raises(InvalidInputError, match="constraint"):
        as_constraints(given)
    assert as_constraints(None) == ()
