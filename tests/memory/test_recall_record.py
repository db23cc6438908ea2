"""Guesses are believed as often as their kind came true."""

import pytest

from treesnake.memory.recall_record import RecallRecord


def test_beforehand_longer_agreement_and_more_votes_are_believed_more() -> None:
    record = RecallRecord()
    by_length = [record.probability(length, 1.0) for length in range(1, 40)]
    by_share = [record.probability(8, share / 10) for share in range(1, 11)]
    assert by_length == sorted(by_length)
    assert by_share == sorted(by_share)
    assert 0 < by_length[0] < by_length[-1] < 1


@pytest.mark.parametrize("is_right", [True, False])
def test_what_was_seen_prevails(is_right: bool) -> None:
    record = RecallRecord()
    for _ in range(400):
        record.observe(6, 0.7, is_right=is_right)
    assert record.probability(6, 0.7) == pytest.approx(float(is_right), abs=0.05)
    assert record.probability(30, 1.0) == RecallRecord().probability(30, 1.0)
