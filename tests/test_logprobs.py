"""What rows of logits say of tokens."""

import math
from typing import Any

import pytest
import torch

from treesnake.errors import InvalidInputError
from treesnake.logprobs import as_num_top, token_logprobs

LOGITS = torch.tensor([[0.0, 1.0, 2.0, 1.0], [3.0, -1.0, 0.0, 0.0]])


def test_a_token_has_the_log_softmax_of_its_row_with_the_largest_beside_it() -> None:
    expected = LOGITS.log_softmax(-1)
    first, second = token_logprobs(LOGITS, [3, 0], 2)
    assert (first.token_id, second.token_id) == (3, 0)
    assert first.logprob == pytest.approx(float(expected[0, 3]))
    assert [token for token, _ in first.top] == [2, 1], "of equal ones the first comes first"
    assert dict(second.top)[0] == second.logprob == pytest.approx(float(expected[1, 0]))


def test_nothing_stands_beside_a_token_where_nothing_was_asked_for() -> None:
    assert [token.top for token in token_logprobs(LOGITS, [1, 1], 0)] == [(), ()]


def test_an_impossible_token_is_told_as_such() -> None:
    row = torch.tensor([[0.0, -math.inf]])
    assert token_logprobs(row, [1], 2)[0].logprob == -math.inf


def test_low_precision_logits_are_normalized_in_float32() -> None:
    (token,) = token_logprobs(LOGITS[:1].to(torch.bfloat16), [2], 0)
    expected = float(LOGITS[:1].log_softmax(-1)[0, 2])
    assert token.logprob == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1, "at least 0"), (5, "at most 4"), (True, "whole number"), ("2", "whole number")],
)
def test_only_a_number_of_tokens_can_be_asked_for(value: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        as_num_top(value, 4)
