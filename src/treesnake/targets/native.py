"""Our own decoder as a target."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from treesnake.errors import BrokenModelError
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_state import TransformerState
from treesnake.prompt import Prompt
from treesnake.tree import TokenTree


@dataclass(frozen=True, eq=False)
class NativeTargetModel:
    """The weights of our own decoder, shared by its sessions."""

    network: Transformer

    def new_session(self) -> "NativeTarget":
        """Returns a session with an empty cache."""
        return NativeTarget(TransformerState(self.network))


class NativeTarget:
    """A target session of our own decoder.

    On a CPU the logits of a node have the same bits however many nodes are scored with it, so that
    greedy decoding by trees equals plain decoding in every dtype, to the last tie.
    """

    def __init__(self, state: TransformerState) -> None:
        self._state = state
        self._network = state.network

    @property
    def vocab_size(self) -> int:
        """The number of tokens that `score` gives logits for."""
        return self._network.vocab_size

    @property
    def context_length(self) -> int:
        """The number of tokens that fit."""
        return self._network.context_length

    def prefill(self, prompt: Prompt) -> None:
        """Makes the state hold every token of the prompt but the last.

        Raises:
            InvalidInputError: if a token is not in the vocabulary.
            ContextLengthError: if the prompt leaves no room in the context.
        """
        prompt.check(self.vocab_size, self.context_length)
        self._state.prefill(prompt.token_ids[:-1])

    def score(self, tree: TokenTree) -> Float[Tensor, "nodes vocab"]:
        """Returns the logits after each node.

        Raises:
            BrokenModelError: if they are no numbers, naming the first layer that gives none.
        """
        self._state.commit([])
        logits = self._state.extend(tree.tokens, tree.parent_list)
        if not bool(logits.amax(-1).isfinite().all()):
            layer = self._network.find_broken_layer(tree.token_ids)
            raise BrokenModelError(
                f"the target's logits are no numbers: {layer or 'a layer that sees the whole text'}"
                " is the first part of it whose output is not finite; its weights are broken, or "
                "too large for their dtype; load them anew or choose float32"
            )
        return logits

    def commit(self, path: Sequence[int]) -> None:
        """Takes the tokens of a path of the scored tree into the state."""
        self._state.commit(path)
