"""A chat template comes to its end, or is ended."""

import sys

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from treesnake import chat_templates
from treesnake.chat_templates import bounded
from treesnake.conversation import check_messages, render
from treesnake.errors import InvalidInputError

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
WRITES = "{% set part = 'x' * 99999 %}{% for a in range(99999) %}{{ part }}{% endfor %}"
IN_A_MACRO = (
    "{% macro again(n) %}{% for a in range(9999) %}{{ n }}{% endfor %}{% endmacro %}"
    "{% for a in range(9999) %}{% set unused = again(a) %}{% endfor %}"
)
DOUBLES = "{% set ns = namespace(x='abc') %}{% for a in range(9) %}{% for b in range(9) %}"
DOUBLES += "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{% endfor %}"
DOUBLES_A_LIST = DOUBLES.replace("'abc'", "[1]").replace("~", "+")
SQUARES = DOUBLES.replace("'abc'", "3").replace("~", "*")
HONEST = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def rendered(source: str, **values: object) -> str:
    template = ImmutableSandboxedEnvironment().from_string(source)
    return bounded(lambda: template.render(**values))


@pytest.mark.parametrize("source", [LOOPS, WRITES, IN_A_MACRO])
def test_a_template_without_an_end_is_ended(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_templates, "MAX_STEPS", 50_000)
    before = sys.gettrace()
    with pytest.raises(InvalidInputError, match="the chat template does not end within"):
        rendered(source)
    assert sys.gettrace() is before


@pytest.mark.parametrize("source", [DOUBLES, DOUBLES_A_LIST, SQUARES])
def test_a_template_that_doubles_what_it_holds_is_ended(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "MAX_CHARACTERS", 10_000)
    with pytest.raises(InvalidInputError, match="and 10000 characters"):
        rendered(source)


def test_a_long_conversation_is_far_below_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_templates, "MAX_STEPS", 20_000)
    messages = [{"role": "user", "content": "x" * 1000}] * 1000
    assert rendered(HONEST, messages=messages) == ("<user>" + "x" * 1000) * 1000


@pytest.mark.parametrize(
    "source", [LOOPS, "{{ 1 / 0 }}", "{{ messages.nothing.at_all }}", "{{ a() }}"]
)
def test_whatever_a_template_does_the_conversation_is_what_is_refused(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "MAX_STEPS", 50_000)
    template = ImmutableSandboxedEnvironment().from_string(source)
    messages = check_messages([{"role": "user", "content": "Hi"}])
    with pytest.raises(InvalidInputError, match="chat template"):
        render(messages, lambda asked: template.render(messages=asked))
