"""What every result file says about the run that made it."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("treesnake", "torch", "transformers", "numba", "llama-cpp-python")


def facts() -> dict[str, Any]:
    """Returns device, threads, versions, commit and load at this moment."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "src", "benchmarks")),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Writes a result as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)


def read_questions(paths: list[Path]) -> list[dict[str, Any]]:
    """Reads files in Spec-Bench's format: question_id, category, turns."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent.parent
    run = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return run.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = (line.partition(":") for line in info.read_text().splitlines())
        lines = {key.strip(): value.strip() for key, _, value in fields}
        flags = lines.get("flags", "").split()
        kinds = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in flags]
        name = lines.get("model name", platform.machine())
        model = f"family {lines.get('cpu family')}, model {lines.get('model')}"
        return f"{name} ({model}; {' '.join(kinds)})"
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
