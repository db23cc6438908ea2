"""The command that measures a GPU works at the first try: it runs here in tiny sizes."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARKS / "gpu_stages.py"))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def test_both_files_know_the_same_stages(stages: dict[str, Any]) -> None:
    limits = runpy.run_path(str(BENCHMARKS / "gpu.py"))["STAGES"]
    assert set(limits) == set(stages["STAGES"])
    assert sum(limits.values()) <= 600


@pytest.mark.parametrize("stage", ["kernels", "drafters", "targets", "pair", "memory", "training"])
def test_a_stage_measures_all_that_it_names(
    stages: dict[str, Any], tmp_path: Path, stage: str
) -> None:
    pytest.importorskip("triton")
    path = tmp_path / "result.json"
    stages["STAGES"][stage](stages["Book"](path, dry_run=True))
    result = read(path)
    assert result["failed"] == {}
    assert result["measured"]


def test_one_failure_never_stops_the_others_and_is_measured_again(
    stages: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    book = stages["Book"](path, dry_run=True)
    assert book.measure("first", lambda: {}["missing"]) is None
    assert book.measure("second", lambda: 3) == 3
    assert "KeyError" in read(path)["failed"]["first"]
    again = stages["Book"](path, dry_run=True)
    assert again.measure("second", lambda: 4) == 3
    assert again.measure("first", lambda: 5) == 5
    assert read(path)["failed"] == {}


def test_the_command_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry-run", "--output", str(tmp_path)]

    def run(*options: str) -> str:
        finished = subprocess.run(
            [*command, "--stages", "memory", *options], capture_output=True, text=True, check=True
        )
        return finished.stdout

    result = tmp_path / "gpu-memory.json"
    assert "no time left" in run("--seconds", "0")
    assert not result.exists()
    run_stage = runpy.run_path(str(BENCHMARKS / "gpu.py"))["_run"]
    run_stage("memory", result, 0.01, tmp_path, dry_run=True)
    assert read(result)["status"].startswith("stopped")
    assert "memory: done" in run()
    assert read(result)["measured"]["16 tokens"]["mamba2-130m"] > 0
    assert "done before" in run()
