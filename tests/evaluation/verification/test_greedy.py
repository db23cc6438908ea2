"""Ties and errors, of greedy texts and at the edge of what may be sampled."""

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.evaluation.verification.evidence import Difference, GreedyEvidence
from treesnake.evaluation.verification.plain import PlainDecoding, last_bit
from treesnake.evaluation.verification.sampling import count_impossible
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import TinyNetwork


def difference(gap: float, rounding: float) -> Difference:
    return Difference(0, 3, 7, 8, 10.0 - gap, 10.0, rounding)


def test_a_gap_that_rounding_explains_is_a_tie_and_passes() -> None:
    evidence = GreedyEvidence(1, 64, (difference(0.01, 0.01),))
    assert evidence.ties
    assert evidence.is_passed


def test_a_gap_that_rounding_does_not_explain_fails() -> None:
    evidence = GreedyEvidence(1, 64, (difference(0.5, 0.01), difference(0.0, 0.01)))
    assert [error.gap for error in evidence.errors] == [pytest.approx(0.5)]
    assert not evidence.is_passed


@dataclass
class ConstantModel:
    """Always the same logits."""

    logits: tuple[float, ...]

    @property
    def vocab_size(self) -> int:
        return len(self.logits)

    def initial(self) -> None:
        return None

    def step(self, state: None, token: int) -> tuple[None, Float[Tensor, " vocab"]]:
        return None, torch.tensor(self.logits)


def test_a_token_at_the_edge_within_rounding_is_not_impossible() -> None:
    plain = PlainDecoding(NetworkTargetModel(TinyNetwork(ConstantModel((1.0, 1.0 - 1e-7, 0.5)))))
    params = SamplingParams(temperature=1.0, top_k=1)
    assert count_impossible(plain, Prompt((0,)), [0, 1, 0], params) == 0
    assert count_impossible(plain, Prompt((0,)), [0, 2, 1, 2], params) == 2


def test_the_last_bit_is_that_of_the_coarsest_dtype_that_fits() -> None:
    assert last_bit(torch.tensor([4.0, 0.5])) == 4 * torch.finfo(torch.bfloat16).eps
    assert last_bit(torch.tensor([4.001, 0.5])) == pytest.approx(4 * 2**-23, rel=0.01)
