"""Real steps, for the part of the page that draws trees."""

import json
from collections.abc import Sequence
from typing import Any

from treesnake.evaluation.bench.record import RunRecord, ShownStep
from treesnake.explanation import why
from treesnake.shape import ShapeKind, parse_shape


def steps_json(runs: Sequence[RunRecord]) -> str:
    """Returns the runs as JSON that may stand in a script element."""
    data = [_run(run) for run in runs if any(turn.shown for turn in run.turns)]
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def _run(run: RunRecord) -> dict[str, Any]:
    return {
        "question": f"{run.task}, {run.category} {run.question}, {run.sampling}, {run.pair}",
        "method": run.method,
        "asked": run.asked or "",
        "pictures": run.pictures,
        "steps": [
            {"turn": number, **_step(step)}
            for number, turn in enumerate(run.turns)
            for step in turn.shown
        ],
    }


def _step(step: ShownStep) -> dict[str, Any]:
    parsed = parse_shape(step.shape)
    names = {
        ShapeKind.FIXED_TREE: f"tree of {parsed.num_drafted} nodes",
        ShapeKind.PRICED: "by confidence",
    }
    return {
        "shape": names.get(parsed.kind, step.shape),
        "why": why(parsed),
        "tokens": step.texts or [str(token) for token in step.tokens],
        "parents": step.parents,
        "path": step.path,
        "emitted": step.emitted_texts or [str(token) for token in step.emitted],
        "draft_s": round(step.draft_s, 6),
        "score_s": round(step.score_s, 6),
        "probs": step.probs or [-1] * len(step.tokens),
    }
