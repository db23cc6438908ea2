"""Blocks of a GGUF file as groups: whole numbers of 8 bits or fewer that share a scale.

A value is scale * number + minimum. The block formats of ggml but for codebooks (IQ1, IQ2, IQ3) and
ternary ones are of this kind, and come out with the numbers, scales and minima that they have.

Source: the block layouts of ggml-common.h and their readers in ggml-quants.c.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int8, UInt8

from treesnake.kernels.grouped_weight import GROUP, GroupedWeight, value_range

Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = 2, 3, 6, 7, 8
Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = 10, 11, 12, 13, 14
IQ4_NL, IQ4_XS, MXFP4 = 20, 23, 39

Blocks = UInt8[np.ndarray, "blocks block_bytes"]
Numbers = Int8[np.ndarray, "blocks values"]
Scales = Float32[np.ndarray, "blocks groups"]

IQ4_NUMBERS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
"""What 4 bits stand for in IQ4_NL and IQ4_XS."""

FP4_NUMBERS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice what 4 bits stand for in MXFP4."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Some rows of a matrix in groups of neighbours.

    Attributes:
        numbers: one for each value, in the order of the row.
        scales: one for each group.
        minima: what is added to the values of each group, or None for nothing.
        bits: the width in which a `GroupedWeight` has the numbers. Those without minima are signed;
            for 4 bits, which always have minima there, they are moved.
    """

    numbers: Int8[np.ndarray, "rows width"]
    scales: Float32[np.ndarray, "rows groups"]
    minima: Float32[np.ndarray, "rows groups"] | None
    bits: int

    def values(self) -> Float32[np.ndarray, "rows width"]:
        """Returns the values, computed in float32 in the order of ggml."""
        rows, num_groups = self.scales.shape
        numbers = self.numbers.reshape(rows, num_groups, -1)
        values = np.multiply(numbers, self.scales[:, :, None], dtype=np.float32)
        if self.minima is not None:
            values += self.minima[:, :, None]
        return values.reshape(rows, -1)

    @property
    def fits_weight(self) -> bool:
        """Whether a `GroupedWeight` can have these groups: those of 16 have no minima there."""
        return self.minima is None or self.numbers.shape[1] == GROUP * self.scales.shape[1]

    def to_weight(self) -> GroupedWeight:
        """Returns the same groups with scales and minima in half precision."""
        numbers, minima = self.numbers, self.minima
        if self.bits == 4 and minima is None:
            lowest, _ = value_range(4, has_minimums=False)
            numbers, minima = numbers - np.int8(lowest), np.float32(lowest) * self.scales
        return GroupedWeight(
            bits=self.bits,
            values=numbers,
            scales=self.scales.astype(np.float16),
            minimums=None if minima is None else minima.astype(np.float16),
        )


def unpack(raw: UInt8[np.ndarray, "rows row_bytes"], ggml_type: int) -> Groups:
    """Unpacks rows of blocks of one of `GROUPED_TYPES`."""
    kind = _LAYOUTS[ggml_type]
    rows = len(raw)
    numbers, scales, minima = kind.unpack(raw.reshape(-1, kind.block_bytes))
    return Groups(
        numbers.reshape(rows, -1),
        scales.reshape(rows, -1),
        None if minima is None else minima.reshape(rows, -1),
        kind.bits,
    )


def _q4_0(blocks: Blocks) -> tuple[Numbers, Scales, None]:
    return _nibbles(blocks[:, 2:]) - np.int8(8), _halves(blocks[:, :2]), None


def _q4_1(blocks: Blocks) -> tuple[Numbers, Scales, Scales]:
    halves = _halves(blocks[:, :4])
    return _nibbles(blocks[:, 4:]), halves[:, :1], halves[:, 1:]


def _q5_0(blocks: Blocks) -> tuple[Numbers, Scales, None]:
    numbers = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return numbers - np.int8(16), _halves(blocks[:, :2]), None


def _q5_1(blocks: Blocks) -> tuple[Numbers, Scales, Scales]:
    halves = _halves(blocks[:, :4])
    return _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8]), halves[:, :1], halves[:, 1:]


def _q8_0(blocks: Blocks) -> tuple[Numbers, Scales, None]:
    return blocks[:, 2:].view(np.int8), _halves(blocks[:, :2]), None


def _q2_k(blocks: Blocks) -> tuple[Numbers, Scales, Scales]:
    """16 groups of 16: scales and minima of 4 bits, in units of the two halves at the end."""
    small, halves = blocks[:, :16], _halves(blocks[:, 80:])
    numbers = _planes(blocks[:, 16:80], 2)
    return numbers, halves[:, :1] * (small & 15), -(halves[:, 1:] * (small >> 4))


def _q3_k(blocks: Blocks) -> tuple[Numbers, Scales, None]:
    """16 groups of 16: 2 bits of each number, its third bit elsewhere; scales of 6 bits."""
    third = np.unpackbits(blocks[:, :32, None], 2, bitorder="little")
    high = third.transpose(0, 2, 1).reshape(-1, 256).view(np.int8) << 2
    numbers = (_planes(blocks[:, 32:96], 2) | high) - np.int8(4)
    stored = blocks[:, 96:108]
    low = np.concatenate([stored[:, :8] & 15, stored[:, :8] >> 4], 1)
    top = np.concatenate([stored[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], 1)
    factors = (low | top << 4).view(np.int8) - np.int8(32)
    return numbers, _halves(blocks[:, 108:]) * factors, None


def _q4_k(blocks: Blocks) -> tuple[Numbers, Scales, Scales]:
    """8 groups of 32 with scales and minima of 6 bits, in units of the two halves in front."""
    return _planes(blocks[:, 16:], 4), *_six_bits(blocks)


def _q5_k(blocks: Blocks) -> tuple[Numbers, Scales, Scales]:
    fifth = np.unpackbits(blocks[:, 16:48, None], 2, bitorder="little")
    high = fifth.transpose(0, 2, 1).reshape(-1, 256).view(np.int8) << 4
    return _planes(blocks[:, 48:], 4) | high, *_six_bits(blocks)


def _q6_k(blocks: Blocks) -> tuple[Numbers, Scales, None]:
    """16 groups of 16 with scales of 8 bits: 4 bits of each number, 2 more bits elsewhere."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15
    high = _planes(blocks[:, 128:192], 2)
    numbers = (low.reshape(-1, 256).view(np.int8) | high << 4) - np.int8(32)
    return numbers, _halves(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8), None


def _iq4_nl(blocks: Blocks) -> tuple[Numbers, Scales, None]:
    return IQ4_NUMBERS[_nibbles(blocks[:, 2:])], _halves(blocks[:, :2]), None


def _iq4_xs(blocks: Blocks) -> tuple[Numbers, Scales, None]:
    """8 groups of 32 with scales of 6 bits."""
    low = np.repeat(blocks[:, 4:8], 2, 1) >> np.array([0, 4] * 4, np.uint8) & 15
    high = np.repeat(blocks[:, 2:4], 4, 1) >> np.array([0, 2, 4, 6] * 2, np.uint8) & 3
    factors = (low | high << 4).view(np.int8) - np.int8(32)
    numbers = _nibbles(blocks[:, 8:].reshape(-1, 16)).reshape(-1, 256)
    return IQ4_NUMBERS[numbers], _halves(blocks[:, :2]) * factors, None


def _mxfp4(blocks: Blocks) -> tuple[Numbers, Scales, None]:
    """A power of two for each 32 values, halved because the numbers are twice the values."""
    scales = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return FP4_NUMBERS[_nibbles(blocks[:, 1:])], scales, None


def _halves(raw: UInt8[np.ndarray, "blocks _"]) -> Scales:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _nibbles(raw: UInt8[np.ndarray, "blocks _"]) -> Numbers:
    """Returns the low bits of all bytes, then their high bits."""
    return np.concatenate([raw & 15, raw >> 4], 1).view(np.int8)


def _fifth_bits(raw: UInt8[np.ndarray, "blocks 4"]) -> Numbers:
    return np.unpackbits(raw, 1, bitorder="little").view(np.int8) << 4


def _planes(raw: UInt8[np.ndarray, "blocks _"], bits: int) -> Numbers:
    """Returns numbers of which 32 bytes in a row hold 32 in their lowest bits, 32 in the next."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    planes = raw.reshape(len(raw), -1, 1, 32) >> shifts & np.uint8((1 << bits) - 1)
    return planes.reshape(len(raw), -1).view(np.int8)


def _six_bits(blocks: Blocks) -> tuple[Scales, Scales]:
    """Returns scales and minima of Q4_K and Q5_K: eight of each in twelve bytes."""
    halves, stored = _halves(blocks[:, :4]), blocks[:, 4:16]
    first, second, third = stored[:, :4], stored[:, 4:8], stored[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], 1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], 1)
    return halves[:, :1] * scales, -(halves[:, 1:] * minima)


@dataclass(frozen=True)
class _Layout:
    block_bytes: int
    bits: int
    unpack: Callable[[Blocks], tuple[Numbers, Scales, Scales | None]]


_LAYOUTS: Mapping[int, _Layout] = {
    Q4_0: _Layout(18, 4, _q4_0),
    Q4_1: _Layout(20, 4, _q4_1),
    Q5_0: _Layout(22, 5, _q5_0),
    Q5_1: _Layout(24, 5, _q5_1),
    Q8_0: _Layout(34, 8, _q8_0),
    Q2_K: _Layout(84, 8, _q2_k),
    Q3_K: _Layout(110, 6, _q3_k),
    Q4_K: _Layout(144, 4, _q4_k),
    Q5_K: _Layout(176, 5, _q5_k),
    Q6_K: _Layout(210, 6, _q6_k),
    IQ4_NL: _Layout(18, 8, _iq4_nl),
    IQ4_XS: _Layout(136, 8, _iq4_xs),
    MXFP4: _Layout(17, 5, _mxfp4),
}

GROUPED_TYPES = frozenset(_LAYOUTS)
"""The ggml types that `unpack` reads."""

STORED_BITS = {kind: layout.bits for kind, layout in _LAYOUTS.items()}
"""The width in which a `GroupedWeight` has the numbers of each."""
