"""The shapes that a token tree can take, as data: what a search chooses and a drafter fills."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from numbers import Integral

from treesnake.errors import InvalidInputError

MOST_NODES = 1 << 12
"""A tree of more drafted nodes takes more memory than any pass over it could be worth."""


def _check_size(num_nodes: int) -> None:
    if num_nodes > MOST_NODES:
        raise InvalidInputError(f"a shape may have at most {MOST_NODES} nodes")


UNPAYABLE_PRICE = 2.0
"""A level of this price is never drafted: probabilities end at 1."""


class ShapeKind(StrEnum):
    """What decides the form of a tree."""

    LEVEL_WIDTHS = "level widths"
    BEST_FIRST = "best first"
    FIXED_TREE = "fixed tree"
    PRICED = "priced tree"


class _WithoutPrices:
    """A shape whose nodes are drafted whatever their probability."""

    def pays(self, prob: float, num_kept: int) -> bool:
        """Tells whether a node of this probability is kept after `num_kept` others."""
        return True

    def level_pays(self, level: int, prob: float) -> bool:
        """Tells whether a level is drafted below nodes of this probability in all."""
        return True


@dataclass(frozen=True)
class LevelWidths(_WithoutPrices):
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

    kind = ShapeKind.LEVEL_WIDTHS

    def __post_init__(self) -> None:
        widths: object = self.widths
        if not isinstance(widths, tuple) or not all(_is_whole(width, 1) for width in widths):
            raise InvalidInputError(
                f"level widths must be at least 1, as whole numbers in a tuple, got {widths!r}"
            )
        _check_size(self.num_drafted)
        if not self.widths:  # plain decoding is one shape, not two
            object.__setattr__(self, "sampled", True)

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

    @property
    def widest(self) -> int:
        """How many children the anchor may have."""
        return self.widths[0] if self.widths else 0

    def as_tree(self) -> "FixedTree":
        """Returns the same tree node by node."""
        return _full_tree(self.widths, self.sampled)

    def as_priced(self) -> None:
        """Returns None: the tree is known before it is drafted."""

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
class BestFirst(_WithoutPrices):
    """The most probable nodes by the drafter's cumulative probability (EAGLE-2's dynamic tree).

    The drafter expands up to `width` nodes a level into `width` children each, down to `depth`, and
    keeps the `num_drafted` nodes that it holds most probable. Children are chosen, never drawn.
    """

    width: int
    depth: int
    num_drafted: int

    kind = ShapeKind.BEST_FIRST

    def __post_init__(self) -> None:
        numbers = (self.width, 1), (self.depth, 0), (self.num_drafted, 0)
        if not all(_is_whole(number, least) for number, least in numbers):
            raise InvalidInputError(
                "a best-first shape needs a width of at least 1 and neither a negative depth nor "
                f"a negative number of nodes, all whole, got {self}"
            )
        _check_size(max(self.width, self.depth, self.num_drafted))

    @property
    def widest(self) -> int:
        """How many children the anchor may have."""
        return self.width

    def as_tree(self) -> None:
        """Returns None: the drafter's probabilities decide on the tree."""

    def as_priced(self) -> "Priced":
        """Returns the same shape by prices; all are 0."""
        return Priced(self.width, (0.0,) * self.depth, (0.0,) * self.num_drafted)

    def clipped(self, depth: int) -> "BestFirst":
        """Returns the shape without its levels below `depth`."""
        return self if depth >= self.depth else replace(self, depth=max(depth, 0))

    def __str__(self) -> str:
        return f"best_first({self.width}, {self.depth}, {self.num_drafted})"


@dataclass(frozen=True)
class FixedTree(_WithoutPrices):
    """Any tree that is known before it is drafted: each node's place in it, and no token yet.

    The first child of a node takes the drafter's first token there, the second its second. This is
    how a search draws a tree that has more nodes where they are accepted more often (Sequoia, Chen
    et al. 2024).

    Attributes:
        parents: the parent of each drafted node, numbered from 1 on; 0 is the anchor. Level by
            level, and the children of a node come in a row.
        sampled: as in `LevelWidths`.
    """

    parents: tuple[int, ...]
    sampled: bool = True

    kind = ShapeKind.FIXED_TREE

    def __post_init__(self) -> None:
        for node, parent in enumerate(self.parents, start=1):
            if not (self.parents[node - 2] if node > 1 else 0) <= parent < node:
                raise InvalidInputError(
                    "the parents of a fixed tree must not decrease and must come before their "
                    f"children, got {self.parents}"
                )

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """The depth of each node, the anchor's first."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """The children of each node, the anchor's first."""
        children: list[list[int]] = [[] for _ in range(len(self.parents) + 1)]
        for node, parent in enumerate(self.parents, start=1):
            children[parent].append(node)
        return tuple(map(tuple, children))

    @property
    def depth(self) -> int:
        """The depth of the deepest node."""
        return self.depths[-1]

    @property
    def num_drafted(self) -> int:
        """The number of nodes without the anchor."""
        return len(self.parents)

    @property
    def widest(self) -> int:
        """How many children the anchor may have."""
        return len(self.children[0])

    def as_tree(self) -> "FixedTree":
        """Returns itself."""
        return self

    def as_priced(self) -> None:
        """Returns None: the tree is known before it is drafted."""

    def clipped(self, depth: int) -> "FixedTree":
        """Returns the shape without its levels below `depth`."""
        if depth >= self.depth:
            return self
        num_kept = sum(0 < level <= depth for level in self.depths)
        return replace(self, parents=self.parents[:num_kept])

    def __str__(self) -> str:
        if not self.parents:
            return "off"
        text = f"tree({', '.join(map(str, self.parents))})"
        return text if self.sampled else f"{text} chosen"


@dataclass(frozen=True)
class Priced:
    """The nodes that are worth what they cost, by the drafter's own probabilities.

    A best-first tree whose size follows the drafter's confidence. Where the drafter is sure the
    tree becomes deep, where it wavers it becomes wide or stays small. Children are chosen, never
    drawn, so any such tree is exact.

    Attributes:
        width: how many nodes of a level are expanded, and into how many children each.
        level_prices: one for each level. A level is drafted if the nodes to be expanded for it have
            at least so much probability together.
        node_prices: one for each node. The n-th most probable node is kept if it has at least so
            much probability, given that all before it were kept.
    """

    width: int
    level_prices: tuple[float, ...]
    node_prices: tuple[float, ...]

    kind = ShapeKind.PRICED

    def __post_init__(self) -> None:
        if self.width < 1 or any(price < 0 for price in self.level_prices + self.node_prices):
            raise InvalidInputError(
                "a priced shape needs a width of at least 1 and no negative price, got "
                f"{self.width}, {self.level_prices} and {self.node_prices}"
            )

    @property
    def depth(self) -> int:
        """The depth that no node exceeds."""
        return len(self.level_prices)

    @property
    def num_drafted(self) -> int:
        """The number of nodes, the anchor left out, that no tree exceeds."""
        return len(self.node_prices)

    @property
    def widest(self) -> int:
        """How many children the anchor may have."""
        return self.width

    def pays(self, prob: float, num_kept: int) -> bool:
        """Tells whether a node of this probability is kept after `num_kept` others."""
        return num_kept < len(self.node_prices) and prob >= self.node_prices[num_kept]

    def level_pays(self, level: int, prob: float) -> bool:
        """Tells whether a level is drafted below nodes of this probability in all."""
        if level >= len(self.level_prices):
            return False
        return not prob < self.level_prices[level]  # nan is unknown, and worth a try

    def as_tree(self) -> None:
        """Returns None: the drafter's probabilities decide on the tree."""

    def as_priced(self) -> "Priced":
        """Returns itself."""
        return self

    def without_levels(self) -> "Priced":
        """Returns the shape for which no network is run; guesses that need none stay."""
        return replace(self, level_prices=(UNPAYABLE_PRICE,) * self.depth)

    def clipped(self, depth: int) -> "Priced":
        """Returns the shape without its levels below `depth`."""
        if depth >= self.depth:
            return self
        return replace(self, level_prices=self.level_prices[: max(depth, 0)])

    def __str__(self) -> str:
        levels, nodes = (
            ", ".join(map(repr, prices)) for prices in (self.level_prices, self.node_prices)
        )
        return f"priced({self.width}; {levels}; {nodes})"


Shape = LevelWidths | BestFirst | FixedTree | Priced

OFF = LevelWidths(())
"""Plain decoding: the target scores the anchor alone."""


def is_off(shape: Shape) -> bool:
    """Tells whether no network is run for a draft; guesses that need none are kept if they pay."""
    return shape.depth == 0 or not shape.level_pays(0, 1.0)


def chain(length: int, *, sampled: bool = True) -> LevelWidths:
    """Returns the shape of `length` tokens in a row."""
    if not _is_whole(length, 0):
        raise InvalidInputError(
            f"a chain cannot have a negative length or a broken one, got {length!r}"
        )
    _check_size(length)
    return LevelWidths((1,) * length, sampled)


def _is_whole(number: object, least: int) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= least


def parse_shape(text: str) -> Shape:
    """Reads a shape as `str` writes it: "off", "chain(4)", "3x2x2x1" or "best_first(4, 6, 24)".

    Also "tree(0, 0, 1)", a fixed tree by its parents, and "priced(4; 0.3, 0.4; 0.1, 0.1, 0.2)".
    Children are sampled unless " chosen" comes after a chain, level widths or a fixed tree.

    Raises:
        InvalidInputError: if the text is none of these.
    """
    text = text.strip()
    try:
        if text == "off":
            return OFF
        if text.startswith("best_first(") and text.endswith(")"):
            return BestFirst(*_integers(text[len("best_first(") : -1].split(",")))
        if text.startswith("priced(") and text.endswith(")"):
            width, levels, nodes = text[len("priced(") : -1].split(";")
            return Priced(int(width), _prices(levels), _prices(nodes))
        levels = text.removesuffix(" chosen")
        sampled = levels == text
        if levels.startswith("chain(") and levels.endswith(")"):
            return chain(int(levels[len("chain(") : -1]), sampled=sampled)
        if levels.startswith("tree(") and levels.endswith(")"):
            return FixedTree(_integers(levels[len("tree(") : -1].split(",")), sampled)
        return LevelWidths(_integers(levels.split("x")), sampled)
    except (TypeError, ValueError) as error:
        reason = f" ({error})" if isinstance(error, InvalidInputError) else ""
        raise InvalidInputError(
            f'"{text}" is no shape of a tree{reason}; write off, chain(4), 3x2x2x1 or '
            "best_first(4, 6, 24)"
        ) from error


@lru_cache(maxsize=1024)
def _full_tree(widths: tuple[int, ...], sampled: bool) -> FixedTree:
    parents: list[int] = []
    level = range(1)
    for width in widths:
        first = len(parents) + 1
        parents += [node for node in level for _ in range(width)]
        level = range(first, len(parents) + 1)
    return FixedTree(tuple(parents), sampled)


def _integers(parts: Sequence[str]) -> tuple[int, ...]:
    return tuple(int(part) for part in parts)


def _prices(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part.strip())
