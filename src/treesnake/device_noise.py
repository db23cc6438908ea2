"""The noise of `treesnake.waiting_times` on any device, so that it need not wait for the host.

It has the same bits. Logarithms and sums may differ in the last one of float64.
"""

from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.waiting_times import RARE, TOGETHER

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


def first_come(
    probs: Float[Tensor, "nodes vocab"], seed: Int[Tensor, ""], places: Int[Tensor, " nodes"]
) -> Int[Tensor, " nodes"]:
    """Returns the token that comes first after each node, as `WaitingTimes.first_come` does.

    Args:
        probs: of all tokens; they need not be normalized.
        seed: 64 bits, as in `uniform`.
        places: those of the tokens after the nodes.
    """
    vocab_size = probs.shape[1]
    tokens = torch.arange(vocab_size, device=probs.device)
    others = torch.arange(1, 3, device=probs.device) * TOGETHER  # TOGETHER and WHICH
    chance = uniform(seed, places[:, None], torch.cat([tokens, others]))
    likely = probs >= RARE * probs.amax(1, keepdim=True)
    exact = probs.double()
    rates = torch.where(likely, exact, 0)
    times = -torch.log(chance[:, :-1])
    first = (rates / times[:, :-1]).max(1)
    below = torch.where(likely, 0, exact).cumsum(1)
    total = below[:, -1:].contiguous()
    rare = torch.minimum(
        torch.searchsorted(below, chance[:, -1:] * total, right=True),
        torch.searchsorted(below, total),
    )[:, 0]
    rest = exact.sum(1) - rates.sum(1)
    is_rare = (rest > times[:, -1] * first.values) & (total[:, 0] > 0)
    return torch.where(is_rare, rare, first.indices)


def uniform(
    seed: Int[Tensor, ""], place: Int[Tensor, "*places"], numbers: Int[Tensor, " numbers"]
) -> Float[Tensor, "*rows numbers"]:
    """Returns for each number one between 0 and 1, both left out, by SplitMix64.

    Args:
        seed: 64 bits, read as a number with a sign; see `signed`.
        place: in the text; for each of several, in a row of its own, there is a row of results.
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
