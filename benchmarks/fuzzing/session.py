"""Fuzzes as long as it is told to: makes inputs by seed, judges them, keeps what was found."""

import json
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.cases import Case, Door
from fuzzing.process import Limits
from fuzzing.verdicts import ACCEPTED_ALONE, FINDS, OWN_FAULT, RIGHT, Verdict, judge

MUTATIONS = (1, 1, 1, 1, 2, 2, 3)
KEPT_SEEDS = 5
"""Seeds that are kept of each find."""

NUMBER = re.compile(r"\d+|'[^']*'|`[^`]*`")

STANDARD_LIBRARY = sysconfig.get_path("stdlib")

UNCHANGED = -1
"""The seed of specimens as they are."""

Usual = Mapping[str, int]
"""The memory that each specimen takes, in bytes."""


@dataclass
class Group:
    """Inputs that show the same."""

    door: str
    kind: str
    error: str
    where: str
    detail: str
    specimen: str
    mutations: Sequence[str]
    count: int = 0
    seeds: list[int] = field(default_factory=list)


@dataclass
class DoorReport:
    """What one door has shown so far."""

    num_inputs: int = 0
    seconds: float = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)
    groups: dict[tuple[str, ...], Group] = field(default_factory=dict)

    def add(self, door: str, seed: int, case: Mapping[str, Any], verdict: Verdict) -> bool:
        """Books an input; returns whether it shows something new."""
        self.num_inputs += 1
        self.verdicts[verdict.kind] += 1
        if verdict.kind not in (*FINDS, ACCEPTED_ALONE):
            return False
        where = verdict.frame or _where(case, verdict)
        key = (verdict.kind, verdict.error, where)
        is_new = key not in self.groups
        group = self.groups.setdefault(
            key,
            Group(
                door,
                verdict.kind,
                verdict.error,
                where,
                verdict.detail,
                case["specimen"],
                case["mutations"],
            ),
        )
        group.count += 1
        if len(group.seeds) < KEPT_SEEDS:
            group.seeds.append(seed)
        return is_new


class Session:
    """Doors with their specimens, in a folder that is removed in the end.

    Args:
        doors: by name.
        limits: of each input.
        jobs: inputs that are opened at once.
    """

    def __init__(self, doors: Mapping[str, Door], limits: Limits, jobs: int) -> None:
        self._doors = doors
        self._limits = limits
        self._jobs = jobs
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-specimens-"))
        self._usual: dict[str, Usual] = {}

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def prepare(self, name: str) -> DoorReport:
        """Makes a door's specimens, opens each as it is, and notes what memory that takes.

        A specimen that is not right as it is counts as the first find.
        """
        report = DoorReport()
        door, folder = self._doors[name], self._folder / name
        folder.mkdir()
        _fork_and_wait(lambda: door.prepare(folder))
        usual = {}
        for specimen in door.specimens:
            case, verdict = self.judge(name, specimen, Random(0), 0, None)
            usual[specimen] = verdict.growth_bytes
            if verdict.kind != RIGHT:
                report.add(name, UNCHANGED, case, verdict)
                _tell(name, UNCHANGED, case, verdict)
        self._usual[name] = usual
        return report

    def run_seed(self, name: str, seed: int) -> tuple[dict[str, Any], Verdict]:
        """Makes and judges the input of a seed."""
        random = Random(f"{name} {seed}")
        specimen = random.choice(self._doors[name].specimens)
        count = random.choice(MUTATIONS)
        return self.judge(name, specimen, random, count, self._usual[name][specimen])

    def judge(
        self, name: str, specimen: str, random: Random, count: int, usual_bytes: int | None
    ) -> tuple[dict[str, Any], Verdict]:
        """Makes an input in a new folder and judges it."""
        work = Path(tempfile.mkdtemp(prefix="fuzz-input-"))
        try:
            case = self._doors[name].case(self._folder / name, specimen, work, random, count)
            verdict = judge(case, self._limits, usual_bytes)
            # The folder has another name each time.
            detail = verdict.detail.replace(f"{work}/", "").replace(f"{STANDARD_LIBRARY}/", "")
            return _described(case), replace(verdict, detail=detail)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def fuzz(
        self, name: str, seeds: Iterator[int], seconds: float, num_inputs: int | None
    ) -> DoorReport:
        """Judges inputs of one door until the time is over or all are judged."""
        report = self.prepare(name)
        started = time.monotonic()
        running: dict[int, tuple[int, Path]] = {}
        num_begun = 0

        def may_begin() -> bool:
            has_time = time.monotonic() - started < seconds
            return has_time and (num_inputs is None or num_begun < num_inputs)

        while may_begin() or running:
            while len(running) < self._jobs and may_begin():
                seed = next(seeds)
                result = self._folder / f"{name}-{seed}.json"
                running[self._begin(name, seed, result)] = (seed, result)
                num_begun += 1
            child, _ = os.wait()
            seed, result = running.pop(child)
            case, verdict = _read_result(result)
            if report.add(name, seed, case, verdict):
                _tell(name, seed, case, verdict)
        report.seconds = time.monotonic() - started
        return report

    def _begin(self, name: str, seed: int, result: Path) -> int:
        child = os.fork()
        if child:
            return child
        try:
            case, verdict = self.run_seed(name, seed)
            result.write_text(json.dumps([case, asdict(verdict)]))
        except BaseException as error:  # noqa: BLE001 - the fuzzer's own faults must not fork on
            result.write_text(json.dumps(_fault_of_our_own(error)))
        os._exit(0)


def _fork_and_wait(function: Callable[[], None]) -> None:
    """Runs a function in a fork, whose words are shown only if it fails.

    Raises:
        RuntimeError: if it fails.
    """
    with tempfile.TemporaryFile() as words:
        child = os.fork()
        if child == 0:
            os.dup2(words.fileno(), 1)
            os.dup2(words.fileno(), 2)
            status = 0
            try:
                function()
            except BaseException as error:  # noqa: BLE001 - the child must not run on
                traceback.print_exception(error)
                status = 1
            sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        if status:
            words.seek(0)
            said = words.read().decode("utf-8", "replace")
            raise RuntimeError(f"the specimens could not be made: {said}")


def _described(case: Case) -> dict[str, Any]:
    return {"specimen": case.specimen, "mutations": list(case.mutations)}


def _where(case: Mapping[str, Any], verdict: Verdict) -> str:
    """Returns by what inputs are told apart that went through no error of ours."""
    if verdict.kind == ACCEPTED_ALONE:
        return NUMBER.sub("N", verdict.detail)[:80]
    places = "; ".join(":".join(each.split(":")[:2])[:80] for each in case["mutations"])
    return f"{case['specimen']}, {NUMBER.sub('N', places)}"


def _fault_of_our_own(error: BaseException) -> Any:
    text = "".join(traceback.format_exception(error))[-600:]
    return [
        {"specimen": "", "mutations": []},
        asdict(Verdict(OWN_FAULT, type(error).__name__, "", text)),
    ]


def _read_result(path: Path) -> tuple[dict[str, Any], Verdict]:
    case, verdict = json.loads(path.read_text())
    path.unlink()
    return case, Verdict(**verdict)


def _tell(name: str, seed: int, case: Mapping[str, Any], verdict: Verdict) -> None:
    mutations = "; ".join(case["mutations"])
    print(
        f"{name} {seed}: {verdict.kind} {verdict.error} {verdict.frame}\n"
        f"    {case['specimen']}: {ascii(mutations)[:300]}\n"
        f"    {ascii(verdict.detail)[:300]}",
        file=sys.stderr,
        flush=True,
    )
