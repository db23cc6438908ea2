"""Pictures for papers, by matplotlib."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from treesnake.errors import InvalidInputError, LoadError
from treesnake.evaluation.report.by_length import CURVES
from treesnake.evaluation.report.results import Result
from treesnake.outputs import check_output, telling_failure

SUFFIXES = ("svg", "pdf", "png")

Draw = Callable[[Any, Result, str, str], bool]
"""Draws into a figure a pair's results with one way of sampling; tells whether there were any."""


def save_pictures(result: Result, folder: Path, *, suffix: str = "svg") -> list[Path]:
    """Writes one picture of each kind that the results have data for.

    Args:
        result: of one benchmark.
        folder: is made if it does not exist.
        suffix: "svg", "pdf" or "png".

    Returns:
        The files.

    Raises:
        LoadError: if matplotlib is not installed.
        InvalidInputError: if the folder cannot be, or there are no pictures of that kind.
        OutputError: if a picture cannot be written.
    """
    if suffix not in SUFFIXES:
        raise InvalidInputError(f"pictures are {', '.join(SUFFIXES)}, not {suffix!r}")
    if find_spec("matplotlib") is None:
        raise LoadError("pictures are drawn by matplotlib; install treesnake[evaluation]")
    import matplotlib as mpl  # noqa: PLC0415 - an optional dependency

    mpl.use("Agg")
    mpl.rcParams["text.parse_math"] = False  # a name may have a dollar sign
    from matplotlib import pyplot as plt  # noqa: PLC0415

    written: list[Path] = []
    draws: dict[str, Draw] = {
        "speed": _speed,
        "acceptance": _acceptance,
        "long-context": _long_context,
    }
    for number, (pair, sampling) in enumerate(result.groups):
        for kind, draw in draws.items():
            figure = plt.figure(figsize=(5.5, 3.2), layout="constrained")
            if draw(figure, result, pair, sampling):
                for axes in figure.axes:
                    axes.spines[["top", "right"]].set_visible(False)
                figure.axes[0].set_title(f"{pair}, {sampling}", fontsize=9, loc="left")
                name = re.sub(r"[^\w.-]+", "-", result.summary.recipe["name"])
                path = folder / f"{name}-{kind}-{number + 1}.{suffix}"
                check_output(path)
                with telling_failure(path, "make room, or choose another folder"):
                    figure.savefig(path, dpi=200)
                written.append(path)
            plt.close(figure)
    return written


def _speed(figure: Any, result: Result, pair: str, sampling: str) -> bool:
    axes = figure.subplots()
    rows = [row for row in result.rows(pair, sampling) if row.measures.speedup is not None]
    estimates = [row.measures.speedup for row in rows if row.measures.speedup is not None]
    values = [one.value for one in estimates]
    errors = [
        [max(one.value - one.low, 0) for one in estimates],
        [max(one.high - one.value, 0) for one in estimates],
    ]
    names = [row.method for row in rows]
    axes.barh(names, values, xerr=errors, color="#3c7f95", error_kw={"lw": 0.8, "capsize": 2})
    axes.axvline(1, color="#b4480f", lw=0.8, ls="--")
    axes.invert_yaxis()
    axes.set_xlabel(f"times as fast as {result.summary.recipe['methods'][0]}")
    return bool(rows)


def _acceptance(figure: Any, result: Result, pair: str, sampling: str) -> bool:
    axes = figure.subplots()
    rows = [row for row in result.rows(pair, sampling) if row.measures.acceptance_by_position]
    for row in rows:
        shares = row.measures.acceptance_by_position
        axes.plot(range(1, len(shares) + 1), shares, marker="o", ms=3, label=row.method)
    axes.set(xlabel="depth", ylabel="share accepted", ylim=(0, 1))
    axes.legend(fontsize=7, frameon=False)
    return bool(rows)


def _long_context(figure: Any, result: Result, pair: str, sampling: str) -> bool:
    """Draws a panel for each measure that changes with the length of the context."""
    if len(result.lengths(pair, sampling)) < 2:
        return False
    figure.set_size_inches(3.4 * len(CURVES), 3.2)
    for axes, curve in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        for method, points in curve.points(result, pair, sampling).items():
            axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=method)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="tokens of context", ylabel=curve.label)
        axes.set_ylim(bottom=0)
    figure.axes[0].legend(fontsize=7, frameon=False)
    return True
