"""A pause is what the thread was told, and nothing elsewhere."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from treesnake.pauses import pause, pausing


def test_a_pause_is_nothing_unless_somebody_says_what_it_is() -> None:
    taken: list[str] = []
    pause()
    with pausing(lambda: taken.append("outer")):
        pause()
        with pausing(lambda: taken.append("inner")):
            pause()
        pause()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(pause).result()
    pause()
    assert taken == ["outer", "inner", "outer"]


def test_a_pause_that_raises_leaves_none_behind() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pausing(stop):
        pause()
    pause()
