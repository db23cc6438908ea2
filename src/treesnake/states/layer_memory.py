"""What one recurrent layer remembers of a text, and of the nodes of a tree that grows on it.

A layer has convolutions and recurrences, in an order that its model decides; shapes are learned
from the first tokens. Of a node the inputs are kept, so that a path is committed in closed form.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from treesnake.kernels.dispatch import conv_kernels
from treesnake.kernels.reference.conv import next_history
from treesnake.states.grown_nodes import GrownNodes
from treesnake.states.recurrences import Recurrence, Rows, chosen

Activation = Callable[[Tensor], Tensor]
"""What follows a convolution."""


class LayerMemory:
    """The memory of one layer and one text.

    Attributes:
        histories: for each convolution its last inputs.
        states: for each recurrence its state after the text.
    """

    def __init__(self) -> None:
        self.histories: dict[int, Float[Tensor, "history channels"]] = {}
        self.states: dict[int, Float[Tensor, ...]] = {}
        self._conv_nodes: dict[int, Float[Tensor, "nodes channels"]] = {}
        self._moving: dict[int, Rows] = {}
        self._recurrences: dict[int, Recurrence] = {}

    @property
    def num_bytes(self) -> int:
        """What text and tree take in memory."""
        kept = [*self.histories.values(), *self.states.values(), *self._conv_nodes.values()]
        moving = [rows for each in self._moving.values() for rows in each]
        return sum(tensor.nbytes for tensor in (*kept, *moving))

    def convolve(
        self,
        number: int,
        inputs: Float[Tensor, "rows channels"],
        weight: Float[Tensor, "channels conv_width"],
        bias: Float[Tensor, " channels"] | None,
        grown: GrownNodes | None,
    ) -> Float[Tensor, "rows channels"]:
        """Convolves the next tokens of the text, or the new nodes of its tree.

        Args:
            number: which of the layer's convolutions it is.
            inputs: those of the new tokens or nodes.
            weight: a filter for each channel.
            bias: of each channel.
            grown: the tree with the new nodes; None if they are tokens of the text.
        """
        if number not in self.histories:
            channels, width = weight.shape
            self.histories[number] = inputs.new_zeros(width - 1, channels)
        history, kernels = self.histories[number], conv_kernels(inputs.device)
        if grown is None:
            # Of a long text only the end: a view would keep all of it in memory.
            self.histories[number] = next_history(inputs[-max(len(history), 1) :], history)
            return kernels.causal_filter(inputs, weight, bias, history)
        before = self._conv_nodes.get(number)
        nodes = self._conv_nodes[number] = _with_new(before, inputs, grown)
        rows = grown.rows(weight.shape[1], inputs.device)
        filtered = kernels.tree_filter(nodes[None], weight, bias, history[None], rows)[0]
        return filtered.to(inputs.dtype)

    def run(
        self,
        number: int,
        recurrence: Recurrence,
        moving: Rows,
        reading: Float[Tensor, "rows ..."],
        grown: GrownNodes | None,
    ) -> Float[Tensor, "rows ..."]:
        """Runs the next tokens of the text, or the new nodes of its tree, through a recurrence.

        Args:
            number: which of the layer's recurrences it is.
            recurrence: the recurrence.
            moving: what moves the state.
            reading: what reads it.
            grown: the tree with the new nodes; None if they are tokens of the text.
        """
        if number not in self.states:
            self.states[number] = recurrence.zero_state(moving)
        state = self.states[number]
        if grown is None:
            outputs, after = recurrence.scan(moving, reading, state)
            # It may be a view of the states of a chunk.
            self.states[number] = after.clone(memory_format=torch.contiguous_format)
            return outputs
        before = self._moving.get(number, (None,) * len(moving))
        nodes = tuple(_with_new(old, new, grown) for old, new in zip(before, moving, strict=True))
        self._moving[number], self._recurrences[number] = nodes, recurrence
        return recurrence.extend(nodes, reading, state, grown)

    def commit(self, path: Sequence[int]) -> None:
        """Moves the text's part to the end of a path and forgets the nodes."""
        if path:
            for number, nodes in self._conv_nodes.items():
                inputs = nodes[list(path)]
                self.histories[number] = next_history(inputs, self.histories[number])
            for number, moving in self._moving.items():
                recurrence = self._recurrences[number]
                state = self.states[number]
                self.states[number] = recurrence.commit(chosen(moving, path), state)
        self.forget_tree()

    def forget_tree(self) -> None:
        """Drops the nodes."""
        self._conv_nodes.clear()
        self._moving.clear()

    def reset(self) -> None:
        """Makes it that of an empty text."""
        self.forget_tree()
        self.histories.clear()
        self.states.clear()

    def copy(self) -> tuple[Shaped[Tensor, "..."], ...]:
        """Returns copies of the text's part: how many there are of each kind, and then these."""
        counts = torch.tensor([len(self.histories), len(self.states)])
        kept = (*self.histories.values(), *self.states.values())
        return counts, *(tensor.clone() for tensor in kept)

    def restore(self, tensors: Sequence[Shaped[Tensor, "..."]]) -> int:
        """Takes back what `copy` returned, from the beginning of a sequence; says how much."""
        self.reset()
        num_histories, num_states = tensors[0].tolist()
        for number in range(num_histories):
            self.histories[number] = tensors[1 + number].clone()
        for number in range(num_states):
            self.states[number] = tensors[1 + num_histories + number].clone()
        return 1 + num_histories + num_states


def _with_new(before: Tensor | None, new: Tensor, grown: GrownNodes) -> Tensor:
    """Appends rows of new nodes, in place of those that an interrupted pass may have left."""
    if grown.num_before == 0:
        return new.contiguous()
    assert before is not None, "earlier nodes were run"
    return torch.cat([before[: grown.num_before], new])
