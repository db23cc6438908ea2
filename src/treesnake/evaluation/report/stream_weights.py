"""What the streams of a mixture counted for, step by step."""

from treesnake.evaluation.bench.record import RunRecord
from treesnake.evaluation.report.charts import Line


def weight_lines(run: RunRecord) -> list[Line]:
    """Returns a line for each stream, over the steps of all turns in which a mixture drafted.

    One stream alone has nothing to weigh, and no line.
    """
    shown = [step for turn in run.turns for step in turn.shown]
    drafted = [(number, step.stream_weights) for number, step in enumerate(shown, 1)]
    drafted = [(number, weights) for number, weights in drafted if len(weights) > 1]
    names = dict.fromkeys(name for _, weights in drafted for name in weights)
    return [
        Line(
            name,
            tuple((float(number), weights.get(name, 0.0)) for number, weights in drafted),
            colour,
        )
        for colour, name in enumerate(names)
    ]
