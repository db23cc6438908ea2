"""Who wrote what, as text and as HTML."""

import pytest

from treesnake.explanation import Author, explain, why
from treesnake.outcome import Acceptance, FinishReason, Generation, Step, StepSeconds
from treesnake.shape import OFF, chain, parse_shape
from treesnake.tree import TokenTree

SECONDS = StepSeconds(0.1, 0.1, 0.1, 0.1)
WORDS = {1: "one", 2: " two", 3: " <three>", 4: " four"}


def decode(token_ids: list[int]) -> str:
    return "".join(WORDS[token] for token in token_ids)


def generation(num_expanded: tuple[int, ...] | None) -> Generation:
    plain = Step(OFF, TokenTree((1,), (-1,)), Acceptance((0,), 2), (2,), SECONDS)
    drafted = Step(
        chain(1),
        TokenTree((2, 3, 1), (-1, 0, 0)),
        Acceptance((0, 1), 4),
        (3, 4),
        SECONDS,
        num_expanded=num_expanded,
    )
    return Generation((2, 3, 4), " two <three> four", (plain, drafted), FinishReason.LENGTH)


def test_the_last_token_of_a_step_is_the_targets() -> None:
    explanation = explain(generation(None), decode)
    assert [token.author for token in explanation.tokens] == [
        Author.TARGET,
        Author.DRAFTER,
        Author.TARGET,
    ]
    assert "".join(token.text for token in explanation.tokens) == " two <three> four"


def test_where_no_network_ran_it_was_a_lookup() -> None:
    assert explain(generation(()), decode).counts[Author.LOOKUP] == 1


def test_the_last_tree_is_drawn_with_what_was_accepted() -> None:
    text = str(explain(generation(None), decode))
    assert text.splitlines() == [
        " two[ <three>] four",
        "",
        "target 2 · drafter 1",
        "' two' ✓",
        "├─ ' <three>' ✓",
        "└─ 'one'",
    ]


def test_text_of_a_model_is_no_html() -> None:
    html = explain(generation(None), decode)._repr_html_()
    assert "&lt;three&gt;" in html
    assert "<three>" not in html


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("off", "No network drafts"),
        ("chain(3)", "A chain."),
        ("3x2", "always the same"),
        ("best_first(2, 2, 3)", "most probable"),
        ("tree(0, 0)", "of that rank and depth"),
        ("priced(2; 0.1; 0.2)", "worth their time"),
    ],
)
def test_every_kind_of_shape_is_explained(shape: str, reason: str) -> None:
    assert reason in why(parse_shape(shape))
