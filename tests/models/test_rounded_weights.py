"""Weights in 8 and 4 bits: close to the exact ones, and checked before they are used."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.errors import LoadError
from treesnake.models.rounded_weights import (
    UnroundedWeights,
    round_to_4_bits,
    round_to_8_bits,
    unrounded,
)


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6), st.floats(1e-3, 10))
def test_what_is_stored_in_fewer_bits_is_read_under_its_own_name(
    rows: int, groups: int, seed: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = size * torch.randn(rows, 64 * groups, generator=generator)
    matrix[0, :64] = 0
    bias = torch.ones(3)
    for rounding, most in ((round_to_8_bits, 0.005), (round_to_4_bits, 0.13)):
        stored = rounding("w", matrix) | {"b": bias}
        read = unrounded(stored, "here")
        assert {*read} == {"w", "b"}
        assert len(read) == 2
        assert read["b"] is bias
        assert read["w"].dtype == torch.float16
        assert (read["w"].float() - matrix).abs().max() <= most * matrix.abs().max() + 1e-6


def test_8_bits_are_the_same_once_they_are_rounded_again() -> None:
    matrix = torch.randn(7, 128)
    first = round_to_8_bits("w", matrix)
    again = round_to_8_bits("w", unrounded(first, "here")["w"])
    assert torch.equal(first["w.int8"], again["w.int8"])


def test_a_checkpoint_without_rounded_weights_is_left_as_it_is() -> None:
    stored = {"w": torch.ones(2, 2)}
    assert unrounded(stored, "here") is stored


@pytest.mark.parametrize("fault", ["no scales", "twice", "rows", "groups", "dtype", "axes"])
def test_what_does_not_fit_together_is_refused(fault: str) -> None:
    stored = round_to_4_bits("w", torch.randn(4, 128))
    faulty = {
        "no scales": lambda: stored.pop("w.scales"),
        "twice": lambda: stored.update({"w": torch.ones(4, 128)}),
        "rows": lambda: stored.update({"w.scales": stored["w.scales"][1:]}),
        "groups": lambda: stored.update({"w.scales": torch.ones(4, 3)}),
        "dtype": lambda: stored.update({"w.int4": stored["w.int4"].float()}),
        "axes": lambda: stored.update({"w.int4": stored["w.int4"][0]}),
    }
    faulty[fault]()
    with pytest.raises(LoadError):
        _ = UnroundedWeights(stored, "here")["w"]
