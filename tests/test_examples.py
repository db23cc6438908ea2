"""The examples run, and what they print is what decoding gives, not what they say themselves."""

import ast
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from treesnake import SpeculativeDecoder
from treesnake.drafters.none import NoDrafterModel
from treesnake.pairs import Pair

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

Ran = tuple[dict[str, Any], str]


@pytest.fixture
def run(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Ran:
    """Runs the example that a test is named after; returns its names and its output."""
    name = request.function.__name__.removeprefix("test_")
    monkeypatch.setattr("sys.argv", [name])
    return runpy.run_path(str(EXAMPLES / f"{name}.py")), capsys.readouterr().out


def test_every_example_is_run() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_constrained(run: Ran) -> None:
    names, output = run
    assert output.removesuffix("\n") in names["ANSWERS"]


def test_custom_drafter(run: Ran) -> None:
    names, output = run
    plain = SpeculativeDecoder(Pair(names["decoder"].pair.target, NoDrafterModel()))
    expected = plain.generate([1, 2, 3], max_new_tokens=12).token_ids
    assert ast.literal_eval(output) == expected
    assert len(expected) == 12


def test_generate(run: Ran) -> None:
    names, output = run
    text, _, statistics = output.removesuffix("\n").rpartition("\n")
    plain = SpeculativeDecoder.from_pretrained("smollm2", "none")
    question = [{"role": "user", "content": names["question"]}]
    expected = plain.generate(question, max_new_tokens=48)
    assert text == expected.text
    found = re.fullmatch(
        r"(\d+) tokens in (\d+) steps: ([\d.]+) a step, [\d.]+ a second", statistics
    )
    assert found is not None
    tokens, steps, rate = map(float, found.groups())
    assert tokens == expected.num_emitted
    assert 0 < steps <= tokens
    assert rate == pytest.approx(tokens / steps, abs=0.01)


def test_stream_chat(run: Ran) -> None:
    names, output = run
    decoder, messages = names["decoder"], names["messages"]
    first, second = (
        decoder.generate(messages[:number], names["params"], max_new_tokens=32).text
        for number in (1, 3)
    )
    assert output == f"> Name a planet.\n{first}\n> And another one.\n{second}\n"


def test_transformers_route(run: Ran) -> None:
    names, output = run
    assert output == "the same tokens: True\n"
    assert len(names["ours"][0]) == len(names["prompt"][0]) + 24
