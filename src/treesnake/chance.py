"""Chance from a seed: what `treesnake.sampling.Rng` promises, drawn."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake import device_noise
from treesnake.arguments import as_seed
from treesnake.device_noise import signed
from treesnake.kernels.cpu.best_tokens import first_come
from treesnake.sampling import Distributions, cpu_rows
from treesnake.transfers import sent
from treesnake.waiting_times import WaitingTimes, first_beyond

BLOCK = 256
"""Probabilities that are added up at once where a token is drawn."""


class TorchRng:
    """Randomness from a seed: one generator on the host, the same on every device.

    Args:
        seed: a number from 0 to 2^63 - 1, or None for one from the operating system.

    Attributes:
        waiting_times: the noise of places.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(as_seed(seed))
        self.waiting_times = WaitingTimes(self._generator.initial_seed())

    def coin(self, probability: float) -> bool:
        """Returns True with the given probability; values above 1 mean certainty."""
        return self._uniform() < probability

    def draw(self, probs: Float[Tensor, " vocab"]) -> int:
        """Returns one token by inversion of the distribution function, in float64."""
        return self._invert(probs.numpy(force=True))

    def draw_distinct(self, probs: Float[Tensor, " vocab"], num_tokens: int) -> list[int]:
        """Returns up to `num_tokens` distinct tokens in the order in which they were drawn."""
        row = probs.numpy(force=True)
        tokens: list[int] = []
        for _ in range(min(num_tokens, np.count_nonzero(row > 0))):
            if tokens:
                row = row.copy()
                row[tokens[-1]] = 0
            tokens.append(self._invert(row))
        return tokens

    def _invert(self, probs: Float[np.ndarray, " vocab"]) -> int:
        """Draws by numpy: sums of blocks first, since adding up a row one by one takes longer."""
        starts = np.arange(0, len(probs), BLOCK)
        totals = np.cumsum(np.add.reduceat(probs, starts, dtype=np.float64))
        point = totals[-1] * self._uniform()
        block = first_beyond(totals, point)
        before = totals[block - 1] if block else 0.0
        begin = block * BLOCK
        inside = np.cumsum(probs[begin : begin + BLOCK], dtype=np.float64)
        return begin + first_beyond(inside, point - before)

    def waits(
        self, depth: int, token_ids: Int[np.ndarray, " tokens"]
    ) -> Float[np.ndarray, " tokens"]:
        """Returns the waiting times of tokens at a place, from seed and place alone."""
        return self.waiting_times.at(depth, token_ids)

    def first_come(self, target: Distributions, depths: Sequence[int]) -> Callable[[int], int]:
        """Returns what gives the token that comes first after a node, by its probability.

        On a CPU it goes by logits where there are no filters, in one compiled call a node. On a GPU
        all nodes are drawn for at once, and looked at once.
        """
        times, params = self.waiting_times, target.params
        device = target.logits.device
        if device.type == "cuda":
            places = sent([times.place + depth for depth in depths], device)
            seed = torch.tensor(signed(times.seed))
            return device_noise.first_come(target.probs, seed, places).tolist().__getitem__
        if device.type != "cpu" or params.has_filters or params.is_greedy:
            probs = target.probs
            return lambda node: times.first_come(probs[node].numpy(force=True), depths[node])
        rows = np.ascontiguousarray(cpu_rows(target.logits))
        temperature = params.temperature
        return lambda node: first_come(rows, node, times.noise(temperature, depths[node]))

    def advance(self, num_tokens: int) -> None:
        """Goes on in the text by so many tokens."""
        self.waiting_times.advance(num_tokens)

    def _uniform(self) -> float:
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))
