"""The shapes that a token tree can take, as data: what a search chooses and a drafter fills."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from treesnake.errors import InvalidInputError


@dataclass(frozen=True)
class LevelWidths:
    """A full tree: every node at depth i has `widths[i]` children.

    (3, 2, 2, 1, 1) is the notation of Mamba Drafters (Choi et al. 2025). No width at all is plain
    decoding, and widths of 1 are a chain.

    Attributes:
        widths: the number of children per node at each depth.
        sampled: whether children are drawn from the drafter's distribution, without replacement,
            or else are its most probable tokens. Both are lossless, under different rules; under
            greedy decoding the most probable tokens are taken in any case.
    """

    widths: tuple[int, ...]
    sampled: bool = True

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.widths):
            raise InvalidInputError(f"level widths must be at least 1, got {self.widths}")

    @property
    def depth(self) -> int:
        """The depth of the deepest node."""
        return len(self.widths)

    @property
    def num_drafted(self) -> int:
        """The number of nodes without the anchor."""
        nodes, level = 0, 1
        for width in self.widths:
            level *= width
            nodes += level
        return nodes

    def clipped(self, depth: int) -> "LevelWidths":
        """Returns the shape without its levels below `depth`."""
        return self if depth >= self.depth else replace(self, widths=self.widths[: max(depth, 0)])

    def __str__(self) -> str:
        if not self.widths:
            return "off"
        one_each = set(self.widths) == {1}
        levels = f"chain({self.depth})" if one_each else "x".join(map(str, self.widths))
        return levels if self.sampled else f"{levels} chosen"


@dataclass(frozen=True)
class BestFirst:
    """The most probable nodes by the drafter's cumulative probability (EAGLE-2's dynamic tree).

    The drafter expands up to `width` nodes a level into `width` children each, down to `depth`, and
    keeps the `num_drafted` nodes that it holds most probable. Children are chosen, never drawn.
    """

    width: int
    depth: int
    num_drafted: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 0 or self.num_drafted < 0:
            raise InvalidInputError(
                "a best-first shape needs a width of at least 1 and neither a negative depth nor "
                f"a negative number of nodes, got {self}"
            )

    def clipped(self, depth: int) -> "BestFirst":
        """Returns the shape without its levels below `depth`."""
        return self if depth >= self.depth else replace(self, depth=max(depth, 0))

    def __str__(self) -> str:
        return f"best_first({self.width}, {self.depth}, {self.num_drafted})"


Shape = LevelWidths | BestFirst

OFF = LevelWidths(())
"""Plain decoding: the target scores the anchor alone."""


def chain(length: int, *, sampled: bool = True) -> LevelWidths:
    """Returns the shape of `length` tokens in a row."""
    if length < 0:
        raise InvalidInputError(f"a chain cannot have a negative length, got {length}")
    return LevelWidths((1,) * length, sampled)


def parse_shape(text: str) -> Shape:
    """Reads a shape as `str` writes it: "off", "chain(4)", "3x2x2x1" or "best_first(4, 6, 24)".

    Children are sampled unless " chosen" comes after a chain or level widths.

    Raises:
        InvalidInputError: if the text is none of these.
    """
    text = text.strip()
    try:
        if text == "off":
            return OFF
        if text.startswith("best_first(") and text.endswith(")"):
            return BestFirst(*_integers(text[len("best_first(") : -1].split(",")))
        levels = text.removesuffix(" chosen")
        sampled = levels == text
        if levels.startswith("chain(") and levels.endswith(")"):
            return chain(int(levels[len("chain(") : -1]), sampled=sampled)
        return LevelWidths(_integers(levels.split("x")), sampled)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f'"{text}" is no shape of a tree; write off, chain(4), 3x2x2x1 or best_first(4, 6, 24)'
        ) from error


def _integers(parts: Sequence[str]) -> tuple[int, ...]:
    return tuple(int(part) for part in parts)
