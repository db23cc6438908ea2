"""Every block format comes out with the values that ggml's own package gives it."""

import numpy as np
import pytest

from treesnake.kernels.grouped_weight import value_range
from treesnake.models.gguf import BLOCKS
from treesnake.models.gguf_blocks import GROUPED_TYPES, Groups, unpack

gguf = pytest.importorskip("gguf")

WIDTH = 512
HALF_ONE = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)


def random_rows(kind: int) -> np.ndarray:
    """Returns rows of random blocks whose floats are numbers."""
    width, block_bytes = BLOCKS[kind]
    blocks = np.random.default_rng(kind).integers(
        0, 256, (7 * WIDTH // width, block_bytes), np.uint8
    )
    for begin in range(0, block_bytes - 1, 2):  # no half is infinite, wherever halves are
        blocks[:, begin + 1] &= 0xBB
    if kind == gguf.GGMLQuantizationType.MXFP4:
        blocks[:, 0] = 120 + blocks[:, 0] % 10
    return blocks.reshape(7, -1)


@pytest.mark.parametrize("kind", sorted(GROUPED_TYPES))
def test_values_are_ggmls(kind: int) -> None:
    raw = random_rows(kind)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind))
    assert np.array_equal(unpack(raw, kind).values(), expected)


@pytest.mark.parametrize("kind", sorted(GROUPED_TYPES))
def test_weights_have_the_same_values_but_for_the_rounding_of_scales(kind: int) -> None:
    groups = unpack(random_rows(kind), kind)
    groups = Groups(  # scales of the size that half precision is made for
        groups.numbers,
        np.sign(groups.scales) * np.clip(np.abs(groups.scales), 1e-3, 10),
        None if groups.minima is None else np.clip(groups.minima, -10, 10),
        groups.bits,
    )
    if not groups.fits_weight:
        assert kind == gguf.GGMLQuantizationType.Q2_K
        return
    weight = groups.to_weight()
    assert weight.bits == BITS.get(gguf.GGMLQuantizationType(kind).name, 8)
    lowest, highest = value_range(weight.bits, weight.minimums is not None)
    assert lowest <= weight.values.min()
    assert weight.values.max() <= highest
    largest = np.abs(groups.scales).max() * 255 + 10
    assert np.abs(weight.to_floats() - groups.values()).max() <= largest / 1024


BITS = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q4_K"), 4),
    **dict.fromkeys(("Q5_0", "Q5_1", "Q5_K", "MXFP4"), 5),
    **dict.fromkeys(("Q3_K", "Q6_K"), 6),
}


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_weights_are_exact_where_the_file_has_halves(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    values = np.random.default_rng(1).normal(size=(5, 96)).astype(np.float32)
    raw = gguf.quants.quantize(values, kind)
    groups = unpack(raw, int(kind))
    assert np.allclose(groups.to_weight().to_floats(), groups.values(), rtol=0, atol=1e-7)
    assert np.abs(groups.values() - values).max() < 0.3
