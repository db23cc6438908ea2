import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.prompt import Prompt, PromptInput
from treesnake.states.held_text import HeldText


def holding(*tokens: int) -> HeldText:
    held = HeldText()
    held.read(tokens)
    return held


def image(value: float, start: int, num_placeholders: int = 2) -> PromptInput:
    return PromptInput({"pixel_values": torch.full((2, 2), value)}, start, num_placeholders)


def test_a_path_becomes_text_and_the_tree_is_gone() -> None:
    held = holding(5)
    held.append([6, 7, 8], [-1, -1, 1])
    held.check_path([1, 2])
    held.commit([1, 2])
    assert (held.key, held.length) == ([5, 7, 8], 3)
    assert (held.tokens, held.parents) == ([], ())


def test_nodes_of_several_calls_are_numbered_on() -> None:
    held = holding()
    held.append([1, 2], [-1, 0])
    held.check_growth([3], [1])
    held.append([3], [1])
    assert held.parents == (-1, 0, 1)


@pytest.mark.parametrize(
    ("tokens", "parents"), [([], []), ([1], [0]), ([1], [-2]), ([1, 2], [-1]), ([1], [])]
)
def test_what_cannot_grow_is_refused(tokens: list[int], parents: list[int]) -> None:
    with pytest.raises(InvalidInputError):
        holding(4).check_growth(tokens, parents)


@pytest.mark.parametrize("path", [[1], [0, 0], [0, 2], [3], [-1]])
def test_what_is_no_path_is_refused(path: list[int]) -> None:
    held = holding(4)
    held.append([1, 2, 3], [-1, 0, -1])
    with pytest.raises(InvalidInputError, match="is not a path of the tree"):
        held.check_path(path)


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_what_is_shared_is_the_longest_common_beginning(held: list[int], prompt: list[int]) -> None:
    shared = holding(*held).num_shared(Prompt.of(prompt))
    assert held[:shared] == prompt[:shared]
    assert shared == min(len(held), len(prompt) - 1) or held[shared] != prompt[shared]


@given(st.integers(0, 5), st.integers(1, 3), st.integers(0, 4), st.floats(0, 1), st.floats(1.5, 2))
def test_equal_ids_with_other_inputs_share_nothing_from_the_placeholders_on(
    start: int, num_placeholders: int, num_after: int, value: float, other: float
) -> None:
    tokens = (7,) * (start + num_placeholders + num_after + 1)
    first = Prompt(tokens, (image(value, start, num_placeholders),))
    again = Prompt(tokens, (image(value, start, num_placeholders),))
    second = Prompt(tokens, (image(other, start, num_placeholders),))
    held = HeldText()
    held.read(first.key[:-1])
    assert held.num_shared(again) == len(tokens) - 1
    assert held.num_shared(second) == start
    assert held.num_shared(Prompt(tokens)) == start
