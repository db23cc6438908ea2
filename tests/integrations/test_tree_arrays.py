"""Trees of a fixed size: each node sees its ancestors, and fillers see themselves alone."""

from treesnake.integrations.tree_arrays import tree_arrays
from treesnake.tree import TokenTree


def test_a_node_sees_itself_and_its_ancestors() -> None:
    tree = TokenTree((7, 1, 2, 3), (-1, 0, 0, 2))
    tokens, mask = tree_arrays(tree, 7, 4)
    assert tokens.tolist() == [7, 1, 2, 3]
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


def test_nodes_that_fill_up_cannot_be_reached() -> None:
    tokens, mask = tree_arrays(TokenTree((7, 1), (-1, 0)), 7, 4)
    assert tokens.tolist() == [7, 1, 0, 0]
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_without_a_draft_there_is_the_anchor_alone() -> None:
    tokens, mask = tree_arrays(None, 7, 3)
    assert tokens.tolist() == [7, 0, 0]
    assert mask.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
