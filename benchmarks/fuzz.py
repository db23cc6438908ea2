"""Does every file that a user brings end in the right output or in an error with a hint?

    python benchmarks/fuzz.py --seconds 3600 --output results/fuzz.json

Seeded: the number of an input makes it, in every process. Each door has its share of the time. An
input is a small specimen (a model, a recipe, a journal, ...) that was changed by chance. It is
opened as a user would, in a process of its own with limits of time and memory. It is *right* if the
output is that of another reader, or what was meant; *told* if it ends in an error of ours that
names the file; *accepted alone* if we read it and the other reader does not, which is for people to
judge. All else is a find: a crash, a hang, memory beyond what the files hold, a bare error, an
error without a hint, another text. Inputs that show the same are one find; `--replay DOOR SEED`
makes and judges one input again.
"""

import os

if __name__ == "__main__":  # read when torch and others are imported; threads do not survive forks
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count

import torch
import transformers
from frame import Result, print_table, run
from fuzzing.doors import DOORS, warm_up
from fuzzing.process import Limits
from fuzzing.session import DoorReport, Session
from fuzzing.verdicts import ACCEPTED_ALONE, FINDS, RIGHT, TOLD

KINDS = (RIGHT, TOLD, ACCEPTED_ALONE, *FINDS)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="of all doors together")
    parser.add_argument("--inputs", type=int, help="end a door after so many")
    parser.add_argument("--seed", type=int, default=0, help="of each door's first input")
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=[*DOORS])
    parser.add_argument("--replay", nargs=2, metavar=("DOOR", "SEED"), help="one input again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="inputs at once")
    parser.add_argument("--timeout", type=int, default=20, help="seconds of computing, an input")


def measure(arguments: Namespace) -> Result:
    """Fuzzes one door after the other, or replays one input."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warm_up()
    limits = Limits(arguments.timeout, 6.0 * arguments.timeout)
    with Session(DOORS, limits, arguments.jobs) as session:
        if arguments.replay:
            return _replay(session, *arguments.replay)
        reports = {}
        for name in arguments.doors:
            share = arguments.seconds / len(arguments.doors)
            reports[name] = session.fuzz(name, count(arguments.seed), share, arguments.inputs)
    return {
        "first_seed": arguments.seed,
        "limits": asdict(limits),
        "doors": {name: _summary(report) for name, report in reports.items()},
        **{title: _listed(reports, kinds) for title, kinds in LISTS.items()},
    }


LISTS: dict[str, Sequence[str]] = {
    "finds": FINDS,
    "accepted_alone": (ACCEPTED_ALONE,),
}


def _replay(session: Session, name: str, seed: str) -> Result:
    session.prepare(name)
    case, verdict = session.run_seed(name, int(seed))
    return {"door": name, "seed": int(seed), "case": case, "verdict": asdict(verdict)}


def _summary(report: DoorReport) -> Result:
    return {
        "inputs": report.num_inputs,
        "seconds": round(report.seconds, 1),
        "verdicts": {kind: report.verdicts[kind] for kind in sorted(report.verdicts)},
    }


def _listed(reports: dict[str, DoorReport], kinds: Sequence[str]) -> list[Result]:
    groups = [group for report in reports.values() for group in report.groups.values()]
    return [asdict(group) for group in groups if group.kind in kinds]


def show(result: Result) -> None:
    """Prints the verdicts of each door, or what came of the input."""
    if "doors" not in result:
        print(result["case"], result["verdict"], sep="\n")
        return
    rows = [
        [name, str(door["inputs"]), f"{door['seconds']:.0f}"]
        + [str(door["verdicts"].get(kind, 0)) for kind in KINDS]
        for name, door in result["doors"].items()
    ]
    print_table("Inputs by verdict", ["door", "inputs", "seconds", *KINDS], rows)
    print(f"{len(result['finds'])} finds, {len(result['accepted_alone'])} accepted alone")


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
