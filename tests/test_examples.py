"""The examples run, and say what they say they do."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

SAYS = {
    "constrained": ("yes", "no", "perhaps"),
    "custom_drafter": ("(",),
    "generate": (" tokens in ",),
    "stream_chat": ("> And another one.",),
    "transformers_route": ("the same tokens: True",),
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    output = capsys.readouterr().out
    assert any(words in output for words in SAYS[name])
