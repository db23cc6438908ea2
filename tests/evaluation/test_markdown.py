"""Names from outside in Markdown."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from treesnake.evaluation.markdown import code, inline, table

NAMES = st.text(st.sampled_from("ab _*`|[]()<>~&;\\!\n#-.:"), max_size=12)


def rendered(markdown: str) -> list[str]:
    """Returns the texts of all cells, and fails on anything else than text and code."""
    cells = []
    for token in MarkdownIt().enable("table").parse(markdown):
        if token.type == "inline":
            kinds = {child.type for child in token.children or ()}
            assert kinds <= {"text", "code_inline", "text_special"}, kinds
            cells.append("".join(child.content for child in token.children or ()))
    return cells


@given(NAMES)
@example("[/b]")
@example("a|b\nc `d` <img src=x> __e__ ~~f~~ [g](h) &lt;")
def test_a_name_is_a_text_in_a_cell(name: str) -> None:
    shown = rendered(table(("name", "1"), [[f"x{inline(name)}x", "2"]], number_columns=1))
    assert shown == ["name", "1", f"x{' '.join(name.split())}x", "2"]


@given(NAMES)
@example("`")
@example("'|'")
def test_code_is_code_in_a_cell(name: str) -> None:
    shown = rendered(table(("name", "1"), [[code(f"x{name}x"), "2"]]))
    assert shown == ["name", "1", " ".join(f"x{name}x".splitlines()), "2"]


@pytest.mark.parametrize("name", ["chain(4)", "prompt-lookup", "top-p 0.9", "my_model"])
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert inline(name) == name
