"""From records to results: measures per pair, method and sampling, as JSON and as tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from treesnake.evaluation.bench.bench_recipe import GREEDY
from treesnake.evaluation.bench.journal import Journal
from treesnake.evaluation.bench.measures import (
    AgreementMeasures,
    Measures,
    measure,
    measure_agreement,
)
from treesnake.evaluation.bench.record import RunRecord
from treesnake.evaluation.bootstrap import Estimate
from treesnake.evaluation.markdown import inline, table
from treesnake.evaluation.tasks import ALL


@dataclass(frozen=True)
class Row:
    """The measures of a method.

    Attributes:
        pair: its name.
        sampling: its name.
        method: its name.
        category: of the questions, or "all".
        measures: what it did.
    """

    pair: str
    sampling: str
    method: str
    category: str
    measures: Measures


@dataclass(frozen=True)
class DrafterRow:
    """The measures of a drafter."""

    pair: str
    drafter: str
    measures: AgreementMeasures


@dataclass(frozen=True)
class Failure:
    """A method that could not run, once for each kind of error.

    Attributes:
        pair: its name.
        method: its name.
        error: the message.
        num_questions: on how many runs.
    """

    pair: str
    method: str
    error: str
    num_questions: int


@dataclass(frozen=True)
class ServedRow:
    """What a method with a memory did on a stretch of the questions.

    Attributes:
        pair: its name.
        sampling: its name.
        method: its name.
        num_served: tokens that it had served at the end, of the questions that are reported.
        tokens_per_step: of the stretch.
    """

    pair: str
    sampling: str
    method: str
    num_served: int
    tokens_per_step: float


@dataclass(frozen=True)
class Summary:
    """The results of a recipe.

    Attributes:
        recipe: as plain data.
        environment: of the machine, as plain data; one entry for each time it was run.
        rows: measures of methods.
        drafters: measures of drafters.
        failures: what could not run.
        served: how methods with a memory did along the way.
    """

    recipe: dict[str, Any]
    environment: dict[str, Any]
    rows: tuple[Row, ...]
    drafters: tuple[DrafterRow, ...]
    failures: tuple[Failure, ...]
    served: tuple[ServedRow, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Returns everything as plain data."""
        return asdict(self)


def summarize(journal: Journal, environment: dict[str, Any]) -> Summary:
    """Measures what a journal holds; an unfinished run as far as it is."""
    good = [run for run in journal.runs if run.error is None]
    methods = [name for name in journal.recipe["methods"] if any(r.method == name for r in good)]
    rows: list[Row] = []
    for pair in dict.fromkeys(run.pair for run in good):
        for sampling in dict.fromkeys(run.sampling for run in good):
            part = [run for run in good if run.pair == pair and run.sampling == sampling]
            for category in dict.fromkeys((ALL, *(run.category for run in part))):
                rows += _rows(part, pair, sampling, category, methods, journal.recipe["methods"][0])
    return Summary(
        recipe=journal.recipe,
        environment=environment,
        rows=tuple(rows),
        drafters=tuple(_drafters(journal)),
        failures=tuple(_failures(journal)),
        served=tuple(_served(good)) if journal.recipe.get("has_memory") else (),
    )


def _rows(
    part: Sequence[RunRecord],
    pair: str,
    sampling: str,
    category: str,
    methods: Sequence[str],
    reference: str,
) -> list[Row]:
    chosen = [run for run in part if category in (ALL, run.category)]
    by_method = {name: [run for run in chosen if run.method == name] for name in methods}
    return [
        Row(pair, sampling, name, category, measure(runs, by_method.get(reference, [])))
        for name, runs in by_method.items()
        if runs
    ]


def _drafters(journal: Journal) -> list[DrafterRow]:
    rows = []
    for pair, drafter in dict.fromkeys((one.pair, one.drafter) for one in journal.agreements):
        records = [one for one in journal.agreements if (one.pair, one.drafter) == (pair, drafter)]
        measures = measure_agreement(records)
        if measures is not None:
            rows.append(DrafterRow(pair, drafter, measures))
    return rows


def _served(runs: Sequence[RunRecord]) -> list[ServedRow]:
    """Cuts the first repeat of each method into stretches of equally many questions."""
    rows = []
    kinds = dict.fromkeys((run.pair, run.sampling, run.method) for run in runs)
    for pair, sampling, method in kinds:
        chosen = [
            run
            for run in runs
            if (run.pair, run.sampling, run.method, run.repeat) == (pair, sampling, method, 0)
        ]
        size = -(-len(chosen) // NUM_STRETCHES)
        num_served = 0
        for begin in range(0, len(chosen), size or 1):
            turns = [turn for run in chosen[begin : begin + size] for turn in run.turns]
            num_new = sum(turn.num_new for turn in turns)
            num_served += num_new
            rate = num_new / max(sum(turn.num_emissions for turn in turns), 1)
            rows.append(ServedRow(pair, sampling, method, num_served, rate))
    return rows


def _failures(journal: Journal) -> list[Failure]:
    counts: dict[tuple[str, str, str], int] = {}
    for run in journal.runs:
        if run.error is not None:
            key = (run.pair, run.method, run.error)
            counts[key] = counts.get(key, 0) + 1
    return [Failure(*key, number) for key, number in counts.items()]


NUM_STRETCHES = 6
"""Points of a curve over the tokens served."""

COLUMNS = (
    "method",
    "tokens/s",
    "times as fast",
    "with prefill",
    "first token",
    "tokens/step",
    "accepted/step",
    "same text",
)


def to_markdown(summary: Summary) -> str:
    """Returns the tables of a summary: one for each pair and sampling, then what failed."""
    name, description = summary.recipe["name"], summary.recipe["description"]
    parts = [f"# {inline(name)}", *([description] if description else [])]
    for pair, sampling in dict.fromkeys((row.pair, row.sampling) for row in summary.rows):
        rows = [
            row
            for row in summary.rows
            if (row.pair, row.sampling, row.category) == (pair, sampling, ALL)
        ]
        parts += [
            f"## {inline(pair)}, {inline(sampling)}",
            _number_table(COLUMNS, [cells(row) for row in rows], number_columns=len(COLUMNS) - 1),
        ]
    if summary.served:
        parts += ["## Tokens a step by tokens served", _served_table(summary.served)]
    if summary.drafters:
        parts += ["## Drafters beside their targets", _drafter_table(summary.drafters)]
    if summary.failures:
        lines = [
            f"- {inline(failure.pair)}, {inline(failure.method)}, {failure.num_questions} runs: "
            f"{inline(failure.error)}"
            for failure in summary.failures
        ]
        parts += ["## What could not run", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def cells(row: Row) -> list[str]:
    """Returns a row of the main table."""
    measures = row.measures
    accepted = measures.accepted_per_step
    same = measures.same_as_reference if row.sampling == GREEDY else None
    return [
        row.method,
        "" if measures.tokens_per_s is None else f"{measures.tokens_per_s.value:.1f}",
        interval(measures.speedup),
        interval(measures.speedup_with_prefill),
        f"{measures.first_token_s * 1e3:.0f} ms",
        f"{measures.tokens_per_step:.2f}",
        "" if accepted is None else f"{accepted:.2f}",
        "" if same is None else f"{same} of {measures.num_questions}",
    ]


def interval(estimate: Estimate | None) -> str:
    """Returns a ratio with its interval."""
    if estimate is None:
        return ""
    return f"{estimate.value:.2f} ({estimate.low:.2f}\N{EN DASH}{estimate.high:.2f})"


def _drafter_table(rows: Sequence[DrafterRow]) -> str:
    heads = ("drafter", "pair", "positions", "total variation", "same choice", "calibration error")
    return _number_table(
        heads,
        [
            [
                row.drafter,
                row.pair,
                str(row.measures.num_positions),
                f"{row.measures.total_variation:.3f}",
                f"{row.measures.same_choice:.0%}",
                f"{row.measures.calibration_error:.3f}",
            ]
            for row in rows
        ],
        number_columns=len(heads) - 1,
    )


def _served_table(rows: Sequence[ServedRow]) -> str:
    heads = ("pair", "sampling", "method", "tokens served", "tokens/step")
    cells = [
        [row.pair, row.sampling, row.method, str(row.num_served), f"{row.tokens_per_step:.2f}"]
        for row in rows
    ]
    return _number_table(heads, cells, number_columns=2)


def _number_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, number_columns: int
) -> str:
    escaped = [[inline(cell) for cell in row] for row in rows]
    return table(heads, escaped, number_columns=number_columns)
