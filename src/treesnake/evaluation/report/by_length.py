"""What changes with the length of the context."""

from collections.abc import Callable
from dataclasses import dataclass

from treesnake.evaluation.bench.measures import Measures
from treesnake.evaluation.report.results import LENGTH, Result


@dataclass(frozen=True)
class Curve:
    """A measure that is drawn against the length of the context.

    Attributes:
        title: what it is.
        label: its unit, for the axis.
        value: reads it; None where there is none.
    """

    title: str
    label: str
    value: Callable[[Measures], float | None]

    def points(
        self, result: Result, pair: str, sampling: str
    ) -> dict[str, list[tuple[float, float]]]:
        """Returns pairs of length and value, by method."""
        points: dict[str, list[tuple[float, float]]] = {}
        for length in result.lengths(pair, sampling):
            for row in result.rows(pair, sampling, f"{length}{LENGTH}"):
                if (value := self.value(row.measures)) is not None:
                    points.setdefault(row.method, []).append((float(length), value))
        return points


def _draft_ms(measures: Measures) -> float | None:
    return None if measures.phases is None else 1e3 * measures.phases.draft_s


def _score_ms(measures: Measures) -> float | None:
    return None if measures.phases is None else 1e3 * measures.phases.score_s


def _drafter_megabytes(measures: Measures) -> float | None:
    return None if measures.drafter_bytes is None else measures.drafter_bytes / 1e6


CURVES = (
    Curve("Tokens per step", "tokens per step", lambda measures: measures.tokens_per_step),
    Curve("Drafting", "milliseconds of drafting per step", _draft_ms),
    Curve("Scoring", "milliseconds of scoring per step", _score_ms),
    Curve("Memory of the drafter's state", "megabytes", _drafter_megabytes),
)
"""What is drawn against the length of the context."""
