"""Hosts that are installed give the target's own text with treesnake inside."""

import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(host: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module(f"hosting.{host}")
    return module.run(Namespace(target="smollm2", questions=4, tokens=8))


def check_texts(result: dict[str, Any]) -> None:
    equal = [result[f"{name}_equal"] for name in ("whole", "stream", "stop")]
    assert equal == [result["questions"]] * 3


@pytest.mark.slow
def test_transformers_serve_speculates(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
    check_texts(run("transformers_serve", monkeypatch))


@pytest.mark.slow
def test_replicas_keep_conversations_and_lose_only_what_runs_on_a_dead_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    result = run("ray_replicas", monkeypatch)
    check_texts(result)
    assert result["second_turns_kept_by_session"] == result["second_turns"]
    assert result["left_after"]["has_ended"]
    assert {*result["statuses_under_a_kill"]} <= {"200", "500", "503"}
    assert result["outcomes_with_retries_under_a_kill"] == {"answer": result["questions"]}
    assert result["replicas_afterwards"] == result["replicas"]


@pytest.mark.slow
def test_dynamo_hands_on_what_a_worker_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dynamo.frontend", reason="Dynamo is not installed")
    result = run("dynamo_worker", monkeypatch)
    check_texts(result)
    assert result["left_after"]["has_ended"]


@pytest.mark.slow
def test_vllm_gives_its_own_text_with_our_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    result = run("vllm_chains", monkeypatch)
    assert result["equal"] == result["equal_with_preemption"] == result["questions"]
