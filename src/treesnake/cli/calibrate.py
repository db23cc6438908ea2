"""`treesnake calibrate`: what drafting and scoring take on this machine."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from rich.table import Table

import treesnake
from treesnake.cli import options
from treesnake.loading.options import LoadOptions
from treesnake.outputs import telling_failure
from treesnake.terminal import console

BAR_WIDTH = 24
Seconds = Mapping[int, Mapping[int, float]]
"""By the length of the text and the number of nodes."""

TEXT = "The quick brown fox jumps over the lazy dog, and then again it does. "


def calibrate(
    target: options.Target = "smollm2",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
    drafter: options.Drafter = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure what drafting and scoring take on this machine.

    The self-tuning search begins with these costs; without them it learns as it goes. They are
    kept for this pair, machine, dtype and number of threads.
    """
    from treesnake.calibration import measure_costs
    from treesnake.cli.target_options import loading, set_threads
    from treesnake.drafters.load import check_drafter_name
    from treesnake.loading.cost_files import CostKey, write_costs
    from treesnake.pairs import pair_by_name
    from treesnake.targets.load import load_target

    check_drafter_name(drafter)
    set_threads(threads)
    load_options = LoadOptions(dtype, device, engine, trust_remote_code=trust_remote_code)
    with loading(target):
        target_model, loaded = load_target(target, load_options)
        pair = pair_by_name(target_model, loaded, drafter, LoadOptions(device=device))
    prompt = treesnake.Prompt.of(loaded.checkpoint.tokenizer.encode(TEXT))
    key = CostKey.of(loaded, drafter)
    costs = measure_costs(pair, prompt)
    if as_json:
        print(json.dumps({"key": asdict(key), "costs": asdict(costs)}))
    else:
        _show(costs.score_s, costs.draft_s)
    # Last, so that a full disk costs nothing that was measured.
    with telling_failure(key.path, "make room, or set TREESNAKE_CACHE to another folder"):
        path = write_costs(key, costs)
    if not as_json:
        console(is_error=True).print(f"Kept in {path}", style="dim", soft_wrap=True)


def _show(score_s: Seconds, draft_s: Seconds) -> None:
    """Prints both tables, with bars of one scale."""
    output = console()
    longest = max(next(iter(score_s.values())).values())
    output.print("Scoring, by nodes", style="bold")
    output.print(_table(score_s, longest))
    output.print("\nDrafting a level, by nodes expanded", style="bold")
    output.print(_table(draft_s, longest))


def _table(costs: Seconds, longest: float) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("", justify="right")
    for length in costs:
        table.add_column(f"ms at {length} tokens", justify="right")
    table.add_column("")
    first = next(iter(costs.values()))
    for count, seconds in first.items():
        times = [f"{each[count] * 1e3:.2f}" for each in costs.values()]
        table.add_row(str(count), *times, _bar(seconds / longest))
    return table


def _bar(share: float) -> str:
    return "█" * round(share * BAR_WIDTH)
