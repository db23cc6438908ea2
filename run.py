#!/usr/bin/env python3
"""Runs treesnake on a machine that has nothing but Python 3.8 or later.

python3 run.py generate "Why is the sky blue?"    any command of treesnake
python3 run.py test                               every check of this repository

The first run fetches what is missing, uv included, into .uv and .venv beside this file.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, Tuple

ROOT = Path(__file__).resolve().parent
OWN_UV = ROOT / ".uv"
OLDEST_UV = (0, 8)

# `uv run` adds packages and takes none away, so both commands can share one environment.
TREESNAKE = ["--locked", "--no-dev", "--extra", "smol", "treesnake"]
CHECKS = ["--frozen", "--group", "docs", "python", str(ROOT / "checks.py")]


def main(arguments: List[str]) -> int:
    """Runs one command and returns its exit code."""
    if not arguments:
        print(__doc__.strip())
        return 2
    uv = find_uv() or install_uv()
    if not (ROOT / ".venv").exists():
        say("setting up .venv, once; PyTorch alone is some gigabytes")
    command = CHECKS if arguments == ["test"] else [*TREESNAKE, *arguments]
    return hand_over([*uv, "run", "--project", str(ROOT), *command])


def find_uv() -> List[str]:
    """Returns the command of a uv that is recent enough, or nothing."""
    folders = (None, str(OWN_UV / "bin"), str(OWN_UV / "Scripts"))
    on_disk = [shutil.which("uv", path=folder) for folder in folders]
    commands = [*([uv] for uv in on_disk if uv), [sys.executable, "-m", "uv"]]
    return next((uv for uv in commands if version_of(uv) >= OLDEST_UV), [])


def version_of(uv: List[str]) -> Tuple[int, ...]:
    """Returns the version of uv, or () where it does not run."""
    try:
        answer = subprocess.run([*uv, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return tuple(int(number) for number in re.findall(r"\d+", answer.stdout)[:2])


def install_uv() -> List[str]:
    """Installs uv beside this file and returns its command.

    There are two ways because Linux distributions ship Python without pip, or without venv.
    """
    say("installing uv into .uv, once")
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    own_python = OWN_UV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ways = (
        [[sys.executable, *pip, "--target", str(OWN_UV), "uv"]],
        [[sys.executable, "-m", "venv", str(OWN_UV)], [str(own_python), *pip, "uv"]],
    )
    # pip refuses a target where its user option is set.
    environment = {**os.environ, "PIP_USER": "0", "PIP_ROOT_USER_ACTION": "ignore"}
    for way in ways:
        shutil.rmtree(OWN_UV, ignore_errors=True)
        failed = any(subprocess.call(command, env=environment) for command in way)
        if not failed and (uv := find_uv()):
            return uv
    sys.exit("treesnake: uv could not be installed; install it (docs.astral.sh/uv) and run again")


def hand_over(command: List[str]) -> int:
    """Becomes the other program where the system can, so that signals reach it directly."""
    os.environ.pop("VIRTUAL_ENV", None)  # uv would warn that it uses another environment
    if os.name == "posix":
        os.execvp(command[0], command)
    return subprocess.call(command)


def say(text: str) -> None:
    """Prints a line about what is going on."""
    print("treesnake: " + text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
