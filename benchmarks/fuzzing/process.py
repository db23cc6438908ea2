"""Runs a function in a fork of this process, under limits, and tells what became of it.

The parent has imported and compiled everything once. A fork costs some hundredths of a second, has
its own memory and may die.
"""

import faulthandler
import gc
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from treesnake.errors import TreesnakeError

FRAME = re.compile(r'File "[^"]*/(treesnake/[^"]*)\.py", line \d+ in (\S+)')
"""A frame of ours in what faulthandler writes."""

UNSEEN_EXIT = 70
"""The status of a child that could not say what happened."""


@dataclass(frozen=True)
class Limits:
    """What a process may take.

    Attributes:
        cpu_s: seconds of computing.
        wall_s: seconds in all, for processes that wait for something that never comes.
        memory_bytes: of address space beside what the parent has.
    """

    cpu_s: int = 20
    wall_s: float = 120.0
    memory_bytes: int = 2 << 30


@dataclass(frozen=True)
class Outcome:
    """What became of a process.

    Attributes:
        kind: "value", "error", "crash" or "hang".
        value: plain data.
        error: the name of the exception or signal.
        message: of the exception.
        is_ours: whether it is an error of treesnake.errors.
        frame: the innermost function of treesnake where it happened, as module.function.
        growth_bytes: the peak of its resident memory beside that at its start.
        seconds: how long it took.
        output: the end of what it wrote to standard output and error.
    """

    kind: str
    value: Any = None
    error: str = ""
    message: str = ""
    is_ours: bool = False
    frame: str = ""
    growth_bytes: int = 0
    seconds: float = 0.0
    output: str = ""


def run_apart(function: Callable[[], Any], limits: Limits, folder: Path | None = None) -> Outcome:
    """Runs a function in a fork.

    Args:
        function: returns plain data.
        limits: what it may take.
        folder: where it runs; a new one if left out.
    """
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _run_child(function, limits, scratch, folder or scratch)
    is_late = _wait(child, limits.wall_s)
    _, status = os.waitpid(child, 0)
    outcome = _read_outcome(scratch, status, is_late, time.monotonic() - started)
    shutil.rmtree(scratch, ignore_errors=True)
    return outcome


def frame_of(error: BaseException) -> str:
    """Returns the innermost function of treesnake that an exception went through."""
    inside = [
        f"{name}.{frame.f_code.co_name}"
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if (name := frame.f_globals.get("__name__", "")).startswith("treesnake")
    ]
    return inside[-1] if inside else ""


def _run_child(
    function: Callable[[], Any], limits: Limits, scratch: Path, folder: Path
) -> NoReturn:
    """Runs the function, writes what came of it, and leaves without any clean-up."""
    try:
        gc.freeze()  # the garbage collector leaves shared pages alone
        os.setsid()
        _redirect(scratch)
        faults = (scratch / "faults").open("w")
        faulthandler.enable(faults)
        faulthandler.register(signal.SIGXCPU, faults, chain=False)
        faulthandler.register(signal.SIGUSR1, faults, chain=False)
        _limit(limits)
        os.chdir(folder)
        report = _report(function)
        (scratch / "report").write_text(json.dumps(report))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - nothing of the child may run on in the parent's code
        os._exit(UNSEEN_EXIT)
    os._exit(0)


def _report(function: Callable[[], Any]) -> Mapping[str, Any]:
    before = _peak_bytes()
    try:
        told = {"kind": "value", "value": function()}
        json.dumps(told)
    except BaseException as error:  # noqa: BLE001 - whatever is raised is what is looked for
        told = {
            "kind": "error",
            "error": type(error).__name__,
            "message": _printable(error),
            "is_ours": isinstance(error, TreesnakeError),
            "frame": frame_of(error),
        }
        traceback.print_exception(error)
    return told | {"growth_bytes": _peak_bytes() - before}


def _printable(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001 - an error without words is a find, too
        return f"<no message: {type(second).__name__}>"


def _redirect(scratch: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(scratch / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(nothing, 0)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)


def _limit(limits: Limits) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from now on


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _wait(child: int, wall_s: float) -> bool:
    """Waits for a child, and kills it if it takes too long; returns whether it did."""
    handle = os.pidfd_open(child)
    try:
        is_done = select.select([handle], [], [], wall_s)[0]
        if not is_done:
            os.kill(child, signal.SIGUSR1)  # it writes where it is
            select.select([handle], [], [], 1.0)
        with suppress(ProcessLookupError):  # neither it nor a child of its own is left
            os.killpg(child, signal.SIGKILL)
        return not is_done
    finally:
        os.close(handle)


def _read_outcome(scratch: Path, status: int, is_late: bool, seconds: float) -> Outcome:
    output = _end_of(scratch / "output")
    common = {"seconds": seconds, "output": output}
    report = scratch / "report"
    if report.exists() and not is_late and os.waitstatus_to_exitcode(status) == 0:
        return Outcome(**json.loads(report.read_text()), **common)
    faults_file = scratch / "faults"  # of several stacks in it the first counts, from its top on
    faults = faults_file.read_text("utf-8", "replace")[:4000] if faults_file.exists() else ""
    frames = FRAME.findall(faults)
    frame = ".".join(frames[0]).replace("/", ".") if frames else ""
    code = os.waitstatus_to_exitcode(status)
    if is_late:
        return Outcome("hang", error="waiting", frame=frame, **common)
    if code == -signal.SIGKILL and faults:  # it said where it was when its time was over
        return Outcome("hang", error="computing", frame=frame, **common)
    name = signal.Signals(-code).name if code < 0 else f"exit {code}"
    return Outcome("crash", error=name, message=faults[:400], frame=frame, **common)


def _end_of(path: Path) -> str:
    return path.read_text("utf-8", "replace")[-4000:] if path.exists() else ""
