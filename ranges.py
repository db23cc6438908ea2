"""Checks that treesnake works with the oldest and the newest versions that it allows.

    python ranges.py

The tests that touch transformers and numba most run with the oldest versions of both that
pyproject.toml allows, and with the newest transformers, laid over this environment. Then the
resolver is asked for wheels for other systems. Where no package index can be reached, this says so
and is left out.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VARIED = ("transformers", "numba")
TESTS = (
    "tests/test_custom_generate.py",
    "tests/models/test_hf_attention.py",
    "tests/models/test_hf_hybrid.py",
    "tests/states",
    "tests/kernels/test_linear.py",
    "tests/integrations/test_model_folders.py",
)
PLATFORMS = ("windows", "aarch64-apple-darwin", "aarch64-manylinux_2_31", "x86_64-manylinux_2_31")
PYTHONS = ("3.11", "3.14")
UNREACHED = ("Failed to fetch", "error sending request", "dns error", "Could not connect")
"""What uv says where there is no index; anything else that goes wrong is a failure."""


def main() -> int:
    """Runs all checks and returns the number of those that failed."""
    oldest, newest = bounds()
    failures = sum(
        not passes(name, [*with_versions(versions), "python", "-m", "pytest", "-q", *TESTS])
        for name, versions in (("oldest", oldest), ("newest", newest))
    )
    for platform in PLATFORMS:
        for python in PYTHONS:
            command = ["pip", "compile", "pyproject.toml", "--extra", "serve", "--quiet"]
            command += ["--only-binary", ":all:", "--python-platform", platform]
            command += ["--python-version", python, "--output-file", os.devnull]
            failures += not passes(f"{platform}, Python {python}", command)
    return failures


def bounds() -> tuple[list[str], list[str]]:
    """Returns the oldest and the newest versions that are tried, as requirements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    stated = {re.split(r"[<>=]", each)[0]: each for each in project["dependencies"]}
    least = {name: re.findall(r">=([\d.]+)", stated[name])[0] for name in VARIED}
    return [f"{name}~={least[name]}.0" for name in VARIED], [stated["transformers"]]


def with_versions(requirements: list[str]) -> list[str]:
    """Returns the beginning of a command of uv that runs with other versions."""
    options = [part for each in requirements for part in ("--with", each)]
    return ["run", "--no-sync", "--frozen", *options]


def passes(name: str, command: list[str]) -> bool:
    """Runs a command of uv and says how it went; one that reaches no index counts as passed."""
    left_out = ("VIRTUAL_ENV", "PYTHONPATH")  # of another environment
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    result = subprocess.run(
        [os.environ.get("UV", "uv"), *command],
        cwd=ROOT,
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode == 0:
        print(f"ok      {name}", flush=True)
        return True
    if any(reason in result.stdout for reason in UNREACHED):
        print(f"left out, no package index can be reached: {name}", flush=True)
        return True
    print(f"FAILED  {name}\n{result.stdout}", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
