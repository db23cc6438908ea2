"""A drafter made of any model that can grow a tree."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from treesnake.draft import Draft
from treesnake.drafters.growing import GrownDraft, grow
from treesnake.drafters.vocabulary import SameVocabulary, VocabularyMap
from treesnake.models.tree_model import TreeModel
from treesnake.prompt import Prompt
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape

LONGEST_LEAD = 32
"""Pending tokens that a tree may begin with; what is more becomes text before."""


class ModelDrafter:
    """Drafts trees with a `TreeModel`.

    An accepted leaf was drafted without the model having seen it. Such tokens stay pending and go
    through the model together with the next anchor, so that nothing is computed twice or in vain.
    While nothing is drafted the model is not run at all.

    Args:
        model: the model.
        vocabulary: how its tokens relate to the target's; None if they are the same.
        max_depth: no tree becomes deeper.
    """

    def __init__(
        self,
        model: TreeModel,
        vocabulary: VocabularyMap | None = None,
        max_depth: int | None = None,
    ) -> None:
        self._model = model
        self._vocabulary = vocabulary or SameVocabulary()
        self._max_depth = max_depth
        self._pending: list[int] = []
        self._num_lead = 0
        self._grown: GrownDraft | None = None

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last."""
        self._forget_draft()
        self._pending = []
        self._model.prefill(self._vocabulary.express(prompt.token_ids[:-1]))

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        """Grows a tree over `anchor`; see `treesnake.drafters.growing.grow`."""
        self._forget_draft()
        if self._max_depth is not None:
            shape = shape.clipped(self._max_depth)
        if shape.depth > 0:
            self._shorten_lead()
        self._num_lead = len(self._pending)
        self._grown = grow(anchor, shape, params, rng, self._extend, self._vocabulary)
        return self._grown.draft

    def commit(self, token_ids: Sequence[int]) -> None:
        """Takes tokens into the state; those that the model has not seen become pending."""
        assert self._grown is not None, "commit comes after draft"
        path = self._grown.draft.tree.follow(token_ids)
        assert path, "the first token to commit is the anchor of the draft"
        seen = [node for node in (self._grown.grown_nodes[step] for step in path) if node >= 0]
        if seen:
            lead = range(self._num_lead)
            self._model.commit([*lead, *(self._num_lead + node for node in seen)])
            self._pending = []
        self._pending += token_ids[len(seen) :]
        self._grown = None

    def _extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes network_logits"]:
        """Appends nodes numbered from the anchor; pending tokens go in before it."""
        express = self._vocabulary.express
        if parents[0] >= 0:
            below = [self._num_lead + parent for parent in parents]
            return self._model.extend(express(token_ids), below)
        lead_parents = range(-1, self._num_lead - 1)
        logits = self._model.extend(
            express([*self._pending, *token_ids]), [*lead_parents, self._num_lead - 1]
        )
        return logits[self._num_lead :]

    def _shorten_lead(self) -> None:
        while len(self._pending) > LONGEST_LEAD:
            lead = self._vocabulary.express(self._pending[:LONGEST_LEAD])
            self._model.extend(lead, range(-1, LONGEST_LEAD - 1))
            self._model.commit(range(LONGEST_LEAD))
            del self._pending[:LONGEST_LEAD]

    def _forget_draft(self) -> None:
        """Empties the tree, also what was grown of it before an interruption."""
        self._model.commit([])
        self._grown = None
