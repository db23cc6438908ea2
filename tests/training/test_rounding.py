"""Linear layers of 8-bit integers are close to what they stand in for, and give it back."""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import load_pretrained
from treesnake.training.rounding import RoundedLinear, rounded_to_int8, rounding_pays


def test_products_are_those_of_the_linear_layer_up_to_rounding() -> None:
    torch.manual_seed(0)
    for linear in (nn.Linear(64, 48), nn.Linear(64, 48, bias=False)):
        inputs = torch.randn(3, 5, 64)
        inputs[0, 0] = 0
        expected = linear(inputs)
        found = RoundedLinear(linear)(inputs)
        assert found.shape == expected.shape
        assert float((found - expected).norm() / expected.norm()) < 0.02
        torch.testing.assert_close(found[0, 0], expected[0, 0])


def test_each_row_has_a_scale_of_its_own() -> None:
    linear = nn.Linear(16, 4, bias=False)
    inputs = torch.randn(2, 16) * torch.tensor([[1.0], [1000.0]])
    expected = linear(inputs)
    found = RoundedLinear(linear)(inputs)
    assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1) < 0.05).all()


def test_a_model_has_its_layers_back_afterwards(target_folder: Path) -> None:
    model: PreTrainedModel = load_pretrained(
        str(target_folder), LoadOptions(dtype="float32", device="cpu")
    ).model
    tokens = torch.tensor([[5, 6, 7, 8]])
    before = model(input_ids=tokens).logits
    with rounded_to_int8(model):
        rounded = model(input_ids=tokens).logits
    assert not torch.equal(rounded, before)
    assert float((rounded - before).norm() / before.norm()) < 0.05
    assert torch.equal(model(input_ids=tokens).logits, before)


def test_rounding_does_not_pay_where_integers_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply_slowly(left: Tensor, right: Tensor) -> Tensor:
        time.sleep(0.2)
        return left.int() @ right.int()

    monkeypatch.setattr(torch, "_int_mm", multiply_slowly)
    assert not rounding_pays()
