"""Ties and errors."""

import pytest

from treesnake.evaluation.verification.evidence import Difference, GreedyEvidence


def difference(gap: float, rounding: float) -> Difference:
    return Difference(0, 3, 7, 8, 10.0 - gap, 10.0, rounding)


def test_a_gap_that_rounding_explains_is_a_tie_and_passes() -> None:
    evidence = GreedyEvidence(1, 64, (difference(0.01, 0.01),))
    assert evidence.ties
    assert evidence.is_passed


def test_a_gap_that_rounding_does_not_explain_fails() -> None:
    evidence = GreedyEvidence(1, 64, (difference(0.5, 0.01), difference(0.0, 0.01)))
    assert [error.gap for error in evidence.errors] == [pytest.approx(0.5)]
    assert not evidence.is_passed
