"""A network's state as a drafter keeps it: it may be behind its text, and a tree grows on it."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from treesnake.drafters.vocabulary import VocabularyMap
from treesnake.models.tree_network import FixedTreeNetwork, Part, TreeState
from treesnake.prompt import Prompt
from treesnake.shape import FixedTree
from treesnake.waiting_times import Noise

MOST_BEHIND = 32
"""Tokens behind that run in one pass with the next tree; more of them become text before."""


class DraftState:
    """A state of one text, in the target's tokens.

    An accepted leaf was drafted without the network having seen it. The state is *behind* by such
    tokens; they run in one pass with the next anchor, so that nothing is computed twice or in vain.
    While nothing is drafted the network is not run at all.

    Args:
        state: the state of an empty text.
        vocabulary: how the network's tokens relate to the target's.
    """

    def __init__(self, state: TreeState, vocabulary: VocabularyMap) -> None:
        self._state = state
        self._vocabulary = vocabulary
        self._behind: list[int] = []

    @property
    def at_once(self) -> FixedTreeNetwork | None:
        """The network, if it may grow fixed trees in one pass."""
        network = getattr(self._state, "network", None)
        return network if isinstance(network, FixedTreeNetwork) else None

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory."""
        return self._state.num_bytes

    @property
    def length(self) -> int:
        """The number of tokens in the text, those included that it is behind by."""
        return self._state.length + len(self._behind)

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last."""
        self.forget_tree()
        self._behind = []
        tokens = self._vocabulary.express(prompt.token_ids)
        self._state.prefill(Prompt(tuple(tokens), prompt.inputs, prompt.borders))

    def catch_up(self) -> None:
        """Runs tokens behind as text until few enough are left; there must be no tree."""
        while len(self._behind) > MOST_BEHIND:
            tokens = self._vocabulary.express(self._behind[:MOST_BEHIND])
            self._state.extend(tokens, range(-1, MOST_BEHIND - 1))
            self._state.commit(range(MOST_BEHIND))
            del self._behind[:MOST_BEHIND]

    def part(self, token_ids: Sequence[int], parents: Sequence[int]) -> Part:
        """Returns what a pass appends to the tree, so that it grows by these nodes.

        Nodes are numbered from the anchor, which comes first and alone, below -1. The tokens behind
        go in before it.
        """
        before = len(self._behind)
        if parents[0] >= 0:
            tokens, parents = token_ids, [before + parent for parent in parents]
        else:
            tokens, parents = [*self._behind, *token_ids], range(-1, before)
        return Part(self._state, self._vocabulary.express(tokens), parents)

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes network_logits"]:
        """Appends nodes, numbered as in `part`, and returns the logits after each."""
        part = self.part(token_ids, parents)
        return self._state.extend(part.token_ids, part.parents)[-len(token_ids) :]

    def grow_fixed(self, anchor: int, shape: FixedTree, noise: Noise | None) -> list[int]:
        """Grows a fixed tree over the anchor in one pass, if `at_once` says that the network does.

        Returns the columns of logits of the drafted nodes. Nodes are numbered as in `part`.
        """
        network = self.at_once
        assert network is not None, "only some networks grow trees at once"
        return network.grow_fixed(self.part([anchor], [-1]), shape, noise)

    def commit(self, seen: Sequence[int], token_ids: Sequence[int]) -> None:
        """Takes tokens into the text, and forgets the tree.

        Args:
            seen: the nodes of the tree that have the first of them, the anchor first; none if the
                tree was not grown.
            token_ids: the tokens. Those that were not seen are read later.
        """
        if seen:
            before = len(self._behind)
            self._state.commit([*range(before), *(before + node for node in seen)])
            self._behind = []
        self._behind += token_ids[len(seen) :]

    def forget_tree(self) -> None:
        """Empties the tree, also what was grown of it before an interruption."""
        self._state.commit(())
