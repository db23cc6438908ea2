"""Slots: the lowest that is free, which is one whose text nobody holds."""

import gc

from treesnake.states.slots import Slots


class Text:
    """Whatever holds a slot."""


def test_the_lowest_free_slot_is_handed_out() -> None:
    slots, texts = Slots(), [Text() for _ in range(4)]
    for number, text in enumerate(texts):
        assert slots.lowest_free() == number
        slots.take(number, text)
    del text, texts[2], texts[0]
    gc.collect()
    assert slots.lowest_free() == 0
    kept = Text()
    slots.take(0, kept)
    assert slots.lowest_free() == 2
