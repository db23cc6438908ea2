"""The gated delta rule over texts and trees, against its definition step by step."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from treesnake.kernels.reference import gated_delta
from treesnake.states.tree_layout import tree_layout

HEADS, KEY_DIM, VALUE_DIM = 3, 5, 4
CPU = torch.device("cpu")


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


@given(trees(), st.integers(1, 12), seeds, decay_counts)
@example((-1, 0, 0, 1, 1, 2, -1, 6), 8, 0, 1)
@example((-1, 0, 0, 1, 1, 2, -1, 6), 3, 0, KEY_DIM)
def test_new_nodes_have_the_outputs_of_their_paths(parents, num_new, seed, decays):
    num_new = min(num_new, len(parents))
    rows, state = inputs(len(parents), seed, decays), first_state(seed)
    mask = tree_layout(parents, 1, CPU).ancestor_mask
    query, *moving = rows
    outputs = gated_delta.extend_sums(query[-num_new:], *moving, mask, state)
    for output, node in zip(outputs, range(len(parents) - num_new, len(parents)), strict=True):
        path = mask[node].nonzero().flatten().tolist()
        close(output, stepped(rows, path, state)[0][-1])


@given(st.integers(1, 9), seeds, decay_counts)
def test_a_path_is_committed_in_closed_form(length, seed, decays):
    rows, state = inputs(length, seed, decays), first_state(seed)
    close(gated_delta.commit_sums(*rows[1:], state), stepped(rows, range(length), state)[1])


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("decays", [1, KEY_DIM])
def test_a_text_in_chunks_is_the_text_step_by_step(length, decays):
    rows, state = inputs(length, length, decays), first_state(length)
    outputs, after = gated_delta.scan(*rows, state)
    expected, expected_state = stepped(rows, range(length), state)
    close(outputs, expected)
    close(after, expected_state)


def test_other_branches_do_not_overflow():
    rows = list(inputs(3, 0, 1))
    rows[3] = torch.tensor([-1.0, -400.0, -1.0])[:, None, None].expand(3, HEADS, 1)
    query, *moving = rows
    mask = tree_layout((-1, 0, 0), 1, CPU).ancestor_mask
    assert gated_delta.extend_sums(query, *moving, mask, first_state(0)).isfinite().all()
