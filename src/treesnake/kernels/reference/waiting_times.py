"""The noise of `treesnake.waiting_times` on any device, so that it need not wait for the host.

It has the same bits. Logarithms may differ in the last one of float64.
"""

from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.waiting_times import RARE

GOLDEN = 0x9E3779B97F4A7C15
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def with_noise(
    logits: Float[Tensor, "nodes columns"],
    seed: Int[Tensor, ""],
    place: Int[Tensor, ""],
    token_ids: Int[Tensor, " columns"],
    temperature: Float[Tensor, ""],
) -> Float[Tensor, "nodes columns"]:
    """Adds the noise by which a target draws the next token at a place; rare ones lose all chance.

    Does what `treesnake.drafters.growing.with_noise` does, for nodes of one depth.
    """
    likely = logits >= logits.amax(1, keepdim=True) + temperature * log(RARE)
    waits = -torch.log(uniform(seed, place, token_ids))
    noisy = (logits - temperature * torch.log(waits)).to(logits.dtype)
    return torch.where(likely, noisy, -torch.inf)


def uniform(
    seed: Int[Tensor, ""], place: Int[Tensor, ""], numbers: Int[Tensor, " numbers"]
) -> Float[Tensor, " numbers"]:
    """Returns for each number one between 0 and 1, both left out, by SplitMix64.

    Args:
        seed: 64 bits, read as a number with a sign; see `signed`.
        place: in the text.
        numbers: of tokens.
    """
    start = _mixed(_mixed(seed) ^ place * signed(GOLDEN))
    bits = _mixed(start + numbers * signed(GOLDEN))
    return (_shifted(bits, 12).double() + 0.5) * 2.0**-52


def signed(number: int) -> int:
    """Returns the number with the same 64 bits that has a sign; products have the same bits."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _mixed(words: Int[Tensor, "*words"]) -> Int[Tensor, "*words"]:
    """Returns words of which each bit depends on all bits of the given ones."""
    words = (words ^ _shifted(words, 30)) * signed(FACTORS[0])
    words = (words ^ _shifted(words, 27)) * signed(FACTORS[1])
    return words ^ _shifted(words, 31)


def _shifted(words: Int[Tensor, "*words"], by: int) -> Int[Tensor, "*words"]:
    """Moves bits to the right, as in numbers without a sign."""
    return (words >> by) & ((1 << (64 - by)) - 1)
