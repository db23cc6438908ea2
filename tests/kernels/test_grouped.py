"""Products with grouped weights: the reference's bits for any rows, form and instructions."""

from collections.abc import Sequence

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import ir

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.grouped import (
    BLOCK_OUTPUTS,
    FORMS,
    LARGEST_TILE,
    Form,
    block_product,
    form_of,
    grouped_rows,
    new_rounded_rows,
    round_row,
)
from treesnake.kernels.cpu.integer_dots import (
    INTS,
    QUADS,
    BytesDot,
    arm_dot,
    avx2_dot,
    chosen_dot,
    portable_dot,
    vnni_dot,
)
from treesnake.kernels.cpu.jit import entry_point
from treesnake.kernels.grouped_weight import GroupedWeight, value_range
from treesnake.kernels.reference.grouped_linear import grouped_linear, round_rows
from treesnake.models.weight_stack import WeightStack, new_stack


def runnable_dots() -> list[BytesDot]:
    """Returns every way whose instructions this processor has."""
    needs = {
        "avx512vnni": [vnni_dot(512)],
        "avx512vl": [vnni_dot(256)] if "avx512vnni" in simd.FEATURES else [],
        "avxvnni": [vnni_dot(256)],
        "avx2": [avx2_dot()],
        "dotprod": [arm_dot()],
    }
    found = [dot for need, dots in needs.items() if need in simd.FEATURES for dot in dots]
    return [*found, portable_dot()]


DOTS = {dot.name: dot for dot in runnable_dots()}


@entry_point
def _round(x, num_rows, rounded):
    for row in range(num_rows):
        round_row(x, row, rounded)


@entry_point
def _multiply(rounded, num_rows, blocks, end, groups, out, adds):
    grouped_rows(rounded, num_rows, blocks, 0, end, groups, out, adds)


def rounded(x: np.ndarray) -> np.ndarray:
    rows = new_rounded_rows(len(x) + LARGEST_TILE, x.shape[1])
    _round(x, len(x), rows)
    return rows


def packed(weight: GroupedWeight) -> WeightStack:
    stack = new_stack(1, *weight.shape, torch.int8)
    stack.write(0, weight)
    return stack


def multiply(x: np.ndarray, weight: GroupedWeight, adds_to: np.ndarray | None = None) -> np.ndarray:
    out = np.full((len(x) + LARGEST_TILE, len(weight)), np.nan, np.float32)
    if adds_to is not None:
        out[: len(x)] = adds_to
    stack = packed(weight)
    adds = np.bool_(adds_to is not None)
    _multiply(rounded(x), len(x), stack.array[0], len(weight), x.shape[1] // 32, out, adds)
    return out[: len(x)]


def random_weight(outputs: int, inputs: int, form: Form, seed: int = 0) -> GroupedWeight:
    random = np.random.default_rng(seed)
    size = 32 // form.parts
    lowest, highest = value_range(form.bits, form.has_minimums)
    values = random.integers(lowest, highest + 1, (outputs, inputs)).astype(np.int8)
    scales, minimums = random.standard_normal((2, outputs, inputs // size)).astype(np.float16)
    weight = GroupedWeight(form.bits, values, scales, minimums if form.has_minimums else None)
    assert FORMS[form_of(weight)] == form
    return weight


def random_rows(rows: int, inputs: int) -> np.ndarray:
    random = np.random.default_rng(rows)
    spread = 10.0 ** random.integers(-3, 3, (rows, inputs))
    return (random.standard_normal((rows, inputs)) * spread).astype(np.float32)


@pytest.mark.parametrize("form", FORMS, ids=str)
@settings(max_examples=25)
@given(rows=st.integers(1, 20), outputs=st.integers(1, 70), groups=st.integers(1, 5))
def test_products_have_the_bits_of_the_reference(
    form: Form, rows: int, outputs: int, groups: int
) -> None:
    x, weight = random_rows(rows, 32 * groups), random_weight(outputs, 32 * groups, form)
    assert np.array_equal(multiply(x, weight), grouped_linear(round_rows(x), weight))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_any_tile(form: Form) -> None:
    x, weight = random_rows(2 * LARGEST_TILE - 1, 96), random_weight(33, 96, form)
    together = multiply(x, weight)
    for row in range(len(x)):
        assert np.array_equal(multiply(x[row : row + 1], weight)[0], together[row])


def test_products_can_be_added_to_what_is_there() -> None:
    x, weight = random_rows(3, 64), random_weight(20, 64, FORMS[-1])
    before = random_rows(3, 20)
    assert np.array_equal(multiply(x, weight, before), before + multiply(x, weight))


@settings(max_examples=40)
@given(rows=st.integers(1, 5), halves=st.integers(1, 9), exponent=st.integers(-40, 30))
def test_rows_are_rounded_as_the_reference_rounds_them(
    rows: int, halves: int, exponent: int
) -> None:
    width = 16 * halves
    x = random_rows(rows, width) * np.float32(2.0**exponent)
    padded = np.zeros((rows, -(-width // 32) * 32), np.float32)
    padded[:, :width] = x
    result, expected = rounded(x)[:rows], round_rows(padded)
    assert np.array_equal(result["values"].reshape(rows, -1), expected.values)
    assert np.array_equal(result["scale"], expected.scales)
    half_sums = expected.values.reshape(rows, -1, 2, 16).sum(3, dtype=np.int32)
    sums = half_sums.sum(2)
    assert np.array_equal(result["sum"], expected.scales * sums.astype(np.float32))
    assert np.array_equal(result["eight_bits"], -128 * sums)
    assert np.array_equal(result["five_bits"], -16 * sums)
    assert np.array_equal(result["six_bits"], -32 * half_sums)


def test_rows_that_are_no_finite_numbers_stay_visible() -> None:
    x = np.ones((2, 32), np.float32)
    x[0, 3], x[1, 3] = np.inf, np.nan
    result = multiply(x, random_weight(3, 32, FORMS[-1]))
    assert np.isnan(result).all()


def tile_of(form: Form, dot: BytesDot):
    product = block_product(form, dot, (2,))

    @entry_point
    def run(address, rows, groups, out):
        product(address, rows, 2, groups, out, 0, np.bool_(False))

    return run


def extreme_weights(form: Form) -> Sequence[GroupedWeight]:
    """Returns weights of the smallest and the largest numbers, and of both in turn."""
    like = random_weight(BLOCK_OUTPUTS, 64, form)
    low, high = value_range(form.bits, form.has_minimums)
    patterns = ([low], [high], [low, high], [high, high, low, low])
    return [
        GroupedWeight(
            like.bits,
            np.resize(np.array(pattern, np.int8), like.values.shape),
            like.scales,
            like.minimums,
        )
        for pattern in patterns
    ]


@pytest.mark.parametrize("name", DOTS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_instructions_give_equal_bits_and_never_saturate(form: Form, name: str) -> None:
    run = tile_of(form, DOTS[name])
    patterns = ([1.0], [-1.0], [1.0, -1.0], [1.0, 1.0, -1.0, -1.0])
    extremes = [np.resize(np.array(pattern, np.float32), (2, 64)) for pattern in patterns]
    inputs = [random_rows(2, 64), *extremes]
    weights = [random_weight(BLOCK_OUTPUTS, 64, form), *extreme_weights(form)]
    for x in inputs:
        rows = rounded(x)
        for weight in weights:
            stack = packed(weight)
            out = np.empty((2, BLOCK_OUTPUTS), np.float32)
            run(stack.array[0]["address"][0], rows, 2, out)
            assert np.array_equal(out, grouped_linear(round_rows(x), weight))


def test_arm_dot_products_become_single_instructions() -> None:
    dot, module = arm_dot(), ir.Module()
    kinds = [kind.as_pointer() for kind in (INTS, QUADS, QUADS)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "add_products")
    builder = ir.IRBuilder(function.append_basic_block())
    sums, weights, inputs = (builder.load(pointer, align=1) for pointer in function.args)
    weights = dot.prepare(builder, weights, 8)
    total = dot.finish(builder, dot.add(builder, sums, weights, inputs, 8), 8)
    builder.store(total, function.args[0], align=1)
    builder.ret_void()
    assembly = assembled_for_arm(module)
    assert assembly.count("sdot") == 4 * simd.LANES // 16


def assembled_for_arm(module: ir.Module) -> str:
    """Returns the assembly for a 64-bit ARM processor with dot products."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM has no target for ARM")
    machine = target.create_target_machine(features="+dotprod")
    module.triple = machine.triple
    return machine.emit_assembly(llvm.parse_assembly(str(module)))


def test_the_instructions_chosen_are_the_widest_that_the_processor_has() -> None:
    assert chosen_dot().name == next(iter(DOTS))
