"""Tools: offered by the template, called in one form, told apart from text."""

import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("llguidance", reason="the extra serve is not installed")

import httpx
import openai
from hypothesis import given
from hypothesis import strategies as st

from treesnake import Pair, SpeculativeDecoder
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.serving.tools import CLOSING, OPENING, CallReader, check_template, whole_calls
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TinyNetwork
from treesnake.testing.tokenizers import END, byte_level

TEMPLATE = """\
{% for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content or '' }}\
{% for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}
{% endfor %}"""
ASKED: list[Any] = [{"role": "user", "content": "Is it warm in Rome?"}]
COLOUR = {"enum": ["red", "green"]}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Sets a {name}.",
            "parameters": {
                "type": "object",
                "properties": {name: COLOUR},
                "required": [name],
                "additionalProperties": False,
            },
        },
    }
    for name in ("lamp", "sky")
]


@pytest.fixture(scope="module")
def calling() -> SpeculativeDecoder:
    tokenizer: Any = byte_level()
    tokenizer.add_tokens([OPENING, CLOSING])
    tokenizer.chat_template = TEMPLATE
    network = TinyNetwork(RecurrentModel(len(tokenizer), seed=3))
    pair = Pair(NetworkTargetModel(network), NetworkDrafterModel(network))
    end = tokenizer.convert_tokens_to_ids(END)
    return SpeculativeDecoder(pair, tokenizer=tokenizer, end_token_ids=[end], search="chain(3)")


@pytest.fixture(scope="module")
def client(start_server: Callable[..., str], calling: SpeculativeDecoder) -> openai.OpenAI:
    server = start_server(chosen=calling)
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def biased(calling: SpeculativeDecoder, **biases: float) -> dict[str, float]:
    tokenizer: Any = calling.tokenizer
    names = {"opening": OPENING, "end": END}
    return {str(tokenizer.convert_tokens_to_ids(names[name])): by for name, by in biases.items()}


def both(client: openai.OpenAI, **asked: Any) -> Any:
    """Asks for an answer whole and as a stream, which must be the same; returns its choice."""
    asked = {"model": "tiny", "messages": ASKED, "tools": TOOLS, "max_tokens": 60} | asked
    whole = client.chat.completions.create(**asked).choices[0]
    text, reasons, calls = "", [], list[dict[str, str]]()
    for chunk in client.chat.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for part in choice.delta.tool_calls or []:
                if part.index == len(calls):
                    assert part.id
                    calls.append({"name": part.function.name, "arguments": ""})
                calls[part.index]["arguments"] += part.function.arguments or ""
    assert text == (whole.message.content or "")
    assert reasons == [whole.finish_reason]
    assert calls == [
        {"name": call.function.name, "arguments": call.function.arguments}
        for call in whole.message.tool_calls or []
    ]
    return whole


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_named_tool_is_called_with_arguments_that_fit(
    client: openai.OpenAI, temperature: float
) -> None:
    named = {"type": "function", "function": {"name": "sky"}}
    choice = both(client, tool_choice=named, temperature=temperature, seed=1)
    [call] = choice.message.tool_calls
    assert call.function.name == "sky"
    assert json.loads(call.function.arguments) in ({"sky": "red"}, {"sky": "green"})
    assert choice.message.content is None
    assert choice.finish_reason == "tool_calls"


def test_a_required_call_may_be_one_of_several(
    client: openai.OpenAI, calling: SpeculativeDecoder
) -> None:
    asked = {"tool_choice": "required", "temperature": 1, "logit_bias": biased(calling, end=9)}
    choices = [both(client, seed=seed, **asked) for seed in range(4)]
    calls = [call for choice in choices for call in choice.message.tool_calls]
    assert {call.function.name for call in calls} == {"lamp", "sky"}
    one = both(client, parallel_tool_calls=False, seed=1, **asked | {"logit_bias": {}})
    assert len(one.message.tool_calls) == 1


def test_a_model_calls_where_it_likes(client: openai.OpenAI, calling: SpeculativeDecoder) -> None:
    called = both(client, logit_bias=biased(calling, opening=100), temperature=0)
    assert called.message.tool_calls
    spoken = both(client, logit_bias=biased(calling, opening=-100), temperature=0, max_tokens=20)
    assert spoken.message.content
    assert not spoken.message.tool_calls
    assert spoken.finish_reason == "length"


def test_a_call_that_is_cut_says_so(client: openai.OpenAI) -> None:
    choice = both(client, tool_choice="required", max_tokens=25, temperature=0)
    assert choice.finish_reason == "length"
    assert len(choice.message.tool_calls or []) <= 1


def test_a_conversation_with_calls_goes_on(
    client: openai.OpenAI, calling: SpeculativeDecoder
) -> None:
    function = {"name": "sky", "arguments": '{"sky": "red"}'}
    turns = [
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "call_1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]  # fmt: skip
    prompt = calling.encode([*ASKED, *turns], tools=TOOLS)
    assert calling.tokenizer is not None
    text = calling.tokenizer.decode(list(prompt.token_ids))
    assert '{"name": "sky", "arguments": {"sky": "red"}}' in text
    choice = both(client, messages=[*ASKED, *turns], temperature=0, max_tokens=4)
    assert choice.finish_reason == "length"


@pytest.mark.parametrize(
    ("changed", "field", "reason"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "sea"}}}, "tools", "'sea'"),
        ({"tool_choice": "perhaps"}, "tool_choice", "cannot be right"),
        ({"tools": [{"type": "function"}]}, "tools", "missing"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "pattern"),
        ({"response_format": {"type": "json_object"}}, "tools", "exclude each other"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "x"}}}]},
         "tools", "x"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "needs tools"),
    ],
)  # fmt: skip
def test_what_cannot_be_called_is_refused(
    client: openai.OpenAI, changed: dict[str, Any], field: str, reason: str
) -> None:
    body = {"messages": ASKED, "tools": TOOLS} | changed
    answer = httpx.post(f"{client.base_url}chat/completions", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == field
    assert reason in error["message"]


def test_a_template_without_this_form_is_refused(server: str, calling: SpeculativeDecoder) -> None:
    body = {"messages": ASKED, "tools": TOOLS}
    error = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60).json()["error"]
    assert error["param"] == "tools"
    assert "chat template" in error["message"]
    tokenizer: Any = byte_level()
    tokenizer.chat_template = TEMPLATE.replace("<tool_call>", "[TOOL]")
    with pytest.raises(InvalidInputError, match="another form"):
        check_template(SpeculativeDecoder(calling.pair, tokenizer=tokenizer))


PIECES = st.lists(st.sampled_from(["a", "<", OPENING, "<tool", "{", "}\n", "é"]), max_size=6)
ARGUMENTS = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)


@given(PIECES, st.lists(ARGUMENTS, max_size=3), st.data())
def test_an_answer_is_read_alike_however_it_comes(
    spoken: list[str], calls: list[dict[str, str]], data: st.DataObject
) -> None:
    said = "".join(spoken).replace(OPENING, "")
    written = [json.dumps(each) for each in calls]
    text = said + "\n".join(
        f'{OPENING}\n{{"name": "f", "arguments": {each}}}\n{CLOSING}' for each in written
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    reader = CallReader()
    parts = [reader.push(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    parts.append(reader.finish())
    assert "".join(part for part, _ in parts) == said
    read = whole_calls([piece for _, pieces in parts for piece in pieces])
    assert [call["function"]["arguments"] for call in read] == written
