"""Charts are well-formed, and their marks are where the numbers say."""

from xml.etree import ElementTree as ET

import pytest

from treesnake.evaluation.report.charts import (
    Bar,
    Line,
    Stack,
    bar_chart,
    line_chart,
    stack_chart,
)


def parse(chart: str) -> ET.Element:
    return ET.fromstring(chart)


def test_bars_are_as_long_as_their_numbers() -> None:
    bars = [Bar("a < b", 1, 0.5, 1.5, "1x"), Bar("c", 2, 2, 2, "2x"), Bar("d", 0, 0, 0, "0x")]
    chart = parse(bar_chart(bars, 'with "quotes"', mark=1.0))
    widths = [float(rect.get("width", "")) for rect in chart.findall("rect")]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert widths[2] == 0
    assert len([p for p in chart.findall("path") if p.get("class") == "whisker"]) == 1
    assert chart.get("aria-label") == 'with "quotes"'


def test_stacks_have_parts_one_behind_the_other() -> None:
    chart = parse(stack_chart([Stack("a", (1, 3))], ["x", "y"], "t", "ms"))
    legend_x, legend_y, first, second = chart.findall("rect")
    assert float(second.get("x", "")) == pytest.approx(
        float(first.get("x", "")) + float(first.get("width", "")), abs=0.2
    )
    assert first.findtext("title") == "x: 1 ms"
    assert legend_x.get("class") == first.get("class")
    assert legend_y.get("class") == second.get("class")


def test_lines_go_through_their_points() -> None:
    lines = [Line("a", ((1024, 1), (2048, 2), (16384, 3)), 0), Line("b", ((1024, 3),), 9)]
    chart = parse(line_chart(lines, "t", x_label="x", y_label="y", is_log=True))
    circles = chart.findall("circle")
    assert len(circles) == 4
    positions = [float(circle.get("cx", "")) for circle in circles[:3]]
    assert positions[2] - positions[0] == pytest.approx(4 * (positions[1] - positions[0]), abs=0.3)
    assert circles[3].get("class") == "fill1"


def ticks(points: tuple[tuple[float, float], ...], kind: str) -> list[str | None]:
    chart = parse(line_chart([Line("a", points, 0)], "t", x_label="x", y_label="y"))
    return [text.text for text in chart.findall("text") if text.get("class") == f"tick {kind}"]


def test_axes_have_round_numbers() -> None:
    points = ((0.5, 0.0), (2.5, 0.7))
    assert ticks(points, "middle") == ["0.5", "1", "1.5", "2", "2.5"]
    assert ticks(points, "end") == ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]
    assert ticks(((0.5, 1.0),), "middle") == ["0.5"], "a range of one number"


@pytest.mark.parametrize("points", [((1.0, 0.0),), ((0.1, 0.2), (0.9, 1.5))])
def test_any_numbers_can_be_drawn(points: tuple[tuple[float, float], ...]) -> None:
    lines = [Line("a long name of a method that does not fit", points, 0)]
    chart = line_chart(lines, "t", x_label="x", y_label="y", largest=1.0, is_diagonal=True)
    assert "nan" not in chart
    parse(chart)
