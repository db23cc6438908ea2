"""Tables become dataclasses, or say why not."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest

from treesnake.errors import InvalidInputError
from treesnake.tables import read_table


@dataclass(frozen=True)
class Circle:
    radius: float
    kind: Literal["circle"] = "circle"


@dataclass(frozen=True)
class Square:
    side: int
    kind: Literal["square"] = "square"


@dataclass(frozen=True)
class Drawing:
    title: str
    shapes: tuple[Circle | Square, ...] = ()
    first: Circle | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    size: Literal["a4", "a3"] = "a4"
    rest: Any = None


FULL = {
    "title": "one",
    "shapes": [{"kind": "circle", "radius": 2}, {"kind": "square", "side": 3}],
    "first": {"radius": 0.5},
    "sizes": {"x": 1},
    "size": "a3",
    "rest": [1, {"a": None}],
}


def test_a_table_becomes_a_dataclass_and_back() -> None:
    drawing = read_table(Drawing, FULL, "drawing")
    assert drawing.shapes == (Circle(2.0), Square(3))
    assert drawing.first == Circle(0.5)
    assert read_table(Drawing, {"title": "two", "first": None}, "d") == Drawing("two")
    again = asdict(drawing) | {"shapes": [asdict(shape) for shape in drawing.shapes]}
    assert read_table(Drawing, again, "drawing") == drawing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, 'drawing has an unknown key "colour"; the keys are first, rest'),
        ({"title": 3}, "drawing, title must be of type str, not 3"),
        ({"size": "a5"}, "must be one of 'a4', 'a3', not 'a5'"),
        ({"shapes": {"kind": "circle"}}, "shapes must be a list"),
        ({"shapes": [{"kind": "line"}]}, "shapes, kind must be one of 'circle', 'square'"),
        ({"first": 4}, "drawing, first must be a table"),
        ({"first": {}}, 'drawing, first lacks the key "radius"'),
        ({"sizes": {"x": "y"}}, r"drawing, sizes\.x must be of type int"),
        ({"sizes": 3}, "sizes must be a table"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_table(Drawing, FULL | change, "drawing")


def test_true_is_no_number() -> None:
    with pytest.raises(InvalidInputError, match="not True"):
        read_table(Square, {"side": True}, "square")
