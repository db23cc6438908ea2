"""Checks that treesnake works with the oldest and the newest versions that it allows.

    python ranges.py              # many tests, some minutes
    python ranges.py --short      # few tests, as checks.py does
    python ranges.py --resolve    # no tests

Tests that touch transformers and numba run with the oldest versions of both that pyproject.toml
allows, and with the newest transformers, laid over this environment. The resolver is asked for
wheels for other systems, and for versions that hosts and treesnake agree on. Where no package index
can be reached, a line for each check that is left out says so.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent
VARIED = ("transformers", "numba")
SHORT_TESTS = (
    "tests/test_custom_generate.py",
    "tests/kernels/test_norm.py",
    "tests/kernels/test_jit.py",
)
TESTS = (
    *SHORT_TESTS,
    "tests/kernels/test_linear.py",
    "tests/integrations/test_model_folders.py",
    "tests/models/test_hf_attention.py",
    "tests/models/test_hf_hybrid.py",
    "tests/states",
)
PLATFORMS = ("windows", "aarch64-apple-darwin", "aarch64-manylinux_2_31", "x86_64-manylinux_2_31")
PYTHONS = ("3.11", "3.14")
HOSTS = ("vllm>=0.32", "sglang>=0.5.23", "ai-dynamo>=1.6", "ray[serve]>=2.60")
"""The oldest versions that treesnake was written for; docs/guides/engines.md tells them."""

HOST_PLATFORM = "x86_64-manylinux_2_34"
LEFT_OUT = "left out"
"""How a line about a check begins that did not run; checks.py shows such lines."""

UNREACHED = ("Failed to fetch", "error sending request", "dns error", "Could not connect")
"""What uv says where there is no index; anything else that goes wrong is a failure."""

Check = tuple[str, list[str], str]
"""A name, arguments of uv and what it reads from its input."""


def main() -> int:
    """Runs all checks, two at a time, and returns the number of those that failed."""
    tests = SHORT_TESTS if "--short" in sys.argv[1:] else TESTS
    checks = list(questions())
    if "--resolve" not in sys.argv[1:]:
        checks = [*test_runs(tests), *checks]
    with ThreadPoolExecutor(2) as pool:
        passed = list(pool.map(passes, checks))
    return passed.count(False)


def test_runs(tests: Iterable[str]) -> Iterator[Check]:
    """Iterates over runs of tests with other versions."""
    oldest, newest = bounds()
    pytest = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    for name, versions in (("oldest", oldest), ("newest", newest)):
        yield f"{name} versions", [*with_versions(versions), *pytest], ""


def questions() -> Iterator[Check]:
    """Iterates over questions to the resolver."""
    compiled = ["pip", "compile", "--quiet", "--output-file", os.devnull]
    for platform in PLATFORMS:
        for python in PYTHONS:
            command = [*compiled, "pyproject.toml", "--extra", "serve", "--only-binary", ":all:"]
            command += ["--python-platform", platform, "--python-version", python]
            yield f"{platform}, Python {python}", command, ""
    for host in HOSTS:
        command = [*compiled, "--python-platform", HOST_PLATFORM, "--python-version", "3.11", "-"]
        yield f"beside {host}", command, f"treesnake @ {ROOT.as_uri()}\n{host}\n"


def bounds() -> tuple[list[str], list[str]]:
    """Returns the oldest and the newest versions that are tried, as requirements.

    A range would be met by what is there, and nothing newer would be laid over it.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    stated = {re.split(r"[<>=]", each)[0]: each for each in project["dependencies"]}
    least = {name: re.findall(r">=([\d.]+)", stated[name])[0] for name in VARIED}
    major, minor = re.findall(r"<(\d+)\.(\d+)", stated["transformers"])[0]
    newest = f"transformers~={major}.{int(minor) - 1}.0"
    return [f"{name}~={least[name]}.0" for name in VARIED], [newest]


def with_versions(requirements: list[str]) -> list[str]:
    """Returns the beginning of a command of uv that runs with other versions."""
    options = [part for each in requirements for part in ("--with", each)]
    return ["run", "--no-sync", "--frozen", *options]


def passes(check: Check) -> bool:
    """Runs a check and says how it went; one that reaches no index counts as passed."""
    name, command, told = check
    left_out = ("VIRTUAL_ENV", "PYTHONPATH")  # of another environment
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    with TemporaryDirectory() as kernels:  # those of this environment stay in their own folder
        result = subprocess.run(
            [os.environ.get("UV", "uv"), *command],
            cwd=ROOT,
            env=environment | {"NUMBA_CACHE_DIR": kernels},
            check=False,
            input=told,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if result.returncode == 0:
        print(f"ok      {name}", flush=True)
        return True
    if any(reason in result.stdout for reason in UNREACHED):
        print(f"{LEFT_OUT}, no package index can be reached: {name}", flush=True)
        return True
    print(f"FAILED  {name}\n{result.stdout}", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
