"""Texts of a state space network in slots of a bank, alone and together, eager and captured.

Here a capture is the pass itself, run again at every replay, so that all but CUDA is tested.
"""

import copy
import gc
from collections.abc import Sequence
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.vocabulary import DraftVocabulary
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceNetwork
from treesnake.models.state_space_banks import StateSpaceBanks
from treesnake.models.state_space_state import StateSpaceState
from treesnake.models.tree_network import Part
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.shape import FixedTree
from treesnake.states.branching import BranchingKind, PathSums, StateCopies
from treesnake.testing.captures import RecordedCapture

VOCAB = 53
TREES = {
    "chain": [[-1], [0], [1], [2]],
    "3x2": [[-1], [0, 0, 0], [1, 1, 2, 2, 3, 3]],
    "another tree of the same sizes": [[-1], [0, 0, 0], [1, 2, 2, 2, 3, 3]],
    "two children": [[-1, -1], [0, 1, 1]],
}
"""The parents of each level's nodes."""

each_architecture = pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
each_way = pytest.mark.parametrize("branching", [StateCopies, PathSums])


def network(architecture: str, recorder: RecordedCapture | None = None) -> StateSpaceNetwork[Any]:
    """A network that captures with a recorder, or runs eagerly without."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_layers": 2, "state_dim": 8}
    if architecture == "mamba":
        model: StateSpaceNetwork[Any] = Mamba(MambaConfig(**sizes)).eval()
    else:
        model = Mamba2(Mamba2Config(**sizes, num_heads=4, head_dim=8)).eval()
    if recorder is not None:
        model.banks = StateSpaceBanks(model.config.state_shape, recorder, "cpu")
    return model


def holding(
    model: StateSpaceNetwork[Any], tokens: Sequence[int], branching: BranchingKind | None = None
) -> StateSpaceState:
    state = model.new_state(branching)
    state.prefill(Prompt((*tokens, 0)))
    return state


def tokens_for(parents: Sequence[int], step: int) -> list[int]:
    return [(7 * step + 3 * index + 1) % VOCAB for index in range(len(parents))]


def path_to(parents: Sequence[int], node: int) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    return path


def draw_new_nodes(data: st.DataObject, state: StateSpaceState) -> Part:
    before, number = len(state.held.tokens), data.draw(st.integers(1, 6))
    parents = [data.draw(st.integers(-1, before + node - 1)) for node in range(number)]
    return Part(
        state,
        data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=number, max_size=number)),
        parents,
    )


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
@each_architecture
@settings(max_examples=15)
@given(data=st.data())
def test_texts_together_get_the_logits_that_each_gets_alone(
    architecture: str, captured: bool, data: st.DataObject
) -> None:
    """Whichever texts come and go, branch in whatever way, and however the banks grow meanwhile."""
    ours = network(architecture, RecordedCapture() if captured else None)
    other = network(architecture)
    # Without Triton, copies go level by level as the parents say, which a replay does not ask.
    branchings = [PathSums] if captured else [StateCopies, PathSums]
    pairs: list[tuple[StateSpaceState, StateSpaceState]] = []
    for _ in range(data.draw(st.integers(1, 5))):
        kept = data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
        pairs = [pair for pair, keep in zip(pairs, kept, strict=True) if keep]
        for _ in range(data.draw(st.integers(0 if pairs else 1, 3))):
            text = data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=9))
            branching = data.draw(st.sampled_from(branchings))
            # Each of the others is the only text that its network ever has.
            alone = copy.deepcopy(other)
            pairs.append((holding(ours, text, branching), holding(alone, text, branching)))
        running = data.draw(st.permutations(pairs))[: data.draw(st.integers(1, len(pairs)))]
        parts = [draw_new_nodes(data, ours_state) for ours_state, _ in running]
        for logits, part, (state, alone_state) in zip(
            ours.extend_all(parts), parts, running, strict=True
        ):
            expected = alone_state.extend(part.token_ids, part.parents)
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
            if data.draw(st.booleans()):
                path = path_to(state.held.parents, len(state.held.parents) - 1)
                state.commit(path)
                alone_state.commit(path)


@each_way
@each_architecture
def test_captured_levels_are_those_of_the_network(
    architecture: str, branching: BranchingKind
) -> None:
    model, other = network(architecture, RecordedCapture()), network(architecture)
    state, expected = (holding(each, [5, 3, 8], branching) for each in (model, other))
    for step, levels in enumerate([*TREES.values(), *TREES.values()]):
        for depth, parents in enumerate(levels):
            tokens = tokens_for(parents, step + depth)
            logits = state.extend(tokens, parents)
            torch.testing.assert_close(logits, expected.extend(tokens, parents))
        for one in (expected, state):
            one.commit([0])


def test_a_size_is_captured_once_for_all_texts() -> None:
    recorder = RecordedCapture()
    model = network("mamba2", recorder)
    states = [model.new_state() for _ in range(2)]
    states[0].memory.reserve(20)  # room for twenty nodes, which then stays where it is
    counts = []
    for tree in ("3x2", "another tree of the same sizes", "chain", "3x2"):
        for state in states:
            for parents in TREES[tree]:
                state.extend(tokens_for(parents, 1), parents)
            state.commit([])
        counts.append(recorder.num_captured)
    assert counts == [3, 3, 5, 5]  # a chain has trees of 1, 2, 3 and 4 nodes; the first is known


def test_a_bank_that_moved_is_captured_anew() -> None:
    recorder = RecordedCapture()
    model = network("mamba2", recorder)
    state = model.new_state()
    first = state.extend([4], [-1])
    state.commit([])
    other = model.new_state()
    torch.testing.assert_close(state.extend([4], [-1]), first)
    state.commit([])
    other.memory.reserve(30)
    torch.testing.assert_close(state.extend([4], [-1]), first)
    assert recorder.num_captured == 3


def test_a_result_is_not_overwritten_by_the_next_one() -> None:
    state = network("mamba", RecordedCapture()).new_state()
    first = state.extend([4], [-1])
    kept = first.clone()
    state.commit([])
    state.extend([9], [-1])
    assert torch.equal(first, kept)


def test_another_output_is_captured_anew() -> None:
    recorder = RecordedCapture()
    model = network("mamba", recorder)
    state = model.new_state()
    whole = state.extend([4], [-1])
    state.commit([])
    model.restrict_output(torch.tensor([7, 3]))
    torch.testing.assert_close(state.extend([4], [-1]), whole[:, [7, 3]])
    assert recorder.num_captured == 2


def test_a_copy_of_a_network_has_texts_and_graphs_of_its_own() -> None:
    recorder = RecordedCapture()
    model = network("mamba", recorder)
    state = model.new_state()
    first = state.extend([4], [-1])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert twin.new_state().memory.slot == 0
    assert torch.equal(twin.new_state().extend([4], [-1]), first)
    assert recorder.num_captured == 2


@each_way
def test_a_slot_that_comes_back_remembers_nothing(branching: BranchingKind) -> None:
    model = network("mamba2", RecordedCapture())
    expected = holding(network("mamba2"), [1, 2], branching).extend([3, 4, 5], [-1, 0, 0])
    state = holding(model, [4, 4], branching)
    state.extend([1] * 9, [-1] * 9)
    bank = state.memory.bank
    nodes = bank.branching.states if isinstance(bank.branching, StateCopies) else bank.branching.x
    for tensor in (bank.recurrent, bank.history, bank.conv_inputs, nodes):
        tensor.fill_(torch.nan)
    del state
    gc.collect()
    state = holding(model, [1, 2], branching)
    assert state.memory.slot == 0
    torch.testing.assert_close(state.extend([3, 4, 5], [-1, 0, 0]), expected)


def test_weights_that_changed_are_those_of_the_next_text() -> None:
    model = network("mamba2")
    holding(model, [1, 2]).extend([3], [-1])
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.mixer.A_log += 1
    state, fresh = holding(model, [1, 2]), holding(copy.deepcopy(model), [1, 2, 3])
    state.extend([3], [-1])
    state.commit([0])
    torch.testing.assert_close(state.extend([4], [-1]), fresh.extend([4], [-1]))


def test_threads_may_share_a_network() -> None:
    """Each in texts of its own, which come and go, and whose trees outgrow the bank."""
    model = network("mamba", RecordedCapture())
    results: dict[int, list[Tensor]] = {}

    def draft(model: StateSpaceNetwork[Any], seed: int) -> list[Tensor]:
        logits: list[Tensor] = []
        for step in range(12):
            state = holding(model, [seed, step])
            levels = TREES["3x2"][: 1 + (seed + step) % 3]
            logits += [state.extend(tokens_for(parents, seed), parents) for parents in levels]
            state.commit([0])
        return logits

    def run(seed: int) -> None:
        results[seed] = draft(model, seed)

    threads = [Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        torch.testing.assert_close(results[seed], draft(network("mamba"), seed))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@each_architecture
def test_a_fixed_tree_is_one_pass_and_the_tree_of_passes_level_by_level(
    architecture: str, temperature: float
) -> None:
    recorder = RecordedCapture()
    at_once, by_levels = network(architecture, recorder), network(architecture)
    by_levels.restrict_output(torch.arange(VOCAB - 1, 3, -1))
    at_once.restrict_output(torch.arange(VOCAB - 1, 3, -1))
    drafters = [
        NetworkDrafterModel(each, DraftVocabulary(torch.arange(VOCAB - 1, 3, -1), VOCAB, VOCAB))
        for each in (at_once, by_levels)
    ]
    sessions = [drafter.new_session() for drafter in drafters]
    for session in sessions:
        session.prefill(Prompt((5, 3, 8)))
    shape = FixedTree((0, 0, 0, 1, 1, 2, 4, 4, 7), sampled=False)
    params, rng = SamplingParams(temperature=temperature), TorchRng(3)
    counts = []
    for anchor in (8, 11, 30, 9):
        drafts = [each.draft(anchor, shape, params, rng) for each in sessions]
        assert drafts[0].tree == drafts[1].tree
        leaf = drafts[0].tree.path(5)  # a node that was never run
        tokens = [drafts[0].tree.tokens[node] for node in leaf]
        for session in sessions:
            session.commit(tokens)
        rng.advance(len(tokens))
        counts.append(recorder.num_captured)
    assert counts == [1, 2, 2, 2]  # the first pass of a text has no token behind
