"""A small plotting layer: data in, SVG out, in the colours of the page around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH = 820
LABEL_WIDTH = 260
MOST_LEFT = 38
MOST_RIGHT = 23
ROW_HEIGHT = 26
NUM_COLOURS = 8
MOST_TICKS = 16
"""Whole numbers on the x axis of which each gets a tick."""


@dataclass(frozen=True)
class Bar:
    """A number with its interval.

    Attributes:
        label: what it is of.
        value: the number, at least 0.
        low: the end of the interval; the value if there is none.
        high: the other end.
        text: the number as text.
    """

    label: str
    value: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Line:
    """Points that belong together, from left to right.

    Attributes:
        label: what they are of.
        points: x and y of each.
        colour: number of a colour, the same in all charts of a page.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    colour: int


@dataclass(frozen=True)
class Stack:
    """Parts of a whole, in the order of a legend that several stacks share."""

    label: str
    parts: tuple[float, ...]


def bar_chart(bars: Sequence[Bar], title: str, *, mark: float | None = None) -> str:
    """Draws a horizontal bar for each number, with whiskers.

    Args:
        bars: from top to bottom.
        title: for those who cannot see it.
        mark: a value to compare with, as a line.
    """
    right = WIDTH - 70
    largest = max([bar.high for bar in bars] + ([mark] if mark else []), default=1) or 1
    x = _Scale(0, largest, LABEL_WIDTH, right)
    height = ROW_HEIGHT * len(bars) + 28
    parts = [_grid(x, _ticks(0, largest), 6, height - 22)]
    for index, bar in enumerate(bars):
        top = 8 + index * ROW_HEIGHT
        middle = top + ROW_HEIGHT / 2 - 3
        parts.append(_label(LABEL_WIDTH - 10, middle + 4, bar.label, "label end", MOST_LEFT))
        parts.append(
            f'<rect class="bar" x="{LABEL_WIDTH}" y="{top}" rx="2" height="{ROW_HEIGHT - 8}" '
            f'width="{max(x.at(bar.value) - LABEL_WIDTH, 0):.1f}"/>'
        )
        if bar.high > bar.low:
            low, high = x.at(bar.low), x.at(bar.high)
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}'
                f'M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"/>'
            )
        parts.append(_text(x.at(max(bar.value, bar.high)) + 8, middle + 4, bar.text, "value"))
    if mark is not None:
        parts.append(f'<path class="mark" d="M{x.at(mark):.1f} 2V{height - 22}"/>')
    return _svg(height, title, parts)


def stack_chart(stacks: Sequence[Stack], legend: Sequence[str], title: str, unit: str) -> str:
    """Draws a horizontal bar of parts for each stack, under a legend."""
    right = WIDTH - 70
    largest = max((sum(stack.parts) for stack in stacks), default=1) or 1
    x = _Scale(0, largest, LABEL_WIDTH, right)
    top_of_rows = 30
    height = top_of_rows + ROW_HEIGHT * len(stacks) + 24
    parts = [
        _legend(legend, LABEL_WIDTH),
        _grid(x, _ticks(0, largest), top_of_rows - 4, height - 20),
    ]
    for index, stack in enumerate(stacks):
        top = top_of_rows + index * ROW_HEIGHT
        parts.append(_label(LABEL_WIDTH - 10, top + 14, stack.label, "label end", MOST_LEFT))
        start = 0.0
        for number, part in enumerate(stack.parts):
            left, end = x.at(start), x.at(start + part)
            start += part
            name = escape(f"{legend[number]}: {part:.3g} {unit}".strip())
            parts.append(
                f'<rect class="fill{number % NUM_COLOURS}" x="{left:.1f}" y="{top}" '
                f'height="{ROW_HEIGHT - 8}" width="{max(end - left, 0):.1f}">'
                f"<title>{name}</title></rect>"
            )
        parts.append(_text(x.at(start) + 8, top + 14, f"{start:.3g} {unit}".strip(), "value"))
    return _svg(height, title, parts)


def line_chart(
    lines: Sequence[Line],
    title: str,
    *,
    x_label: str,
    y_label: str,
    is_log: bool = False,
    largest: float | None = None,
    is_diagonal: bool = False,
) -> str:
    """Draws lines with points and a legend.

    Args:
        lines: at least one of them with a point.
        title: for those who cannot see it.
        x_label: under the chart.
        y_label: over it.
        is_log: whether x is doubled from tick to tick, at the points themselves.
        largest: the end of the y axis; by default that of the data.
        is_diagonal: draws the line where both axes are equal.
    """
    points = [point for line in lines for point in line.points]
    top, bottom, left, right = 34, 250, 52, WIDTH - 210
    x_values = sorted({x for x, _ in points})
    x = _Scale(x_values[0], x_values[-1], left, right, is_log=is_log)
    high = largest if largest is not None else max((y for _, y in points), default=1) or 1
    y = _Scale(0, high, bottom, top)
    is_whole = all(value == int(value) for value in x_values)
    ticks = (
        x_values
        if is_log or (is_whole and len(x_values) <= MOST_TICKS)
        else _ticks(x_values[0], x_values[-1])
    )
    parts = [_text(left - 40, 16, y_label, "axis")]
    for tick in _ticks(0, high):
        parts += [
            f'<path class="grid" d="M{left} {y.at(tick):.1f}H{right}"/>',
            _text(left - 8, y.at(tick) + 4, f"{tick:g}", "tick end"),
        ]
    parts += [_text(x.at(tick), bottom + 18, f"{tick:g}", "tick middle") for tick in ticks]
    parts.append(_text((left + right) / 2, bottom + 38, x_label, "axis middle"))
    if is_diagonal:
        parts.append(
            f'<path class="mark" d="M{x.at(x_values[0]):.1f} {y.at(x_values[0]):.1f}'
            f'L{x.at(x_values[-1]):.1f} {y.at(x_values[-1]):.1f}"/>'
        )
    for number, line in enumerate(lines):
        points = [(x.at(a), y.at(min(b, high))) for a, b in line.points]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        colour = line.colour % NUM_COLOURS
        parts.append(f'<path class="line stroke{colour}" d="M{path}"/>')
        for (a, b), (value_x, value_y) in zip(points, line.points, strict=True):
            name = escape(f"{line.label}, {value_x:g}: {value_y:.3g}")
            parts.append(
                f'<circle class="fill{colour}" cx="{a:.1f}" cy="{b:.1f}" r="3.5">'
                f"<title>{name}</title></circle>"
            )
        row = top + 4 + number * 20
        parts += [
            f'<rect class="fill{colour}" x="{right + 20}" y="{row - 8}" width="12" height="4"/>',
            _label(right + 38, row - 1, line.label, "label", MOST_RIGHT),
        ]
    height = max(bottom + 46, top + 20 * len(lines) + 8)
    return _svg(height, title, parts)


@dataclass(frozen=True)
class _Scale:
    """Maps values to coordinates."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Returns the coordinate of a value."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = log10(low), log10(high), log10(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def _ticks(low: float, high: float) -> list[float]:
    """Returns four to eight round numbers of a range."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** floor(log10(span))
    for divisor in (1, 2, 4, 5, 10):
        if span / (step / divisor) >= 4:
            step /= divisor
            break
    first = ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, floor(high / step + 1e-9) + 1)]


def _grid(x: _Scale, ticks: Sequence[float], top: float, bottom: float) -> str:
    return "".join(
        f'<path class="grid" d="M{x.at(tick):.1f} {top}V{bottom}"/>'
        + _text(x.at(tick), bottom + 16, f"{tick:g}", "tick middle")
        for tick in ticks
    )


def _legend(names: Sequence[str], left: float) -> str:
    parts: list[str] = []
    start = left
    for number, name in enumerate(names):
        parts.append(
            f'<rect class="fill{number % NUM_COLOURS}" x="{start:.0f}" y="6" width="12" '
            'height="12" rx="2"/>'
        )
        parts.append(_text(start + 18, 16, name, "label"))
        start += 34 + 7 * len(name)
    return "".join(parts)


def _label(x: float, y: float, text: str, kind: str, most: int) -> str:
    """Returns a name, cut if it is longer than there is room for."""
    if len(text) <= most:
        return _text(x, y, text, kind)
    shown = text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return _text(x, y, shown, kind, f"<title>{escape(text)}</title>")


def _text(x: float, y: float, text: str, kind: str, title: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}{title}</text>'


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'
    )
