"""What people say: messages of a conversation and turns of a question, checked once.

A message is an object with a role and a content, as chat templates of transformers read it. The
content is text, or a list of parts: text, and images for models that see them. An assistant's
message may have tool calls instead.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from treesnake.chat_templates import bounded
from treesnake.errors import InvalidInputError
from treesnake.images import check_image_part, is_image_part
from treesnake.utf8 import check_text, described

Message = Mapping[str, Any]
"""A turn of a conversation: {"role": "user", "content": "..."}."""

ChatTemplate = Callable[[Sequence[Message]], str]
"""Returns a conversation as the text that the model was trained on."""


def user_message(text: str, images: Sequence[object] = ()) -> Message:
    """Returns what a user says, about images or none.

    Args:
        text: what is said.
        images: they come first: paths, addresses, or images of Pillow.
    """
    if not images:
        return {"role": "user", "content": text}
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def check_messages(messages: Sequence[object]) -> list[Message]:
    """Returns the messages of a conversation.

    Raises:
        InvalidInputError: naming the message, if it has no role, or no text as content.
    """
    return [_checked_message(each, f"message {n}") for n, each in enumerate(messages, 1)]


def image_sources(messages: Sequence[Message]) -> list[tuple[str, object]]:
    """Returns where the images of a conversation are, in its order, with a name for each.

    Args:
        messages: checked.
    """
    return [
        (f"the image in {_place(number, index)}", check_image_part(part, _place(number, index)))
        for number, message in enumerate(messages, 1)
        if isinstance(message.get("content"), (list, tuple))
        for index, part in enumerate(message["content"], 1)
        if is_image_part(part)
    ]


def render(messages: Sequence[Message], template: ChatTemplate) -> str:
    """Puts a conversation through a chat template.

    Some templates read lists of parts, others texts; either kind passes over the other, or writes a
    list as Python shows it. So a content is turned into what the template reads.

    Args:
        messages: checked.
        template: the tokenizer's. Of an image it is told that there is one.

    Raises:
        InvalidInputError: if the template fails, or tool calls are not in what it makes.
    """
    forms = [[convert(each) for each in messages] for convert in (_plain, _in_parts, _in_one_text)]
    renderings: list[str] = []
    failures: list[InvalidInputError] = []
    for number, form in enumerate(forms):
        if form in forms[:number]:
            continue
        try:
            text = _rendered(form, template)
        except InvalidInputError as error:
            failures.append(error)
            continue
        if not _shows_python(text, form) and _shows_texts(text, messages):
            return _checked_rendering(text, messages)
        renderings.append(text)
    if not renderings:
        raise failures[0]
    has_parts = any(isinstance(each.get("content"), (list, tuple)) for each in messages)
    return _checked_rendering(renderings[-1 if has_parts else 0], messages)


def _rendered(messages: Sequence[Message], template: ChatTemplate) -> str:
    try:
        return bounded(partial(template, messages))
    except Exception as error:
        raise InvalidInputError(
            f"the target's chat template refuses the conversation: {error}"
        ) from error


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


def check_offered(tools: Sequence[object], text: str) -> None:
    """Checks that a conversation offers all tools that it should.

    Args:
        tools: what may be called, each described as in OpenAI's API.
        text: the conversation as the chat template has it.

    Raises:
        InvalidInputError: if a tool has no name, or the template leaves it out.
    """
    names = tool_names(tools)
    if names is None:
        raise InvalidInputError(
            "tools must be a list of functions with names, such as {'type': 'function', "
            "'function': {'name': 'add', 'parameters': {...}}}"
        )
    for name in names:
        if name not in text:
            raise InvalidInputError(
                f"the target's chat template leaves out the tool {name!r:.80}; describe it in a "
                "message, or use a model that was trained on tools"
            )


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
    return _with_arguments(message, where) if names else message


def _with_arguments(message: Message, where: str) -> Message:
    """Returns a message whose calls have objects as arguments, as chat templates read them.

    In OpenAI's API they are JSON in a text, which a template would write as a text in a text.
    """
    calls = [_with_object(call, where) for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def _with_object(call: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if "function" in call:
        return {**call, "function": _with_object(call["function"], where)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        return {**call, "arguments": json.loads(arguments or "{}")}
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"the arguments of a tool call of {where} are no JSON: {error}"
        ) from error


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
        if is_image_part(part):
            check_image_part(part, name)
        elif kind == "text":
            check_text(part.get("text"), f"the text of {name}")
        else:
            found = f"one of type {described(kind)}" if kind is not None else described(part)
            raise InvalidInputError(
                f"{name} must be {{'type': 'text', 'text': '...'}}, or {{'type': 'image', 'path': "
                f"'...'}} for a model that sees; found {found}"
            )


def _is_text_part(part: object) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )


def _place(message_number: int, part_number: int) -> str:
    return f"part {part_number} of message {message_number}"


def _plain(message: Message) -> Message:
    """Returns a message as it is, but for the images themselves."""
    content = message.get("content")
    if not isinstance(content, (list, tuple)) or not any(map(is_image_part, content)):
        return message
    parts = [{"type": "image"} if is_image_part(part) else part for part in content]
    return {**message, "content": parts}


def _in_parts(message: Message) -> Message:
    """Returns a message whose text is a part."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    return _plain(message)


def _in_one_text(message: Message) -> Message:
    """Returns a message whose parts are joined to one text, unless there are images."""
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        joined = joined_text(content)
        return _plain(message) if joined is None else {**message, "content": joined}
    return message


def _shows_python(text: str, messages: Sequence[Message]) -> bool:
    """Tells whether a rendered text has lists of parts as Python writes them."""
    contents = [message.get("content") for message in messages]
    return any(str(each) in text for each in contents if isinstance(each, (list, tuple)))


def _shows_texts(text: str, messages: Sequence[Message]) -> bool:
    """Tells whether what users say, and all parts of text, appear in a rendered text."""
    for message in messages:
        content = message.get("content")
        texts = [content] if message["role"] == "user" and isinstance(content, str) else []
        if isinstance(content, (list, tuple)):
            texts = [part["text"] for part in content if _is_text_part(part)]
        if not all(each.strip() in text for each in texts):
            return False
    return True


def _checked_rendering(text: str, messages: Sequence[Message]) -> str:
    for message in messages:
        for name in tool_names(message.get("tool_calls")) or []:
            if name not in text:
                raise InvalidInputError(
                    f"the target's chat template leaves out the call of the tool {name!r}; write "
                    "calls into the content, or use a model that was trained on tools"
                )
    return check_text(text, "the conversation as the chat template has it")
