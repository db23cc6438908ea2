"""What a result says about the machine and the software that made it."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("treesnake", "torch", "transformers", "numba", "triton", "llama-cpp-python")


def describe_environment() -> dict[str, Any]:
    """Returns date, commit, devices, threads, versions and load at this moment."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", ":/src", ":/benchmarks")),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _git(*arguments: str) -> str:
    """Returns what git says of the checkout that this file is in; nothing if it is in none."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return run.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = (line.partition(":") for line in info.read_text().splitlines())
    lines = {key.strip(): value.strip() for key, _, value in fields}
    flags = lines.get("flags", "").split()
    kinds = [kind for kind in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if kind in flags]
    model = f"family {lines.get('cpu family')}, model {lines.get('model')}"
    return f"{lines.get('model name', platform.machine())} ({model}; {' '.join(kinds)})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
