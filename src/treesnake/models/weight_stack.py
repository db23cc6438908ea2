"""Matrices as the compiled networks read them: rounded and padded, those of all layers together."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.kernels.cpu.linear import STORAGE, padded, write_weight


class WeightStack:
    """The same matrix of every layer, filled layer by layer.

    `values` is (layers, outputs, inputs), the inputs padded with zeros to whole vectors; `scale` is
    (layers, outputs), 1 unless values are int8.
    """

    def __init__(self, layers: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.values = np.zeros((layers, outputs, padded(inputs)), STORAGE[dtype])
        self.scale = np.ones((layers, outputs), np.float32)

    def write(self, layer: int, weight: Float[Tensor, "outputs inputs"]) -> None:
        """Rounds the matrix of one layer."""
        self.write_blocks(layer, [weight])

    def write_blocks(self, layer: int, blocks: Iterable[Float[Tensor, "rows inputs"]]) -> None:
        """Rounds the matrix of one layer, given some rows at a time."""
        begin = 0
        for block in blocks:
            rows = slice(begin, begin + len(block))
            values = self.values[layer, rows, : block.shape[1]]
            write_weight(block, self.dtype, values, self.scale[layer, rows])
            begin = rows.stop
