"""The gate for what users give: counts, numbers, token ids and lists, each of one plain type.

numpy's numbers are taken for Python's. A bool is no number, text is no list, and a fraction is no
count. The command line and Python meet the same gate.
"""

from collections.abc import Iterable
from numbers import Integral, Real

from treesnake.errors import InvalidInputError

LONGEST_SHOWN = 60
"""Characters of a wrong value that a message repeats."""

NUM_SEEDS = 2**63
"""Seeds go from 0 to one less than this."""

MOST_THREADS = 1024
"""Many more threads than this end a process before it can say why."""


def as_count(name: str, value: object, *, least: int = 1) -> int:
    """Returns a whole number that is large enough.

    Raises:
        InvalidInputError: naming the argument, if it is none.
    """
    number = _whole(name, value)
    if number < least:
        raise InvalidInputError(f"{name} must be at least {least}, got {shown(value)}")
    return number


def as_number(name: str, value: object) -> float:
    """Returns a number as a float, which may be infinite or no number.

    Raises:
        InvalidInputError: naming the argument, if it is no number, or too large for a float.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidInputError(f"{name} must be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InvalidInputError(
            f"{name} must be a finite number, got one that is too large for a float"
        ) from None


def as_num_threads(value: object) -> int:
    """Returns a number of threads that torch can be given.

    Raises:
        InvalidInputError: if it is no whole number from 1 to 1024.
    """
    number = as_count("threads", value)
    if number > MOST_THREADS:
        raise InvalidInputError(
            f"threads must be at most {MOST_THREADS}, got {shown(value)}; more than there are "
            "cores make nothing faster"
        )
    return number


def as_seed(value: object) -> int:
    """Returns a seed.

    Raises:
        InvalidInputError: if it is no whole number from 0 to 2^63 - 1.
    """
    seed = _whole("a seed", value)
    if not 0 <= seed < NUM_SEEDS:
        raise InvalidInputError(f"a seed must be in [0, 2^63), got {shown(value)}")
    return seed


def as_token_ids(name: str, value: object) -> frozenset[int]:
    """Returns a set of token ids.

    Raises:
        InvalidInputError: naming the argument, if it is no collection of whole numbers.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidInputError(f"{name} must be a list of token ids, got {shown(value)}")
    return frozenset(_whole(f"a token id in {name}", token) for token in value)


def as_texts(name: str, value: object) -> tuple[str, ...]:
    """Returns some texts; None stands for none.

    Raises:
        InvalidInputError: naming the argument, if it is one text, or something in it is none.
    """
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidInputError(f"{name} is a list of strings: write {name}=[{shown(value)}]")
    texts = tuple(value)
    for text in texts:
        if not isinstance(text, str):
            raise InvalidInputError(f"{name} is a list of strings, got {shown(text)} in it")
    return texts


def shown(value: object, most: int = LONGEST_SHOWN) -> str:
    """Returns how a value is written, for a message, cut after so many characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or a list too deep
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidInputError(f"{name} must be a whole number, got {shown(value)}")
    return int(value)
