"""Planned trees against all trees; prices against what they are to buy."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.search.planning import plan_prices, plan_tree
from treesnake.shape import FixedTree

MOST = 5
PROBS = st.lists(
    st.lists(st.floats(0.01, 0.6), min_size=3, max_size=3).map(
        lambda row: sorted((share / 2**rank for rank, share in enumerate(row)), reverse=True)
    ),
    min_size=4,
    max_size=4,
)


def all_trees() -> list[FixedTree]:
    return [
        FixedTree(parents)
        for size in range(1, MOST + 1)
        for parents in itertools.product(range(size), repeat=size)
        if list(parents) == sorted(parents)
        and all(parent <= node for node, parent in enumerate(parents))
        and max(map(parents.count, parents)) <= 3
    ]


TREES = [tree for tree in all_trees() if tree.depth <= 4]


def rate_of(tree: FixedTree, accepted: list[list[float]], node_s: float, level_s: float) -> float:
    reached = [1.0]
    for node, parent in enumerate(tree.parents, start=1):
        rank = tree.children[parent].index(node)
        reached.append(reached[parent] * accepted[tree.depths[parent]][rank])
    expanded = sum(bool(children) for children in tree.children)
    drafting = level_s * (tree.depth + 0.1 * (expanded - tree.depth))
    return sum(reached) / (1 + node_s * tree.num_drafted + drafting)


@settings(max_examples=40)
@given(PROBS, st.floats(0.001, 0.3), st.floats(0.0, 0.4))
def test_a_planned_tree_is_nearly_the_best_of_all(
    accepted: list[list[float]], node_s: float, level_s: float
) -> None:
    plan = plan_tree(
        accepted,
        lambda count: 1 + node_s * (count - 1),
        lambda count: level_s * (1 + 0.1 * (count - 1)) if count else 0.0,
        max_nodes=MOST,
        max_width=8,
    )
    best = max(rate_of(tree, accepted, node_s, level_s) for tree in TREES)
    assert plan.rate == pytest.approx(rate_of(plan.shape, accepted, node_s, level_s))
    assert plan.rate >= 0.95 * best


FALLING = [[0.6, 0.2, 0.1]] * 8


def plan(node_s: float, level_s: float, **limits: int) -> FixedTree:
    limits = {"max_nodes": 40, "max_width": 8} | limits
    return plan_tree(
        FALLING, lambda count: 1 + node_s * (count - 1), lambda _: level_s, **limits
    ).shape


def test_cheap_nodes_make_large_trees_and_dear_levels_make_flat_ones() -> None:
    assert plan(0.001, 0.01).num_drafted > 30
    assert plan(0.2, 0.01).num_drafted <= 3
    assert plan(0.001, 0.5).depth < plan(0.001, 0.01).depth


def test_limits_are_kept_and_a_tree_has_a_node_at_least() -> None:
    assert plan(0.001, 0.01, max_nodes=7).num_drafted == 7
    narrow = plan(0.001, 0.01, max_width=1)
    for depth in range(narrow.depth):
        expanded = [
            node
            for node, children in enumerate(narrow.children)
            if children and narrow.depths[node] == depth
        ]
        assert len(expanded) == 1
    assert plan(9.0, 9.0).num_drafted == 1


def test_prices_are_what_the_seconds_are_worth() -> None:
    shape = plan_prices(
        [0.5] * 3,
        lambda probability: probability,
        lambda count: 1 + 0.01 * count,
        0.1,
        2.0,
        max_nodes=4,
        width=2,
    )
    assert shape.node_prices == pytest.approx((0.0, 0.02, 0.02, 0.02))
    assert shape.level_prices == pytest.approx((0.44, 0.44, 0.44))


def test_nodes_that_no_confidence_is_worth_end_the_tree() -> None:
    shape = plan_prices([0.5] * 3, lambda _: 2.0, float, 1.0, 1.0, max_nodes=64, width=2)
    assert len(shape.node_prices) == 1
