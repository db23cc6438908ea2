"""Dot products of four bytes in every lane, by the best instructions that a processor has.

Each way takes 8-bit weights, signed or from 0 to 15, and signed activations from -127 to 127, and
gives the exact sum; so all give the same bits. `chosen_dot` picks one by the processor's features.
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


@dataclass(frozen=True)
class BytesDot:
    """A way to add products of four bytes a lane to a sum, as functions that build LLVM code.

    Attributes:
        name: the instructions.
        start: `(builder, offset pointer, is_signed)` gives an empty sum; the offset is -128 times
            the sum of all inputs to come.
        prepare: `(builder, weights, is_signed)` gives what all rows need of some weights.
        add: `(builder, sum, prepared weights, inputs, is_signed)` adds products to a sum.
        finish: `(builder, sum, is_signed)` gives a vector of integers.
    """

    name: str
    start: Callable[[Any, Any, bool], Any]
    prepare: Callable[[Any, Any, bool], Any]
    add: Callable[[Any, Any, Any, Any, bool], Any]
    finish: Callable[[Any, Any, bool], Any]


def _start_at_zero(builder: Any, offset: Any, is_signed: bool) -> Any:
    return NO_SUM


def _as_it_is(builder: Any, value: Any, is_signed: bool) -> Any:
    return value


def vnni_dot(bits: int) -> BytesDot:
    """Returns `vpdpbusd` in registers of 256 or 512 bits.

    It takes unsigned weights. Signed ones are moved up by 128, which the offsets undo.
    """

    def start(builder: Any, offset: Any, is_signed: bool) -> Any:
        return splat(builder, builder.load(offset)) if is_signed else NO_SUM

    def prepare(builder: Any, weights: Any, is_signed: bool) -> Any:
        moved = builder.xor(weights, ir.Constant(QUADS, [-128] * QUADS.count))
        return moved if is_signed else weights

    def add(builder: Any, total: Any, weights: Any, inputs: Any, is_signed: bool) -> Any:
        lanes = bits // 32
        ints, bytes_ = ir.VectorType(simd.INT32, lanes), ir.VectorType(BYTE, 4 * lanes)
        operand = bytes_ if LLVM_TAKES_BYTES else ints

        def multiply(sums: Any, weights: Any, inputs: Any) -> Any:
            operands = [builder.bitcast(value, operand) for value in (weights, inputs)]
            return _call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", ints, [sums, *operands])

        return _in_pieces(builder, multiply, bits // 8, [total, weights, inputs])

    name = "AVX-512 VNNI" if bits == 512 else "AVX VNNI"
    return BytesDot(name, start, prepare, add, _as_it_is)


def avx2_dot() -> BytesDot:
    """Returns `vpmaddubsw`, which adds two products in 16 bits and saturates beyond.

    Two products of a magnitude up to 128 and one up to 127 fit. With weights up to 15 all 16 of a
    group fit, so that they are widened once. A signed weight gives its sign to the input.
    """
    zeros = ir.Constant(QUADS, [0] * QUADS.count)

    def start(builder: Any, offset: Any, is_signed: bool) -> Any:
        return NO_SUM if is_signed else ir.Constant(_SHORTS, [0] * _SHORTS.count)

    def prepare(builder: Any, weights: Any, is_signed: bool) -> Any:
        if not is_signed:
            return weights, weights
        is_negative = builder.icmp_signed("<", weights, zeros)
        return builder.select(is_negative, builder.sub(zeros, weights), weights), weights

    def add(builder: Any, total: Any, weights: Any, inputs: Any, is_signed: bool) -> Any:
        def multiply(sums: Any, magnitudes: Any, weights: Any, inputs: Any) -> Any:
            if is_signed:
                inputs = _call(builder, "llvm.x86.avx2.psign.b", _BYTES_256, [inputs, weights])
            operands = [magnitudes, inputs]
            pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", _SHORTS_256, operands)
            return builder.add(sums, widen(builder, pairs) if is_signed else pairs)

        return _in_pieces(builder, multiply, 32, [total, *weights, inputs])

    def widen(builder: Any, pairs: Any) -> Any:
        ones = ir.Constant(_SHORTS_256, [1] * 16)
        return _call(builder, "llvm.x86.avx2.pmadd.wd", _INTS_256, [pairs, ones])

    def finish(builder: Any, total: Any, is_signed: bool) -> Any:
        if is_signed:
            return total
        return _in_pieces(builder, functools.partial(widen, builder), 32, [total])

    return BytesDot("AVX2", start, prepare, add, finish)


def arm_dot() -> BytesDot:
    """Returns `sdot`, which takes signed numbers."""

    def add(builder: Any, total: Any, weights: Any, inputs: Any, is_signed: bool) -> Any:
        def multiply(sums: Any, weights: Any, inputs: Any) -> Any:
            name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
            return _call(builder, name, sums.type, [sums, weights, inputs])

        return _in_pieces(builder, multiply, 16, [total, weights, inputs])

    return BytesDot("ARM dot product", _start_at_zero, _as_it_is, add, _as_it_is)


def portable_dot() -> BytesDot:
    """Returns products of 32 bits, for any processor."""

    def prepare(builder: Any, weights: Any, is_signed: bool) -> Any:
        return _bytes_of_lanes(builder, weights)

    def add(builder: Any, total: Any, weights: Any, inputs: Any, is_signed: bool) -> Any:
        for x, y in zip(weights, _bytes_of_lanes(builder, inputs), strict=True):
            total = builder.add(total, builder.mul(x, y))
        return total

    return BytesDot("portable", _start_at_zero, prepare, add, _as_it_is)


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
