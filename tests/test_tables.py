"""Tables become dataclasses, or say why not."""

import codecs
import tomllib
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.tables import check_file_name, read_table, read_toml


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
        ({"shapes": [{"kind": "line"}]}, r"shapes\[1\], kind must be one of 'circle', 'square'"),
        ({"shapes": [{"kind": []}]}, r"shapes\[1\], kind must be one of 'circle', 'square'"),
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


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
@example(content=codecs.BOM_UTF8 + b"a = 1")
@example(content="a = 1".encode("utf-16"))
@example(content=b"a = \xff")
@example(content=b"a = " + b"[" * 100_000)
@example(content=b"a = " + b"9" * 5000)
@example(content=b"a = [{b = nan}]")
@example(content=b"[" + b".".join([b"a"] * 3000) + b"]")
def test_a_file_of_toml_is_read_or_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with suppress(InvalidInputError):
        assert read_toml(path) == tomllib.loads(content.decode("utf-8-sig"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = [{b = nan}]", r"recipe.toml, a\[1\]\.b must be a finite number"),
        ("a.b = -inf", r"a\.b must be a finite number"),
        ("a = 1e300", "a finite number of at most"),
        ("a = " + "9" * 400, "a finite number of at most"),
        ('a = "x\\u0000y"', "must be text without a NUL"),
        ('"x\\u0000y" = 1', "must be text without a NUL"),
        ("a = 1\na = 2", "cannot be read"),
    ],
)
def test_what_no_recipe_can_mean_is_told_with_file_and_key(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_toml(path)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_toml(tmp_path)


@given(name=st.text(max_size=12))
@example(name="..")
@example(name="")
@example(name="a/b")
@example(name="a\\b")
@example(name="a\0b")
@example(name="/")
@example(name="C:")
@example(name=" ")
@example(name="nul.txt")
@example(name="a" * 300)
def test_a_name_that_is_taken_stays_in_its_folder(name: str) -> None:
    folder = Path("/runs")
    try:
        check_file_name(name, "name")
    except InvalidInputError:
        return
    assert (folder / name).resolve().parent == folder
    assert name == name.strip()
    assert name.isprintable()


@pytest.mark.parametrize("name", ["mamba2-smol", "größer", "a.b", "two words", "x" * 100])
def test_other_names_are_taken(name: str) -> None:
    check_file_name(name, "name")


def test_a_number_that_no_float_holds_is_told() -> None:
    with pytest.raises(InvalidInputError, match="radius must be a number that a float holds"):
        read_table(Circle, {"radius": 10**400}, "circle")
