"""The fuzzer sees what it is to see, and makes the same input of a seed every time."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save

from treesnake.errors import LoadError
from treesnake.loading.checkpoint import locate

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from fuzzing.cases import Case
from fuzzing.doors import DOORS
from fuzzing.gguf_files import GgufFiles
from fuzzing.mutations import mutate_bytes, mutate_json, mutate_text
from fuzzing.process import Limits, frame_of
from fuzzing.recipes import Recipes
from fuzzing.safetensors_files import mutate_safetensors
from fuzzing.verdicts import OWN_FAULT, judge

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"
NUM_INPUTS = 3


def compute_for_ever() -> None:
    while True:
        pass


def take_memory() -> int:
    return len(bytearray(8 << 30))


def refuse_with(message: str) -> Callable[[], None]:
    def refuse() -> None:
        raise LoadError(message)

    return refuse


@pytest.mark.parametrize(
    ("open_it", "kind"),
    [
        (lambda: [1, 2], "right"),
        (lambda: [1, 3], "other text"),
        (lambda: {}["key"], "bare error"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crash"),
        (lambda: len(b"\1" * (400 << 20)), "memory"),
        (take_memory, "memory"),
        (compute_for_ever, "hang"),
        (lambda: time.sleep(600), "hang"),
        (refuse_with("input.txt is broken"), "told"),
        (refuse_with("something is broken"), "no hint"),
        (refuse_with(""), "no hint"),
    ],
)
def test_what_comes_of_an_input_is_judged(
    open_it: Callable[[], Any], kind: str, tmp_path: Path
) -> None:

    files = tmp_path / "files"
    files.mkdir()
    (files / "input.txt").touch()
    case = Case("specimen", (), files, open_it, lambda: [1, 2])
    verdict = judge(case, Limits(cpu_s=2, wall_s=4.0, memory_bytes=1 << 30), 0)
    assert verdict.kind == kind, verdict


def test_what_the_other_reader_refuses_is_kept_apart(tmp_path: Path) -> None:

    case = Case("specimen", (), tmp_path, lambda: 1, refuse_with("no"))
    assert judge(case, Limits(), 0).kind == "accepted alone"


def test_an_error_names_the_innermost_function_of_ours() -> None:

    with pytest.raises(LoadError) as caught:
        locate("./nowhere")
    assert frame_of(caught.value).startswith("treesnake.loading.")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"a": [1, 2.5, {"b": "c"}], "d": null}', b"{"])
def test_mutations_are_made_by_the_seed_alone(content: bytes) -> None:

    for mutate in (mutate_bytes, mutate_text, mutate_json):
        made = [[mutate(content, Random(seed)) for seed in range(40)] for _ in range(2)]
        assert made[0] == made[1]
        assert len({result for result, _ in made[0]}) > 3


def test_mutations_of_weights_are_made_by_the_seed_alone() -> None:
    content = save({f"{name}.weight": torch.ones(4, 4) for name in "abcdefgh"})
    made = [[mutate_safetensors(content, Random(seed)) for seed in range(60)] for _ in range(2)]
    assert made[0] == made[1]


@pytest.mark.parametrize("door", [Recipes(), GgufFiles()])
def test_an_input_is_made_by_its_seed_alone(door: Any, tmp_path: Path) -> None:
    made = []
    for attempt in range(2):
        random = Random("a seed")
        cases = []
        for number in range(6):
            work = tmp_path / f"{attempt}-{number}"
            work.mkdir()
            case = door.case(tmp_path, door.specimens[0], work, random, 2)
            files = sorted(path for path in work.rglob("*") if path.is_file())
            cases.append((case.mutations, [path.read_bytes() for path in files]))
        made.append(cases)
    assert made[0] == made[1]


@pytest.mark.slow
def test_every_door_can_be_fuzzed(tmp_path: Path) -> None:
    output = tmp_path / "fuzz.json"
    options = ("--inputs", str(NUM_INPUTS), "--seconds", "6000", "--jobs", "1", "--output")
    script = [sys.executable, SCRIPT, *options, output]
    subprocess.run(script, check=True, capture_output=True)
    fuzzed = json.loads(output.read_text())
    assert fuzzed["doors"].keys() == DOORS.keys()
    for door in fuzzed["doors"].values():
        assert door["inputs"] >= NUM_INPUTS
        assert OWN_FAULT not in door["verdicts"], fuzzed["finds"]
