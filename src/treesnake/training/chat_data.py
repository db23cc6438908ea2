"""Chat data in its common shapes: the first prompt of a value, and the reply to it.

A value is one of:

- a prompt as text;
- a list of turns with "role" and "content", or with "from" and "value" as in ShareGPT, whose
  contents are text or lists of parts of text;
- a list of texts, of which the first is the user's;
- an object that has such a list as "messages", "conversations", "conversation" or "turns", or that
  has a list of roles and a list of contents;
- any of these as text of JSON.

System turns in front are passed over. What has no text is never learned as the words that Python
shows for it: tool calls, pictures, null.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from treesnake.conversation import joined_text
from treesnake.errors import InvalidInputError
from treesnake.json_lines import parse_json
from treesnake.utf8 import is_text

ASKERS = ("human", "user", "prompter")
REPLIERS = ("gpt", "assistant", "chatgpt", "model", "bot")
PASSED_OVER = ("system", "developer")

ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")
CALL_KEYS = ("tool_calls", "function_call")
WRAPPERS = ("messages", "conversations", "conversation", "turns")

WRITTEN_TURNS = re.compile(
    r"""\[\s*\{\s*["'](role|from|content|value|text)["']\s*:|"""
    r"""\{\s*["'](messages|conversations?|turns)["']\s*:\s*\["""
)
"""How a text begins that is a conversation written down."""


@dataclass(frozen=True)
class Exchange:
    """The beginning of a conversation: a prompt, and a reply if there is one."""

    prompt: str
    reply: str


def read_exchange(value: object) -> Exchange | None:
    """Reads a prompt or the beginning of a conversation.

    Returns:
        None for what does not begin with a text of the user's. The reply is empty where no text
        follows.
    """
    if isinstance(value, str):
        return _of_text(value)
    turns = _turns(value)
    while turns and _role(turns[0]) in PASSED_OVER:
        turns = turns[1:]
    if not turns or _role(turns[0]) not in ASKERS:
        return None
    prompt = _said(turns[0])
    is_answered = len(turns) > 1 and _role(turns[1]) in REPLIERS
    return Exchange(prompt, _said(turns[1]) if is_answered else "") if prompt else None


def clean_text(value: object) -> str:
    """Returns a text without the space around it; nothing for what is no text."""
    return value.strip() if isinstance(value, str) and is_text(value) else ""


def _of_text(text: str) -> Exchange | None:
    prompt = clean_text(text)
    if not WRITTEN_TURNS.match(prompt):
        return Exchange(prompt, "") if prompt else None
    try:
        return read_exchange(parse_json(prompt, "a conversation"))
    except InvalidInputError:
        return None


def _turns(value: object) -> Sequence[Any]:
    """Returns the turns of a conversation, as objects; none for what is no conversation."""
    if isinstance(value, Mapping):
        wrapped = _first_of(value, WRAPPERS)
        return _turns(wrapped) if isinstance(wrapped, list) else _turns_side_by_side(value)
    if not isinstance(value, (list, tuple)) or not value:
        return []
    if all(isinstance(each, str) for each in value):
        return [{"role": "user", "content": value[0]}]
    return value if all(isinstance(each, Mapping) for each in value) else []


def _turns_side_by_side(value: Mapping[str, Any]) -> Sequence[Any]:
    """Returns the turns of a list of roles beside a list of contents, or of one single turn."""
    roles, contents = _first_of(value, ROLE_KEYS), _first_of(value, CONTENT_KEYS)
    if isinstance(roles, list) and isinstance(contents, list):
        pairs = zip_longest(roles, contents)
        return [{"role": role, "content": content} for role, content in pairs]
    return [value] if isinstance(roles, str) else []


def _role(turn: Mapping[str, Any]) -> object:
    role = _first_of(turn, ROLE_KEYS)
    return role.lower() if isinstance(role, str) else role


def _said(turn: Mapping[str, Any]) -> str:
    """Returns the text of a turn; nothing where a part of it is no text or a tool is called."""
    if _first_of(turn, CALL_KEYS):
        return ""
    return clean_text(joined_text(_first_of(turn, CONTENT_KEYS)))


def _first_of(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Returns the first value that is there: readers of tables fill up with null."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)
