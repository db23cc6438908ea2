"""Tools that a model may call: how they are offered, the form that a call has, and how it is read.

A model writes a call as `<tool_call>`, a JSON object with a name and arguments, and `</tool_call>`,
as those of Nous (Hermes) and Qwen were trained to. A grammar keeps each call to that form and its
arguments to their schema, so whatever is read is a call, and a call to a tool that was offered.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from treesnake.decoder import SpeculativeDecoder
from treesnake.errors import InvalidInputError

OPENING, CLOSING = MARKS = "<tool_call>", "</tool_call>"
NAME, ARGUMENTS = '{"name": "', '", "arguments": '
"""What stands around a call, and in it around the name."""

BEGUN = re.compile(rf"\s*{re.escape(NAME)}([^\"]*){re.escape(ARGUMENTS)}")
END = f"}}\n{CLOSING}"

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How chat templates write JSON, and so how models do."""

PROBE = "probe"


class Function(BaseModel):
    """What can be called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[\w-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A function that a model may call, as clients of OpenAI's API describe it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str


class NamedTool(BaseModel):
    """The one tool that must be called."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["function"]
    function: NamedFunction


Choice = Literal["none", "auto", "required"] | NamedTool
"""Whether tools are called: never, where the model likes, at least one, or a certain one."""


def check_template(decoder: SpeculativeDecoder) -> None:
    """Checks that a model writes calls in the form that is read here.

    Raises:
        InvalidInputError: if it has another form, or none.
    """
    function = {"name": PROBE, "description": PROBE, "parameters": {"type": "object"}}
    call = {"type": "function", "function": {"name": PROBE, "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": PROBE},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    try:
        prompt = decoder.encode(messages, tools=[{"type": "function", "function": function}])
        assert decoder.tokenizer is not None, "or there were no conversation"
        text = decoder.tokenizer.decode(list(prompt.token_ids))
    except InvalidInputError:
        text = ""
    _, _, written = text.partition(OPENING)
    calls = re.findall(
        rf"{OPENING}\s*{re.escape(NAME + PROBE + ARGUMENTS)}\{{.a.: 1\}}\}}\s*{CLOSING}", text
    )
    if not written or not calls:
        raise InvalidInputError(
            "the model's chat template has no tools, or has calls in another form than "
            f"{OPENING}{{...}}{CLOSING}; use a model that has, such as Qwen's, or describe "
            "what may be called in the messages"
        )


def has_mark_tokens(decoder: SpeculativeDecoder) -> bool:
    """Tells whether the marks around a call are tokens of their own."""
    tokenizer = decoder.tokenizer
    return tokenizer is not None and all(
        len(tokenizer.encode(mark, add_special_tokens=False)) == 1 for mark in MARKS
    )


def call_grammar(
    tools: Sequence[Tool], *, choice: Choice, is_parallel: bool, marks_are_tokens: bool
) -> str | None:
    """Returns the grammar of an answer with calls, as `grammars` reads it; None without calls.

    Args:
        tools: those that are offered.
        choice: whether they are called.
        is_parallel: whether an answer may have several calls.
        marks_are_tokens: whether the marks around a call are tokens of their own, which are no text
            to llguidance.

    Raises:
        InvalidInputError: if the tool that must be called is not offered.
    """
    if choice == "none":
        return None
    functions = [tool.function for tool in tools]
    if isinstance(choice, NamedTool):
        functions = [each for each in functions if each.name == choice.function.name]
        if not functions:
            raise InvalidInputError(
                f"the tool {choice.function.name!r:.80} is not among the tools; offer it, too"
            )
        is_parallel = False
    opening, closing = (OPENING, CLOSING) if marks_are_tokens else map(json.dumps, MARKS)
    lines = [
        "%llguidance {}",
        f"start: {'text | spoken call more' if choice == 'auto' else 'begun call more'}",
        "text: TEXT",
        f"TEXT: /(.|\\n)*/ & ~/(.|\\n)*{OPENING}(.|\\n)*/",
        f"spoken{'' if marks_are_tokens else '[lazy]'}: TEXT {opening}",
        f"begun: {opening}",
        "more: " + (f'("\\n" {opening} call)*' if is_parallel else '""'),
        f"call: {' | '.join(f'call_{number}' for number in range(len(functions)))}",
    ]
    for number, function in enumerate(functions):
        head = json.dumps(f"\n{NAME}{function.name}{ARGUMENTS}")
        schema = {"type": "object"} | (function.parameters or {}) | {"x-guidance": JSON_STYLE}
        lines += [
            f'call_{number}: {head} arguments_{number} "}}\\n" {closing}',
            f"arguments_{number}: %json {json.dumps(schema)}",
        ]
    return "\n".join(lines)


@dataclass(frozen=True)
class CallPiece:
    """A part of a call.

    Attributes:
        index: the number of the call in its answer.
        name: the tool's, with the first part of a call.
        arguments: what its arguments go on with, as JSON.
    """

    index: int
    name: str | None
    arguments: str

    def delta(self) -> dict[str, Any]:
        """Returns the part as chunks of a stream have it."""
        function: dict[str, Any] = {"arguments": self.arguments}
        if self.name is None:
            return {"index": self.index, "function": function}
        function["name"] = self.name
        return {
            "index": self.index,
            "id": f"call_{uuid4().hex[:24]}",
            "type": "function",
            "function": function,
        }


class CallReader:
    """Tells text and calls of an answer apart while it comes.

    Attributes:
        num_calls: calls that have begun.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""
        self._read = self._read_text

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """Takes a piece of the answer; returns the text and the parts of calls that are certain."""
        self._held += text
        spoken, pieces = "", list[CallPiece]()
        goes_on = True
        while goes_on:
            goes_on, said, piece = self._read()
            spoken += said
            pieces += [piece] if piece else []
        return spoken, pieces

    def finish(self) -> tuple[str, list[CallPiece]]:
        """Returns what was held back, once the answer has ended."""
        held, self._held = self._held, ""
        if self._read == self._read_text:
            return held if self.num_calls == 0 else "", []
        if self._read == self._read_arguments and held:
            return "", [CallPiece(self.num_calls - 1, None, held)]
        return "", []

    def _read_text(self) -> tuple[bool, str, CallPiece | None]:
        before, opening, behind = self._held.partition(OPENING)
        if opening:
            self._held, self._read = behind, self._read_name
        else:
            before, self._held = _split(self._held, OPENING)
        # Between calls stands nothing but a line break.
        return bool(opening), before if self.num_calls == 0 else "", None

    def _read_name(self) -> tuple[bool, str, CallPiece | None]:
        begun = BEGUN.match(self._held)
        if not begun:
            return False, "", None
        self._held, self._read = self._held[begun.end() :], self._read_arguments
        self.num_calls += 1
        return True, "", CallPiece(self.num_calls - 1, begun[1], "")

    def _read_arguments(self) -> tuple[bool, str, CallPiece | None]:
        before, end, behind = self._held.partition(END)
        if end:
            self._held, self._read = behind, self._read_text
        else:
            before, self._held = _split(self._held, END)
        return bool(end), "", CallPiece(self.num_calls - 1, None, before) if before else None


def _split(text: str, mark: str) -> tuple[str, str]:
    """Splits a text in front of what may be the beginning of a mark at its end."""
    longest = range(min(len(mark) - 1, len(text)), 0, -1)
    held = next((size for size in longest if text.endswith(mark[:size])), 0)
    return text[: len(text) - held], text[len(text) - held :]


def whole_calls(pieces: Sequence[CallPiece]) -> list[dict[str, Any]]:
    """Returns the calls of an answer in one piece."""
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if piece.name is not None:
            delta = piece.delta()
            del delta["index"]
            calls.append(delta)
        else:
            calls[-1]["function"]["arguments"] += piece.arguments
    return calls
