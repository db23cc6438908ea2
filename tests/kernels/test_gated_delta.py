"""The gated delta rule over texts and trees, against its definition step by step."""

from types import ModuleType

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from treesnake.kernels.cpu import gated_delta as compiled
from treesnake.kernels.dispatch import delta_kernels
from treesnake.kernels.reference import gated_delta
from treesnake.states.tree_layout import tree_layout

HEADS, KEY_DIM, VALUE_DIM = 3, 5, 4
CPU = torch.device("cpu")
FORMS = [gated_delta, compiled]


def name_of(form: ModuleType) -> str:
    return form.__name__.split(".")[-2]


each_form = pytest.mark.parametrize("form", FORMS, ids=name_of)


def inputs(rows, seed, decays):
    generator = torch.Generator().manual_seed(seed)

    def draw(*axes):
        return torch.randn(rows, HEADS, *axes, generator=generator)

    key = draw(KEY_DIM)
    key = key / key.norm(dim=-1, keepdim=True)
    log_decay, beta = -draw(decays).exp(), 2 * draw().sigmoid()
    return draw(KEY_DIM), key, draw(VALUE_DIM), log_decay, beta


def first_state(seed):
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(HEADS, KEY_DIM, VALUE_DIM, generator=generator)


def stepped(rows, path, state):
    outputs = []
    for node in path:
        output, state = gated_delta.step(*(each[node] for each in rows), state)
        outputs.append(output)
    return torch.stack(outputs), state


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)


@st.composite
def trees(draw):
    size = draw(st.integers(1, 12))
    return tuple(draw(st.integers(-1, node - 1)) for node in range(size))


seeds = st.integers(0, 1000)
decay_counts = st.sampled_from([1, KEY_DIM])


@each_form
@given(trees(), st.integers(1, 12), seeds, decay_counts)
@example((-1, 0, 0, 1, 1, 2, -1, 6), 8, 0, 1)
@example((-1, 0, 0, 1, 1, 2, -1, 6), 3, 0, KEY_DIM)
def test_new_nodes_have_the_outputs_of_their_paths(form, parents, num_new, seed, decays):
    num_new = min(num_new, len(parents))
    rows, state = inputs(len(parents), seed, decays), first_state(seed)
    mask = tree_layout(parents, 1, CPU).ancestor_mask
    query, *moving = rows
    outputs = form.extend_sums(query[-num_new:], *moving, mask, state)
    for output, node in zip(outputs, range(len(parents) - num_new, len(parents)), strict=True):
        path = mask[node].nonzero().flatten().tolist()
        close(output, stepped(rows, path, state)[0][-1])


@each_form
@given(st.integers(1, 9), seeds, decay_counts)
def test_a_path_is_committed_as_if_it_were_run(form, length, seed, decays):
    rows, state = inputs(length, seed, decays), first_state(seed)
    close(form.commit_sums(*rows[1:], state), stepped(rows, range(length), state)[1])
    assert state.equal(first_state(seed)), "the state is not moved in place"


@each_form
@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("decays", [1, KEY_DIM])
def test_a_text_is_the_text_step_by_step(form, length, decays):
    rows, state = inputs(length, length, decays), first_state(length)
    outputs, after = form.scan(*rows, state)
    expected, expected_state = stepped(rows, range(length), state)
    close(outputs, expected)
    close(after, expected_state)


@each_form
def test_other_branches_do_not_overflow(form):
    rows = list(inputs(3, 0, 1))
    rows[3] = torch.tensor([-1.0, -400.0, -1.0])[:, None, None].expand(3, HEADS, 1)
    query, *moving = rows
    mask = tree_layout((-1, 0, 0), 1, CPU).ancestor_mask
    assert form.extend_sums(query, *moving, mask, first_state(0)).isfinite().all()


@given(trees(), st.integers(1, 12), seeds, decay_counts)
def test_compiled_nodes_have_the_bits_of_their_paths_in_any_tree(parents, num_new, seed, decays):
    """A path that was committed before counts as well, and so does one that was run as a text."""
    num_new = min(num_new, len(parents))
    rows, state = inputs(len(parents), seed, decays), first_state(seed)
    mask = tree_layout(parents, 1, CPU).ancestor_mask
    query, *moving = rows
    output = compiled.extend_sums(query[-num_new:], *moving, mask, state)[-1]
    path = mask[-1].nonzero().flatten().tolist()
    on_path = [part[path] for part in rows]
    assert output.equal(compiled.scan(*on_path, state)[0][-1])
    committed = state
    if path[:-1]:
        committed = compiled.commit_sums(*(part[:-1] for part in on_path[1:]), state)
    alone = compiled.extend_sums(
        *(part[-1:] for part in on_path), torch.ones(1, 1, dtype=torch.bool), committed
    )
    assert output.equal(alone[0])


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_compiled_text_in_two_parts_has_the_bits_of_the_whole(cut):
    rows, state = inputs(13, 0, 1), first_state(0)
    outputs, after = compiled.scan(*rows, state)
    first, middle = compiled.scan(*(part[:cut] for part in rows), state)
    second, end = compiled.scan(*(part[cut:] for part in rows), middle)
    assert outputs.equal(torch.cat([first, second]))
    assert after.equal(end)
    assert after.equal(compiled.commit_sums(*rows[1:], state))


def test_values_of_several_tiles_and_inputs_of_other_types_are_run():
    num_values = compiled.TILE + 3
    random = torch.Generator().manual_seed(0)
    query, key, _, log_decay, beta = inputs(5, 0, 1)
    value = torch.randn(5, HEADS, num_values, generator=random)
    state = torch.randn(HEADS, KEY_DIM, num_values, generator=random)
    rows = [query, key, value, log_decay, beta]
    outputs, after = compiled.scan(*rows, state)
    expected, expected_state = stepped(rows, range(5), state)
    close(outputs, expected)
    close(after, expected_state)
    rounded = [part.bfloat16() for part in rows]
    assert compiled.scan(*rounded, state)[0].dtype == torch.bfloat16
    exact = compiled.scan(*(part.float() for part in rounded), state)[0]
    assert compiled.scan(*rounded, state)[0].equal(exact.bfloat16())


def test_a_cpu_runs_the_compiled_form():
    assert delta_kernels(CPU) is compiled
