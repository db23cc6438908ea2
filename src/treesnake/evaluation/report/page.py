"""One HTML page with everything in it: it loads nothing, so it can be kept and sent."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from treesnake.evaluation.bench.measures import Measures
from treesnake.evaluation.bench.record import RunRecord
from treesnake.evaluation.bench.summary import COLUMNS, Row, cells
from treesnake.evaluation.report.by_length import CURVES, Curve
from treesnake.evaluation.report.charts import (
    NUM_COLOURS,
    Bar,
    Line,
    Stack,
    bar_chart,
    line_chart,
    stack_chart,
)
from treesnake.evaluation.report.results import Result
from treesnake.evaluation.report.steps import steps_json
from treesnake.evaluation.report.stream_weights import weight_lines
from treesnake.pages import page_part

RARE_SHARE = 0.03
PHASES = ("draft", "score", "accept", "commit")


def to_html(results: Sequence[Result]) -> str:
    """Returns the page about one or more benchmarks."""
    name = ", ".join(result.summary.recipe["name"] for result in results)
    shown = [run for result in results for run in result.shown]
    body = "".join(_result(result) for result in results) + (_part("steps.html") if shown else "")
    script = f"<script>{page_part('tree.js')}{_part('steps.js')}</script>" if shown else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}: treesnake</title><style>{page_part('style.css')}</style></head>"
        f'<body><main>{body}</main><script type="application/json" id="runs">'
        f"{steps_json(shown)}</script>{script}</body></html>\n"
    )


def _part(name: str) -> str:
    return files("treesnake.evaluation.report").joinpath(name).read_text("utf-8")


def _result(result: Result) -> str:
    recipe = result.summary.recipe
    parts = [
        f"<h1>{escape(recipe['name'])}</h1>",
        f'<p class="lead">{escape(recipe["description"])}</p>' if recipe["description"] else "",
        f'<p class="facts">{escape(_facts(result.summary.environment))}</p>',
    ]
    for pair, sampling in result.groups:
        parts.append(f"<h2>{escape(pair)}, {escape(sampling)}</h2>")
        parts.append(_speed(result, pair, sampling))
        parts.append(_by_category(result, pair, sampling))
        parts.append(_acceptance(result, pair, sampling))
        parts.append(_time(result, pair, sampling))
        parts.append(_memory(result, pair, sampling))
        parts.append(_long_context(result, pair, sampling))
    parts += [_streams(result), _drafters(result), _failures(result)]
    return "".join(parts)


def _facts(environment: dict[str, Any]) -> str:
    """Returns what the measuring machine was, in one line."""
    facts = environment.get("before", environment)
    if not facts:
        return ""
    devices = ", ".join(facts.get("gpus") or []) or facts.get("processor", "")
    threads = environment.get("after", facts)["threads"]  # a recipe may have set it
    versions = " ".join(f"{name} {value}" for name, value in facts["versions"].items() if value)
    load = " to ".join(
        str(environment[when]["load_average"][0])
        for when in ("before", "after")
        if when in environment
    )
    return (
        f"{devices} \N{MIDDLE DOT} {threads} threads \N{MIDDLE DOT} load {load} "
        f"\N{MIDDLE DOT} {facts['date']} \N{MIDDLE DOT} commit {facts['commit'] or 'unknown'} "
        f"\N{MIDDLE DOT} {versions}"
    )


def _speed(result: Result, pair: str, sampling: str) -> str:
    rows = result.rows(pair, sampling)
    reference = result.summary.recipe["methods"][0]
    bars = [
        Bar(row.method, one.value, one.low, one.high, f"{one.value:.2f}x")
        for row in rows
        if (one := row.measures.speedup) is not None
    ]
    chart = bar_chart(bars, "Speed of each method", mark=1.0) if bars else ""
    note = (
        f"Tokens per second of decoding, {escape(reference)} is 1. Whiskers hold 95 % of what "
        "other questions of this kind would give."
    )
    return (
        f'<p>{note}</p><div class="panel">{chart}</div>'
        f'<div class="panel">{_table(COLUMNS, [cells(row) for row in rows])}</div>'
    )


def _by_category(result: Result, pair: str, sampling: str) -> str:
    categories = result.categories(pair, sampling)
    if len(categories) < 2 or result.lengths(pair, sampling):
        return ""
    speedups = {
        (row.method, row.category): row.measures.speedup
        for category in categories
        for row in result.rows(pair, sampling, category)
    }
    lines = []
    for row in result.rows(pair, sampling):
        in_row = [speedups.get((row.method, category)) for category in categories]
        heat = "".join("<td></td>" if one is None else _heat(one.value) for one in in_row)
        lines.append(f"<tr><td>{escape(row.method)}</td>{heat}</tr>")
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("", *categories))
    return (
        "<h3>By category</h3><p>Times as fast as the first method.</p>"
        f'<div class="panel"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'
    )


def _heat(value: float) -> str:
    """Returns a cell that is the more coloured the farther from 1 it is."""
    colour = "--drafter-wash" if value >= 1 else "--target-wash"
    share = min(abs(value - 1) * 100, 100)
    style = f"background:color-mix(in srgb, var({colour}) {share:.0f}%, transparent)"
    return f'<td class="heat" style="{style}">{value:.2f}</td>'


def _acceptance(result: Result, pair: str, sampling: str) -> str:
    rows = [row for row in result.rows(pair, sampling) if row.measures.acceptance_by_position]
    if not rows:
        return ""
    positions = line_chart(
        [_numbered(result, row, row.measures.acceptance_by_position) for row in rows],
        "Acceptance by position",
        x_label="depth",
        y_label="share of steps that accepted at this depth, of those that drafted there",
        largest=1.0,
    )
    branched = [row for row in rows if len(row.measures.acceptance_by_rank) > 1]
    ranks = ""
    if branched:
        ranks = line_chart(
            [_numbered(result, row, row.measures.acceptance_by_rank) for row in branched],
            "Acceptance by rank",
            x_label="rank among siblings",
            y_label="share accepted, of the nodes of this rank below accepted ones",
            largest=1.0,
        )
    panels = "".join(f'<div class="panel">{chart}</div>' for chart in (positions, ranks) if chart)
    return f"<h3>Acceptance</h3>{panels}"


def _numbered(result: Result, row: Row, values: Sequence[float]) -> Line:
    points = tuple((float(index), value) for index, value in enumerate(values, 1))
    return Line(row.method, points, _colour(result, row.method))


def _colour(result: Result, method: str) -> int:
    return result.summary.recipe["methods"].index(method)


def _time(result: Result, pair: str, sampling: str) -> str:
    rows = [row for row in result.rows(pair, sampling) if row.measures.phases is not None]
    if not rows:
        return ""
    stacks = [Stack(row.method, _phase_ms(row.measures)) for row in rows]
    chart = stack_chart(stacks, PHASES, "Milliseconds per step by phase", "ms")
    learned = [row for row in rows if max(row.measures.time_by_shape.values(), default=1) < 0.9]
    shapes = (
        f"<p>The share of time under each shape.</p>{_shape_shares(learned)}" if learned else ""
    )
    return (
        "<h3>Where the time goes</h3><p>Milliseconds per step.</p>"
        f'<div class="panel">{chart}</div>{shapes}'
    )


def _shape_shares(rows: Sequence[Row]) -> str:
    """Draws the shares of shapes; all that come up little are one."""
    shares = [row.measures.time_by_shape for row in rows]
    kinds = list(
        dict.fromkeys(kind for one in shares for kind, share in one.items() if share > RARE_SHARE)
    )[: NUM_COLOURS - 1]
    stacks = [
        Stack(row.method, tuple(100 * part for part in (*known, 1 - sum(known))))
        for row, one in zip(rows, shares, strict=True)
        if (known := [one.get(kind, 0.0) for kind in kinds])
    ]
    chart = stack_chart(stacks, [*kinds, "others"], "Share of time by shape", "%")
    return f'<div class="panel">{chart}</div>'


def _phase_ms(measures: Measures) -> tuple[float, ...]:
    phases = measures.phases
    assert phases is not None
    return tuple(
        1e3 * seconds
        for seconds in (phases.draft_s, phases.score_s, phases.accept_s, phases.commit_s)
    )


def _memory(result: Result, pair: str, sampling: str) -> str:
    heads = ("method", "weights", "state of target", "state of drafter", "growth at the peak")
    rows = []
    for row in result.rows(pair, sampling):
        one = row.measures
        sizes = (one.weights_bytes, one.target_bytes, one.drafter_bytes, one.growth_bytes)
        rows.append([row.method, *("" if size is None else _megabytes(size) for size in sizes)])
    return f'<h3>Memory</h3><div class="panel">{_table(heads, rows)}</div>'


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e6:.0f} MB"


def _long_context(result: Result, pair: str, sampling: str) -> str:
    lengths = result.lengths(pair, sampling)
    if len(lengths) < 2:
        return ""
    panels = [
        f'<div class="panel">{_curve(result, pair, sampling, curve)}</div>' for curve in CURVES
    ]
    return f"<h3>By context length</h3>{''.join(panels)}"


def _curve(result: Result, pair: str, sampling: str, curve: Curve) -> str:
    lines = curve.points(result, pair, sampling)
    if not lines:
        return ""
    return line_chart(
        [Line(name, tuple(points), _colour(result, name)) for name, points in lines.items()],
        curve.title,
        x_label="tokens of context",
        y_label=curve.label,
        is_log=True,
    )


def _streams(result: Result) -> str:
    """Draws the weights of mixtures over the steps of each run that is shown."""
    panels: dict[str, str] = {}
    for run in result.shown:
        if lines := weight_lines(run):
            title = f"{run.task}, {run.category} {run.question}, {run.sampling}, {run.pair}"
            panels.setdefault(title, f"<h3>{escape(title)}</h3>{_asked(run)}")
            panels[title] += (
                f'<p>{escape(run.method)}</p><div class="panel">{_weights(lines)}</div>'
            )
    if not panels:
        return ""
    return (
        "<h2>Streams</h2><p>What each reading of the request counted for: M has the images, T text "
        "alone, C captions, P pooled images. A text begins with what earlier ones ended with; then "
        "the weights follow what the target says. 0 is a stream that was left out.</p>"
        f"{''.join(panels.values())}"
    )


def _asked(run: RunRecord) -> str:
    """Returns the beginning of a question, below the pictures that it is about."""
    pictures = "".join(f'<img src="{escape(url)}" alt="">' for url in run.pictures)
    return f'<p class="asked">{pictures}{escape(run.asked or "")}</p>'


def _weights(lines: Sequence[Line]) -> str:
    return line_chart(
        lines,
        "Weights of streams",
        x_label="step, those of all turns in a row",
        y_label="weight in the mixture",
        largest=1.0,
    )


def _drafters(result: Result) -> str:
    rows = result.summary.drafters
    if not rows:
        return ""
    lines = [
        Line(
            row.drafter,
            tuple(
                (confidence, hit)
                for confidence, hit in zip(
                    row.measures.confidence, row.measures.target_probs, strict=True
                )
                if confidence is not None and hit is not None
            ),
            number,
        )
        for number, row in enumerate(rows)
    ]
    chart = line_chart(
        [*lines],
        "Calibration of drafters",
        x_label="the drafter's highest probability",
        y_label="the target's probability of that token",
        largest=1.0,
        is_diagonal=True,
    )
    heads = ("drafter", "positions", "total variation", "same choice", "calibration error")
    table = _table(
        heads,
        [
            [
                row.drafter,
                str(row.measures.num_positions),
                f"{row.measures.total_variation:.3f}",
                f"{row.measures.same_choice:.0%}",
                f"{row.measures.calibration_error:.3f}",
            ]
            for row in rows
        ],
    )
    return (
        "<h2>Drafters beside their targets</h2><p>At temperature 1, along texts of the target.</p>"
        f'<div class="panel">{chart}</div><div class="panel">{table}</div>'
    )


def _failures(result: Result) -> str:
    rows = [
        [failure.method, failure.pair, str(failure.num_questions), failure.error[:160]]
        for failure in result.summary.failures
    ]
    if not rows:
        return ""
    table = _table(("method", "pair", "runs", "error"), rows)
    return f'<h2>What could not run</h2><div class="panel">{table}</div>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
