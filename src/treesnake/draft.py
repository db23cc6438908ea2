"""What a drafter proposes: a token tree, and how its nodes came about."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from treesnake.errors import InvalidInputError
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
        sampled_mask: True where a node was sampled, on the host. The anchor's entry is False.
        node_probs: the probability of the path to each node by the drafter's own account, nan where
            it has none, or None if it has none at all. A search may learn from it; no rule looks.
        num_expanded: how many nodes of each level were run to find those below, which is what
            drafting takes, or None if those are all nodes with children.
    """

    tree: TokenTree
    draft_probs: Float[Tensor, "inner vocab"] | None
    sampled_mask: Bool[Tensor, " nodes"]
    node_probs: tuple[float, ...] | None = None
    num_expanded: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.sampled_mask.shape != self.tree.parents.shape or bool(self.sampled_mask[0]):
            raise InvalidInputError(
                "sampled_mask needs one entry per node, and False for the anchor, which nobody drew"
            )
        if self.draft_probs is None:
            num_rows = 0
        else:
            num_rows = self.draft_probs.shape[0]
        if any(
            sampled and parent >= num_rows
            for sampled, parent in zip(
                self.sampled_mask.tolist(), self.tree.parent_list, strict=True
            )
        ):
            raise InvalidInputError(
                f"a node was sampled from a distribution that the draft lacks: it has {num_rows} "
                "rows of probabilities"
            )

    @classmethod
    def sampled(cls, tree: TokenTree, draft_probs: Float[Tensor, "inner vocab"]) -> "Draft":
        """Makes a draft of which every node was drawn without replacement, in node order."""
        sampled_mask = torch.ones(len(tree), dtype=torch.bool)
        sampled_mask[0] = False
        return cls(tree, draft_probs, sampled_mask)

    @classmethod
    def chosen(
        cls,
        tree: TokenTree,
        draft_probs: Float[Tensor, "inner vocab"] | None = None,
        node_probs: tuple[float, ...] | None = None,
        num_expanded: tuple[int, ...] | None = None,
    ) -> "Draft":
        """Makes a draft of which every node was chosen without chance."""
        sampled_mask = torch.zeros(len(tree), dtype=torch.bool)
        return cls(tree, draft_probs, sampled_mask, node_probs, num_expanded)

    @property
    def is_sampled(self) -> bool:
        """Whether every drafted node was sampled."""
        return bool(self.sampled_mask[1:].all())

    @property
    def is_chosen(self) -> bool:
        """Whether every drafted node was chosen."""
        return not self.sampled_mask.any()
