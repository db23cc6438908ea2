"""Token trees against a naive definition: a node's path is found by walking up the parents."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.tree import TokenTree, TreeBuilder, merge

PARENTS = st.lists(st.integers(0, 10**6), max_size=24).map(
    lambda draws: [-1, *(draw % (node + 1) for node, draw in enumerate(draws))]
)


def make_tree(parents: list[int], seed: int = 0, vocab_size: int = 10**6) -> TokenTree:
    chance = random.Random(seed)
    tokens = [chance.randrange(vocab_size) for _ in parents]
    return TokenTree.of(tokens, parents)


def make_distinct_tree(seed: int, anchor: int = 0, num_added: int = 12) -> TokenTree:
    """Grows a tree over three tokens in which siblings differ, so that trees share prefixes."""
    chance = random.Random(seed)
    builder = TreeBuilder(anchor)
    for _ in range(num_added):
        builder.add(chance.randrange(len(builder.tokens)), chance.randrange(3))
    return builder.build()


def naive_path(parents: list[int], node: int) -> tuple[int, ...]:
    return (*naive_path(parents, parents[node]), node) if node else (0,)


def texts(tree: TokenTree) -> set[tuple[int, ...]]:
    return {tuple(tree.path_tokens(node)) for node in range(len(tree))}


@given(PARENTS)
def test_a_path_leads_from_the_anchor_to_its_node(parents: list[int]) -> None:
    tree = make_tree(parents)
    for node in range(len(tree)):
        assert tree.path(node) == naive_path(parents, node)
        assert tree.path_tokens(node) == [tree.tokens[step] for step in tree.path(node)]


@given(PARENTS)
def test_depths_count_the_edges_up_to_the_anchor(parents: list[int]) -> None:
    depths = make_tree(parents).depths
    assert depths == tuple(len(naive_path(parents, node)) - 1 for node in range(len(parents)))


@given(PARENTS)
def test_children_come_in_the_order_of_their_nodes(parents: list[int]) -> None:
    tree = make_tree(parents)
    assert tree.children == [
        [child for child in range(1, len(parents)) if parents[child] == node]
        for node in range(len(parents))
    ]


@given(PARENTS)
def test_a_tree_is_a_chain_if_no_node_has_two_children(parents: list[int]) -> None:
    tree = make_tree(parents)
    assert tree.is_chain == all(len(children) < 2 for children in tree.children)
    assert tree.num_drafted == len(tree) - 1 == len(parents) - 1


def test_a_chain_continues_token_by_token() -> None:
    tree = TokenTree.chain([7, 5, 5, 9])
    assert tree.parents == (-1, 0, 1, 2)
    assert tree.path_tokens(3) == [7, 5, 5, 9]


@given(st.integers(0, 10**6))
def test_following_the_tokens_of_a_path_finds_its_nodes(seed: int) -> None:
    tree = make_distinct_tree(seed)
    for node in range(len(tree)):
        assert tree.follow(tree.path_tokens(node)) == tree.path(node)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 2), max_size=6))
def test_a_text_is_followed_as_far_as_the_tree_has_it(seed: int, tokens: list[int]) -> None:
    tree = make_distinct_tree(seed)
    path = tree.follow(tokens)
    assert [tree.tokens[node] for node in path] == tokens[: len(path)]
    if len(path) < len(tokens):
        assert tuple(tokens[: len(path) + 1]) not in texts(tree)


@pytest.mark.parametrize(
    ("tokens", "parents"),
    [
        ([], []),
        ([1, 2], [0, 0]),
        ([1, 2], [-1, -1]),
        ([1, 2], [-1, 1]),
        ([1, 2, 3], [-1, 2, 0]),
        ([1, 2, 3], [-1, 0, 5]),
    ],
)
def test_arrays_that_are_no_tree_are_refused(tokens: list[int], parents: list[int]) -> None:
    with pytest.raises(InvalidInputError):
        TokenTree.of(tokens, parents)


def test_a_tree_needs_a_parent_for_each_token() -> None:
    with pytest.raises(InvalidInputError, match="one parent per token"):
        TokenTree.of([1, 2], [-1])


def test_a_builder_returns_the_child_that_is_there_already() -> None:
    builder = TreeBuilder(anchor=4)
    first = builder.add(0, 8)
    second = builder.add(0, 9)
    assert (first, second) == (1, 2)
    assert builder.add(0, 8) == first
    assert builder.add(first, 9) == 3
    tree = builder.build()
    assert (tree.tokens, tree.parents) == ((4, 8, 9, 9), (-1, 0, 0, 1))


def test_a_builder_adds_paths_below_any_node() -> None:
    builder = TreeBuilder(anchor=0)
    last = builder.add_path([1, 2, 3])
    assert builder.add_path([1, 2]) == 2, "a path that is there already adds nothing"
    branch = builder.add_path([5, 6], parent=2)
    tree = builder.build()
    assert tree.path_tokens(last) == [0, 1, 2, 3]
    assert tree.path_tokens(branch) == [0, 1, 2, 5, 6]
    assert builder.add_path([]) == 0


def test_a_builder_finds_the_children_that_are_there() -> None:
    builder = TreeBuilder(anchor=0)
    first = builder.add(0, 5)
    assert builder.child(0, 5) == first
    assert builder.child(0, 6) is None
    assert builder.child(first, 5) is None


@pytest.mark.parametrize("parent", [-1, 1, 7])
def test_a_builder_refuses_parents_that_are_not_there(parent: int) -> None:
    with pytest.raises(InvalidInputError, match="cannot be a parent"):
        TreeBuilder(anchor=0).add(parent, 1)


def test_a_tree_that_was_built_does_not_grow_with_its_builder() -> None:
    builder = TreeBuilder(anchor=0)
    tree = builder.build()
    builder.add(0, 1)
    assert len(tree) == 1


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_merged_tree_has_the_texts_of_both_and_each_only_once(seed: int, other: int) -> None:
    first, second = make_distinct_tree(seed), make_distinct_tree(other)
    joint, _ = merge(first, second)
    assert texts(joint) == texts(first) | texts(second)
    assert len(joint) == len(texts(joint))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_merging_keeps_the_first_trees_numbers_and_maps_the_seconds(seed: int, other: int) -> None:
    first, second = make_distinct_tree(seed), make_distinct_tree(other)
    joint, nodes = merge(first, second)
    assert joint.tokens[: len(first)] == first.tokens
    assert joint.parents[: len(first)] == first.parents
    for node in range(len(second)):
        assert joint.path_tokens(nodes[node]) == second.path_tokens(node)


def test_a_tree_merged_with_itself_is_itself() -> None:
    tree = make_distinct_tree(seed=3)
    joint, nodes = merge(tree, tree)
    assert joint.parents == tree.parents
    assert nodes == list(range(len(tree)))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_what_is_not_kept_in_a_merge_is_left_out_with_all_below_it(
    seed: int, other: int, mask: int
) -> None:
    first, second = make_distinct_tree(seed), make_distinct_tree(other)
    sizes: list[int] = []

    def is_kept(node: int, num_drafted: int) -> bool:
        sizes.append(num_drafted)
        return bool(mask >> node % 20 & 1)

    joint, nodes = merge(first, second, is_kept)
    assert sizes == sorted(sizes)
    assert len(joint) == len({*range(len(first)), *nodes} - {-1})
    for node in range(1, len(second)):
        above = nodes[second.parents[node]]
        is_shared = nodes[node] >= 0 and nodes[node] < len(first)
        is_in = above >= 0 and (is_shared or bool(mask >> node % 20 & 1))
        assert (nodes[node] >= 0) == is_in
        if is_in:
            assert joint.path_tokens(nodes[node]) == second.path_tokens(node)


@given(st.integers(0, 10**6))
def test_a_tree_counts_the_nodes_with_children_by_level(seed: int) -> None:
    tree = make_distinct_tree(seed)
    depths = [int(depth) for node, depth in enumerate(tree.depths) if tree.children[node]]
    assert tree.num_expanded == tuple(depths.count(d) for d in range(tree.depth))


def test_trees_over_different_anchors_are_not_merged() -> None:
    with pytest.raises(InvalidInputError, match="different anchors"):
        merge(make_distinct_tree(0, anchor=1), make_distinct_tree(0, anchor=2))


def test_equal_siblings_in_the_first_tree_are_refused_by_merge() -> None:
    twice = TokenTree.of([0, 5, 5], [-1, 0, 0])
    with pytest.raises(InvalidInputError, match="drafted twice"):
        merge(twice, make_distinct_tree(0))
