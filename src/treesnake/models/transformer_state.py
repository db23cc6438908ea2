"""The state of one text in our own decoder, with a tree of tokens growing on it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.models.transformer import Transformer
from treesnake.prompt import num_shared
from treesnake.tree import TokenTree

PREFILL_CHUNK = 512
"""Tokens of a prompt that run at once: enough arithmetic per weight, little beside the weights."""

SMALLEST_CAPACITY = 512


class TransformerState:
    """Holds a text's keys and values; rows of a tree's nodes follow those of the text.

    A tree grows by calls of `extend`; all of its nodes are forgotten but those of the path that is
    committed. The network is shared, the state is not.
    """

    def __init__(self, network: Transformer) -> None:
        self.network = network
        self._cache = network.new_cache(SMALLEST_CAPACITY)
        self._held: list[int] = []
        self._tokens: list[int] = []
        self._parents: list[int] = []

    def prefill(self, token_ids: Sequence[int]) -> None:
        """Makes the state hold exactly these tokens; those that it holds already are kept."""
        num_kept = num_shared(self._held, token_ids)
        self._forget_tree()
        self._cache.rewind(num_kept)
        del self._held[num_kept:]
        for start in range(num_kept, len(token_ids), PREFILL_CHUNK):
            chunk = list(token_ids[start : start + PREFILL_CHUNK])
            self._reserve(len(chunk))
            mask = torch.ones(len(chunk), len(chunk), dtype=torch.bool).tril()
            self.network.forward(torch.tensor(chunk), mask, self._cache, num_logits=0)
            self._cache.commit(range(len(chunk)))
            self._held += chunk

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        """Appends nodes below earlier ones, or below the text (-1); returns logits after each."""
        num_before = len(self._tokens)
        # A node that stands for the end of the text makes one tree of what may have several roots.
        ends = [-1, *(parent + 1 for parent in (*self._parents, *parents))]
        tree = TokenTree(torch.zeros(len(ends), dtype=torch.long), torch.tensor(ends))
        mask = tree.ancestor_mask[1 + num_before :, 1:]
        self._reserve(mask.shape[1])
        logits = self.network.forward(torch.tensor(token_ids), mask, self._cache)
        self._tokens += token_ids
        self._parents += parents
        return logits

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path into the text and forgets the tree."""
        self._cache.commit(path)
        self._held += [self._tokens[node] for node in path]
        self._forget_tree()

    def _forget_tree(self) -> None:
        self._tokens.clear()
        self._parents.clear()

    def _reserve(self, num_nodes: int) -> None:
        """Makes room for a tree; a cache that is full is copied into one of twice the size."""
        needed = len(self._held) + num_nodes
        if needed > self._cache.capacity:
            self._cache = self._cache.grown(max(needed, 2 * self._cache.capacity))
