"""All that we want to know of a GPU, in one command that needs no network and no installation.

    python3 benchmarks/gpu.py --output FOLDER [--seconds 480]

The stages of benchmarks/gpu_stages.py run one after the other, what is worth most first, each in a
process of its own with a time limit. A stage writes its file after every number, and the next one
runs whatever becomes of it. Started again, the command goes on with the stages that are not done,
and within a stage with the numbers that are missing. PyTorch, Triton and transformers may be there
in other versions than ours, and what treesnake needs for other things may be missing.
`--dry-run` does all of it on a CPU in tiny sizes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).parent
SOURCE = FOLDER.parent / "src"

STAGES = {
    "kernels": 80,
    "drafters": 75,
    "targets": 130,
    "pair": 100,
    "memory": 30,
    "tests": 100,
    "training": 45,
}
"""Seconds that each stage may take."""

SLACK_S = 5
"""Left at the end, so that the command ends by itself."""

STAND_INS = {
    "platformdirs": (
        "from pathlib import Path\n"
        "def user_cache_path(name, *args, **kwargs):\n"
        "    return Path.home() / '.cache' / name\n"
    ),
}
"""Packages that treesnake asks for, and what is enough of them here where they are missing."""


def main() -> None:
    """Runs the stages that are not done, as far as time allows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="a folder for results")
    parser.add_argument("--seconds", type=float, default=480, help="for everything")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds - SLACK_S
    arguments.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as stand_ins:
        _write_stand_ins(Path(stand_ins))
        for stage in arguments.stages:
            left = end - time.monotonic()
            if not arguments.dry_run:
                left = min(STAGES[stage], left)
            result = arguments.output / f"gpu-{stage}.json"
            if _status(result) == "done":
                print(f"{stage}: done before", flush=True)
            elif left <= 0:
                print(f"{stage}: no time left", flush=True)
            else:
                _run(stage, result, left, Path(stand_ins), dry_run=arguments.dry_run)


def _write_stand_ins(folder: Path) -> None:
    for name, code in STAND_INS.items():
        if find_spec(name) is None:
            (folder / f"{name}.py").write_text(code, "utf-8")
    try:
        version("treesnake")
    except PackageNotFoundError:  # it is not installed, and asked for its version all the same
        metadata = folder / "treesnake-0.dist-info"
        metadata.mkdir()
        text = "Metadata-Version: 2.1\nName: treesnake\nVersion: 0\n"
        (metadata / "METADATA").write_text(text, "utf-8")


def _run(stage: str, result: Path, limit: float, stand_ins: Path, *, dry_run: bool) -> None:
    started = time.monotonic()
    paths = [str(SOURCE), str(stand_ins), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, str(FOLDER / "gpu_stages.py"), stage, str(result)]
    process = subprocess.Popen(
        [*command, *(["--dry-run"] if dry_run else [])],
        env=environment,
        cwd=FOLDER.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = process.communicate(timeout=limit)
        status = "done" if process.returncode == 0 else f"ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        status = f"stopped after {limit:.0f} s"
    measured = _read(result)
    measured |= {
        "status": status,
        "seconds": measured.get("seconds", 0) + round(time.monotonic() - started, 1),
        "end_of_output": output[-4000:],
    }
    result.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    print(f"{stage}: {status}, {time.monotonic() - started:.0f} s\n{output[-3000:]}", flush=True)


def _status(result: Path) -> str:
    return _read(result).get("status", "")


def _read(result: Path) -> dict:
    try:
        return json.loads(result.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


if __name__ == "__main__":
    main()
