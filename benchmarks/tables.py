"""Writes the tables of README.md and of the docs from the files in results/.

    uv run python benchmarks/tables.py           # writes them
    uv run python benchmarks/tables.py --check   # fails if they differ

A table stands between `<!-- table NAME -->` and `<!-- end -->`. The check is one of checks.py, so
nothing is imported that takes time.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

FOLDER = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "docs/gpu.md",
    "docs/log.md",
    "docs/measurements.md",
    "docs/guides/engines.md",
    "docs/guides/searches.md",
    "docs/guides/train-a-drafter.md",
    "docs/papers/stree.md",
    "docs/papers/tabed.md",
)
STREAMS = ("M", "T", "C", "P")
ENSEMBLES = ("MT", "MTC", "MTP", "MTCP")
AS_DRAFTED = " hedge, after others"
"""What the weights of a mixture are by default, behind its name in results."""
DEFAULT = "+prompt-lookup@self-tuning"
ANY_TARGET_DEFAULT = "text+prompt-lookup@self-tuning"
IN_TEXT = "text and prompt lookup, self-tuning"
SHIPPED_PROVENANCE = FOLDER / "src/treesnake/drafters/shipped/treesnake-smol/provenance.json"
JUDGED = ("right", "told", "accepted alone")
"""What comes of an input of the fuzzer that is no find."""

BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Rewrites or checks the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for page in PAGES:
        path = FOLDER / page
        text = path.read_text("utf-8")
        updated = fill(text)
        if updated == text:
            continue
        if arguments.check:
            sys.exit(f"{page} has tables that are not those of results/: run benchmarks/tables.py")
        path.write_text(updated, "utf-8")


def fill(text: str) -> str:
    """Returns a text with every table made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def _decoding(name: str, reference: str) -> str:
    """Returns what a token takes with each method, and how many times as fast as one it is."""
    result = _read(name)
    times = {name: entry["ms_per_token"] for name, entry in result["decoding"].items()}
    methods = list(dict.fromkeys(name.rsplit(", ", 1)[0] for name in times))
    one, two = ", 1 thread", ", 2 threads"
    reference_ms = times[reference + two]
    rows = [
        [
            method,
            f"{times[method + one]:.1f}",
            f"{times[method + two]:.1f}",
            f"{1e3 / times[method + two]:.0f}",
            f"{reference_ms / times[method + two]:.1f}x",
        ]
        for method in sorted(methods, key=lambda method: times[method + two])
    ]
    heads = ["plain decoding", "ms, 1 thread", "ms, 2 threads", "tokens/s"]
    heads += [f"{reference.split(maxsplit=1)[0]} is 1x"]
    return _table(heads, rows)


def _scoring(name: str) -> str:
    scoring = _read(name)["scoring_ms"]
    rows = []
    for name, times in scoring.items():
        if name.endswith("2 threads"):
            ratios = [f"{time / times['1']:.2f}" for time in times.values()]
            rows.append([name.removesuffix(", 2 threads"), f"{times['1']:.1f}", *ratios[1:]])
    counts = list(next(iter(scoring.values())))
    return _table(["scoring, 2 threads", "1 node, ms", *counts[1:]], rows)


def _gguf() -> str:
    rows = []
    for file in _read("gguf")["files"]:
        times, opening = file["ms"], file["opening"]
        for name in ("treesnake", "llama.cpp"):
            opened = opening[name]
            resident = opened["resident_bytes"] - opened["before_bytes"]
            share = resident / file["file_bytes"]
            rows.append(
                [
                    f"{file['file']}, {name}",
                    f"{times[f'{name}: decoding']['median']:.2f}",
                    f"{times[f'{name}: prefill']['median']:.0f}",
                    f"{opened['seconds']:.2f}",
                    f"{resident / 1e6:.0f} MB ({share:.2f}x)",
                ]
            )
    heads = ["file, 2 threads", "ms a token", "ms for 512 tokens", "opened, s", "resident"]
    return _table(heads, rows)


def _gguf_aims(name: str, aims: Sequence[str]) -> str:
    rows = []
    for file in _read(name)["files"]:
        times = {name: entry["median"] for name, entry in file["ms"].items()}
        opened = file["opening"]["treesnake"]
        resident = opened["resident_bytes"] - opened["before_bytes"]
        ratios = [
            times[f"llama.cpp: {part}"] / times[f"treesnake: {part}"]
            for part in ("decoding", "prefill")
        ]
        ratios += [times["treesnake: scoring 8"] / times["treesnake: scoring 1"]]
        ratios += [resident / file["file_bytes"]]
        cells = [f"{ratio:.2f}" for ratio in ratios]
        rows.append([file["file"], *cells, f"{opened['seconds']:.1f}"])
    rows.append(["*aim*", *aims, "to 1.25", "to 5"])
    heads = ["plain, x llama.cpp", "prefill, x llama.cpp", "8 nodes, x one"]
    return _table(["file", *heads, "resident, x file", "opened, s"], rows)


def _gguf_scoring() -> str:
    rows = []
    for file in _read("gguf")["files"]:
        scored = {
            name.rsplit(" ", 1)[1]: entry["median"]
            for name, entry in file["ms"].items()
            if "scoring" in name
        }
        ratios = [f"{time / scored['1']:.2f}" for time in scored.values()]
        rows.append([file["file"], f"{scored['1']:.2f}", *ratios[1:]])
    return _table(["scoring, 2 threads", "1 node, ms", "2", "4", "8", "16"], rows)


def _gguf_quality() -> str:
    rows = []
    for file in _read("gguf_quality")["files"]:
        found = file["perplexity"]
        for name, value in found.items():
            change = 100 * (value / found["float32"] - 1)
            rows.append([f"{file['file']}, {name}", f"{value:.3f}", f"{change:+.2f} %"])
    return _table(["file, weights", "perplexity", "against float32"], rows)


def _tree_scoring() -> str:
    rows = []
    for target, found in _read("tree_scoring")["targets"].items():
        one = found["ms"]["inputs"]["1"]["min"]
        for form, times in found["ms"].items():
            ratios = [f"{ms['min'] / one:.2f}" for ms in times.values()]
            megabytes = found["bytes"][form]["13"] / 1e6
            rows.append([f"{target}, {form}", f"{times['1']['min']:.1f}", *ratios[1:]])
            rows[-1].append(f"{megabytes:.1f}")
    counts = list(times)
    heads = ["2 threads", "1 node, ms", *counts[1:], "MB of 13"]
    return _table(heads, rows)


def _self_variants() -> str:
    columns = ("share", "agreement", "tokens_per_step", "passes_per_step")
    rows = [
        [name, *(f"{found[key]:.2f}" if key in found else "" for key in columns)]
        for name, found in _read("self_variants")["variants"].items()
    ]
    heads = ["share of weights read", "agreement", "tokens/step", "passes of the copy a step"]
    return _table(["the copy in int4", *heads], rows)


def _second_turn() -> str:
    rows = []
    for target, turns in _read("second_turn")["targets"].items():
        cells = [
            cell
            for found in turns.values()
            for cell in (str(found["tokens"]), f"{found['first_token_ms'] / 1e3:.2f}")
        ]
        rows.append([target, *cells])
    heads = [
        f"{turn}: {what}"
        for turn in ("first turn", "second turn", "second, nothing kept")
        for what in ("tokens", "first token, s")
    ]
    return _table(["float32, 2 threads", *heads], rows)


def _memory() -> str:
    rows = [
        [
            name,
            f"{entry['weights_bytes'] / 1e6:.0f} MB",
            f"{(entry['peak_bytes'] - entry['before_bytes']) / 1e6:.0f} MB",
            f"{entry['ratio']:.2f}x",
        ]
        for name, entry in _read("memory")["memory"].items()
    ]
    return _table(["memory", "weights", "peak", "peak / (weights + cache)"], rows)


def _equality() -> str:
    result = _read("greedy_equality")
    rows = [
        [name, str(entry["prompts"]), str(entry["equal"])]
        for name, entry in result["methods"].items()
    ]
    return _table(["float32, greedy, 64 tokens", "prompts", "equal to transformers"], rows)


def _shared_passes() -> str:
    passes = _read("shared_passes")["passes_ms"]
    heads = "one node of each text, 2 threads", "1 text, ms"
    return _times_of_first(passes, "x one text", heads, "{} texts")


def _mixture_streams() -> str:
    drafts = _read("mixture_streams")["drafts_ms"]
    heads = "a chain of 5, 2 threads", "alone, ms"
    return _times_of_first(drafts, "x one stream", heads, "{}")


def _times_of_first(
    times: Mapping[str, Mapping[str, Any]], ratio: str, heads: tuple[str, str], others: str
) -> str:
    """Returns the milliseconds of each row's first variant, and the ratio of the others to it."""
    first, *variants = next(iter(times.values()))
    rows = [
        [name, f"{row[first]['median']:.1f}", *(f"{row[each][ratio]:.2f}" for each in variants)]
        for name, row in times.items()
    ]
    return _table([*heads, *map(others.format, variants)], rows)


def _mixture_rules() -> str:
    rows = [
        [row["rule"], f"{row['temperature']:g}", f"{row['ms']:.2f}", f"{row['share']:.1%}"]
        for row in _read("mixture_streams")["rules"]
    ]
    return _table(["four streams", "temperature", "ms", "of a step"], rows)


def _two_versions() -> str:
    result = _read("two_versions")
    rows = [
        [
            name,
            _interval([row["decoding"], *row["decoding_interval"]], 2),
            f"{row['prefill']:.2f}",
            f"{row['equal']} of {result['questions']}",
        ]
        for name, row in result["methods"].items()
    ]
    heads = ["dtype, drafter, search", f"tokens/s, x {result['other_commit']}"]
    return _table([*heads, "prefill, x", "equal texts"], rows)


def _fuzz() -> str:
    rows = []
    for door, report in _read("fuzz")["doors"].items():
        verdicts = report["verdicts"]
        others = sum(verdicts.values()) - sum(verdicts.get(each, 0) for each in JUDGED)
        counts = [report["inputs"], *(verdicts.get(each, 0) for each in JUDGED), others]
        rows.append([f"`{door}`", *map(str, counts)])
    return _table(["door", "inputs", *JUDGED, "finds"], rows)


def _starts() -> str:
    result = _read("two_versions")
    rows = [
        [
            f"`{name}`" if "treesnake" in name else name,
            f"{row['seconds']:.2f}",
            _interval([row["ratio"], *row["ratio_interval"]], 2),
        ]
        for name, row in result["starts"].items()
    ]
    return _table(["from start to", "s", f"x {result['other_commit']}"], rows)


def _first_minute(name: str) -> str:
    result = _read(name)
    first, second = result["first_answer"], result["second_answer"]
    rows = {
        **{f"`{name}`": row for name, row in result["starts"].items()},
        "one token of the default pair, kernels on disk": {
            version: second[version]["until_the_first_token_s"] for version in ("this", "other")
        },
        "64 tokens on a fresh machine, kernels compiled": {
            version: first[version]["seconds"] for version in ("this", "other")
        },
        **{
            f"one token of {name}, the same file": {"this": seconds}
            for name, seconds in result.get("peers", {}).items()
        },
    }
    table = [
        [name, *(f"{row[each]:.2f}" if each in row else "" for each in ("this", "other"))]
        for name, row in rows.items()
    ]
    return _table(["seconds", "now", "before"], table)


def _long_context() -> str:
    drafting = _read("long_context_draft")["drafting"]
    rows = []
    for size, by_length in drafting.items():
        for drafter in next(iter(by_length.values())):
            entries = [entries[drafter] for entries in by_length.values()]
            times = [f"{entry['ms']:.1f}" for entry in entries]
            sizes = [f"{entry['state_bytes'] / 1e6:.1f} MB" for entry in entries]
            rows.append([f"{drafter}, {size}", *times, sizes[0], sizes[-1]])
    lengths = [f"{length} tokens" for length in next(iter(drafting.values()))]
    heads = [f"{length}, ms" for length in lengths]
    ends = [f"state at {length}" for length in (lengths[0], lengths[-1])]
    return _table(["a chain of 5 below", *heads, *ends], rows)


def _long_pair() -> str:
    by_length = _by_category("long-context-cpu")
    by_length.pop("all")
    cells = []
    for method in next(iter(by_length.values())):
        measures = [methods[method] for methods in by_length.values()]
        if method == "plain":
            continue
        cells.append(
            [
                method,
                *(f"{each['phases']['draft_s'] * 1e3:.1f}" for each in measures),
                *(f"{measures[end]['drafter_bytes'] / 1e6:.1f} MB" for end in (0, -1)),
            ]
        )
    lengths = list(by_length)
    heads = [
        *(f"drafting at {length}, ms" for length in lengths),
        *(f"state at {lengths[end]}" for end in (0, -1)),
    ]
    return _table(["float32, greedy, 2 threads", *heads], cells)


def _long_acceptance() -> str:
    result = _read("long_acceptance")
    cells = []
    for name, by_length in result["drafters"].items():
        *_, longest = by_length.values()
        cells.append(
            [
                name,
                *(_interval(each["tokens_per_step"].values(), 2) for each in by_length.values()),
                _interval(longest["of_the_shortest"].values(), 2),
            ]
        )
    lengths = list(result["answers"])
    heads = [f"tokens/step at {length}" for length in lengths]
    return _table(
        [f"chain({result['depth']}), greedy", *heads, f"{lengths[-1]} / {lengths[0]}"], cells
    )


def _methods(name: str, weights: str) -> str:
    greedy, sampled = (
        {row["method"]: row["measures"] for row in _bench_rows(name, sampling)}
        for sampling in ("greedy", "temperature 1")
    )
    theirs = greedy["transformers"]["tokens_per_s"]["value"]
    cells = [
        [
            method,
            f"{measures['tokens_per_step']:.2f}",
            f"{measures['tokens_per_s']['value']:.1f}",
            _ratio(measures["speedup"]),
            f"{measures['tokens_per_s']['value'] / theirs:.2f}",
            *_sampled_cells(sampled, method),
        ]
        for method, measures in greedy.items()
    ]
    heads = ("tokens/step", "tokens/s", "x plain", "x transformers")
    names = [f"{weights}, 2 threads", *(f"greedy: {heads[0]}", *heads[1:])]
    return _table([*names, *(["temperature 1: tokens/step", "x plain"] if sampled else [])], cells)


def _pairs(name: str, what: str) -> str:
    """Returns tokens a step and speed of every method, pair by pair and sampling by sampling."""
    result = _read(name)
    found, samplings = _overall(result)
    cells = []
    for pair, method in dict.fromkeys((pair, method) for pair, method, _ in found):
        numbers: list[str] = []
        for sampling in samplings:
            measures = found[pair, method, sampling]
            numbers += [f"{measures['tokens_per_step']:.2f}", _ratio(measures["speedup"])]
        first = found[pair, method, samplings[0]]["tokens_per_s"]["value"]
        label = f"{pair}, {method}" if len(result["recipe"]["pairs"]) > 1 else method
        cells.append([label, f"{first:.1f}", *numbers])
    heads = [head for each in samplings for head in (f"{each}: tokens/step", "x plain")]
    return _table([what, f"tokens/s, {samplings[0]}", *heads], cells)


def _overall(
    result: Mapping[str, Any],
) -> tuple[dict[tuple[str, str, str], Any], list[str]]:
    """Returns the measures over all categories by pair, method and sampling; and the samplings."""
    rows = [row for row in result["rows"] if row["category"] == "all"]
    found = {(row["pair"], row["method"], row["sampling"]): row["measures"] for row in rows}
    return found, list(dict.fromkeys(row["sampling"] for row in rows))


def _sampled_cells(sampled: Mapping[str, Any], method: str) -> list[str]:
    if not sampled:
        return []
    if method not in sampled:
        return ["", ""]
    measures = sampled[method]
    return [f"{measures['tokens_per_step']:.2f}", _ratio(measures["speedup"])]


def _acceptance() -> str:
    cells = []
    for category, methods in _by_category("acceptance-cpu").items():
        (measures,) = methods.values()
        cells.append(
            [
                category.replace("_", " "),
                str(measures["num_questions"]),
                f"{measures['tokens_per_step']:.2f}",
                *(f"{each:.0%}" for each in measures["acceptance_by_position"]),
            ]
        )
    depths = (f"accepted at depth {depth}" for depth in range(1, 5))
    return _table(["greedy, chain(4)", "questions", "tokens/step", *depths], cells)


def _categories() -> str:
    methods = _by_category("default-pair-int8-cpu")
    cells = [
        [
            category.replace("_", " "),
            str(measures["chain(4)"]["num_questions"]),
            f"{measures['chain(4)']['tokens_per_step']:.2f}",
            _ratio(measures["chain(4)"]["speedup"]),
            _ratio(measures["self-tuning"]["speedup"]),
            _ratio(measures[DEFAULT]["speedup"]),
        ]
        for category, measures in methods.items()
    ]
    heads = ("questions", "tokens/step, chain(4)", "chain(4), x plain", "self-tuning, x plain")
    return _table(["int8, greedy, 2 threads", *heads, "+prompt-lookup, x plain"], cells)


def _two_drafters() -> str:
    """Returns the tokens a step of both drafters, target by target and sampling by sampling."""
    result = _read("avx2/two_drafters")
    found, samplings = _overall(result)
    cells = [
        [
            pair,
            *(
                f"{found[pair, method, sampling]['tokens_per_step']:.3f}"
                for sampling in samplings
                for method in result["recipe"]["methods"]
            ),
        ]
        for pair in result["recipe"]["pairs"]
    ]
    heads = [f"{sampling}, {when}" for sampling in samplings for when in ("before", "now")]
    return _table(["target", *heads], cells)


def _learning_curves() -> str:
    """Returns how the shipped drafter's guesses grew, a training a row, from its provenance."""
    trainings: list[dict[str, Any]] = []
    provenance = json.loads(SHIPPED_PROVENANCE.read_text("utf-8"))
    while provenance is not None:
        trainings.insert(0, provenance)
        provenance = provenance.get("trained_before")
    cells, tokens_run = [], 0
    for number, training in enumerate(trainings, start=1):
        (stage,) = training["stages"]
        curve = stage["evaluations"]
        tokens_run += stage["num_tokens_run"]
        kept = [curve[0], curve[len(curve) // 2], max(curve, key=_held_out_steps)]
        judged = [f"{_held_out_steps(each):.2f} ({each['num_tokens'] / 1e6:.1f}M)" for each in kept]
        cells.append(
            [
                f"{number}: `{training['recipe']['name']}`",
                f"{stage['num_texts']:,}",
                f"{stage['num_answer_tokens'] / 1e6:.2f}M",
                f"{tokens_run / 1e6:.1f}M",
                *judged,
            ]
        )
    heads = ("answers", "their tokens", "tokens run in all", "first judged", "half way", "best")
    return _table(["training", *heads], cells)


def _held_out_steps(evaluation: Mapping[str, Any]) -> float:
    return evaluation["judgement"]["tokens_per_step"]


def _by_sampling(name: str, method: str, what: str) -> str:
    """Returns tokens a step and speed of one method, category by category."""
    rows = [row for row in _read(name)["rows"] if row["method"] == method]
    samplings = list(dict.fromkeys(row["sampling"] for row in rows))
    found = {(row["category"], row["sampling"]): row["measures"] for row in rows}
    cells = []
    for category in dict.fromkeys(row["category"] for row in rows):
        measures = [found[category, sampling] for sampling in samplings]
        numbers = [(f"{each['tokens_per_step']:.2f}", _ratio(each["speedup"])) for each in measures]
        cells.append([category.replace("_", " "), *(cell for pair in numbers for cell in pair)])
    heads = [head for each in samplings for head in (f"{each}: tokens/step", "x plain")]
    return _table([what, *heads], cells)


def _searches() -> str:
    result = _read("searches")
    cells = [
        [
            method,
            f"{measures['tokens_per_step']:.2f}",
            f"{measures['tokens_per_s']:.1f}",
            _interval(measures["speedup"].values(), 2),
            f"{measures['share_off']:.0%}",
            f"{measures['search_us']:.0f}",
        ]
        for method, measures in result["methods"].items()
    ]
    heads = (
        "tokens/step",
        "tokens/s",
        "x plain",
        "steps without a draft",
        "search, \u00b5s a step",
    )
    weights = "4 bits" if result["dtype"] == "stored" else result["dtype"]
    return _table([f"{weights}, greedy, 2 threads", *heads], cells)


def _simulated() -> str:
    machines = _read("searches_simulated")["machines"]
    cells = []
    for search in next(iter(next(iter(machines.values()))["by_category"].values()))["relative"]:
        row = [search]
        for measures in machines.values():
            parts = [each["relative"][search] for each in measures["by_category"].values()]
            row += [
                _interval(measures["relative"][search], 3),
                f"{min(parts):.3f}",
                f"{measures['useless_drafter'][search]:.3f}",
            ]
        cells.append(row)
    heads = [
        head
        for machine, measures in machines.items()
        for head in (
            f"{machine}: part of the best shape, {measures['best_fixed']}",
            "worst category",
            "useless drafter",
        )
    ]
    return _table(["search", *heads], cells)


def _torch_threads() -> str:
    rates = _read("torch_threads")["tokens_per_s"]
    cells = [
        [setting, f"{each['woken']:.1f}", f"{each['asleep']:.1f}"]
        for setting, each in rates.items()
    ]
    return _table(["tokens/s, 2 threads", "threads woken", "left asleep"], cells)


def _variants(result: str) -> str:
    cells = []
    for name, seeds in _read(result)["variants"].items():
        lasts = [provenance["stages"][0]["evaluations"][-1] for provenance in seeds]
        judged = [last["judgement"] for last in lasts]
        cells.append(
            [
                name,
                _mean_and_range([each["agreement"] for each in judged], ".1%"),
                _mean_and_range([each["tokens_per_step"] for each in judged], ".3f"),
                _mean_and_range([each["loss"] for each in judged], ".2f"),
                _mean_and_range([each["calibration_error"] for each in judged], ".3f"),
                _mean_and_range([each["num_tokens"] / each["seconds_s"] for each in lasts], ".0f"),
            ]
        )
    heads = ("agreement", "tokens/step", "loss", "calibration error", "trained tokens/s")
    return _table(["variant", *heads], cells)


def _streams(mode: str) -> str:
    names = [*STREAMS, *(ensemble + AS_DRAFTED for ensemble in ENSEMBLES)]
    mixtures = names[len(STREAMS) :]
    tasks = _mixed_tasks(mode)
    rows = [
        [
            task.replace("_", " "),
            *(f"{_tokens_per_step(entries, name):.2f}" for name in names),
            *(f"{_of_best_stream(entries, name):.3f}" for name in mixtures),
        ]
        for task, entries in tasks.items()
    ]
    mixed = _read("tabed")["mixed"][mode]
    rates = [_tokens_per_step(mixed, ensemble) for ensemble in ENSEMBLES]
    ratios = [
        rate / _best_stream(tasks["all"], ensemble)
        for ensemble, rate in zip(ENSEMBLES, rates, strict=True)
    ]
    in_order = [f"{rate:.2f}" for rate in rates], [f"{ratio:.3f}" for ratio in ratios]
    rows.append(["all, in random order", *[""] * len(STREAMS), *in_order[0], *in_order[1]])
    last = [f"{ensemble} / its best" for ensemble in ENSEMBLES]
    return _table([f"tokens/step, {mode}, chain(5)", *STREAMS, *ENSEMBLES, *last], rows)


def _weight_rules() -> str:
    both = [_mixed_tasks(mode) for mode in ("greedy", "sampling")]
    names = [name for name in both[0]["all"][0]["steps"] if "width" not in name]
    rows = []
    for name in names:
        row = [name]
        for tasks in both:
            row.append(f"{_tokens_per_step(tasks['all'], name):.2f}")
            row.append(f"{_of_best_stream(tasks['all'], name):.3f}")
            row.append(f"{min(_of_best_stream(each, name) for each in tasks.values()):.3f}")
        rows.append(row)
    heads = ["tokens/step", "x its best stream", "worst task"]
    columns = [f"{mode}: {head}" for mode in ("greedy", "sampling") for head in heads]
    return _table(["streams, weights", *columns], rows)


def _of_best_stream(entries: Sequence[Mapping[str, Any]], name: str) -> float:
    """Returns what a mixture makes of the tokens a step of its best stream."""
    return _tokens_per_step(entries, name) / _best_stream(entries, name.split(maxsplit=1)[0])


def _best_stream(entries: Sequence[Mapping[str, Any]], streams: str) -> float:
    """Returns the tokens a step of the best one."""
    return max(_tokens_per_step(entries, stream) for stream in streams)


def _mixture_runs() -> str:
    methods = _read("mixture_seconds")["methods"]
    plain_s = methods["off"]["seconds"] / methods["off"]["tokens"]
    rows = [
        [
            name,
            f"{each['tokens'] / each['steps']:.2f}",
            f"{each['seconds'] / each['tokens'] * 1e3:.2f}",
            f"{plain_s * each['tokens'] / each['seconds']:.2f}",
        ]
        for name, each in methods.items()
    ]
    heads = ["greedy, chains of 5, 1 thread", "tokens/step", "ms a token", "x plain"]
    return _table(heads, rows)


def _image_dependence() -> str:
    result = _read("image_dependence")
    depth, prices = result["drafted"], (0.02, 0.05, 0.1, 0.2, 0.5)

    def tasks_of(name: str) -> list[dict[str, Any]]:
        return [counts[name] for counts in result["tasks"].values()]

    def total(name: str, field: str, index: int) -> int:
        return sum(each[field][index] for each in tasks_of(name))

    def price_of_token(name: str, price: float) -> float:
        drafted = sum(each["num_drafted"] for each in tasks_of(name))
        steps, tokens = (
            total(name, field, 0) + total(name, field, 1) for field in ("steps", "tokens")
        )
        return (steps + depth * price * drafted) / tokens

    rows = [
        [
            name,
            f"{total(name, 'steps', 0) / (total(name, 'steps', 0) + total(name, 'steps', 1)):.0%}",
            f"{total(name, 'tokens', 0) / total(name, 'steps', 0):.2f}",
            f"{total(name, 'tokens', 1) / total(name, 'steps', 1):.2f}",
            *(
                f"{price_of_token(name, each) / price_of_token(f'{name}, skips', each):.2f}"
                for each in prices
            ),
        ]
        for name in ("M", "T", "MT")
    ]
    heads = ["greedy, chain(5), all tasks", "steps that depend", "tokens/step there", "elsewhere"]
    return _table([*heads, *(f"skipping, price {each}" for each in prices)], rows)


def _serving() -> str:
    result = _read("serving")
    rows = [
        [
            {"auto": "drafting", "none": "plain"}[drafter],
            *(f"{rate:.0f}" for rate in rates.values()),
            *(f"{rate / rates['1']:.2f}" for number, rate in rates.items() if number != "1"),
        ]
        for drafter, rates in result["tokens_per_s"].items()
    ]
    numbers = list(result["tokens_per_s"]["auto"])
    heads = [f"{result['target']}, tokens/s of all", *(f"{number} at once" for number in numbers)]
    return _table([*heads, *(f"{number} / 1" for number in numbers[1:])], rows)


def _servers() -> str:
    result = _read("servers")
    numbers = result["load"]["num_clients"]
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for row in result["servers"]:
        by_name.setdefault(row["server"], {})[row["num_clients"]] = row
    heads = [
        f"{result['model']}, tokens/s of all",
        *(f"{number} clients" for number in numbers),
        f"{numbers[-1]} / {numbers[0]}",
        f"each of {numbers[-1]}",
        *(f"first text of {number}, s" for number in (numbers[0], numbers[-1])),
    ]
    return _table(heads, [_server_cells(name, rows) for name, rows in by_name.items()])


def _server_cells(name: str, by_number: dict[int, dict[str, Any]]) -> list[str]:
    one, most = by_number[min(by_number)], by_number[max(by_number)]
    firsts = [f"{row['first_s']['p50']:.2f} / {row['first_s']['p95']:.2f}" for row in (one, most)]
    rates = [f"{row['tokens_per_s']:.0f}" for row in by_number.values()]
    gain = f"{most['tokens_per_s'] / one['tokens_per_s']:.2f}"
    return [name, *rates, gain, f"{most['tokens_per_s_each']:.0f}", *firsts]


def _served_turns() -> str:
    rows = [
        [
            name,
            f"{row['prompt']:.0f}",
            f"{row['run_again']:.0f}",
            *(f"{1e3 * row[kind]:.0f}" for kind in ("kept_s", "not_kept_s", "alone_s")),
        ]
        for name, row in _read("served_turns")["targets"].items()
    ]
    heads = ["second turn of a chat", "tokens of the prompt", "run again", "first text, ms"]
    return _table([*heads, "nothing kept", "second message alone"], rows)


def _good_client() -> str:
    rows = [
        [name, str(row["requests"]), f"{row['median_s']:.2f}", f"{row['p95_s']:.2f}"]
        for name, row in _read("serving_faults")["good_client"].items()
    ]
    return _table(["a good client", "requests", "median, s", "p95, s"], rows)


def _serving_faults() -> str:
    result = _read("serving_faults")
    rows = [
        [name, f"{at['rss_mib']:.0f}", str(at["threads"]), str(at["descriptors"])]
        for name, at in result["footprints"].items()
    ]
    return _table([f"{result['count']} of each", "MiB", "threads", "descriptors"], rows)


def _hosts() -> str:
    results = [_read(f"host-{name}") for name in ("transformers", "ray", "dynamo")]

    def row(name: str, cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
        return [name, *map(cell, results)]

    heads = [f"{name} {number}" for each in results for name, number in each["versions"].items()]
    texts = [
        row(name, lambda result, key=key: f"{result[key]} of {result['questions']}")
        for name, key in (
            ("whole answers equal to plain decoding", "whole_equal"),
            ("streams equal to it", "stream_equal"),
            ("answers with a stop string equal to it", "stop_equal"),
        )
    ]
    steps = row(
        "tokens a step, as streams show it",
        lambda result: f"{result['tokens'] / result.get('steps', result['chunks']):.2f}",
    )
    left = row(
        "tokens generated after the client left",
        lambda result: str(result["left_after"]["tokens"]) if "left_after" in result else "",
    )
    return _table(["SmolLM2, greedy", *heads], [*texts, steps, left])


def _ray() -> str:
    result = _read("host-ray")

    def counted(outcomes: Mapping[str, int]) -> str:
        return ", ".join(f"{count} times {name}" for name, count in outcomes.items())

    turns = result["second_turns"]
    rows = [
        [
            "second turns on a kept state, `x-session-id` given",
            f"{result['second_turns_kept_by_session']} of {turns}",
        ],
        [
            "second turns on a kept state, without it",
            f"{result['second_turns_kept_without_session']} of {turns}",
        ],
        [
            "HTTP statuses when one replica was killed under load",
            counted(result["statuses_under_a_kill"]),
        ],
        [
            "the same through openai-python, which retries",
            counted(result["outcomes_with_retries_under_a_kill"]),
        ],
        ["replicas afterwards", str(result["replicas_afterwards"])],
        [
            "whole answers equal to plain decoding afterwards",
            f"{result['whole_equal_afterwards']} of {result['questions']}",
        ],
    ]
    return _table([f"Ray Serve, {result['replicas']} replicas", "result"], rows)


def _vllm() -> str:
    result = _read("host-vllm")
    [version] = result["versions"].values()
    of_all = f"of {result['questions']}"
    rows = [
        ["tokens equal to vLLM's plain decoding", f"{result['equal']} {of_all}"],
        [
            f"the same with a cache for one text (preemptions: {result['preemptions']})",
            f"{result['equal_with_preemption']} {of_all}",
        ],
        ["accepted tokens a draft", f"{result['accepted_a_draft']:.2f}"],
        ["the same with preemption", f"{result['accepted_a_draft_with_preemption']:.2f}"],
        [
            "the same in treesnake, with equal target, drafter and rule",
            f"{result['accepted_a_draft_in_treesnake']:.2f}",
        ],
    ]
    return _table([f"vLLM {version}, {result['requests_at_once']} texts at once", "result"], rows)


def _memory_store(name: str) -> str:
    result = _read(name)
    rows = [
        [
            sampling,
            method,
            f"{rates['first half']['tokens_per_step']:.2f}",
            f"{rates['second half']['tokens_per_step']:.2f}",
            f"{_ms_per_token(rates['first half']):.2f}",
            f"{_ms_per_token(rates['second half']):.2f}",
        ]
        for sampling in ("greedy", "temperature 0.7")
        for method, rates in result[sampling].items()
    ]
    heads = ["tokens a step, first half", "second half", "ms a token, first half", "second half"]
    return _table([f"{result['target']}, {result['num_questions']} questions", "", *heads], rows)


def _repetitive_work(name: str) -> str:
    rows = []
    for work, methods in _read(name)["repetitive work"].items():
        behind = {method: rates["behind the first"] for method, rates in methods.items()}
        without, remembering = behind["default"], behind["default + memory"]
        rows.append(
            [
                work,
                *(f"{rates['tokens_per_step']:.2f}" for rates in behind.values()),
                f"{_ms_per_token(without) / _ms_per_token(remembering):.2f}x",
            ]
        )
    methods = ("lookup", "lookup + memory", "default", "default + memory")
    return _table(["tokens a step", *methods, "default, faster by memory"], rows)


def _memory_structure() -> str:
    rows = [
        [
            f"{int(size):,}",
            f"{at['add_us_per_token']:.1f}",
            f"{at['lookup_us']:.0f}",
            f"{at['lookup_p99_us']:.0f}",
            f"{at['mean_places']:.0f}",
        ]
        for size, at in _read("memory_store")["structure"]["by_tokens"].items()
    ]
    heads = ["to add a token, us", "a lookup, us", "99th percentile", "places found"]
    return _table(["tokens stored", *heads], rows)


def _memory_bound() -> str:
    targets = _read("memory_bound")["targets"]
    heads = list(
        max(
            (found["tokens_per_step"] for kinds in targets.values() for found in kinds.values()),
            key=len,
        )
    )
    rows = [
        [
            target if number == 0 else "",
            kind,
            *(
                f"{found['tokens_per_step'][head]:.2f}" if head in found["tokens_per_step"] else ""
                for head in heads
            ),
        ]
        for target, kinds in targets.items()
        for number, (kind, found) in enumerate(kinds.items())
    ]
    return _table(["tokens a step at most", "", *heads], rows)


def _learning() -> str:
    rows = [
        [
            target if number == 0 else "",
            f"{point['tokens_served']:,}",
            f"{point['of the same kind']['tokens_per_step']:.3f}",
            f"{point['others']['tokens_per_step']:.3f}",
            f"{point['updates_kept']} of {point['updates']}",
        ]
        for target, found in _read("learning")["targets"].items()
        for number, point in enumerate(found["points"])
    ]
    heads = ["tokens served", "questions of the same kind", "others", "updates that stayed"]
    return _table(["tokens a step of a chain of 4", *heads], rows)


def _learning_time(file: str) -> str:
    rows = [
        [
            target if number == 0 else "",
            name,
            _interval(found["seconds per token"], 3),
            _interval(found["whole answers"], 3),
            *(f"{found['methods'][each]['pause_ms']['longest']:.0f}" for each in ("off", "on")),
            f"{found['learning']['num_kept']} of {found['learning']['num_updates']}",
        ]
        for target, samplings in _read(file)["targets"].items()
        for number, (name, found) in enumerate(samplings.items())
    ]
    heads = ["seconds, x without learning", "", "per token", "whole answers"]
    pauses = ["longest pause without, ms", "with learning"]
    return _table([*heads, *pauses, "updates that stayed"], rows)


def _ms_per_token(rates: Mapping[str, Any]) -> float:
    return 1e3 * rates["decoding_s"] / rates["num_tokens"]


def _mixture_trees() -> str:
    entries = _mixed_tasks("greedy")["all"]
    names = [name for name in entries[0]["steps"] if f"{name}, width 2" in entries[0]["steps"]]
    rows = [
        [
            name,
            *(
                f"{_tokens_per_step(entries, name + ending):.2f}"
                for ending in ("", ", width 2", ", width 3")
            ),
        ]
        for name in names
    ]
    return _table(["greedy, depth 5, all tasks", "chain", "width 2", "width 3"], rows)


def _mixed_tasks(mode: str) -> dict[str, list[dict[str, Any]]]:
    """Returns what was counted with each seed, by task, and of all tasks."""
    tasks = _read("tabed")[mode]
    return tasks | {"all": [entry for entries in tasks.values() for entry in entries]}


def _tokens_per_step(entries: Sequence[Mapping[str, Any]], name: str) -> float:
    tokens = sum(entry["tokens"] for entry in entries)
    return tokens / sum(entry["steps"][name] for entry in entries)


def _by_category(name: str) -> dict[str, dict[str, Any]]:
    """Returns the measures of each category, by method."""
    methods: dict[str, dict[str, Any]] = {}
    for row in _read(name)["rows"]:
        methods.setdefault(row["category"], {})[row["method"]] = row["measures"]
    return methods


def _bench_rows(name: str, sampling: str) -> list[dict[str, Any]]:
    rows = _read(name)["rows"]
    return [row for row in rows if (row["sampling"], row["category"]) == (sampling, "all")]


def _mean_and_range(numbers: Sequence[float], form: str) -> str:
    """Returns the mean of some runs, with the lowest and highest where there are several."""
    if len(numbers) == 1:
        return f"{numbers[0]:{form}}"
    return f"{fmean(numbers):{form}} ({min(numbers):{form}}\u2013{max(numbers):{form}})"


def _interval(numbers: Iterable[float], digits: int) -> str:
    value, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{value} ({low}\u2013{high})"


def _ratio(estimate: Mapping[str, float] | None) -> str:
    return "" if estimate is None else f"{estimate['value']:.2f}"


def _gpu_passes() -> str:
    passes = _read("gpu_predictions")["passes"]
    rows = []
    for name, by_nodes in passes.items():
        for nodes in sorted({min(by_nodes, key=int), max(by_nodes, key=int)}, key=int):
            told = by_nodes[nodes]
            rows.append(
                [
                    f"{name}, {nodes} nodes" if nodes != "1" else f"{name}, 1 node",
                    str(told["kernels"]),
                    f"{told['bytes'] / 1e9:.2f}",
                    *(f"{ms:.2f}" for ms in told["ms"].values()),
                ]
            )
    gpus = next(iter(next(iter(passes.values())).values()))["ms"]
    return _table(["predicted", "kernels", "GB", *(f"{gpu}, ms" for gpu in gpus)], rows)


def _triton_kernels() -> str:
    devices = _read("triton_kernels")["devices"]
    calls: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for device, entries in devices.items():
        for call in entries:
            name = call["kernel"].replace("._", ".").removesuffix("_kernel")
            calls.setdefault(name, {}).setdefault(device, []).append(call)

    def most(entries: list[dict[str, Any]]) -> list[str]:
        fields = ("registers", "spilled_bytes", "shared_bytes")
        registers, spilled, shared = (max(call[field] for call in entries) for field in fields)
        return [str(registers), str(spilled), f"{shared / 1024:.1f}"]

    rows = [
        [
            name,
            str(len(next(iter(by_device.values())))),
            *(cell for device in devices for cell in most(by_device[device])),
        ]
        for name, by_device in sorted(calls.items())
    ]
    fields = ("registers", "spilled, bytes", "shared, kB")
    return _table(
        ["kernel", "calls", *(f"{device}: {field}" for device in devices for field in fields)], rows
    )


def _gpu_predictions() -> str:
    result = _read("gpu_predictions")
    rows = [
        [f"{gpu}: {target}, {drafter}", *(f"{rate:.0f}" for rate in rates.values())]
        for gpu, targets in result["tokens_per_s"].items()
        for target, drafters in targets.items()
        if not target.endswith("plain")
        for drafter, rates in drafters.items()
    ]
    rates = next(iter(next(iter(result["tokens_per_s"]["H200"].values())).values()))
    published = result["published"]
    shapes = [name.removesuffix(" chosen") for name in rates]
    own = [f"{published[shape]:.0f}" if shape in published else "" for shape in shapes]
    own[-1] = f"{published['bandit']:.0f} (bandit)"
    rows.append(["measured by the paper: pythia-6.9b, mamba-130m", *own])
    return _table(["predicted tokens/s", *shapes], rows)


TABLES: dict[str, Callable[[], str]] = {
    "decoding": partial(_decoding, "plain_decoding", "transformers float32"),
    "decoding_avx2": partial(_decoding, "avx2/plain_decoding", "llama.cpp stored"),
    "scoring": partial(_scoring, "plain_decoding"),
    "scoring_avx2": partial(_scoring, "avx2/plain_decoding"),
    "gguf": _gguf,
    "gguf_aims": partial(_gguf_aims, "gguf", ("from 1.3 (8 bits: 1.5)", "from 2.0", "to 1.35")),
    "gguf_aims_avx2": partial(
        _gguf_aims, "avx2/gguf", ("from 1.2 (8 bits: 1.5)", "from 1.5", "8 bits: to 2.0")
    ),
    "gguf_scoring": _gguf_scoring,
    "gguf_quality": _gguf_quality,
    "memory": _memory,
    "equality": _equality,
    "shared_passes": _shared_passes,
    "serving": _serving,
    "serving_faults": _serving_faults,
    "servers": _servers,
    "served_turns": _served_turns,
    "good_client": _good_client,
    "hosts": _hosts,
    "ray": _ray,
    "vllm": _vllm,
    "memory_store": partial(_memory_store, "memory_store"),
    "memory_store_avx2": partial(_memory_store, "avx2/memory_store"),
    "repetitive_work": partial(_repetitive_work, "memory_store"),
    "repetitive_work_avx2": partial(_repetitive_work, "avx2/memory_store"),
    "memory_structure": _memory_structure,
    "memory_bound": _memory_bound,
    "learning": _learning,
    "learning_time": partial(_learning_time, "learning_time"),
    "learning_time_avx2": partial(_learning_time, "avx2/learning_time"),
    "mixture_streams": _mixture_streams,
    "mixture_rules": _mixture_rules,
    "two_versions": _two_versions,
    "starts": _starts,
    "first_minute": partial(_first_minute, "start"),
    "first_minute_avx2": partial(_first_minute, "avx2/start"),
    "fuzz": _fuzz,
    "long_context": _long_context,
    "long_pair": _long_pair,
    "long_acceptance": _long_acceptance,
    "methods": partial(_methods, "default-pair-stored-cpu", "4 bits"),
    "stored_long": partial(_pairs, "default-pair-stored-long-cpu", "4 bits, 2 threads"),
    "first_tokens_avx2": partial(_pairs, "avx2/first-tokens-cpu", "4 bits, 2 threads, AVX2"),
    "first_tokens_categories_avx2": partial(
        _by_sampling, "avx2/first-tokens-cpu", DEFAULT, "drafter and prompt lookup, self-tuning"
    ),
    "stored_long_avx2": partial(
        _pairs, "avx2/default-pair-stored-long-cpu", "4 bits, 2 threads, AVX2"
    ),
    "float_methods": partial(_methods, "default-pair-cpu", "float32"),
    "learning_curves": _learning_curves,
    "any_target": partial(_pairs, "any_target", "Q4_K_M, 2 threads"),
    "two_drafters": _two_drafters,
    "any_target_long": partial(_pairs, "any_target_long", "Q4_K_M, 2 threads"),
    "any_target_categories": partial(_by_sampling, "any_target", ANY_TARGET_DEFAULT, IN_TEXT),
    "other_languages": partial(_by_sampling, "other_languages", ANY_TARGET_DEFAULT, IN_TEXT),
    "self_drafting": partial(_pairs, "self-drafting-cpu", "2 threads"),
    "recurrent": partial(_pairs, "recurrent-cpu", "float32, 2 threads"),
    "hybrid": partial(_pairs, "smollm2-hybrid-cpu", "float32, 2 threads"),
    "tree_scoring": _tree_scoring,
    "self_variants": _self_variants,
    "second_turn": _second_turn,
    "long_methods": partial(_methods, "default-pair-long-cpu", "float32"),
    "acceptance": _acceptance,
    "categories": _categories,
    "searches": _searches,
    "simulated": _simulated,
    "torch_threads": _torch_threads,
    "variants": partial(_variants, "drafter_variants"),
    "twins": partial(_variants, "drafter_twins"),
    "streams_greedy": partial(_streams, "greedy"),
    "streams_sampling": partial(_streams, "sampling"),
    "weight_rules": _weight_rules,
    "mixture_trees": _mixture_trees,
    "mixture_runs": _mixture_runs,
    "image_dependence": _image_dependence,
    "gpu_passes": _gpu_passes,
    "gpu_predictions": _gpu_predictions,
    "triton_kernels": _triton_kernels,
}


def _read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / "results" / f"{name}.json").read_text("utf-8"))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
