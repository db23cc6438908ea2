"""What people say: messages of a conversation and turns of a question, checked once.

A message is an object with a role and a content, as chat templates of transformers read it. The
content is text, or a list of parts of text. An assistant's message may have tool calls instead.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from treesnake.chat_templates import bounded
from treesnake.errors import InvalidInputError
from treesnake.utf8 import check_text, described

Message = Mapping[str, Any]
"""A turn of a conversation: {"role": "user", "content": "..."}."""

ChatTemplate = Callable[[Sequence[Message]], str]
"""Returns a conversation as the text that the model was trained on."""


def check_messages(messages: Sequence[object]) -> list[Message]:
    """Returns the messages of a conversation.

    Raises:
        InvalidInputError: naming the message, if it has no role, or no text as content.
    """
    return [_checked_message(each, f"message {n}") for n, each in enumerate(messages, 1)]


def render(messages: Sequence[Message], template: ChatTemplate) -> str:
    """Puts a conversation through a chat template.

    Some templates read lists of parts, others write such a list as Python shows it, or pass over
    it. Those are given the parts of each message joined to one text.

    Args:
        messages: checked.
        template: the tokenizer's.

    Raises:
        InvalidInputError: if the template fails, or tool calls are not in what it makes.
    """
    has_parts = any(isinstance(each.get("content"), (list, tuple)) for each in messages)
    try:
        text = bounded(partial(template, messages))
    except Exception as error:
        if has_parts:
            return render([_with_one_text(message) for message in messages], template)
        raise InvalidInputError(
            f"the target's chat template refuses the conversation: {error}"
        ) from error
    if has_parts and not _shows_parts(text, messages):
        return render([_with_one_text(message) for message in messages], template)
    return _checked_rendering(text, messages)


def joined_text(content: object) -> str | None:
    """Returns the text of a content; None if it is neither text nor a list of parts of text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)) or not all(map(_is_text_part, content)):
        return None
    return "".join(part["text"] for part in content)


def tool_names(calls: object) -> list[str] | None:
    """Returns the names of the functions that tool calls name; None if they are no such calls."""
    if calls is None:
        return []
    if not isinstance(calls, (list, tuple)) or not all(isinstance(each, Mapping) for each in calls):
        return None
    functions = [call.get("function", call) for call in calls]
    names = [each.get("name") for each in functions if isinstance(each, Mapping)]
    named = [name for name in names if isinstance(name, str) and name]
    return named if len(named) == len(calls) else None


def check_turns(value: object, where: str) -> tuple[str, ...]:
    """Returns what a user says turn by turn: a text is one turn, a list of texts are several.

    Raises:
        InvalidInputError: if it is something else, or a turn is empty.
    """
    turns = [value] if isinstance(value, str) else value
    if not isinstance(turns, (list, tuple)) or not turns:
        raise InvalidInputError(
            f"{where} must be a text or a list of texts, not {described(value)}"
        )
    for number, turn in enumerate(turns, 1):
        name = where if turn is value else f"turn {number} of {where}"
        if not check_text(turn, name).strip():
            raise InvalidInputError(f"{name} is empty; write a text, or leave the row out")
    return tuple(turns)


def _checked_message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidInputError(
            f"{where} must be an object with a role and a content, such as "
            f"{{'role': 'user', 'content': 'Hello'}}, not {described(message)}"
        )
    if message.get("role") is None:
        raise InvalidInputError(
            f"{where} has no role: write {{'role': 'user', 'content': 'Hello'}}, not the keys "
            f"{', '.join(described(key) for key in message)}"
        )
    check_text(message["role"], f"the role of {where}")
    names = tool_names(message.get("tool_calls"))
    if names is None:
        raise InvalidInputError(f"the tool calls of {where} must be a list of named functions")
    _check_content(message.get("content"), where, is_needed=not names)
    return message


def _check_content(content: object, where: str, *, is_needed: bool) -> None:
    if content is None:
        if is_needed:
            raise InvalidInputError(f"{where} has no content; give it text, or leave it out")
        return
    if not isinstance(content, (list, tuple)):
        check_text(content, f"the content of {where}")
        return
    for number, part in enumerate(content, 1):
        name = f"part {number} of {where}"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            found = f"one of type {described(kind)}" if kind is not None else described(part)
            raise InvalidInputError(
                f"{name} must be {{'type': 'text', 'text': '...'}}, for the decoder reads text and "
                f"nothing else; found {found}"
            )
        check_text(part.get("text"), f"the text of {name}")


def _is_text_part(part: object) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )


def _with_one_text(message: Message) -> Message:
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        return {**message, "content": joined_text(content)}
    return message


def _shows_parts(text: str, messages: Sequence[Message]) -> bool:
    """Tells whether parts of messages appear in a rendered text as text, not as Python."""
    contents = [message.get("content") for message in messages]
    lists = [content for content in contents if isinstance(content, (list, tuple))]
    return all(
        str(content) not in text and all(part["text"].strip() in text for part in content)
        for content in lists
    )


def _checked_rendering(text: str, messages: Sequence[Message]) -> str:
    for message in messages:
        for name in tool_names(message.get("tool_calls")) or []:
            if name not in text:
                raise InvalidInputError(
                    f"the target's chat template leaves out the call of the tool {name!r}; write "
                    "calls into the content, or use a model that was trained on tools"
                )
    return check_text(text, "the conversation as the chat template has it")
