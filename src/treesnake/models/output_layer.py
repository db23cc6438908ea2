"""Networks whose output layer can be exchanged while texts are under way."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class OutputLayer(Protocol):
    """What learning on the fly needs of a network: what its output layer sees, and its weight."""

    def hidden_states(self, token_ids: Sequence[int]) -> Iterator[Float[Tensor, "_ hidden"]]:
        """Yields what the output layer sees behind each token of a text, in float32 on the host.

        Costs a pass over the text without its logits. It comes in parts of some milliseconds, and
        other texts may be run between them.
        """
        ...

    def output_weight(self) -> Float[Tensor, "outputs hidden"]:
        """Returns a copy of the output layer in float32 on the host, as rounded as it is."""
        ...

    def replace_output(self, weight: Float[Tensor, "outputs hidden"]) -> None:
        """Exchanges the output layer; it is rounded as the one before.

        The next pass has it, of all texts. Tied embeddings stay what they are.
        """
        ...
