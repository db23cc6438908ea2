"""A session goes on with the text that was begun last, and with no other."""

import gc
from collections.abc import Generator
from itertools import chain, repeat
from threading import Thread
from weakref import ref

import pytest

from treesnake.errors import InvalidInputError
from treesnake.lease import leased, note_maker, was_made_by


class Session:
    """Holds one text."""

    def __init__(self) -> None:
        self.text = ""


class Unreachable:
    """Cannot be weakly referenced."""

    __slots__ = ()


@leased
def spell(session: Session, word: str) -> Generator[str, None, None]:
    session.text = ""
    for letter in word:
        session.text += letter
        yield session.text


def test_a_generation_has_the_session_to_its_end() -> None:
    session = Session()
    assert list(spell(session, "one")) == ["o", "on", "one"]
    assert list(spell(session, "two")) == ["t", "tw", "two"]


def test_a_generation_cannot_go_on_in_another_ones_session() -> None:
    session = Session()
    first, second = spell(session, "first"), spell(session, "second")
    next(first)
    assert next(second) == "s"
    with pytest.raises(InvalidInputError, match="serves another text by now"):
        next(first)
    assert list(second)[-1] == "second"


def test_nobody_has_a_session_before_the_first_step() -> None:
    session = Session()
    first, second = spell(session, "one"), spell(session, "two")
    assert [*first, *second][-1] == "two"


def test_a_generation_that_was_closed_is_in_nobodys_way() -> None:
    session = Session()
    first = spell(session, "one")
    next(first)
    first.close()
    assert list(first) == []
    assert list(spell(session, "two"))[-1] == "two"


def test_a_generation_that_was_left_half_way_keeps_no_session_alive() -> None:
    session = Session()
    steps = spell(session, "one")
    next(steps)
    is_there = ref(session)
    del session, steps
    gc.collect()
    assert is_there() is None


def test_threads_in_one_session_get_their_own_text_or_are_refused() -> None:
    session, outcomes = Session(), []

    def work(word: str) -> None:
        try:
            outcomes.append((word, list(spell(session, word))))
        except InvalidInputError:
            outcomes.append((word, None))

    words = list(chain.from_iterable(repeat(("abcabcabc", "xyzxyzxyz"), 20)))
    threads = [Thread(target=work, args=(word,)) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == len(words)
    for word, letters in outcomes:
        assert letters in (None, [word[: end + 1] for end in range(len(word))])


def test_a_session_knows_its_maker() -> None:
    session, maker = Session(), object()
    assert not was_made_by(session, maker)
    note_maker(session, maker)
    assert was_made_by(session, maker)
    assert not was_made_by(session, object())
    assert not was_made_by(Session(), maker)


def test_a_session_without_weak_references_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="must allow weak references"):
        was_made_by(Unreachable(), object())
