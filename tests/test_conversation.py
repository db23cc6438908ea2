"""Conversations: the text that the template makes, or a message that says which part is wrong."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from treesnake.conversation import (
    Message,
    check_messages,
    check_turns,
    joined_text,
    render,
    tool_names,
)
from treesnake.errors import InvalidInputError

PARTS = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"x": 1}}}
WRITES_CONTENT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
READS_PARTS = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}\n{% endfor %}"
)
PASSES_OVER_PARTS = "{% for m in messages if m.content is string %}{{ m.content }}{% endfor %}"
ADDS_TO_CONTENT = "{% for m in messages %}{{ m.content + '!' }}{% endfor %}"


def template(source: str) -> Any:
    compiled = ImmutableSandboxedEnvironment().from_string(source)

    def apply(messages: Sequence[Message]) -> str:
        return compiled.render(messages=messages)

    return apply


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (WRITES_CONTENT, "user: Hi there\n"),
        (READS_PARTS, "user: [Hi ][there]\n"),
        (PASSES_OVER_PARTS, "Hi there"),
        (ADDS_TO_CONTENT, "Hi there!"),
    ],
)
def test_parts_of_text_become_text_whatever_the_template_reads(source: str, expected: str) -> None:
    messages = check_messages([{"role": "user", "content": PARTS}])
    assert render(messages, template(source)) == expected


def test_tool_calls_are_in_the_text_or_are_told() -> None:
    messages = check_messages(
        [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [CALL]}]
    )
    source = "{% for m in messages %}{{ m.content }}{{ m.tool_calls | tojson }}{% endfor %}"
    assert "look_up" in render(messages, template(source.replace(" | tojson", "")))
    with pytest.raises(InvalidInputError, match="leaves out the call of the tool 'look_up'"):
        render(messages, template(WRITES_CONTENT))


def test_a_template_that_fails_is_told() -> None:
    with pytest.raises(InvalidInputError, match=r"refuses the conversation: .*'x'"):
        render([{"role": "user", "content": "a"}], template("{{ messages[0].x.y }}"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (None, r"message 1 must be an object with a role and a content.*not null"),
        ("Hi", "message 1 must be an object .*not 'Hi'"),
        (("user", "Hi"), "message 1 must be an object .*not a list of 2"),
        ({"content": "Hi"}, "message 1 has no role"),
        ({"from": "human", "value": "Hi"}, "message 1 has no role: write .*not the keys 'from'"),
        ({"role": 3, "content": "Hi"}, "the role of message 1 must be text, not 3"),
        ({"role": "us\ud83d", "content": "Hi"}, "the role of message 1 is no text in UTF-8"),
        ({"role": "user"}, "message 1 has no content"),
        ({"role": "user", "content": None}, "message 1 has no content"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "message 1 has no content"),
        ({"role": "user", "content": 1.5}, "the content of message 1 must be text, not 1.5"),
        ({"role": "user", "content": {"a": 1}}, "must be text, not an object with 1 keys"),
        ({"role": "user", "content": "\udce9"}, "the content of message 1 is no text in UTF-8"),
        ({"role": "user", "content": ["a"]}, "part 1 of message 1 must be .*found 'a'"),
        (
            {"role": "user", "content": [{"type": "video", "url": "x"}]},
            "part 1 of message 1 must be .*found one of type 'video'",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": None}]},
            "the text of part 1 of message 1 must be text, not null",
        ),
        ({"role": "assistant", "tool_calls": [{}]}, "tool calls of message 1 must be a list of"),
        ({"role": "assistant", "tool_calls": "x"}, "tool calls of message 1 must be a list of"),
    ],
)
def test_a_message_that_cannot_be_is_named(message: Any, expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        check_messages([message])


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "tool"]) | VALUES,
        "content": st.just(PARTS) | VALUES,
        "tool_calls": st.just([CALL]) | VALUES,
    },
)


@given(st.lists(MESSAGES | VALUES), st.sampled_from([WRITES_CONTENT, READS_PARTS, ADDS_TO_CONTENT]))
@example([{"role": "user", "content": []}], WRITES_CONTENT)
@example([{"role": "user", "content": "half \ud83d"}], WRITES_CONTENT)
def test_any_conversation_becomes_text_or_is_refused(messages: list[Any], source: str) -> None:
    try:
        text = render(check_messages(messages), template(source))
    except InvalidInputError:
        return
    text.encode()


@given(VALUES)
@example([None])
@example({"role": "user"})
@example("Why?")
@example(["Why?", "How?"])
@example([{"role": "user", "content": "Hi"}])
@example([""])
def test_turns_are_texts_or_are_refused(value: Any) -> None:
    try:
        turns = check_turns(value, "it")
    except InvalidInputError:
        return
    assert turns == ((value,) if isinstance(value, str) else tuple(value))
    assert all(turn.strip() and turn.encode() for turn in turns)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("a", "a"), (PARTS, "Hi there"), ([], ""), (None, None), (["a"], None), ([{}], None)],
)
def test_contents_are_joined_where_they_are_text(content: Any, expected: str | None) -> None:
    assert joined_text(content) == expected


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (None, []),
        ([CALL], ["look_up"]),
        ([{"name": "f"}], ["f"]),
        ([{"function": 3}], None),
        ([{"name": ""}], None),
        ({"name": "f"}, None),
    ],
)
def test_calls_have_names(calls: Any, expected: list[str] | None) -> None:
    assert tool_names(calls) == expected
