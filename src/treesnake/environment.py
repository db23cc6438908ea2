"""Facts about the machine and the software, as results, drafters and measured costs name them."""

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("treesnake", "torch", "transformers", "numba", "triton", "llama-cpp-python")
CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "amx_int8")
"""Instruction sets that decide how fast our kernels are."""

SHORT_HASH = 7


@dataclass(frozen=True)
class SourceCommit:
    """The commit of the source that runs.

    Attributes:
        hash: of 40 digits.
        is_changed: whether the source or the benchmarks differ from it.
    """

    hash: str
    is_changed: bool


def describe_environment() -> dict[str, Any]:
    """Returns date, commit, devices, threads, versions and load at this moment."""
    commit = source_commit()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit.hash[:SHORT_HASH] if commit else "",
        "uncommitted_changes": commit is not None and commit.is_changed,
        "processor": describe_processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": package_versions(PACKAGES),
    }


def package_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Returns the version of each package; None if it is not installed."""
    return {package: _version(package) for package in packages}


def source_commit() -> SourceCommit | None:
    """Returns the commit of the source that runs.

    None if it runs from no repository, or from one that it is no part of, as a package that is
    installed somewhere inside of one.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", ":/src", ":/benchmarks")
    return None if commit is None else SourceCommit(commit, bool(changes))


def processor_name() -> str:
    """Returns what the processor calls itself, or the kind of machine where that is not known."""
    name = _cpu_fields().get("model name")
    return name or platform.processor() or platform.machine()


def describe_processor() -> str:
    """Returns the processor's name, its family, and which of `INSTRUCTIONS` it has."""
    fields = _cpu_fields()
    if not fields:
        return processor_name()
    flags = fields.get("flags", "").split()
    found = " ".join(name for name in INSTRUCTIONS if name in flags)
    model = f"family {fields.get('cpu family')}, model {fields.get('model')}"
    return f"{processor_name()} ({model}; {found})"


def _cpu_fields() -> dict[str, str]:
    """Returns what Linux says of the last processor; nothing elsewhere."""
    if not CPU_INFO.exists():
        return {}
    lines = CPU_INFO.read_text(errors="replace").splitlines()
    fields = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in fields}


def _git(*arguments: str) -> str | None:
    """Returns what git says of the checkout that this file is in; None if it says nothing of it."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
