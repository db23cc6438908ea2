"""Any network as a target; a tree is scored in one pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.models.tree_network import (
    ExactNetwork,
    LendingState,
    TreeNetwork,
    TreeState,
)
from treesnake.prompt import Prompt
from treesnake.sampling import all_finite
from treesnake.tree import TokenTree


@dataclass(frozen=True, eq=False)
class NetworkTargetModel:
    """Makes target sessions over a network.

    Attributes:
        network: the weights, in any engine. A model of transformers becomes one by
            `treesnake.models.hf_network.hf_network`.
    """

    network: TreeNetwork

    def new_session(self) -> "NetworkTarget":
        """Returns a session with an empty state."""
        network = self.network
        exact = isinstance(network, ExactNetwork)
        return NetworkTarget(network, network.new_exact_state() if exact else network.new_state())


class NetworkTarget:
    """A target session: a network and its state of one text.

    On a CPU our own decoder, Mamba and Mamba-2 give a node the same bits however many nodes are
    scored with it, so that greedy decoding by trees equals plain decoding in every dtype, to the
    last tie. In other engines it is equal within rounding.
    """

    def __init__(self, network: TreeNetwork, state: TreeState) -> None:
        self._network = network
        self._state = state
        self._scored: tuple[TokenTree, Callable[[], bool]] | None = None

    @property
    def vocab_size(self) -> int:
        """The number of tokens that `score` gives logits for."""
        return self._network.vocab_size

    @property
    def context_length(self) -> int | None:
        """The number of tokens that fit, or None if there is no limit."""
        return self._network.context_length

    @property
    def num_bytes(self) -> int:
        """What the text takes in memory."""
        return self._state.num_bytes

    def lent_to(self, network: TreeNetwork) -> TreeState:
        """Returns a state of another network on the session's text; see `LendingState`.

        Raises:
            InvalidInputError: if the text is not kept in the network's form.
        """
        if not isinstance(self._state, LendingState):
            raise InvalidInputError(
                f"the states of {type(self._network).__name__} are not lent: a model that drafts "
                "for itself runs in the native engine on a CPU"
            )
        return self._state.lent_to(network)

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last.

        What the state can reuse is not run again. A long prompt runs part by part, and if that is
        interrupted, the state holds a beginning of it.

        Raises:
            InvalidInputError: if a token is not in the vocabulary, or the prompt brings inputs
                that the network cannot read.
            ContextLengthError: if the prompt leaves no room in the context.
        """
        prompt.check(self.vocab_size, self.context_length)
        self._state.prefill(prompt)

    def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
        """Returns the logits after each node, in one forward pass.

        Raises:
            InvalidInputError: if the tree has a token that the model does not know.
            ContextLengthError: if the tree reaches beyond the context.
            BrokenModelError: if the logits are no numbers. On a GPU the next `score` or `commit`
                raises it, since the host does not wait for the logits here.
        """
        self._check_tree(tree)
        self._check_scored()
        self._state.commit(())
        logits = self._state.extend(tree.tokens, tree.parents)
        self._scored = tree, all_finite(logits)
        if logits.device.type != "cuda":
            self._check_scored()
        return logits

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path of the scored tree into the state."""
        self._check_scored()
        self._state.commit(path)

    def _check_scored(self) -> None:
        """Checks once that the logits of the tree that was scored last are numbers."""
        scored, self._scored = self._scored, None
        if scored is None:
            return
        tree, are_finite = scored
        if not are_finite():
            self._state.commit(())
            raise self._state.broken_model_error(tree.tokens, tree.parents)

    def _check_tree(self, tree: TokenTree) -> None:
        if min(tree.tokens) < 0 or max(tree.tokens) >= self.vocab_size:
            wrong = min(tree.tokens) if min(tree.tokens) < 0 else max(tree.tokens)
            raise InvalidInputError(
                f"the tree has token id {wrong} and the target knows {self.vocab_size} "
                "tokens; load the drafter with the target's tokenizer"
            )
        length = self._state.length + 1 + tree.depth
        if self.context_length is not None and length > self.context_length:
            raise ContextLengthError(
                f"the tree reaches token {length} of the text and the context holds "
                f"{self.context_length}; clip its shape to the room that is left"
            )
