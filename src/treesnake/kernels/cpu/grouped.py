"""Products with grouped weights in integers, whose bits do not depend on rows, tiles or processor.

`treesnake.kernels.reference.grouped_linear` says what the bits are. Here activations are rounded
once for each product, and tiles of several rows multiply them with one *block* of outputs, as many
as a vector has lanes. A block is one stream of bytes. For each group of 32 inputs it holds

    values    of four inputs of every output (a *quad*), then of the next four, ...
    scales    of every output
    second    minimums of every output, or scales of the second 16 inputs; may be absent

so a vector of four inputs of every output meets four activations that all lanes share, and nothing
is summed across lanes. The lowest 4 bits of values of fewer than 8 lie in pairs: input i in the low
half of a byte, input i + 16 in the high half. Behind them, planes have the fifth bits, or the fifth
and sixth: a byte holds those of an input of one quad in its lowest bits, of the next quad in the
next. Signed values of 5 and 6 bits are moved to lie from 0 on. What a block holds is its *form*;
the blocks of one matrix may differ.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.integer_dots import (
    BYTE,
    FEWEST_BITS,
    INTS,
    QUADS,
    SIGNED_BITS,
    BytesDot,
    chosen_dot,
    splat,
)
from treesnake.kernels.cpu.jit import by_type, kernel
from treesnake.kernels.grouped_weight import GROUP, HALF_GROUP, LARGEST_BYTE, GroupedWeight

BLOCK_OUTPUTS = simd.LANES

BLOCK = np.dtype([("address", np.int64), ("form", np.int64)], align=True)
"""Where the bytes of a block are, and in which form."""

PLAIN_BLOCK = np.dtype([("address", np.int64), ("plain_form", np.int64)], align=True)
"""The same for tables whose blocks have no planes, only values of 4 and 8 bits. Their type says so,
and kernels that read no other tables are compiled without the code for planes, in less time."""

HALVES = GROUP // HALF_GROUP
QUADS_PER_GROUP = GROUP // 4
QUADS_PER_HALF = HALF_GROUP // 4
HALF_VECTOR = ir.VectorType(ir.HalfType(), BLOCK_OUTPUTS)
SCALES_BYTES = 2 * BLOCK_OUTPUTS
PLANE_BYTES = 4 * BLOCK_OUTPUTS
PAIRS_BYTES = HALF_GROUP * BLOCK_OUTPUTS

CACHE_LINE = 64

PREFETCH_BYTES = 8192
"""How far ahead of the values in use a block's bytes are asked for."""


@dataclass(frozen=True)
class Form:
    """What a block holds. Values of 6 bits have scales for each 16 inputs, others for each 32."""

    bits: int
    has_minimums: bool

    @property
    def scales_begin(self) -> int:
        """The bytes of a group's values, behind which its scales begin."""
        return GROUP * BLOCK_OUTPUTS * self.bits // 8

    @property
    def parts(self) -> int:
        """The scales of each output in a group."""
        return HALVES if self.bits == 6 else 1

    @property
    def group_bytes(self) -> int:
        """The bytes that a group of inputs takes in a block."""
        return self.scales_begin + SCALES_BYTES * (self.parts + self.has_minimums)

    @property
    def moved_by(self) -> int:
        """What is added to values in memory, so that they lie from 0 on."""
        is_moved = self.bits < SIGNED_BITS and not self.has_minimums
        return 1 << (self.bits - 1) if is_moved else 0

    @property
    def plane_bits(self) -> int:
        """The bits of a value in planes, beyond the lowest four."""
        return 0 if self.bits == SIGNED_BITS else self.bits - FEWEST_BITS


FORMS = (Form(4, True), Form(5, False), Form(5, True), Form(6, False), Form(8, False))
"""Blocks and kernels know a form by its place here."""

FOUR_BITS, FIVE_BITS, FIVE_BITS_WITH_MINIMUMS, SIX_BITS, EIGHT_BITS = range(len(FORMS))

GROUP_BYTES = tuple(form.group_bytes for form in FORMS)
SCALES_BEGIN = tuple(form.scales_begin for form in FORMS)
MOVED_BY = tuple(form.moved_by for form in FORMS)
PLANE_BITS = tuple(form.plane_bits for form in FORMS)
BITS = tuple(form.bits for form in FORMS)
HAS_MINIMUMS = tuple(form.has_minimums for form in FORMS)


PLAIN_FORMS = tuple(number for number, form in enumerate(FORMS) if not form.plane_bits)
"""What blocks of `PLAIN_BLOCK` have."""


def form_of(weight: GroupedWeight) -> int:
    """Returns the number of the form of a weight's blocks."""
    return FORMS.index(Form(weight.bits, weight.minimums is not None))


ROUNDED_GROUP = np.dtype(
    {
        "names": ["values", "scale", "sum", "eight_bits", "five_bits", "six_bits"],
        "formats": [(np.int8, GROUP), np.float32, np.float32, np.int32, np.int32, (np.int32, 2)],
        "offsets": [0, 32, 36, 40, 44, 48],
        "itemsize": CACHE_LINE,
    }
)
"""A row's activations of one group in 8 bits: a cache line, so that a tile needs one address a row.

`values` are integers, `scale` is what they are multiplied with, `sum` their scaled sum. The others
are what sums of products with weights of so many bits begin with, where instructions or blocks have
moved the weights to lie from 0 on: for 6 bits two, one for each 16 inputs.
"""

_START_NAMES = {5: "five_bits", 6: "six_bits", 8: "eight_bits"}

_FIELDS = dict(ROUNDED_GROUP.fields or {})
_ELEMENTS = {
    np.dtype(np.int8): BYTE,
    np.dtype(np.float32): simd.FLOAT,
    np.dtype(np.int32): simd.INT32,
}


def new_rounded_rows(rows: int, inputs: int) -> Shaped[np.ndarray, "rows groups"]:
    """Allocates what `round_row` writes; `rows` must count those to spare."""
    return np.zeros((rows, -(-inputs // GROUP)), ROUNDED_GROUP)


def _field(builder: Any, group: Any, name: str, number: Any = 0) -> Any:
    """Builds the address of a number in a field of a `ROUNDED_GROUP`."""
    kind, begin = _FIELDS[name][:2]
    start = builder.gep(builder.bitcast(group, simd.BYTE_POINTER), [simd.index(begin)])
    pointer = builder.bitcast(start, _ELEMENTS[kind.base].as_pointer())
    return builder.gep(pointer, [simd.index(number)])


@intrinsic
def round_row(typing_context, x, row, rounded):
    """Rounds a row of `x` to 8 bits; inputs beyond its last are zeros."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        source = simd.row_pointer(builder, array, arguments[1])
        width = cgutils.unpack_tuple(builder, array.shape)[1]
        rounded = context.make_array(signature.args[2])(context, builder, arguments[2])
        target = simd.row_pointer(builder, rounded, arguments[1])

        def round_group(column: Any, _: Any) -> list[Any]:
            group = builder.gep(target, [builder.sdiv(column, simd.index(GROUP))])
            _round_group(builder, source, column, width, group)
            return []

        simd.loop(builder, simd.index(0), width, GROUP, [], round_group)
        return context.get_dummy_value()

    return types.void(x, types.intp, rounded), generate


def _round_group(builder: Any, source: Any, column: Any, width: Any, group: Any) -> None:
    """Builds what `round_rows` of the reference does with one group."""
    inputs = [
        _load_inside(builder, source, builder.add(column, simd.index(offset)), width)
        for offset in range(0, GROUP, simd.LANES)
    ]
    peak = builder.bitcast(_largest_magnitude(builder, inputs), simd.FLOAT)
    scale = builder.fmul(peak, _float(1 / LARGEST_BYTE))
    # NaN is not smaller, and stays.
    is_tiny = builder.fcmp_ordered("<", scale, _float(float(np.finfo(np.float32).tiny)))
    inverse = builder.select(is_tiny, _float(0), builder.fdiv(_float(LARGEST_BYTE), peak))
    scale = builder.select(is_tiny, _float(0), scale)
    factors = simd.splat(builder, inverse)
    half_sums = [ir.Constant(simd.INT32, 0)] * HALVES
    for number, vector in enumerate(inputs):
        integers = _nearest_bytes(builder, builder.fmul(vector, factors))
        pointer = _field(builder, group, "values", number * simd.LANES)
        builder.store(integers, builder.bitcast(pointer, integers.type.as_pointer()), align=1)
        half = number * simd.LANES // HALF_GROUP
        total = _reduce(builder, "add", builder.sext(integers, INTS))
        half_sums[half] = builder.add(half_sums[half], total)
    group_sum = builder.add(*half_sums)
    builder.store(scale, _field(builder, group, "scale"))
    summed = builder.fmul(scale, builder.sitofp(group_sum, simd.FLOAT))
    builder.store(summed, _field(builder, group, "sum"))
    for bits, name in _START_NAMES.items():
        for part, total in enumerate(half_sums if bits == 6 else [group_sum]):
            moved = builder.mul(total, ir.Constant(simd.INT32, -(1 << (bits - 1))))
            builder.store(moved, _field(builder, group, name, part))


def _float(number: float) -> Any:
    return ir.Constant(simd.FLOAT, float(np.float32(number)))


def _load_inside(builder: Any, source: Any, column: Any, width: Any) -> Any:
    """Loads a vector, or zeros if it lies beyond the row's width."""
    is_inside = builder.icmp_signed("<", column, width)
    pointer = builder.gep(source, [builder.select(is_inside, column, simd.index(0))])
    return builder.select(is_inside, simd.load(builder, pointer, types.float32), simd.ZERO)


def _largest_magnitude(builder: Any, vectors: list[Any]) -> Any:
    """Returns the bits of the largest magnitude; those of NaN are larger than any number's."""
    mask = ir.Constant(INTS, [0x7FFFFFFF] * simd.LANES)
    bits = [builder.and_(builder.bitcast(vector, INTS), mask) for vector in vectors]
    largest = bits[0]
    for other in bits[1:]:
        largest = builder.select(builder.icmp_signed(">", largest, other), largest, other)
    return _reduce(builder, "smax", largest)


def _nearest_bytes(builder: Any, vector: Any) -> Any:
    """Rounds a vector of numbers up to 127 to nearest even; what is no finite number becomes 0."""
    shifted = builder.fadd(vector, simd.constant(simd.ROUND_TO_INTEGER))
    return builder.trunc(builder.bitcast(shifted, INTS), ir.VectorType(BYTE, simd.LANES))


def _reduce(builder: Any, operation: str, vector: Any) -> Any:
    name = f"llvm.vector.reduce.{operation}.v{simd.LANES}i32"
    signature = ir.FunctionType(simd.INT32, [INTS])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), [vector])


def block_product(form: Form, dot: BytesDot, sizes: Sequence[int]) -> Any:
    """Builds the intrinsic that multiplies rows with a block of one form, in tiles of `sizes` rows.

    It takes (address, rounded, num_rows, groups, out, column, adds). The first rows of `rounded`,
    times the block at the address, go to `out[:, column:]`, as far as that has columns, or are
    added to it.
    """

    @intrinsic
    def multiply(typing_context, address, rounded, num_rows, groups, out, column, adds):
        def generate(context, builder, signature, arguments):
            address, rounded, num_rows, groups, out, column, adds = arguments
            rounded, out = (
                context.make_array(kind)(context, builder, array)
                for kind, array in ((signature.args[1], rounded), (signature.args[4], out))
            )
            block = builder.inttoptr(address, simd.BYTE_POINTER)
            width = cgutils.unpack_tuple(builder, out.shape)[1]

            def multiply_tile(row: Any, size: int) -> None:
                rows = [simd.row_pointer(builder, rounded, row, offset) for offset in range(size)]
                targets = [
                    builder.gep(simd.row_pointer(builder, out, row, offset), [column])
                    for offset in range(size)
                ]
                totals = simd.loop(
                    builder,
                    simd.index(0),
                    groups,
                    1,
                    [simd.ZERO] * size,
                    lambda group, before: _add_group(
                        builder, form, dot, block, rows, group, before
                    ),
                )
                _write(builder, totals, targets, builder.sub(width, column), adds)

            simd.sweep_rows(builder, simd.index(0), num_rows, sizes, multiply_tile)
            return context.get_dummy_value()

        position = types.intp
        signature = types.void(position, rounded, position, position, out, position, types.boolean)
        return signature, generate

    return multiply


def _add_group(
    builder: Any,
    form: Form,
    dot: BytesDot,
    block: Any,
    rows: list[Any],
    group: Any,
    totals: Sequence[Any],
) -> list[Any]:
    """Adds the products of one group to the totals of all rows, as the reference does."""
    start = builder.gep(block, [builder.mul(group, simd.index(form.group_bytes))])
    for line in range(0, form.group_bytes, CACHE_LINE):
        simd.prefetch(builder, builder.gep(start, [simd.index(PREFETCH_BYTES + line)]))
    groups = [builder.gep(row, [group]) for row in rows]
    sums = _sum_products(builder, form, dot, start, groups)
    scales = [
        _load_scales(builder, start, begin)
        for begin in range(form.scales_begin, form.group_bytes, SCALES_BYTES)
    ]
    results: list[Any] = []
    for each, row_sums, before in zip(groups, sums, totals, strict=True):
        total, factor = before, _spread_float(builder, each, "scale")
        for product, scale in zip(row_sums, scales[: form.parts], strict=True):
            both = builder.fmul(scale, factor)
            floats = builder.sitofp(product, simd.VECTOR)
            total = simd.fused_multiply_add(builder, floats, both, total)
        if form.has_minimums:
            summed = _spread_float(builder, each, "sum")
            total = simd.fused_multiply_add(builder, scales[-1], summed, total)
        results.append(total)
    return results


def _sum_products(
    builder: Any, form: Form, dot: BytesDot, start: Any, groups: list[Any]
) -> list[list[Any]]:
    """Returns for each row the integer sums of all that shares a scale: a group, or two halves."""
    bits = form.bits
    sums = [
        [dot.start(builder, offset, bits) for offset in _offsets(builder, form, group)]
        for group in groups
    ]
    for quad, vector in _quads(builder, form, start):
        weights = dot.prepare(builder, vector, bits)
        part = quad * form.parts // QUADS_PER_GROUP
        for group, totals in zip(groups, sums, strict=True):
            inputs = _spread_quad(builder, _field(builder, group, "values", 4 * quad))
            totals[part] = dot.add(builder, totals[part], weights, inputs, bits)
    return [[dot.finish(builder, total, bits) for total in totals] for totals in sums]


def _offsets(builder: Any, form: Form, group: Any) -> list[Any]:
    """Returns for each part of a group the vector that undoes that weights lie from 0 on."""
    if form.has_minimums:
        return [None] * form.parts
    pointers = [_field(builder, group, _START_NAMES[form.bits], part) for part in range(form.parts)]
    return [splat(builder, builder.load(pointer)) for pointer in pointers]


def _quads(builder: Any, form: Form, start: Any) -> Iterator[tuple[int, Any]]:
    """Yields vectors of four inputs of every output, each with its number in the group."""
    if form.bits == SIGNED_BITS:
        for number in range(QUADS_PER_GROUP):
            yield number, _load_plane(builder, start, number * PLANE_BYTES)
        return
    halves = ir.Constant(INTS, [0x0F0F0F0F] * simd.LANES)
    for number in range(QUADS_PER_HALF):
        pairs = builder.bitcast(_load_plane(builder, start, number * PLANE_BYTES), INTS)
        for half in range(HALVES):
            quad = number + half * QUADS_PER_HALF
            low = builder.and_(_shifted(builder, pairs, 4 * half), halves)
            if form.plane_bits:
                low = builder.or_(low, _high_bits(builder, form, start, quad))
            yield quad, builder.bitcast(low, QUADS)


def _high_bits(builder: Any, form: Form, start: Any, quad: int) -> Any:
    """Returns the bits of a quad that lie in a plane, where they belong in each byte."""
    plane, slot = divmod(quad, 8 // form.plane_bits)
    vector = _load_plane(builder, start, PAIRS_BYTES + plane * PLANE_BYTES)
    shifted = _shifted(builder, builder.bitcast(vector, INTS), slot * form.plane_bits - 4)
    mask = ((1 << form.plane_bits) - 1 << 4) * 0x01010101
    return builder.and_(shifted, ir.Constant(INTS, [mask] * simd.LANES))


def _shifted(builder: Any, ints: Any, right: int) -> Any:
    """Shifts every integer to the right, or by a negative number to the left."""
    distance = ir.Constant(INTS, [abs(right)] * simd.LANES)
    return builder.shl(ints, distance) if right < 0 else builder.lshr(ints, distance)


def _load_plane(builder: Any, start: Any, begin: int) -> Any:
    pointer = builder.bitcast(builder.gep(start, [simd.index(begin)]), QUADS.as_pointer())
    return builder.load(pointer, align=1)


def _spread_quad(builder: Any, pointer: Any) -> Any:
    quad = builder.load(builder.bitcast(pointer, simd.INT32.as_pointer()), align=1)
    return builder.bitcast(splat(builder, quad), QUADS)


def _spread_float(builder: Any, group: Any, name: str) -> Any:
    return simd.splat(builder, builder.load(_field(builder, group, name)))


def _load_scales(builder: Any, start: Any, begin: int) -> Any:
    pointer = builder.bitcast(builder.gep(start, [simd.index(begin)]), HALF_VECTOR.as_pointer())
    return builder.fpext(builder.load(pointer, align=2), simd.VECTOR)


def _write(builder: Any, totals: list[Any], targets: list[Any], columns: Any, adds: Any) -> None:
    """Builds the code that writes or adds the first `columns` lanes of totals."""
    lanes = ir.Constant(INTS, list(range(BLOCK_OUTPUTS)))
    bound = splat(builder, builder.trunc(columns, simd.INT32))
    mask = builder.icmp_signed("<", lanes, bound)
    for total, target in zip(totals, targets, strict=True):
        pointer = builder.bitcast(target, simd.VECTOR.as_pointer())
        before = simd.masked_load(builder, pointer, mask)
        result = builder.select(adds, builder.fadd(before, total), total)
        simd.masked_store(builder, result, pointer, mask)


def _tile_rows(form: Form) -> tuple[int, ...]:
    """Returns the rows of tiles in their order, see `simd.sweep_rows`.

    With AVX2 alone there are 16 registers. Three rows of 4 bits fit there, so that a row costs less
    than in larger tiles, and all three take hardly longer than one. Values with planes are so much
    work to put together that six rows should share it. Signed values take more registers each.
    """
    if simd.LANES == 16:
        return (8, 6, 4, 1)
    if form.bits == SIGNED_BITS:
        return (4, 3, 2, 1)
    is_short_of_registers = form.bits == FEWEST_BITS and "avx2" in simd.FEATURES
    return (3, 4, 3, 2, 1) if is_short_of_registers else (6, 4, 3, 2, 1)


LARGEST_TILE = max(max(_tile_rows(form)) for form in FORMS)
"""Rows of the largest tile: as many to spare are enough, as in `linear`."""


def _all_rows(form: Form) -> Any:
    """Builds the kernel that multiplies all rows with a block of one form."""
    product = block_product(form, chosen_dot(), _tile_rows(form))

    @kernel
    def multiply(address, rounded, num_rows, groups, out, column, adds):
        product(address, rounded, num_rows, groups, out, column, adds)

    return multiply


_four_bits, _five_bits, _five_bits_with_minimums, _six_bits, _eight_bits = map(_all_rows, FORMS)


def _form_number(block):
    raise NotImplementedError("for compiled code only")


@by_type(_form_number)
def _form_number_of_type(block):
    def number_of_plain(block):
        return block.plain_form

    def number_of_any(block):
        return block.form

    return number_of_plain if _is_plain(block) else number_of_any


def _is_plain(block: types.Record) -> bool:
    return "plain_form" in block.fields


def _multiply_planes(block, rounded, num_rows, groups, out, column, adds):
    raise NotImplementedError("for compiled code only")


@by_type(_multiply_planes)
def _multiply_planes_of_type(block, rounded, num_rows, groups, out, column, adds):
    def multiply_nothing(block, rounded, num_rows, groups, out, column, adds):
        pass

    def multiply_planes(block, rounded, num_rows, groups, out, column, adds):
        address, form = block.address, block.form
        if form == FIVE_BITS:
            _five_bits(address, rounded, num_rows, groups, out, column, adds)
        elif form == FIVE_BITS_WITH_MINIMUMS:
            _five_bits_with_minimums(address, rounded, num_rows, groups, out, column, adds)
        else:
            _six_bits(address, rounded, num_rows, groups, out, column, adds)

    return multiply_nothing if _is_plain(block) else multiply_planes


@kernel
def grouped_rows(rounded, num_rows, blocks, begin, end, groups, out, adds):
    """Computes outputs begin..end of the first rows, or adds them; `begin` is that of a block."""
    for column in range(begin, end, BLOCK_OUTPUTS):
        block = blocks[column // BLOCK_OUTPUTS]
        form = _form_number(block)
        if form == FOUR_BITS:
            _four_bits(block.address, rounded, num_rows, groups, out, column, adds)
        elif form == EIGHT_BITS:
            _eight_bits(block.address, rounded, num_rows, groups, out, column, adds)
        else:
            _multiply_planes(block, rounded, num_rows, groups, out, column, adds)


@intrinsic
def _byte_at(typing_context, address):
    """Returns the signed byte at an address."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], simd.BYTE_POINTER)
        return builder.sext(builder.load(pointer), simd.INT64)

    return types.int64(types.int64), generate


@intrinsic
def _half_at(typing_context, address):
    """Returns the float16 at an address as a float32."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.HalfType().as_pointer())
        return builder.fpext(builder.load(pointer, align=2), simd.FLOAT)

    return types.float32(types.int64), generate


@kernel
def widen_output(blocks, output, width, out, row):
    """Writes `width` inputs of an output, such as an embedding, as floats to a row of `out`."""
    block, lane = blocks[output // BLOCK_OUTPUTS], output % BLOCK_OUTPUTS
    form = _form_number(block)
    for column in range(width):
        group, number = divmod(column, GROUP)
        start = block.address + group * GROUP_BYTES[form]
        value = np.float32(_value_at(start, form, lane, number))
        scales = start + SCALES_BEGIN[form] + 2 * lane
        if form == SIX_BITS:
            scales += number // HALF_GROUP * SCALES_BYTES
        result = value * _half_at(scales)
        if HAS_MINIMUMS[form]:
            result += _half_at(scales + SCALES_BYTES)
        out[row, column] = result


@kernel
def _value_at(start, form, lane, number):
    """Returns one of the values of an output in a group that begins at an address."""
    quad, place = number // 4, 4 * lane + number % 4
    if BITS[form] == SIGNED_BITS:
        return _byte_at(start + quad * PLANE_BYTES + place)
    half, pair = divmod(quad, QUADS_PER_HALF)
    value = (_byte_at(start + pair * PLANE_BYTES + place) >> 4 * half) & 15
    plane_bits = PLANE_BITS[form]
    if plane_bits:
        plane, slot = divmod(quad * plane_bits, 8)
        high = _byte_at(start + PAIRS_BYTES + plane * PLANE_BYTES + place) >> slot
        value += (high & ((1 << plane_bits) - 1)) << 4
    return value - MOVED_BY[form]
