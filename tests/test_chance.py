"""Draws by the noise of places: of the distributions that are asked for, without making them."""

import pytest
import torch

from treesnake.acceptance.coupled import coupled
from treesnake.acceptance.greedy import greedy
from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.protocols import AcceptanceRule
from treesnake.sampling import Distributions, SamplingParams
from treesnake.tree import TokenTree
from treesnake.waiting_times import WaitingTimes

TREE = TokenTree.of([0, 1, 2, 1], [-1, 0, 0, 1])


def distributions(params: SamplingParams, dtype: torch.dtype = torch.float32) -> Distributions:
    logits = 3 * torch.randn(len(TREE), 300, generator=torch.Generator().manual_seed(1))
    return Distributions(logits.to(dtype), params)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.3, top_k=5),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_comes_first_comes_first_by_the_probabilities(
    params: SamplingParams, dtype: torch.dtype
) -> None:
    target = distributions(params, dtype)
    for seed in range(20):
        token_after = TorchRng(seed).first_come(target, TREE.depths)
        for node, depth in enumerate(TREE.depths):
            expected = WaitingTimes(seed).first_come(target.probs[node].numpy(), depth)
            assert token_after(node) == expected


def test_rows_may_lie_apart() -> None:
    target = distributions(SamplingParams(temperature=1.0))
    apart = Distributions(target.logits.repeat_interleave(2, 1)[:, ::2], target.params)
    for seed in range(20):
        first, second = (TorchRng(seed).first_come(each, TREE.depths) for each in (target, apart))
        assert [first(node) for node in range(4)] == [second(node) for node in range(4)]


@pytest.mark.parametrize(("rule", "temperature"), [(greedy, 0.0), (coupled, 0.7)])
def test_nobody_makes_probabilities_that_nobody_asks_for(
    rule: AcceptanceRule, temperature: float
) -> None:
    target = distributions(SamplingParams(temperature=temperature))
    rule(Draft.chosen(TREE), target, TorchRng(0))
    assert "probs" not in vars(target)
    assert torch.allclose(target.probs.sum(-1), torch.ones(4))
