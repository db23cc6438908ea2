"""The bound on what a chat template may do: templates come with models, and are programs.

The sandbox of jinja2 keeps a template from files and from code. It does not keep it from running
for ever: each `range` is at most 100,000 long, but loops can stand in loops.
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from treesnake.errors import InvalidInputError

TEMPLATE_FILE = "<template>"
"""What jinja2 calls the code that it makes of a template."""

NAMESPACE, ATTRIBUTES = "Namespace", "_Namespace__attrs"
"""What jinja2 calls the objects whose attributes a template may set, and where it keeps these."""

MAX_STEPS = 2_000_000
"""Lines of that code; a turn of a conversation takes some dozens."""

MAX_CHARACTERS = 1 << 26
"""What all parts of a template write together, and what any one of its variables holds."""


def bounded(render: Callable[[], str]) -> str:
    """Returns what a template renders, unless it does not come to an end.

    Other tracers of this thread rest while it renders, such as a debugger's.

    Raises:
        InvalidInputError: if the template runs for too long or writes too much.
    """
    tracer = _Tracer()
    before = sys.gettrace()
    sys.settrace(tracer.enter)
    try:
        return render()
    finally:
        sys.settrace(before)


class _Tracer:
    """Counts what a template does, line by line."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._num_characters = 0

    def enter(self, frame: FrameType, event: str, value: object) -> Callable[..., Any] | None:
        return self.count if frame.f_code.co_filename == TEMPLATE_FILE else None

    def count(self, frame: FrameType, event: str, value: object) -> Callable[..., Any]:
        self._num_steps += 1
        held = max(map(_size, frame.f_locals.values()), default=0)
        if event == "return" and isinstance(value, str):  # also where a part of it is yielded
            self._num_characters += len(value)
        if self._num_steps > MAX_STEPS or max(self._num_characters, held) > MAX_CHARACTERS:
            raise InvalidInputError(
                f"the chat template does not end within {MAX_STEPS} steps and {MAX_CHARACTERS} "
                "characters; correct chat_template in the model's folder"
            )
        return self.count


def _size(value: object) -> int:
    """Returns how long a text, list or number is that a template makes: a loop may double it."""
    if isinstance(value, (str, list, tuple)):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 8
    if type(value).__name__ == NAMESPACE:
        return max(map(_size, getattr(value, ATTRIBUTES).values()), default=0)
    return 0
