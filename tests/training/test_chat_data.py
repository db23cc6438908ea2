"""Chat data in the shapes that data sets have."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from treesnake.training.chat_data import Exchange, read_exchange
from treesnake.utf8 import is_text

SHAREGPT = [{"from": "human", "value": " Why? "}, {"from": "gpt", "value": "Because."}]
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
]
PARTS = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]
PICTURE = [{"type": "image", "url": "x"}, {"type": "text", "text": "What is it?"}]
CALLS = [{"function": {"name": "look"}}]
ASKED = {"role": "user", "content": "Weather?"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" Why? ", ("Why?", "")),
        (SHAREGPT, ("Why?", "Because.")),
        (CHAT, ("Who?", "Me.")),
        (CHAT[1:2], ("Who?", "")),
        ([{"role": "user", "content": PARTS}, CHAT[2]], ("Hi you", "Me.")),
        ([CHAT[1], {"role": "assistant", "content": PARTS}], ("Who?", "Hi you")),
        ([ASKED, {"role": "assistant", "content": None, "tool_calls": CALLS}], ("Weather?", "")),
        ([ASKED, {"role": "assistant", "content": "Wait.", "tool_calls": CALLS}], ("Weather?", "")),
        ([ASKED, {"role": "bot", "content": "Rain.", "tool_calls": None}], ("Weather?", "Rain.")),
        ([ASKED, {"role": "tool", "content": "12"}], ("Weather?", "")),
        ([ASKED, {"role": "assistant", "content": PICTURE}], ("Weather?", "")),
        ([{"role": "user", "from": None, "content": "a", "value": None}], ("a", "")),
        ([{"role": "User", "content": "a"}, {"role": "Assistant", "content": "b"}], ("a", "b")),
        ({"messages": CHAT}, ("Who?", "Me.")),
        ({"id": 3, "conversations": SHAREGPT}, ("Why?", "Because.")),
        ({"from": ["human", "gpt"], "value": ["Why?", "So."]}, ("Why?", "So.")),
        (ASKED, ("Weather?", "")),
        (["first", "second"], ("first", "")),
        (json.dumps(SHAREGPT), ("Why?", "Because.")),
        (json.dumps({"messages": CHAT}), ("Who?", "Me.")),
        ('[1, 2] sorted is "[1, 2]"', ('[1, 2] sorted is "[1, 2]"', "")),
        ('{"a": 1} is JSON', ('{"a": 1} is JSON', "")),
        (str(SHAREGPT), None),
        ("  ", None),
        ("half \ud83d", None),
        (CHAT[2:], None),
        (CHAT[:1], None),
        ([{"from": "human", "value": None}, {"from": "gpt", "value": "ok"}], None),
        ([{"role": "user", "content": PICTURE}], None),
        ([{"role": "user", "content": {"a": 1}}], None),
        ([CHAT[1], None], None),
        ({"messages": None}, None),
        (None, None),
        (float("nan"), None),
        (3.5, None),
        ([], None),
        ({}, None),
        ([[]], None),
        ([None], None),
        ({"0": "x"}, None),
    ],
)  # fmt: skip
def test_shapes_of_chat_data(value: Any, expected: tuple[str, str] | None) -> None:
    exchange = read_exchange(value)
    assert (exchange and (exchange.prompt, exchange.reply)) == expected


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(st.characters(exclude_categories=[]))
    | st.sampled_from(["user", "human", "assistant", "text", '[{"role":', '{"messages": [']),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "messages", "type", "text"]), inner
        )
    ),
    max_leaves=12,
)


@given(VALUES | VALUES.map(json.dumps))
@example('{"messages": [' * 100_000)
@example([{"role": ["user"], "content": "a"}])
def test_any_value_is_an_exchange_of_texts_or_none(value: Any) -> None:
    exchange = read_exchange(value)
    if exchange is not None:
        assert exchange.prompt
        assert is_text(exchange.prompt)
        assert is_text(exchange.reply)
        assert exchange == Exchange(exchange.prompt.strip(), exchange.reply.strip())


def test_values_nested_deep_are_no_conversation() -> None:
    value: Any = "Hi"
    for _ in range(5000):
        value = {"messages": [value]}
    assert read_exchange(value) is None
