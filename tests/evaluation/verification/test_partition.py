"""The division of short texts into cells."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from treesnake.evaluation.verification.partition import (
    FEWEST_EXPECTED,
    IMPOSSIBLE,
    RARE,
    Partition,
    divide_texts,
)

VOCAB, LENGTH, END = 5, 3, 4


def next_probs(sharpness: float, seed: int, prefix: tuple[int, ...]) -> Float[Tensor, " vocab"]:
    generator = torch.Generator().manual_seed(hash((seed, prefix)) % 2**31)
    return (sharpness * torch.randn(VOCAB, generator=generator)).softmax(-1)


def divide(sharpness: float, seed: int, num_samples: int) -> Partition:
    return divide_texts(
        lambda prefix: next_probs(sharpness, seed, prefix),
        num_samples=num_samples,
        num_tokens=LENGTH,
        is_ended=lambda tokens: bool(tokens) and tokens[-1] == END,
        describe=str,
    )


def texts() -> list[tuple[int, ...]]:
    whole = [text for text in product(range(VOCAB), repeat=LENGTH) if END not in text[:-1]]
    ended = [
        (*text, END)
        for length in range(LENGTH - 1)
        for text in product(range(VOCAB - 1), repeat=length)
    ]
    return whole + ended


@settings(max_examples=25)
@given(st.floats(0.1, 6), st.integers(0, 50), st.sampled_from([20, 100, 1000]))
def test_cells_have_the_probabilities_of_their_texts(
    sharpness: float, seed: int, num_samples: int
) -> None:
    partition = divide(sharpness, seed, num_samples)
    totals = np.zeros(len(partition.probs))
    for text in texts():
        prob = 1.0
        for position, token in enumerate(text):
            prob *= float(next_probs(sharpness, seed, text[:position])[token])
        totals[partition.find(text)] += prob
    assert totals == pytest.approx(partition.probs, abs=1e-6)
    assert len(partition.labels) == len(partition.probs) <= 26
    assert min(partition.probs[RARE + 1 :]) >= 0.99 * min(FEWEST_EXPECTED / num_samples, 1 / 24)


def test_a_certain_beginning_is_divided_behind_it() -> None:
    def certain_then_even(prefix: Sequence[int]) -> Float[Tensor, " vocab"]:
        return torch.full((VOCAB,), 1 / VOCAB) if prefix else torch.eye(VOCAB)[2]

    partition = divide_texts(
        certain_then_even,
        num_samples=1000,
        num_tokens=2,
        is_ended=lambda tokens: False,
        describe=str,
    )
    assert len({partition.find((2, token)) for token in range(VOCAB)}) == VOCAB
    assert partition.find((0, 1)) == IMPOSSIBLE
    assert partition.probs[RARE] == 0
