"""Whom a session serves: one text at a time.

A session is the state of one text. Two generations that took turns in it would each go on from what
the other left, and end in another text without a word. So a generation takes a lease of its session
with its first step. Whoever takes the next one has the session, and the one before is refused.
Steps in several threads wait for each other.

Sessions are of any class, so what is known of them is kept beside them, for as long as they live.
"""

from collections.abc import Callable, Generator
from functools import wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar
from weakref import finalize

from treesnake.errors import InvalidInputError
from treesnake.threads import new_reentrant_lock

Session = TypeVar("Session")
P = ParamSpec("P")
Step = TypeVar("Step")


def leased(
    generate: Callable[Concatenate[Session, P], Generator[Step, None, None]],
) -> Callable[Concatenate[Session, P], Generator[Step, None, None]]:
    """Lets a function that generates in a session, its first argument, take a lease of it.

    Each step raises InvalidInputError once another generation has the session.
    """

    @wraps(generate)
    def begin(
        session: Session, /, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[Step, None, None]:
        return _LeasedSteps(_tenancy_of(session), generate(session, *args, **kwargs))

    return begin


def note_maker(session: object, maker: object) -> None:
    """Notes who made a session, for `was_made_by`."""
    _tenancy_of(session).maker = maker


def was_made_by(session: object, maker: object) -> bool:
    """Tells whether this one made a session."""
    return _tenancy_of(session).maker is maker


class _Tenancy:
    """What is known of one session: who made it, and the mark of the generation that has it."""

    def __init__(self) -> None:
        self.maker: object = None
        self.tenant: object = None
        self.lock = new_reentrant_lock()


class _LeasedSteps(Generator[Step, None, None]):
    """The steps of one generation, as long as it has the session."""

    def __init__(self, tenancy: _Tenancy, steps: Generator[Step, None, None]) -> None:
        self._tenancy = tenancy
        self._steps = steps
        self._mark = object()  # the steps themselves hold the session, which would never end
        self._has_begun = False

    def send(self, value: None) -> Step:
        """Runs the next step."""
        with self._tenancy.lock:
            if not self._has_begun:
                self._tenancy.tenant = self._mark
                self._has_begun = True
            if self._tenancy.tenant is not self._mark:
                raise InvalidInputError(
                    "the session serves another text by now, so this one cannot go on: give each "
                    "text a session of its own, or generate again from what came of it"
                )
            return self._steps.send(value)

    def throw(
        self,
        error: type[BaseException] | BaseException,
        value: BaseException | object = None,
        traceback: TracebackType | None = None,
        /,
    ) -> Step:
        """Ends the generation by an error, also by that of `close`."""
        with self._tenancy.lock:
            return self._steps.throw(error)


_TENANCIES: dict[int, _Tenancy] = {}


def _tenancy_of(session: object) -> _Tenancy:
    key = id(session)
    if key not in _TENANCIES:
        try:
            finalize(session, _TENANCIES.pop, key, None)
        except TypeError as error:
            raise InvalidInputError(
                f"a session must allow weak references: {error}; add __weakref__ to its __slots__"
            ) from error
    return _TENANCIES.setdefault(key, _Tenancy())
