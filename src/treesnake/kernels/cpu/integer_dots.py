"""Dot products of four bytes in every lane, by the best instructions that a processor has.

Each way takes signed weights of 8 bits, or weights from 0 on of fewer bits, and signed activations
from -127 to 127, and gives the exact sum; so all give the same bits. `chosen_dot` picks one by the
processor's features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils

from treesnake.kernels.cpu import simd
from treesnake.kernels.grouped_weight import LARGEST_BYTE

BYTE = ir.IntType(8)
INT16 = ir.IntType(16)
INTS = simd.INT_VECTOR
QUADS = ir.VectorType(BYTE, 4 * simd.LANES)
"""Four bytes in every lane."""

LLVM_TAKES_BYTES = llvmlite.binding.llvm_version_info[0] >= 21
"""Whether the operands of `vpdpbusd` are vectors of bytes for LLVM, no longer of integers."""

NO_SUM = ir.Constant(INTS, [0] * simd.LANES)

SIGNED_BITS = 8
"""The width of weights that come signed."""

FEWEST_BITS = 4
"""The smallest width of weights."""

LARGEST_SHORT = (1 << 15) - 1


@dataclass(frozen=True)
class BytesDot:
    """A way to add products of four bytes a lane to a sum, as functions that build LLVM code.

    Attributes:
        name: the instructions.
        start: `(builder, offsets, bits)` gives a sum without products. `offsets` is a vector of
            what undoes that weights were moved to lie from 0 on, or None. Weights of 8 bits come
            signed, with offsets for whoever moves them.
        prepare: `(builder, weights, bits)` gives what all rows need of some weights.
        add: `(builder, sum, prepared weights, inputs, bits)` adds products to a sum.
        finish: `(builder, sum, bits)` gives a vector of integers.
    """

    name: str
    start: Callable[[Any, Any | None, int], Any]
    prepare: Callable[[Any, Any, int], Any]
    add: Callable[[Any, Any, Any, Any, int], Any]
    finish: Callable[[Any, Any, int], Any]


def _start_unmoved(builder: Any, offsets: Any | None, bits: int) -> Any:
    """Builds the start of a way that takes signed weights as they are."""
    return NO_SUM if offsets is None or bits == SIGNED_BITS else offsets


def _as_it_is(builder: Any, value: Any, bits: int) -> Any:
    return value


def vnni_dot(register_bits: int) -> BytesDot:
    """Returns `vpdpbusd` in registers of 256 or 512 bits.

    It takes unsigned weights. Signed ones are moved up by 128, which the offsets undo.
    """

    def start(builder: Any, offsets: Any | None, bits: int) -> Any:
        return NO_SUM if offsets is None else offsets

    def prepare(builder: Any, weights: Any, bits: int) -> Any:
        moved = builder.xor(weights, ir.Constant(QUADS, [-128] * QUADS.count))
        return moved if bits == SIGNED_BITS else weights

    def add(builder: Any, total: Any, weights: Any, inputs: Any, bits: int) -> Any:
        lanes = register_bits // 32
        ints, bytes_ = ir.VectorType(simd.INT32, lanes), ir.VectorType(BYTE, 4 * lanes)
        operand = bytes_ if LLVM_TAKES_BYTES else ints

        def multiply(sums: Any, weights: Any, inputs: Any) -> Any:
            operands = [builder.bitcast(value, operand) for value in (weights, inputs)]
            name = f"llvm.x86.avx512.vpdpbusd.{register_bits}"
            return _call(builder, name, ints, [sums, *operands])

        return _in_pieces(builder, multiply, register_bits // 8, [total, weights, inputs])

    name = "AVX-512 VNNI" if register_bits == 512 else "AVX VNNI"
    return BytesDot(name, start, prepare, add, _as_it_is)


def avx2_dot() -> BytesDot:
    """Returns `vpmaddubsw`, which adds two products in 16 bits and saturates beyond.

    It takes unsigned weights. A signed weight gives its sign to the input.
    """
    zeros = ir.Constant(QUADS, [0] * QUADS.count)

    def start(builder: Any, offsets: Any | None, bits: int) -> _PairSums:
        return _PairSums(bits, _start_unmoved(builder, offsets, bits))

    def prepare(builder: Any, weights: Any, bits: int) -> tuple[Any, Any]:
        if bits != SIGNED_BITS:
            return weights, weights
        is_negative = builder.icmp_signed("<", weights, zeros)
        return builder.select(is_negative, builder.sub(zeros, weights), weights), weights

    def add(
        builder: Any, total: _PairSums, weights: tuple[Any, Any], inputs: Any, bits: int
    ) -> _PairSums:
        def multiply(magnitudes: Any, weights: Any, inputs: Any) -> Any:
            if bits == SIGNED_BITS:
                inputs = _call(builder, "llvm.x86.avx2.psign.b", _BYTES_256, [inputs, weights])
            operands = [magnitudes, inputs]
            return _call(builder, "llvm.x86.avx2.pmadd.ub.sw", _SHORTS_256, operands)

        return total.plus(builder, _in_pieces(builder, multiply, 32, [*weights, inputs]))

    def finish(builder: Any, total: _PairSums, bits: int) -> Any:
        return total.widened(builder).ints

    return BytesDot("AVX2", start, prepare, add, finish)


@dataclass(frozen=True)
class _PairSums:
    """Sums of products: pairs of 16 bits for as long as none can overflow, the rest in 32 bits.

    Attributes:
        bits: the width of weights.
        ints: the sums of 32 bits.
        pairs: what is to be added to them, or None.
        num_held: products that each of the pairs holds, at most.
    """

    bits: int
    ints: Any
    pairs: Any | None = None
    num_held: int = 0

    def plus(self, builder: Any, pairs: Any) -> "_PairSums":
        """Returns the sums with two more products in each pair."""
        total = pairs if self.pairs is None else builder.add(self.pairs, pairs)
        held = replace(self, pairs=total, num_held=self.num_held + 2)
        magnitude = 1 << self.bits - 1 if self.bits == SIGNED_BITS else (1 << self.bits) - 1
        is_full = (held.num_held + 2) * magnitude * LARGEST_BYTE > LARGEST_SHORT
        return held.widened(builder) if is_full else held

    def widened(self, builder: Any) -> "_PairSums":
        """Returns the same sums, all of them in 32 bits."""
        if self.pairs is None:
            return self
        ones = ir.Constant(_SHORTS_256, [1] * 16)

        def widen(pairs: Any) -> Any:
            return _call(builder, "llvm.x86.avx2.pmadd.wd", _INTS_256, [pairs, ones])

        ints = _in_pieces(builder, widen, 32, [self.pairs])
        return _PairSums(self.bits, builder.add(self.ints, ints))


def arm_dot() -> BytesDot:
    """Returns `sdot`, which takes signed numbers."""

    def add(builder: Any, total: Any, weights: Any, inputs: Any, bits: int) -> Any:
        def multiply(sums: Any, weights: Any, inputs: Any) -> Any:
            name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
            return _call(builder, name, sums.type, [sums, weights, inputs])

        return _in_pieces(builder, multiply, 16, [total, weights, inputs])

    return BytesDot("ARM dot product", _start_unmoved, _as_it_is, add, _as_it_is)


def portable_dot() -> BytesDot:
    """Returns products of 32 bits, for any processor."""

    def prepare(builder: Any, weights: Any, bits: int) -> Any:
        return _bytes_of_lanes(builder, weights)

    def add(builder: Any, total: Any, weights: Any, inputs: Any, bits: int) -> Any:
        for x, y in zip(weights, _bytes_of_lanes(builder, inputs), strict=True):
            total = builder.add(total, builder.mul(x, y))
        return total

    return BytesDot("portable", _start_unmoved, prepare, add, _as_it_is)


_BYTES_256 = ir.VectorType(BYTE, 32)
_SHORTS_256 = ir.VectorType(INT16, 16)
_INTS_256 = ir.VectorType(simd.INT32, 8)


def _bytes_of_lanes(builder: Any, quads: Any) -> list[Any]:
    """Returns the first byte of every lane as integers, the second, the third and the fourth."""
    ints = builder.bitcast(quads, INTS)
    top = ir.Constant(INTS, [24] * simd.LANES)
    bytes_: list[Any] = []
    for number in range(4):
        up = ir.Constant(INTS, [24 - 8 * number] * simd.LANES)
        bytes_.append(builder.ashr(builder.shl(ints, up), top))
    return bytes_


def splat(builder: Any, value: Any) -> Any:
    """Returns a vector of one integer in every lane."""
    vector = builder.insert_element(NO_SUM, value, ir.Constant(simd.INT32, 0))
    return simd.shuffle(builder, vector, vector, [0] * simd.LANES)


def _call(builder: Any, name: str, result: Any, operands: Sequence[Any]) -> Any:
    signature = ir.FunctionType(result, [operand.type for operand in operands])
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, operands)


def _in_pieces(
    builder: Any, function: Callable[..., Any], piece_bytes: int, vectors: Sequence[Any]
) -> Any:
    """Applies a function to pieces of vectors that are as long as its registers."""
    count = QUADS.count // piece_bytes
    if count == 1:
        return function(*vectors)
    results = []
    for number in range(count):
        pieces = []
        for vector in vectors:
            size = vector.type.count // count
            lanes = list(range(number * size, (number + 1) * size))
            pieces.append(simd.shuffle(builder, vector, vector, lanes))
        results.append(function(*pieces))
    while len(results) > 1:
        size = 2 * results[0].type.count
        results = [
            simd.shuffle(builder, first, second, list(range(size)))
            for first, second in zip(results[::2], results[1::2], strict=True)
        ]
    return results[0]


def chosen_dot() -> BytesDot:
    """Returns the fastest way that this processor has."""
    features = simd.FEATURES
    if simd.LANES == 16 and "avx512vnni" in features:
        return vnni_dot(512)
    if "avxvnni" in features:
        return vnni_dot(256)
    if "avx2" in features:
        return avx2_dot()
    return arm_dot() if "dotprod" in features else portable_dot()
