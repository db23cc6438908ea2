"""Who wrote each token of a generation, and what its last tree was, for people to look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from html import escape

from treesnake.outcome import Generation, Step
from treesnake.shape import Shape, ShapeKind, is_off

MAX_LINES = 40
"""Nodes of a tree that are drawn at most."""


class Author(StrEnum):
    """Who wrote a token; where a network and prompt lookup drafted one tree, the drafter did."""

    TARGET = "target"
    DRAFTER = "drafter"
    LOOKUP = "lookup"


COLORS = {Author.TARGET: "default", Author.DRAFTER: "green", Author.LOOKUP: "cyan"}


REASONS = {
    ShapeKind.LEVEL_WIDTHS: "A tree of a form that is always the same.",
    ShapeKind.BEST_FIRST: "The drafter's most probable paths, up to a number of nodes.",
    ShapeKind.FIXED_TREE: "Wider where tokens of that rank and depth were accepted more often.",
    ShapeKind.PRICED: "Nodes were drafted as long as their probability was worth their time.",
}
"""Why a tree looks as it does, by the kind of its shape."""


@dataclass(frozen=True)
class WrittenToken:
    """A token of the text.

    Attributes:
        text: what it says.
        author: who wrote it.
    """

    text: str
    author: Author


@dataclass(frozen=True)
class Explanation:
    """How a text came about. Printed it is plain text; a notebook shows it in colours.

    Attributes:
        tokens: of the text, in order.
        tree: lines that draw the last tree that was drafted; none if there was no tree.
    """

    tokens: tuple[WrittenToken, ...]
    tree: tuple[str, ...]

    @property
    def counts(self) -> dict[Author, int]:
        """How many tokens each author wrote."""
        return {author: sum(token.author is author for token in self.tokens) for author in Author}

    def __str__(self) -> str:
        text = "".join(
            token.text if token.author is Author.TARGET else f"[{token.text}]"
            for token in self.tokens
        )
        return "\n".join([text, "", self.legend, *self.tree])

    def _repr_html_(self) -> str:
        """Returns what a notebook shows."""
        spans = "".join(
            f'<span style="color:{COLORS[token.author]}" title="{token.author}">'
            f"{escape(token.text)}</span>"
            if token.author is not Author.TARGET
            else escape(token.text)
            for token in self.tokens
        )
        tree = escape("\n".join([self.legend, *self.tree]))
        return f'<div style="white-space:pre-wrap">{spans}</div><pre>{tree}</pre>'

    @property
    def legend(self) -> str:
        """How many tokens each author wrote, in a line."""
        return " · ".join(f"{author} {count}" for author, count in self.counts.items() if count)


def why(shape: Shape) -> str:
    """Says what a shape stands for: why the tree looks as it does."""
    if shape.num_drafted == 0 or is_off(shape):
        return "No network drafts: it was not worth its time, or there was no room for it."
    return "A chain." if str(shape).startswith("chain(") else REASONS[shape.kind]


def guesser_of(step: Step) -> Author:
    """Tells who wrote the drafted tokens of a step."""
    return Author.LOOKUP if step.num_expanded == () else Author.DRAFTER


def explain(generation: Generation, decode: Callable[[Sequence[int]], str]) -> Explanation:
    """Tells who wrote each token, and draws the last tree that was drafted.

    Args:
        generation: finished or not.
        decode: returns the text of token ids.
    """
    tokens = [token for step in generation.steps for token in _written(step, decode)]
    drafted = [step for step in generation.steps if step.num_drafted]
    return Explanation(tuple(tokens), _drawing(drafted[-1], decode) if drafted else ())


def _written(step: Step, decode: Callable[[Sequence[int]], str]) -> list[WrittenToken]:
    guesser = guesser_of(step)
    return [
        WrittenToken(decode([token]), guesser if index < step.num_accepted else Author.TARGET)
        for index, token in enumerate(step.emitted)
    ]


def _drawing(step: Step, decode: Callable[[Sequence[int]], str]) -> tuple[str, ...]:
    """Draws the tree of a step; a check marks the nodes that were accepted."""
    tree, accepted = step.tree, set(step.acceptance.path)
    lines: list[str] = []

    def draw(node: int, prefix: str, branch: str) -> None:
        mark = " ✓" if node in accepted else ""
        lines.append(f"{prefix}{branch}{decode([tree.tokens[node]])!r}{mark}")
        below = prefix + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        children = tree.children[node]
        for child in children:
            draw(child, below, "└─ " if child == children[-1] else "├─ ")

    draw(0, "", "")
    left_out = [f"... and {len(lines) - MAX_LINES} nodes more"] if len(lines) > MAX_LINES else []
    return (*lines[:MAX_LINES], *left_out)
