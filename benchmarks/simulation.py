"""Compares searches on traces, on three machines, with the best fixed shape in hindsight.

    uv run python benchmarks/simulation.py --traces traces/report.jsonl.gz \
        --tune traces/tune.jsonl.gz --output results/searches_simulated.json --plot docs/images

Traces come from `benchmarks/traces.py`. The lambdas of UCB are swept on the traces to tune on; UCB
then runs with the best pair of each machine, which nobody else gets. Every search runs over all
texts in one random order, once for each seed. The costs of "cpu" are those in `machines.py`, or
those of `treesnake calibrate --json` if given.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frame import Result, print_table, save_figure
from frame import run as run_script

from treesnake.evaluation.simulation.comparison import (
    NewSearch,
    best_fixed,
    by_category,
    rate,
    relative_rate,
    run,
)
from treesnake.evaluation.simulation.machines import MACHINES
from treesnake.evaluation.simulation.replay import Replayed
from treesnake.evaluation.simulation.synthetic import synthetic_trace
from treesnake.evaluation.simulation.trace import Trace, read_traces
from treesnake.search.arms import ARMS, PAPER_ARMS
from treesnake.search.costs import CostTable
from treesnake.search.moving_average import MovingAverageSearch
from treesnake.search.self_tuning import SelfTuningSearch
from treesnake.search.static import StaticSearch
from treesnake.search.thompson import ThompsonSearch
from treesnake.search.trial import TrialSearch
from treesnake.search.ucb import DiscountedUcbSearch, UcbSearch
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape

SELF_TUNING = "self-tuning"
Swept = dict[str, float]
"""Measures of a search over all traces, by name."""

FIXED: tuple[Shape, ...] = (
    *ARMS,
    *(shape for shape in PAPER_ARMS if shape not in ARMS),
    LevelWidths((2,)),
    LevelWidths((4, 2, 1, 1)),
    BestFirst(3, 3, 8),
    BestFirst(4, 4, 12),
    BestFirst(8, 6, 30),
    BestFirst(6, 10, 48),
)
"""The fixed shapes among which hindsight chooses: more than any search has."""

LAMBDAS_UCB = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
LAMBDAS_GAMMA = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--traces", type=Path, nargs="+", required=True)
    parser.add_argument("--tune", type=Path, nargs="+", help="traces to choose lambdas on")
    parser.add_argument("--cpu-costs", type=Path, help="output of treesnake calibrate --json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--without-sweep", action="store_true")


def measure(arguments: Namespace) -> Result:
    traces = read_traces(arguments.traces)
    tuning = read_traces(arguments.tune) if arguments.tune else traces
    machines = {}
    for name, costs in (MACHINES | _measured(arguments.cpu_costs)).items():
        sweep = {} if arguments.without_sweep else _sweep(tuning, costs)
        machines[name] = _compare(traces, costs, sweep, arguments.seeds)
    return {"texts": len(traces), "tokens": sum(map(len, traces)), "machines": machines}


def _measured(path: Path | None) -> dict[str, CostTable]:
    if path is None:
        return {}
    costs = json.loads(path.read_text())["costs"]
    tables = (
        {int(length): {int(count): each for count, each in table.items()} for length, table in half}
        for half in (costs["score_s"].items(), costs["draft_s"].items())
    )
    return {"cpu": CostTable(*tables)}


def _searches(costs: CostTable, sweep: Mapping[str, Swept]) -> dict[str, NewSearch]:
    ucbs = [lambdas for lambdas in sweep if lambdas != SELF_TUNING]
    best = max(ucbs, key=lambda lambdas: sweep[lambdas]["tokens_per_s"], default="0.5 0.1")
    lambda_ucb, lambda_gamma = map(float, best.split())
    return {
        "self-tuning, calibrated": lambda: SelfTuningSearch(costs),
        SELF_TUNING: SelfTuningSearch,
        "ucb": UcbSearch,
        "ucb, tuned lambdas": lambda: UcbSearch(lambda_ucb=lambda_ucb, lambda_gamma=lambda_gamma),
        "ucb, tuned lambdas, all arms": lambda: UcbSearch(
            ARMS, lambda_ucb=lambda_ucb, lambda_gamma=lambda_gamma
        ),
        "discounted-ucb": DiscountedUcbSearch,
        "thompson": ThompsonSearch,
        "moving-average": MovingAverageSearch,
        "trial": TrialSearch,
    }


def _compare(
    traces: Sequence[Trace], costs: CostTable, sweep: Mapping[str, Swept], num_seeds: int
) -> dict[str, Any]:
    fixed: dict[str, NewSearch] = {str(shape): _static(shape) for shape in FIXED}
    searches = _searches(costs, sweep)
    runs = [run(traces, fixed | searches, costs, seed=seed) for seed in range(num_seeds)]
    results = {name: [each for one in runs for each in one[name]] for name in runs[0]}
    best = best_fixed(results, list(fixed))
    categories = by_category(list(traces) * num_seeds, results)
    return {
        "best_fixed": best,
        "tokens_per_s": {name: round(rate(results[name]), 2) for name in results},
        "relative": {name: _relative(results[name], results[best]) for name in results},
        "by_category": {
            category: _category(part, list(fixed), list(searches))
            for category, part in categories.items()
        },
        "useless_drafter": _useless(costs),
        "ucb_sweep": dict(sweep),
    }


def _static(shape: Shape) -> NewSearch:
    return lambda: StaticSearch(shape)


def _relative(replayed: Sequence[Replayed], reference: Sequence[Replayed]) -> list[float]:
    interval = relative_rate(replayed, reference)
    return [round(each, 4) for each in (interval.value, interval.low, interval.high)]


def _category(
    results: Mapping[str, Sequence[Replayed]], fixed: list[str], searches: list[str]
) -> dict[str, Any]:
    best = best_fixed(results, fixed)
    relative = {name: round(rate(results[name]) / rate(results[best]), 4) for name in searches}
    return {"best_fixed": best, "relative": relative}


def _useless(costs: CostTable) -> dict[str, float]:
    """Returns how fast searches are with a drafter that is always wrong, in parts of plain."""
    traces = [
        synthetic_trace(100, lambda chance: chance.betavariate(2, 1), truth=0.0, seed=seed)
        for seed in range(20)
    ]
    searches = _searches(costs, {}) | {"off": _static(OFF)}
    results = run(traces, searches, costs)
    return {name: round(rate(results[name]) / rate(results["off"]), 4) for name in searches}


def _sweep(traces: Sequence[Trace], costs: CostTable) -> dict[str, Swept]:
    """Returns how fast UCB is over both lambdas and what it emits, beside the default search."""
    searches = {
        f"{lambda_ucb} {lambda_gamma}": _ucb(lambda_ucb, lambda_gamma)
        for lambda_ucb in LAMBDAS_UCB
        for lambda_gamma in LAMBDAS_GAMMA
    }
    results = run(traces, {SELF_TUNING: SelfTuningSearch} | searches, costs)
    return {
        name: {
            "tokens_per_s": round(rate(replayed), 2),
            "tokens_per_step": round(
                sum(each.tokens for each in replayed) / sum(each.num_steps for each in replayed), 3
            ),
        }
        for name, replayed in results.items()
    }


def _ucb(lambda_ucb: float, lambda_gamma: float) -> NewSearch:
    return lambda: UcbSearch(lambda_ucb=lambda_ucb, lambda_gamma=lambda_gamma)


def show(result: Result) -> None:
    heads = ("search", "tokens/s", "of the best fixed", "95 %", "worst category", "useless")
    for name, machine in result["machines"].items():
        rows = []
        for search, (value, low, high) in machine["relative"].items():
            shares = [part["relative"].get(search) for part in machine["by_category"].values()]
            rows.append(
                (
                    search,
                    f"{machine['tokens_per_s'][search]:.1f}",
                    f"{value:.3f}",
                    f"{low:.3f}-{high:.3f}",
                    f"{min(shares):.3f}" if None not in shares else "",
                    str(machine["useless_drafter"].get(search, "")),
                )
            )
        print_table(f"{name}: the best fixed shape is {machine['best_fixed']}", heads, rows)


def draw(result: Result, folder: Path) -> None:
    """Draws the searches on each machine, and UCB over its lambdas."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only pictures need it

    machines = result["machines"]
    figure, axes = plt.subplots(1, len(machines), figsize=(4.2 * len(machines), 3.6), sharey=True)
    for axis, (machine, numbers) in zip(axes, machines.items(), strict=True):
        names = [name for name in reversed(numbers["relative"]) if name in _searches_of(numbers)]
        values = [numbers["relative"][name] for name in names]
        errors = [
            [value - low for value, low, _ in values],
            [high - value for value, _, high in values],
        ]
        axis.barh(names, [value for value, _, _ in values], xerr=errors, color="#4a7", height=0.6)
        axis.axvline(1.0, color="0.3", linewidth=1)
        axis.set_title(f"{machine}: best fixed is {numbers['best_fixed']}", fontsize=9)
        axis.set_xlabel("tokens/s, best fixed shape in hindsight = 1")
    save_figure(figure, folder / "searches.svg")
    if all(numbers["ucb_sweep"] for numbers in machines.values()):
        _plot_sweep(machines, folder)


def _plot_sweep(machines: Mapping[str, dict[str, Any]], folder: Path) -> None:
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only pictures need it

    measures = {"tokens_per_s": "tokens/s", "tokens_per_step": "tokens/step"}
    size = 4.2 * len(machines), 3.2 * len(measures)
    figure, axes = plt.subplots(len(measures), len(machines), figsize=size)
    for row, (measure, label) in zip(axes, measures.items(), strict=True):
        for axis, (machine, numbers) in zip(row, machines.items(), strict=True):
            sweep = numbers["ucb_sweep"]
            tuned = sweep[SELF_TUNING][measure]
            values = [
                [sweep[f"{ucb} {gamma}"][measure] / tuned for gamma in LAMBDAS_GAMMA]
                for ucb in LAMBDAS_UCB
            ]
            picture = axis.imshow(values, cmap="viridis", aspect="auto")
            axis.set_xticks(range(len(LAMBDAS_GAMMA)), map(str, LAMBDAS_GAMMA))
            axis.set_yticks(range(len(LAMBDAS_UCB)), map(str, LAMBDAS_UCB))
            axis.set_xlabel("lambda_gamma")
            axis.set_ylabel("lambda_ucb")
            axis.set_title(f"{machine}: {label}, UCB / self-tuning", fontsize=9)
            figure.colorbar(picture, ax=axis)
    save_figure(figure, folder / "ucb_lambdas.svg")


def _searches_of(numbers: dict[str, Any]) -> set[str]:
    return {name for part in numbers["by_category"].values() for name in part["relative"]}


if __name__ == "__main__":
    run_script(__doc__, measure, add_arguments=add_arguments, show=show, draw=draw)
