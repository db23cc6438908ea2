"""Pictures for papers, by matplotlib."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from treesnake.errors import LoadError
from treesnake.evaluation.bench.measures import Measures
from treesnake.evaluation.report.results import LENGTH, Result


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
    """
    if find_spec("matplotlib") is None:
        raise LoadError("pictures are drawn by matplotlib; install treesnake[evaluation]")
    import matplotlib as mpl  # noqa: PLC0415 - an optional dependency

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    draws: dict[str, Callable[[Any, Result, str, str], bool]] = {
        "speed": _speed,
        "acceptance": _acceptance,
        "long-context": _long_context,
    }
    for number, (pair, sampling) in enumerate(result.groups):
        for kind, draw in draws.items():
            figure, axes = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
            axes.spines[["top", "right"]].set_visible(False)
            if draw(axes, result, pair, sampling):
                axes.set_title(f"{pair}, {sampling}", fontsize=9, loc="left")
                name = result.summary.recipe["name"]
                path = folder / f"{name}-{kind}-{number + 1}.{suffix}"
                figure.savefig(path, dpi=200)
                written.append(path)
            plt.close(figure)
    return written


def _speed(axes: Any, result: Result, pair: str, sampling: str) -> bool:
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


def _acceptance(axes: Any, result: Result, pair: str, sampling: str) -> bool:
    rows = [row for row in result.rows(pair, sampling) if row.measures.acceptance_by_position]
    for row in rows:
        shares = row.measures.acceptance_by_position
        axes.plot(range(1, len(shares) + 1), shares, marker="o", ms=3, label=row.method)
    axes.set(xlabel="depth", ylabel="share accepted", ylim=(0, 1))
    axes.legend(fontsize=7, frameon=False)
    return bool(rows)


def _long_context(axes: Any, result: Result, pair: str, sampling: str) -> bool:
    lengths = result.lengths(pair, sampling)
    lines: dict[str, list[tuple[int, Measures]]] = {}
    for length in lengths:
        for row in result.rows(pair, sampling, f"{length}{LENGTH}"):
            lines.setdefault(row.method, []).append((length, row.measures))
    for method, points in lines.items():
        values = [measures.tokens_per_step for _, measures in points]
        axes.plot([length for length, _ in points], values, marker="o", ms=3, label=method)
    if lines:
        axes.set_xscale("log", base=2)
        axes.set(xlabel="tokens of context", ylabel="tokens per step")
        axes.legend(fontsize=7, frameon=False)
    return len(lengths) > 1
