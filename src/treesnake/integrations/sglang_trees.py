"""Trees of a drafter in the place of the corpus that SGLang's worker for n-grams asks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treesnake.integrations.batch_drafts import BatchDrafts, Row
from treesnake.integrations.tree_arrays import tree_arrays
from treesnake.shape import BestFirst


class Trees:
    """What the worker asks for trees, in the place of a corpus.

    Args:
        drafts: the drafter; None on all ranks but the first, which get what that drafted.
        shape: of the trees.
        group: SGLang's ranks that share each layer.
    """

    def __init__(self, drafts: BatchDrafts | None, shape: BestFirst, group: Any) -> None:
        self._drafts = drafts
        self._shape = shape
        self._group = group

    def batch_get(
        self, req_ids: Sequence[str], batch_tokens: Sequence[list[int]], total_lens: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the nodes of each text's tree, and who is an ancestor of whom."""
        num_nodes = self._shape.num_drafted + 1
        tokens = np.zeros((len(req_ids), num_nodes), np.int64)
        masks = np.zeros((len(req_ids), num_nodes, num_nodes), np.int64)
        if self._drafts is not None:
            texts = [np.array(text, np.int32) for text in batch_tokens]
            rows = [Row(name, text) for name, text in zip(req_ids, texts, strict=True)]
            for index, draft in enumerate(self._drafts.draft(rows, self._shape)):
                tree = None if draft is None else draft.tree
                anchor = batch_tokens[index][-1]
                tokens[index], masks[index] = tree_arrays(tree, anchor, num_nodes)
        self._share(tokens, masks)
        return tokens.ravel(), masks.ravel()

    def _share(self, *arrays: NDArray[np.int64]) -> None:
        """Makes all ranks go on with what the first one drafted."""
        group = self._group
        if group.world_size > 1:
            for array in arrays:
                shared = torch.from_numpy(array)
                torch.distributed.broadcast(shared, src=group.ranks[0], group=group.cpu_group)

    def batch_put(self, batch_tokens: Sequence[list[int]]) -> None:
        """Learns nothing: a drafter reads a text when it drafts for it."""

    def synchronize(self) -> None:
        """Waits for nothing."""

    def reset(self) -> None:
        """Forgets nothing: a text that does not go on is dropped in time."""

    def erase_match_state(self, req_ids: Sequence[str]) -> None:
        """Drops texts that have ended."""
        if self._drafts is not None:
            self._drafts.forget(req_ids)
