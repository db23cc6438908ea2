"""Every check of this repository: `python3 run.py test` sets up what they need and runs them."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent

CHECKS = (
    "uv lock --check",
    "ruff format --check",
    "ruff check",
    "lint-imports",
    "pyrefly check",
    "zensical build --clean --strict",
    "python benchmarks/tables.py --check",
    "python ranges.py --short",
)
LEFT_OUT = "left out"
"""How a line of a check begins that tells what could not be looked at here."""

TESTS = "pytest --numprocesses=logical --maxprocesses=4 --dist=worksteal"


def main() -> int:
    """Runs all checks, the tests last, and returns the exit code of the first that failed."""
    failures = {check: code for check in CHECKS if (code := run_quietly(check))}
    if code := subprocess.call(TESTS.split(), cwd=ROOT):
        failures[TESTS] = code
    if failures:
        say(f"FAILED: {', '.join(failures)}")
    return next(iter(failures.values()), 0)


def run_quietly(check: str) -> int:
    """Runs a check, prints what it says if it fails, and returns its exit code."""
    program, *arguments = check.split()
    if program == "uv":
        program = os.environ.get("UV", program)  # uv names itself to the programs that it runs
    elif program == "python":
        program = sys.executable
    started = time.monotonic()
    result = subprocess.run(
        [program, *arguments],
        check=False,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    verdict = "FAILED" if result.returncode else "ok"
    say(f"{verdict:6} {time.monotonic() - started:5.1f} s  {check}")
    if result.returncode:
        say(result.stdout)
    else:
        for line in result.stdout.splitlines():
            if line.startswith(LEFT_OUT):
                say(f"       {line}")
    return result.returncode


def say(text: str) -> None:
    """Prints at once, so that lines stay in order with those of other programs."""
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
