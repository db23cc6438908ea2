"""Dot products of four bytes in every lane, by the best instructions that a processor has.

Each way takes signed weights of 8 bits, or weights from 0 on of fewer bits, and signed activations
from -127 to 127, and gives the exact sum; so all give the same bits. `chosen_dot` picks one by the
processor's features.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils

from treesnake.kernels.cpu import simd

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

    Two products of a magnitude up to 128 and one up to 127 fit. With weights up to 15 all 16 of a
    group fit, so that they are widened once. A signed weight gives its sign to the input.
    """
    zeros = ir.Constant(QUADS, [0] * QUADS.count)

    def prepare(builder: Any, weights: Any, bits: int) -> Any:
        if bits != SIGNED_BITS:
            return weights, weights
        is_negative = builder.icmp_signed("<", weights, zeros)
        return builder.select(is_negative, builder.sub(zeros, weights), weights), weights

    def add(builder: Any, total: Any, weights: Any, inputs: Any, bits: int) -> Any:
        def multiply(sums: Any, magnitudes: Any, weights: Any, inputs: Any) -> Any:
            if bits == SIGNED_BITS:
                inputs = _call(builder, "llvm.x86.avx2.psign.b", _BYTES_256, [inputs, weights])
            operands = [magnitudes, inputs]
            pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", _SHORTS_256, operands)
            is_wide = bits != FEWEST_BITS
            return builder.add(sums, _widen_pairs(builder, pairs) if is_wide else pairs)

        return _in_pieces(builder, multiply, 32, [total, *weights, inputs])

    return BytesDot("AVX2", _start_in_shorts, prepare, add, _finish_shorts)


def _start_in_shorts(builder: Any, offsets: Any | None, bits: int) -> Any:
    """Builds the start of sums that are widened once, of the narrowest weights, or of others."""
    if bits == FEWEST_BITS:
        return ir.Constant(_SHORTS, [0] * _SHORTS.count)
    return _start_unmoved(builder, offsets, bits)


def _finish_shorts(builder: Any, total: Any, bits: int) -> Any:
    if bits != FEWEST_BITS:
        return total
    return _in_pieces(builder, functools.partial(_widen_pairs, builder), 32, [total])


def _widen_pairs(builder: Any, pairs: Any) -> Any:
    """Adds pairs of 16 bits into 32 bits."""
    ones = ir.Constant(_SHORTS_256, [1] * 16)
    return _call(builder, "llvm.x86.avx2.pmadd.wd", _INTS_256, [pairs, ones])


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


_SHORTS = ir.VectorType(INT16, 2 * simd.LANES)
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
