"""The command as a shell runs it: few runs, since each takes seconds to start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def treesnake(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "treesnake.cli", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        **options,
    )


def test_a_pipe_gets_the_text_alone() -> None:
    result = treesnake("generate", "-", "-n", "8", "--raw", input="The capital of France is\n")
    assert result.returncode == 0
    assert "Paris" in result.stdout
    assert "tokens/s" not in result.stdout
    assert "8 tokens" in result.stderr
    assert "Loading" not in result.stderr


def test_json_is_one_object_also_with_a_comparison_and_the_generic_engine() -> None:
    options = ["--json", "--compare", "--engine", "generic", "-n", "8"]
    result = treesnake("generate", "1 2 3 1 2 3 1", *options)
    numbers = json.loads(result.stdout)
    assert numbers["same_tokens"] is True
    assert numbers["num_tokens"] == 8
    assert numbers["text"]
    assert result.stderr == ""


def test_an_answer_fits_the_schema_in_a_file(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps(
            {"type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"]}
        )
    )
    result = treesnake("generate", "Is Paris big?", "--json-schema", str(schema), "--json")
    assert isinstance(json.loads(json.loads(result.stdout)["text"])["big"], bool)


def test_what_a_user_can_cause_ends_in_one_message() -> None:
    result = treesnake("generate", "hello", "--search", "[bold]")
    assert result.returncode == 2
    assert result.stderr.startswith('error: "[bold]" is none of the searches self-tuning, ucb')
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(("prompt", "standard_input"), [("caf\udce9", ""), ("-", "caf\udce9")])
def test_text_in_another_encoding_is_told(prompt: str, standard_input: str) -> None:
    options = {"encoding": "utf-8", "errors": "surrogateescape"}
    result = treesnake("generate", prompt, input=standard_input, **options)
    assert "UTF-8" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.returncode == 2
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["chat"]], ids=" ".join)
def test_a_conversation_ends_with_its_input(arguments: list[str]) -> None:
    result = treesnake(*arguments, "-n", "4", input="hello\n/reset\n/help\n\nhello\n")
    assert result.returncode == 0
    first, second = result.stdout.splitlines()
    assert first == second, "nothing is remembered after /reset"
    assert "A new conversation." in result.stderr
    assert "The only command is /reset." in result.stderr
