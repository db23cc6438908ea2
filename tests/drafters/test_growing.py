"""How trees grow: full levels or best first, sampled or chosen, one call of the model a level."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.drafters.growing import grow
from treesnake.models.tree_network import TreeState
from treesnake.sampling import Rng, SamplingParams, to_probs
from treesnake.shape import OFF, BestFirst, FixedTree, LevelWidths, Priced, Shape
from treesnake.testing import RecurrentModel, enumerate_outcomes
from treesnake.testing.tiny import TinyState
from treesnake.waiting_times import RARE

VOCAB_SIZE = 5
ANCHOR = 2
SAMPLING = SamplingParams(temperature=0.8, top_k=3)

WIDTHS = st.lists(st.integers(1, 3), max_size=3).map(tuple)
BEST_FIRST = st.builds(BestFirst, st.integers(1, 4), st.integers(0, 4), st.integers(0, 12))
SEEDS = st.integers(0, 10**6)


@dataclass
class Recording:
    """A model that notes the size of each call."""

    state: TinyState
    sizes: list[int] = field(default_factory=list)

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int]
    ) -> Float[Tensor, "new_nodes vocab"]:
        self.sizes.append(len(token_ids))
        return self.state.extend(token_ids, parents)


def model(seed: int = 0) -> TinyState:
    return TinyState(RecurrentModel(VOCAB_SIZE, seed=seed))


def logits_after(seed: int, tokens: Sequence[int]) -> Tensor:
    return model(seed).extend(tokens, list(range(-1, len(tokens) - 1)))[-1]


def scores_after(seed: int, tokens: Sequence[int]) -> Tensor:
    """The logits with the noise by which a chosen tree is drawn in sampled text."""
    waits = torch.from_numpy(TorchRng(seed).waits(len(tokens) - 1, np.arange(VOCAB_SIZE)))
    logits = logits_after(seed, tokens)
    is_rare = logits < logits.max() + SAMPLING.temperature * math.log(RARE)
    return (logits - SAMPLING.temperature * waits.log()).masked_fill(is_rare, -math.inf)


def draft_of(shape: Shape, params: SamplingParams, seed: int = 0, rng: Rng | None = None) -> Draft:
    return grow(ANCHOR, shape, params, rng or TorchRng(seed), model(seed).extend).draft


def test_the_toys_state_is_a_model_that_trees_grow_on() -> None:
    assert isinstance(model(), TreeState)


@given(WIDTHS, SEEDS)
def test_chosen_levels_have_each_nodes_most_probable_tokens(
    widths: tuple[int, ...], seed: int
) -> None:
    draft = draft_of(LevelWidths(widths, sampled=False), SAMPLING, seed)
    assert draft.is_chosen
    assert len(draft.tree) <= 1 + LevelWidths(widths).num_drafted
    for node, depth in enumerate(draft.tree.depths):
        tokens = [draft.tree.tokens[child] for child in draft.tree.children[node]]
        if depth < len(widths):
            scores = scores_after(seed, draft.tree.path_tokens(node))
            best = scores.topk(widths[depth])
            assert tokens == best.indices[best.values.isfinite()].tolist()
        else:
            assert tokens == []


@given(WIDTHS, SEEDS)
def test_sampled_levels_come_with_the_distributions_that_they_were_drawn_from(
    widths: tuple[int, ...], seed: int
) -> None:
    draft = draft_of(LevelWidths(widths), SAMPLING, seed)
    assert draft.is_sampled
    for node, depth in enumerate(draft.tree.depths):
        if depth < len(widths):
            assert draft.draft_probs is not None
            expected = to_probs(logits_after(seed, draft.tree.path_tokens(node)), SAMPLING)
            torch.testing.assert_close(draft.draft_probs[node], expected)
            assert len(draft.tree.children[node]) == min(widths[depth], int((expected > 0).sum()))


def test_sampled_siblings_have_the_law_that_the_draft_tells() -> None:
    """Enumerated: children are in draw order, each drawn from what the earlier ones left."""
    params = SamplingParams(temperature=1.0)

    def two_tokens(rng: Rng) -> tuple[int, ...]:
        return tuple(draft_of(LevelWidths((2,)), params, rng=rng).tree.tokens[1:])

    probs = to_probs(logits_after(0, [ANCHOR]), params).tolist()
    law = enumerate_outcomes(two_tokens)
    assert law == pytest.approx(
        {
            (a, b): probs[a] * probs[b] / (1 - probs[a])
            for a, b in product(range(VOCAB_SIZE), repeat=2)
            if a != b
        },
        rel=1e-4,
    )


def test_greedy_decoding_chooses_whatever_the_shape_says() -> None:
    sampled = draft_of(LevelWidths((2, 1)), SamplingParams())
    chosen = draft_of(LevelWidths((2, 1), sampled=False), SamplingParams())
    assert sampled.is_chosen
    assert sampled.tree.tokens == chosen.tree.tokens


@pytest.mark.parametrize("shape", [OFF, BestFirst(2, 0, 5)], ids=str)
def test_without_depth_the_model_is_not_asked(shape: Shape) -> None:
    recording = Recording(model())
    grown = grow(ANCHOR, shape, SAMPLING, TorchRng(0), recording.extend)
    assert (grown.draft.tree.tokens, grown.grown_nodes, recording.sizes) == ((ANCHOR,), (-1,), [])


def test_the_model_runs_once_a_level_and_never_on_the_deepest() -> None:
    recording = Recording(model())
    shape = LevelWidths((3, 2, 2))
    grow(ANCHOR, shape, SamplingParams(), TorchRng(0), recording.extend)
    assert recording.sizes == [1, 3, 6]


def test_best_first_runs_no_more_than_its_width_a_level() -> None:
    recording = Recording(model())
    grow(ANCHOR, BestFirst(2, 4, 5), SamplingParams(), TorchRng(0), recording.extend)
    assert len(recording.sizes) == 4
    assert max(recording.sizes) == 2


def reference_best_first(shape: BestFirst, seed: int) -> set[tuple[int, ...]]:
    """Beams of texts with their probabilities, of which the most probable are kept."""
    found: dict[tuple[int, ...], float] = {}
    beam = {(ANCHOR,): 1.0}
    for _ in range(shape.depth):
        new: dict[tuple[int, ...], float] = {}
        for text, probability in beam.items():
            probs = scores_after(seed, text).double().softmax(-1)
            for token in probs.topk(min(shape.width, VOCAB_SIZE)).indices.tolist():
                if probs[token] == 0:
                    continue
                new[(*text, token)] = probability * float(probs[token])
        found |= new
        beam = dict(sorted(new.items(), key=lambda item: -item[1])[: shape.width])
    best = sorted(found.items(), key=lambda item: -item[1])[: shape.num_drafted]
    return {(ANCHOR,), *(text for text, _ in best)}


@settings(max_examples=40)
@given(BEST_FIRST, SEEDS)
def test_best_first_keeps_the_most_probable_texts_of_its_beam(shape: BestFirst, seed: int) -> None:
    draft = draft_of(shape, SAMPLING, seed)
    assert draft.is_chosen
    texts = [tuple(draft.tree.path_tokens(node)) for node in range(len(draft.tree))]
    assert set(texts) == reference_best_first(shape, seed)
    assert len(texts) == len(set(texts)) <= shape.num_drafted + 1


@settings(max_examples=40)
@given(st.builds(LevelWidths, WIDTHS, st.booleans()) | BEST_FIRST, SEEDS)
def test_grown_nodes_are_the_models_own_numbers(shape: Shape, seed: int) -> None:
    state = model(seed)
    grown = grow(ANCHOR, shape, SAMPLING, TorchRng(seed), state.extend)
    tree = grown.draft.tree
    assert len(grown.grown_nodes) == len(tree)
    for node, number in enumerate(grown.grown_nodes):
        if number < 0:
            assert not tree.children[node], "nothing was drafted below a node that was not seen"
        else:
            assert state._held.tokens[number] == tree.tokens[node]
            alone = model(seed)
            alone.extend(tree.path_tokens(node), list(range(-1, len(tree.path(node)) - 1)))
            torch.testing.assert_close(state._nodes[number], alone._nodes[-1])


TREE = FixedTree((0, 0, 0, 1, 1, 2, 4, 7))


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLING], ids=["chosen", "sampled"])
def test_a_fixed_tree_is_filled_as_it_stands(params: SamplingParams) -> None:
    recording = Recording(model(1))
    draft = grow(ANCHOR, TREE, params, TorchRng(0), recording.extend).draft
    assert draft.tree.parents[1:] == TREE.parents
    assert recording.sizes == [1, 2, 1, 1], "leaves are not run"
    assert draft.is_chosen == params.is_greedy


def test_a_fixed_trees_children_are_the_most_probable_tokens_in_their_order() -> None:
    tree = draft_of(TREE, SamplingParams(), 3).tree
    for node, children in enumerate(tree.children):
        if children:
            logits = logits_after(3, tree.path_tokens(node))
            best = logits.topk(len(children)).indices.tolist()
            assert [tree.tokens[child] for child in children] == best


def test_below_a_token_that_could_not_be_drawn_nothing_is_drafted() -> None:
    params = SamplingParams(temperature=1.0, top_k=1)
    draft = draft_of(FixedTree((0, 0, 1, 2, 3)), params)
    assert draft.tree.parents == (-1, 0, 1, 2)


@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 8), SEEDS)
def test_best_first_is_a_priced_tree_that_costs_nothing(
    width: int, depth: int, num_drafted: int, seed: int
) -> None:
    best = draft_of(BestFirst(width, depth, num_drafted), SamplingParams(), seed)
    priced = draft_of(Priced(width, (0.0,) * depth, (0.0,) * num_drafted), SamplingParams(), seed)
    assert best.tree.tokens == priced.tree.tokens
    assert best.tree.parents == priced.tree.parents


@given(SEEDS, st.floats(0.01, 0.9), st.floats(0.0, 1.0))
def test_a_priced_tree_keeps_the_nodes_that_are_worth_their_price(
    seed: int, node_price: float, level_price: float
) -> None:
    shape = Priced(VOCAB_SIZE, (level_price,) * 3, (node_price,) * 200)
    draft = draft_of(shape, SamplingParams(), seed)
    assert draft.node_probs is not None
    assert draft.node_probs[0] == 1
    for node in range(1, len(draft.tree)):
        path = draft.tree.path_tokens(node)
        logits = logits_after(seed, path[:-1])
        parent = draft.node_probs[draft.tree.parents[node]]
        expected = parent * float(logits.softmax(-1)[path[-1]])
        assert draft.node_probs[node] == pytest.approx(expected, rel=1e-4)
        assert draft.node_probs[node] >= node_price
    everything = draft_of(Priced(VOCAB_SIZE, (0.0,) * 3, (0.0,) * 200), SamplingParams(), seed)
    assert everything.node_probs is not None
    if level_price == 0:
        worth = sum(prob >= node_price for prob in everything.node_probs)
        assert len(draft.tree) == worth


def test_a_level_is_drafted_if_the_one_above_it_is_probable_enough() -> None:
    everything = draft_of(Priced(1, (0.0, 0.0, 0.0), (0.0,) * 3), SamplingParams())
    assert everything.node_probs is not None
    second = everything.node_probs[1]
    for price, depth in ((second * 0.99, 2), (second * 1.01, 1)):
        draft = draft_of(Priced(1, (0.0, price), (0.0,) * 3), SamplingParams())
        assert draft.tree.depth == depth
