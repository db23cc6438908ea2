"""A drafter reads the prompt when it is first asked for a draft, and books that apart."""

from collections.abc import Sequence

import pytest

from treesnake import clock
from treesnake.chance import TorchRng
from treesnake.clock import read_s, work_clock
from treesnake.draft import Draft, Scored
from treesnake.drafters.late import LateDrafter
from treesnake.prompt import Prompt
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import OFF, Shape, chain

PROMPT = Prompt((5, 6, 7))


class Reader:
    """A drafter that takes four seconds to read a prompt, and one to draft."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.text: list[int] | None = None
        self.fails = False
        monkeypatch.setattr(clock, "perf_counter", lambda: self.now_s)

    def prefill(self, prompt: Prompt) -> None:
        self.now_s += 4.0
        if self.fails:
            raise KeyboardInterrupt
        self.text = list(prompt.token_ids[:-1])

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        self.now_s += 1.0
        return Draft.nothing(anchor)

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        assert self.text is not None
        self.text += token_ids


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(monkeypatch)


def draft(session: LateDrafter, shape: Shape) -> None:
    session.draft(9, shape, SamplingParams(), TorchRng(0))


def test_a_prompt_is_read_with_the_first_draft(reader: Reader) -> None:
    session = LateDrafter(reader)
    session.prefill(PROMPT)
    session.commit([7])
    draft(session, OFF)
    session.commit([8])
    assert reader.text is None
    draft(session, chain(2))
    assert reader.text == [5, 6, 7, 8]
    session.commit([9, 1])
    draft(session, OFF)
    assert reader.text == [5, 6, 7, 8, 9, 1]


def test_a_prompt_that_was_not_read_gives_way_to_the_next(reader: Reader) -> None:
    session = LateDrafter(reader)
    session.prefill(PROMPT)
    session.commit([7])
    session.prefill(Prompt((1, 2)))
    draft(session, chain(2))
    assert reader.text == [1]


def test_reading_stands_beside_the_work_of_drafting(reader: Reader) -> None:
    session, begun, read = LateDrafter(reader), work_clock(), read_s()
    session.prefill(PROMPT)
    draft(session, chain(2))
    draft(session, chain(2))
    assert work_clock() - begun == pytest.approx(2.0)
    assert read_s() - read == pytest.approx(4.0)


def test_reading_that_was_interrupted_begins_anew(reader: Reader) -> None:
    session = LateDrafter(reader)
    session.prefill(PROMPT)
    session.commit([7])
    reader.fails = True
    with pytest.raises(KeyboardInterrupt):
        draft(session, chain(2))
    reader.fails = False
    draft(session, chain(2))
    assert reader.text == [5, 6, 7]
