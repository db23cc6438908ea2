"""A memory finds what came next where a run of tokens occurred, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.memory.text_memory import (
    LEAST_BYTES,
    MOST_AGREEING,
    NUM_FOLLOWED,
    RUNS,
    SHORTEST_RUN,
    TextMemory,
)

TOKENS = st.integers(0, 3)
TEXTS = st.lists(st.lists(TOKENS, min_size=1, max_size=12), min_size=1, max_size=5)


def filled(*texts: list[int]) -> TextMemory:
    memory = TextMemory()
    for text in texts:
        memory.add(text)
    return memory


def num_agreeing(text: list[int], place: int, context: list[int]) -> int:
    most = min(place, len(context), MOST_AGREEING)
    steps = range(1, most + 1)
    return next((n - 1 for n in steps if text[place - n] != context[-n]), most)


def until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(-1)] if -1 in tokens else tokens


@given(TEXTS, st.lists(TOKENS, min_size=SHORTEST_RUN, max_size=8))
def test_every_place_is_found_with_what_came_next(
    texts: list[list[int]], context: list[int]
) -> None:
    """As a plain search through the texts finds them; none is too many for a memory this small."""
    expected = sorted(
        (num_agreeing(text, place, context), until_end([*text[place:], -1, -1][:2]))
        for text in texts
        for place in range(len(text))
        if num_agreeing(text, place, context) >= SHORTEST_RUN
    )
    found = filled(*texts).recall(context, 2)
    pairs = zip(found.agreements, map(until_end, found.continuations), strict=True)
    assert sorted(pairs) == expected


def test_the_longest_agreement_comes_first_and_then_the_latest() -> None:
    memory = filled([9, 1, 2, 3, 7], [8, 1, 2, 3, 4], [8, 1, 2, 3, 5])
    found = memory.recall([8, 1, 2, 3], 1)
    assert found.agreements == [4, 4, 3]
    assert [tokens[0] for tokens in found.continuations] == [5, 4, 7]


def test_a_place_is_found_only_where_the_shortest_run_agrees() -> None:
    assert filled([1, 2, 3]).recall([5, 6, 2], 1).agreements == []
    assert TextMemory().recall([1, 2, 3], 1).agreements == []


def test_a_lookup_follows_a_bounded_number_of_links() -> None:
    memory = filled([1, 2, 3] * 2000)
    found = memory.recall([1, 2, 3] * 20, 4)
    assert 0 < len(found.agreements) <= len(RUNS) * NUM_FOLLOWED


def test_a_place_far_back_is_found_by_its_long_run() -> None:
    common = [[50 + number, 1, 2, 3, 4] for number in range(2 * NUM_FOLLOWED)]
    memory = filled([11, 12, 13, 14, 15, 1, 2, 3, 99], *common)
    found = memory.recall([11, 12, 13, 14, 15, 1, 2, 3], 1)
    assert (found.agreements[0], found.continuations[0]) == (8, [99])


def test_the_oldest_texts_go_first_and_the_memory_stays_within_its_bytes() -> None:
    memory = TextMemory(LEAST_BYTES)
    texts = [[number, number + 1, number + 2, number + 3] * 10 for number in range(0, 9000, 4)]
    for text in texts:
        memory.add(text)
        assert memory.num_bytes <= LEAST_BYTES
    assert memory.recall(texts[0], 1).agreements == []
    assert memory.recall(texts[-1][:8], 2).continuations[0] == texts[-1][8:10]
    kept = [bool(memory.recall(text[:8], 1).agreements) for text in texts]
    assert kept == sorted(kept)


def test_a_text_longer_than_the_memory_leaves_its_end() -> None:
    memory = TextMemory(LEAST_BYTES)
    memory.add(range(20000))
    assert memory.recall([19990, 19991, 19992], 2).continuations == [[19993, 19994]]


def test_pieces_side_by_side_are_one_text() -> None:
    memory = TextMemory()
    end = memory.add([1, 2, 3, 4])
    memory.add([3, 4, 5, 6], num_known=2, after=end)
    assert memory.recall([1, 2, 3], 3).continuations == [[4, 5, 6]]
    assert len(memory) == 1 + 6


def test_a_piece_behind_another_text_keeps_its_context() -> None:
    memory = TextMemory()
    end = memory.add([1, 2, 3, 4])
    memory.add([9, 9, 9])
    memory.add([2, 3, 4, 5], num_known=3, after=end)
    assert memory.recall([1, 2, 3, 4], 1).continuations == [[5]]
    assert memory.recall([1, 2, 3], 2).continuations == [[4, -1]]


def test_users_share_nothing() -> None:
    memory = filled([1, 2, 3, 4])
    memory.of("one").add([1, 2, 3, 5])
    assert memory.of("one") is memory.of("one")
    assert memory.of("two").recall([1, 2, 3], 1).agreements == []
    assert memory.of("one").recall([1, 2, 3], 1).continuations == [[5]]
    assert memory.recall([1, 2, 3], 1).continuations == [[4]]
    memory.of("one").record.observe(5, 1.0, is_right=False)
    assert memory.of("two").record.probability(5, 1.0) == memory.record.probability(5, 1.0)


def test_a_memory_that_would_hold_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least 65536 bytes, got 10"):
        TextMemory(10)


def test_long_runs_alone_can_be_asked_for() -> None:
    memory = filled([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    assert memory.recall([1, 2, 3], 1, long_runs=True).agreements == []
    assert memory.recall([*range(1, 11)], 1, long_runs=True).continuations == [[11]]
