"""What a drafter proposes: a token tree, and how its nodes came about."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from treesnake.errors import InvalidInputError
from treesnake.sampling import Distributions
from treesnake.tree import TokenTree


@dataclass(frozen=True, eq=False)
class Draft:
    """A token tree together with the law by which its nodes were found.

    A node was either *sampled*: drawn from its parent's row of `draft_probs` with the tokens of its
    earlier siblings set to zero; or *chosen*: a function of the text alone, without chance. An
    acceptance rule is exact for some of these and refuses the others.

    Attributes:
        tree: the tree.
        draft_probs: row t is the drafter's distribution after node t, over the target's
            vocabulary. Rows of trailing leaves may be missing. None if no node was sampled and the
            drafter has no probabilities.
        sampled_mask: True where a node was sampled. The anchor's entry is False.
        node_probs: the probability of the path to each node by the drafter's own account, nan where
            it has none, or None if it has none at all. A search may learn from it; no rule looks.
        num_expanded: how many nodes of each level were run to find those below, which is what
            drafting takes, or None if those are all nodes with children.
        stream_weights: what each stream of a mixture counted for, by name; None if it is none.
    """

    tree: TokenTree
    draft_probs: Float[Tensor, "inner vocab"] | None
    sampled_mask: tuple[bool, ...]
    node_probs: tuple[float, ...] | None = None
    num_expanded: tuple[int, ...] | None = None
    stream_weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if len(self.sampled_mask) != len(self.tree) or self.sampled_mask[0]:
            raise InvalidInputError(
                "sampled_mask needs one entry per node, and False for the anchor, which nobody drew"
            )
        if self.draft_probs is None:
            num_rows = 0
        else:
            num_rows = self.draft_probs.shape[0]
        if any(
            sampled and parent >= num_rows
            for sampled, parent in zip(self.sampled_mask, self.tree.parents, strict=True)
        ):
            raise InvalidInputError(
                f"a node was sampled from a distribution that the draft lacks: it has {num_rows} "
                "rows of probabilities"
            )

    @classmethod
    def nothing(cls, anchor: int) -> "Draft":
        """Makes a draft of the anchor alone, for which no model was run."""
        return cls.chosen(TokenTree.of((anchor,), (-1,)), num_expanded=())

    @classmethod
    def sampled(cls, tree: TokenTree, draft_probs: Float[Tensor, "inner vocab"]) -> "Draft":
        """Makes a draft of which every node was drawn without replacement, in node order."""
        return cls(tree, draft_probs, (False, *(True,) * tree.num_drafted))

    @classmethod
    def chosen(
        cls,
        tree: TokenTree,
        draft_probs: Float[Tensor, "inner vocab"] | None = None,
        node_probs: tuple[float, ...] | None = None,
        num_expanded: tuple[int, ...] | None = None,
    ) -> "Draft":
        """Makes a draft of which every node was chosen without chance."""
        return cls(tree, draft_probs, (False,) * len(tree), node_probs, num_expanded)

    @property
    def is_sampled(self) -> bool:
        """Whether every drafted node was sampled."""
        return all(self.sampled_mask[1:])

    @property
    def is_chosen(self) -> bool:
        """Whether every drafted node was chosen."""
        return not any(self.sampled_mask)


@dataclass(frozen=True, eq=False)
class Scored:
    """What the target made of a draft, for drafters that learn from it.

    Attributes:
        draft: the whole tree, those parts included that other drafters found.
        target: its distribution after each node, constraints applied.
        path: the accepted nodes that became text, the anchor first.
    """

    draft: Draft
    target: Distributions
    path: tuple[int, ...]
