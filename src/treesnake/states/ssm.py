"""The memory of one text in a recurrent network, and of the nodes of a tree that grows on it.

A text is one recurrent state and the last inputs of the convolutions, whatever its length. Which
text it is, and how the nodes lie, `HeldText` says.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.reference.conv import next_history
from treesnake.states.branching import Branching, StateShape, with_room
from treesnake.threads import on_one_thread


class SsmState:
    """What one text and its tree have in memory; others share the weights, nobody shares this.

    The tensors of the text stay at their addresses; those of nodes move when a tree outgrows them.

    Attributes:
        shape: the axes of everything below.
        history: the last inputs of each layer's convolution.
        recurrent: each layer's state after the text.
        branching: what is kept of the tree's nodes.
        conv_inputs: the inputs of the convolutions at each node.
    """

    def __init__(self, shape: StateShape, branching: Branching, device: torch.device) -> None:
        self.shape = shape
        self.branching = branching
        num_layers = shape.num_layers
        history_shape = (shape.conv_width - 1, shape.conv_channels)
        self.history = torch.zeros(num_layers, *history_shape, device=device)
        self.recurrent = torch.zeros(num_layers, *shape.state, device=device)
        self.conv_inputs = torch.empty(num_layers, 0, shape.conv_channels, device=device)

    @property
    def num_bytes(self) -> int:
        """The bytes of the text's part and of the room for nodes."""
        committed = self.history.nbytes + self.recurrent.nbytes
        return committed + self.conv_inputs.nbytes + self.branching.num_bytes

    def reserve(self, num_nodes: int) -> None:
        """Makes room for a tree of this many nodes; what is kept of nodes stays."""
        self.conv_inputs = with_room(self.conv_inputs, num_nodes)
        self.branching.reserve(num_nodes)

    def commit(self, path: Sequence[int]) -> None:
        """Moves the text's part to the end of a path of the tree, which may be empty.

        If this is interrupted, the text's part may be that of no text at all.
        """
        if path:
            self.branching.commit(path, self.recurrent)
            self._push_history(path)

    @on_one_thread
    def _push_history(self, path: Sequence[int]) -> None:
        self.history.copy_(next_history(self.conv_inputs[:, list(path)], self.history))

    def reset(self) -> None:
        """Makes the text's part that of an empty text."""
        self.history.zero_()
        self.recurrent.zero_()

    def copy(self) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """Returns a copy of the text's part, for `restore`."""
        return self.history.clone(), self.recurrent.clone()

    def restore(self, copied: Sequence[Float[Tensor, "..."]]) -> None:
        """Makes the text's part what `copy` returned here or in another state of the network."""
        history, recurrent = copied
        self.history.copy_(history)
        self.recurrent.copy_(recurrent)
