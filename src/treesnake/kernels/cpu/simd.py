"""Vectors of floats for kernels, built as LLVM code.

Loops that LLVM vectorises by itself may sum in an order of its choice, or, forbidden to, stay
scalar. Kernels whose sums must come out equal to the bit in every tile, and fast, are therefore
written with these pieces: they take an `IRBuilder` and values, and return values.

A *vector* has `LANES` float32 values: one register with AVX-512, two of four lanes on ARM. numba
has no half-precision types, so arrays of half-precision numbers go by the integers of their bits,
unsigned for float16 and signed for bfloat16 (see `ELEMENT_TYPES`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

PADDING = 16
"""Rows that vectors run along are padded with zeros to a multiple of this, on every machine."""


def _find_features() -> frozenset[str]:
    codegen = cpu_target.target_context.codegen()  # pyrefly: ignore[missing-attribute]
    _triple, _cpu_name, features = codegen.magic_tuple()
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


FEATURES = _find_features()
"""What the processor can do, in LLVM's words; numba's NUMBA_CPU_FEATURES can hide some of it."""

LANES = 16 if "avx512f" in FEATURES else 8

ELEMENT_TYPES = {
    np.dtype(np.float32): ir.FloatType(),
    np.dtype(np.uint16): ir.HalfType(),
    np.dtype(np.int16): ir.IntType(16),
}

FLOAT = ir.FloatType()
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
BYTE_POINTER = ir.IntType(8).as_pointer()
VECTOR = ir.VectorType(FLOAT, LANES)
INT_VECTOR = ir.VectorType(INT32, LANES)
ZERO = ir.Constant(VECTOR, [0.0] * LANES)

LoopBody = Callable[[Any, Sequence[Any]], Sequence[Any]]


def index(number: int) -> Any:
    """Returns a constant of the type that counts and offsets have."""
    return ir.Constant(INT64, number)


def smaller_index(builder: Any, number: Any, end: Any) -> Any:
    """Returns `number`, or the last index before `end`."""
    return builder.select(builder.icmp_signed("<", number, end), number, builder.sub(end, index(1)))


def constant(number: float) -> Any:
    """Returns a vector of one known value."""
    rounded = float(np.float32(number))
    return ir.Constant(VECTOR, [rounded] * LANES)


def row_pointer(builder: Any, array: Any, row: Any, offset: int = 0) -> Any:
    """Returns the address of row `row + offset` of a row-major array with two axes."""
    width = cgutils.unpack_tuple(builder, array.shape)[1]
    return builder.gep(array.data, [builder.mul(builder.add(row, index(offset)), width)])


def loop(
    builder: Any, begin: Any, end: Any, step: int, carried: Sequence[Any], body: LoopBody
) -> list[Any]:
    """Builds `for position in range(begin, end, step): carried = body(position, carried)`.

    Returns what is carried out of the loop.
    """
    before = builder.block
    check = builder.append_basic_block("loop")
    inside = builder.append_basic_block("loop.body")
    after = builder.append_basic_block("loop.end")
    builder.branch(check)
    builder.position_at_end(check)
    position = builder.phi(INT64)
    values = [builder.phi(start.type) for start in carried]
    builder.cbranch(builder.icmp_signed("<", position, end), inside, after)
    builder.position_at_end(inside)
    results = body(position, values)
    following, last = builder.add(position, index(step)), builder.block
    position.add_incoming(begin, before)
    position.add_incoming(following, last)
    for value, start, result in zip(values, carried, results, strict=True):
        value.add_incoming(start, before)
        value.add_incoming(result, last)
    builder.branch(check)
    builder.position_at_end(after)
    return values


def sweep_rows(
    builder: Any, row: Any, end: Any, sizes: Sequence[int], tile: Callable[[Any, int], None]
) -> None:
    """Builds `tile(row, size)` for tiles of `sizes` rows, one size after another, up to `end`.

    A size is taken until no more rows are left than the next size has. So the last tile of any
    size may go beyond the rows (with 8 and 6 seven are one tile of eight), see
    `linear.padded_rows`. With 3, 4, 3, 2 and 1 rows go in threes, but for up to four at the end.
    """
    for size, num_left in zip(sizes, (*sizes[1:], 0), strict=True):

        def run(begin: Any, _: Sequence[Any], size: int = size) -> list[Any]:
            tile(begin, size)
            return [builder.add(begin, index(size))]

        (row,) = loop(builder, row, builder.sub(end, index(num_left)), size, [row], run)


def splat(builder: Any, value: Any) -> Any:
    """Returns a vector of one value in every lane."""
    vector = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, ir.Constant(INT32, 0))
    return shuffle(builder, vector, vector, [0] * LANES)


def shuffle(builder: Any, first: Any, second: Any, lanes: Sequence[int]) -> Any:
    """Picks lanes from two vectors laid end to end."""
    mask = ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))
    return builder.shuffle_vector(first, second, mask)


def fused_multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Returns x * y + z with one rounding; all three are vectors, or all are scalars."""
    suffix = f"v{LANES}f32" if x.type == VECTOR else "f32"
    signature = ir.FunctionType(x.type, [x.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.{suffix}")
    return builder.call(function, [x, y, z])


def larger(builder: Any, x: Any, y: Any) -> Any:
    """Returns the larger of each pair of lanes."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def smaller(builder: Any, x: Any, y: Any) -> Any:
    """Returns the smaller of each pair of lanes; `y` where x is NaN."""
    return builder.select(builder.fcmp_ordered("<", x, y), x, y)


def largest_lane(builder: Any, vector: Any) -> Any:
    """Returns the largest lane as a scalar."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = list(range(width)), list(range(width, 2 * width))
        vector = larger(builder, *(shuffle(builder, vector, vector, half) for half in (low, high)))
    return builder.extract_element(vector, ir.Constant(INT32, 0))


def transposed(builder: Any, rows: Sequence[Any]) -> list[Any]:
    """Returns the columns of a square, given its rows as vectors; both have as many lanes.

    Squares as wide as 128 bits come first, for which there are single instructions everywhere. Then
    larger and larger blocks change places across the diagonal (Eklundh 1972).
    """
    size = len(rows)
    stride = min(size, 128 // rows[0].type.element.width)
    vectors: list[Any] = []
    for start in range(0, size, stride):
        vectors += _interleaved(builder, rows[start : start + stride])
    while stride < size:
        lanes = [(lane, lane & stride) for lane in range(size)]
        low = [lane + size - stride if odd else lane for lane, odd in lanes]
        high = [lane + size if odd else lane + stride for lane, odd in lanes]
        for first in [lane for lane, odd in lanes if not odd]:
            pair = vectors[first], vectors[first + stride]
            vectors[first] = shuffle(builder, *pair, low)
            vectors[first + stride] = shuffle(builder, *pair, high)
        stride *= 2
    return vectors


def _interleaved(builder: Any, rows: Sequence[Any]) -> list[Any]:
    """Transposes squares that lie side by side, as many lanes wide as there are rows."""
    vectors, width, size = list(rows), len(rows), rows[0].type.count
    starts = range(0, size, width)
    low = [
        each for start in starts for n in range(start, start + width // 2) for each in (n, n + size)
    ]
    high = [lane + width // 2 for lane in low]
    for _ in range(width.bit_length() - 1):
        pairs = list(zip(vectors[: width // 2], vectors[width // 2 :], strict=True))
        vectors = [shuffle(builder, *pair, half) for pair in pairs for half in (low, high)]
    return vectors


def load_bits(builder: Any, pointer: Any, element: types.Type) -> Any:
    """Loads consecutive elements of an array of type `element` as integers of their bits."""
    bits = ir.VectorType(ir.IntType(8 * element_size(element)), LANES)
    return builder.load(builder.bitcast(pointer, bits.as_pointer()), align=1)


def store_bits(builder: Any, bits: Any, pointer: Any) -> None:
    """Stores integers as consecutive elements of which they are the bits."""
    builder.store(bits, builder.bitcast(pointer, bits.type.as_pointer()), align=1)


def load(builder: Any, pointer: Any, element: types.Type) -> Any:
    """Loads consecutive elements of an array of type `element` as a vector."""
    vector = ir.VectorType(ELEMENT_TYPES[_dtype(element)], LANES)
    raw = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=1)
    return to_float(builder, raw, element)


def store(builder: Any, vector: Any, pointer: Any, element: types.Type) -> None:
    """Stores a vector as consecutive elements, rounded to nearest even."""
    raw = _from_float(builder, vector, element)
    builder.store(raw, builder.bitcast(pointer, raw.type.as_pointer()), align=1)


def masked_load(builder: Any, pointer: Any, mask: Any) -> Any:
    """Loads a vector of floats; lanes that the mask leaves out are zeros, and not touched."""
    name = f"llvm.masked.load.v{LANES}f32.p0"
    signature = ir.FunctionType(VECTOR, [pointer.type, INT32, mask.type, VECTOR])
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, [pointer, ir.Constant(INT32, 4), mask, ZERO])


def masked_store(builder: Any, vector: Any, pointer: Any, mask: Any) -> None:
    """Stores the lanes of a vector that the mask names."""
    name = f"llvm.masked.store.v{LANES}f32.p0"
    signature = ir.FunctionType(ir.VoidType(), [VECTOR, pointer.type, INT32, mask.type])
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    builder.call(function, [vector, pointer, ir.Constant(INT32, 4), mask])


def to_float(builder: Any, raw: Any, element: types.Type) -> Any:
    """Turns a vector of stored elements into one of floats."""
    lanes = raw.type.count
    floats, ints = ir.VectorType(FLOAT, lanes), ir.VectorType(INT32, lanes)
    if element == types.float32:
        return raw
    if element == types.uint16:
        return builder.fpext(raw, floats)
    if element == types.int16:
        high_half = builder.shl(builder.zext(raw, ints), ir.Constant(ints, [16] * lanes))
        return builder.bitcast(high_half, floats)
    raise TypeError(f"kernels do not read elements of type {element}")


def _from_float(builder: Any, vector: Any, element: types.Type) -> Any:
    lanes = vector.type.count
    ints = ir.VectorType(INT32, lanes)
    if element == types.float32:
        return vector
    if element == types.uint16:
        return builder.fptrunc(vector, ir.VectorType(ir.HalfType(), lanes))
    if element == types.int16:
        bits = builder.bitcast(vector, ints)
        half = ir.Constant(ints, [16] * lanes)
        odd = builder.and_(builder.lshr(bits, half), ir.Constant(ints, [1] * lanes))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(ints, [0x7FFF] * lanes)))
        return builder.trunc(builder.lshr(rounded, half), ir.VectorType(ir.IntType(16), lanes))
    raise TypeError(f"kernels do not write elements of type {element}")


def _dtype(element: types.Type) -> np.dtype:
    return np.dtype(str(element))


def element_size(element: types.Type) -> int:
    """Returns the bytes of one element of an array of type `element`."""
    return _dtype(element).itemsize


def add_lanes(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """Returns the sum of each vector's lanes as a scalar.

    The sum of a vector is that of its halves added lane by lane, again and again, whatever the
    other vectors are; summing many together only shares the instructions, as each round packs the
    halves of two vectors into one.
    """
    packed, lane_of = _pack_sums(builder, vectors)
    return [
        builder.extract_element(packed[number], ir.Constant(INT32, lane))
        for number, lane in lane_of
    ]


def add_lanes_by_row(builder: Any, vectors: Sequence[Any], width: int) -> list[Any]:
    """Returns the same sums, each `width` consecutive ones as a vector of that width."""
    packed, lane_of = _pack_sums(builder, vectors)
    rows = []
    for start in range(0, len(vectors), width):
        row = lane_of[start : start + width]
        numbers = sorted({number for number, _ in row})
        first, last = packed[numbers[0]], packed[numbers[-1]]
        assert len(numbers) <= 2, "a tile has more sums than two vectors hold"
        lanes = [lane + LANES * numbers.index(number) for number, lane in row]
        rows.append(shuffle(builder, first, last, lanes))
    return rows


def _pack_sums(builder: Any, vectors: Sequence[Any]) -> tuple[list[Any], list[tuple[int, int]]]:
    """Returns vectors of sums, and for each sum its vector and lane there."""
    owners = [[number] for number in range(len(vectors))]
    packed, width = list(vectors), LANES
    while width > 1:
        if len(packed) % 2:
            packed, owners = [*packed, packed[-1]], [*owners, [-1] * len(owners[-1])]
        starts = range(0, 2 * LANES, width)
        low = [start + lane for start in starts for lane in range(width // 2)]
        high = [lane + width // 2 for lane in low]
        packed = [
            builder.fadd(shuffle(builder, *pair, low), shuffle(builder, *pair, high))
            for pair in zip(packed[::2], packed[1::2], strict=True)
        ]
        owners = [a + b for a, b in zip(owners[::2], owners[1::2], strict=True)]
        width //= 2
    lane_of = {
        owner: (number, lane)
        for number, lanes in enumerate(owners)
        for lane, owner in enumerate(lanes)
    }
    return packed, [lane_of[number] for number in range(len(vectors))]


def prefetch(builder: Any, pointer: Any) -> None:
    """Asks for the cache line at an address, which need not be mapped, up to the second level.

    A first level has few lines in flight. Filling it directly was no faster than no prefetching for
    eight rows: time for memory and for arithmetic added up, where now the longer one counts.
    """
    signature = ir.FunctionType(ir.VoidType(), [BYTE_POINTER, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    read, keep, data = (ir.Constant(INT32, number) for number in (0, 2, 1))
    builder.call(function, [builder.bitcast(pointer, BYTE_POINTER), read, keep, data])


ROUND_TO_INTEGER = 1.5 * 2**23  # added to a small float, it leaves an integer in the low bits
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693359375  # so few bits that multiples up to 128 are exact
LN2_LOW = math.log(2) - LN2_HIGH
LARGEST_EXPONENT = 88.3
SMALLEST_EXPONENT = -87.0
TAYLOR_DEGREE = 7


def exponential(builder: Any, x: Any) -> Any:
    """Returns e**x within two units in the last place; NaN for NaN.

    Below -87 it is 0, above 88.3 infinite.
    """
    too_small = builder.fcmp_ordered("<", x, constant(SMALLEST_EXPONENT))
    too_large = builder.fcmp_ordered(">", x, constant(LARGEST_EXPONENT))
    x = builder.select(too_small, constant(SMALLEST_EXPONENT), x)
    x = builder.select(too_large, constant(LARGEST_EXPONENT), x)
    shifted = fused_multiply_add(builder, x, constant(LOG2_E), constant(ROUND_TO_INTEGER))
    power = builder.fsub(shifted, constant(ROUND_TO_INTEGER))
    rest = fused_multiply_add(builder, power, constant(-LN2_HIGH), x)
    rest = fused_multiply_add(builder, power, constant(-LN2_LOW), rest)
    result = constant(1 / math.factorial(TAYLOR_DEGREE))
    for degree in reversed(range(TAYLOR_DEGREE)):
        coefficient = constant(1 / math.factorial(degree))
        result = fused_multiply_add(builder, result, rest, coefficient)
    exponent = builder.shl(
        builder.bitcast(shifted, INT_VECTOR), ir.Constant(INT_VECTOR, [23] * LANES)
    )
    scaled = builder.bitcast(builder.add(builder.bitcast(result, INT_VECTOR), exponent), VECTOR)
    scaled = builder.select(too_small, ZERO, scaled)
    return builder.select(too_large, ir.Constant(VECTOR, [float("inf")] * LANES), scaled)
