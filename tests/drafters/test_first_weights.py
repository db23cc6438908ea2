"""What a text begins with."""

import numpy as np
import pytest

from treesnake.drafters.first_weights import MEMORY, UNKNOWN, FirstWeights

LEFT, RIGHT = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def test_the_first_text_begins_with_equal_weights() -> None:
    assert FirstWeights().weights(4).tolist() == [0.25] * 4


def test_texts_of_one_kind_begin_with_its_stream() -> None:
    first = FirstWeights()
    for _ in range(20):
        first.count(LEFT, None)
    assert first.weights(2)[0] > 0.95


def test_later_texts_count_for_more() -> None:
    first = FirstWeights()
    first.count(LEFT, None)
    first.count(RIGHT, None)
    total = MEMORY + 1 + UNKNOWN
    assert first.weights(2) == pytest.approx(
        [(MEMORY + UNKNOWN / 2) / total, (1 + UNKNOWN / 2) / total]
    )


def test_a_text_counts_once_with_the_weights_that_it_has() -> None:
    first, once = FirstWeights(), FirstWeights()
    first.count(LEFT, None)
    first.count(RIGHT, LEFT)
    once.count(RIGHT, None)
    assert first.weights(2) == pytest.approx(once.weights(2))


def test_weights_are_never_negative_whatever_other_texts_did_meanwhile() -> None:
    first = FirstWeights()
    first.count(LEFT, None)
    for _ in range(9):
        first.count(RIGHT, None)
    first.count(RIGHT, LEFT)
    assert first.weights(2).min() > 0
