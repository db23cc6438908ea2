"""Mamba and Mamba-2 draft, with both ways to branch, at a cost that the text does not change."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.drafters.mamba import MambaDrafterModel, MambaState
from treesnake.drafters.vocabulary import DraftVocabulary
from treesnake.generate import generate
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceConfig, StateSpaceNetwork
from treesnake.models.tree_model import TreeModel
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel, TargetModel
from treesnake.sampling import Rng, SamplingParams, TorchRng
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape, chain
from treesnake.states.branching import PathSums, StateCopies
from treesnake.states.ssm import SsmState
from treesnake.targets.attention import AttentionTargetModel
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import TableModel, TinyNetwork, check_drafter, enumerate_outcomes
from treesnake.testing.conformance import sequence_distribution, total_variation

VOCAB_SIZE = 61
PROMPT = Prompt((5, 17, 60, 2, 33, 8, 8, 41, 12))

each_architecture = pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
each_way = pytest.mark.parametrize("branching", [StateCopies, PathSums])


@cache
def tiny_network(architecture: str, vocab_size: int = VOCAB_SIZE) -> StateSpaceNetwork:
    """A network whose logits differ enough for drafts to be clear."""
    torch.manual_seed(0)
    if architecture == "mamba":
        network: StateSpaceNetwork = Mamba(
            MambaConfig(vocab_size=vocab_size, hidden_size=16, num_layers=2, state_dim=4)
        )
    else:
        sizes = {"num_heads": 4, "head_dim": 8, "state_dim": 8}
        network = Mamba2(Mamba2Config(vocab_size=vocab_size, hidden_size=16, num_layers=2, **sizes))
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data *= 3
    return network.eval()


def generated(
    target: TargetModel,
    drafter: DrafterModel,
    shape: Shape,
    *,
    prompt: Prompt = PROMPT,
    params: SamplingParams | None = None,
    rng: Rng | None = None,
    num_new: int = 30,
) -> tuple[int, ...]:
    steps = generate(
        target.new_session(),
        drafter.new_session(),
        prompt,
        search=StaticSearch(shape),
        params=params or SamplingParams(),
        rng=rng or TorchRng(0),
        max_length=len(prompt) + num_new,
    )
    return tuple(token for step in steps for token in step.emitted)


class CountingNetwork:
    """A network that counts the tokens it runs."""

    def __init__(self, network: StateSpaceNetwork) -> None:
        self.network = network
        self.num_run = 0

    @property
    def config(self) -> StateSpaceConfig:
        return self.network.config

    def new_state(self, branching=None) -> SsmState:
        return self.network.new_state(branching)

    def prefill(self, token_ids: Sequence[int], state: SsmState) -> None:
        self.num_run += len(token_ids)
        self.network.prefill(token_ids, state)

    def extend(
        self, token_ids: Sequence[int], parents: Sequence[int], state: SsmState
    ) -> Float[Tensor, "new vocab"]:
        self.num_run += len(token_ids)
        return self.network.extend(token_ids, parents, state)


@each_architecture
@each_way
def test_a_mamba_is_a_drafter(architecture, branching):
    model = MambaDrafterModel(tiny_network(architecture), branching=branching)
    check_drafter(model, VOCAB_SIZE, num_steps=1)


@each_architecture
@pytest.mark.parametrize("shape", [chain(3), LevelWidths((3, 2)), BestFirst(3, 3, 6)], ids=str)
def test_greedy_output_is_that_of_a_transformer(architecture, shape, tiny_model):
    target = AttentionTargetModel(tiny_model("llama"))
    drafter = MambaDrafterModel(tiny_network(architecture))
    assert generated(target, drafter, shape) == generated(target, drafter, OFF)


@each_architecture
@each_way
@pytest.mark.parametrize("shape", [chain(2), LevelWidths((2,)), LevelWidths((2,), False)], ids=str)
def test_sampled_texts_have_the_targets_distribution(architecture, branching, shape):
    table = TableModel(3, seed=5)
    drafter = MambaDrafterModel(tiny_network(architecture, 3), branching=branching)
    params = SamplingParams(temperature=1.0)
    actual = enumerate_outcomes(
        lambda rng: generated(
            NetworkTargetModel(TinyNetwork(table)),
            drafter,
            shape,
            prompt=Prompt((0,)),
            params=params,
            rng=rng,
            num_new=2,
        )
    )
    assert total_variation(actual, sequence_distribution(table, 0, params, 2)) < 1e-5


@each_architecture
def test_sampled_texts_have_the_distribution_of_a_transformer(architecture, tiny_model):
    """One new token after a tree of three nodes, and one after that."""
    target = AttentionTargetModel(tiny_model("llama", vocab_size=3))
    drafter = MambaDrafterModel(tiny_network(architecture, 3))
    laws = [
        enumerate_outcomes(
            lambda rng, shape=shape: generated(
                target,
                drafter,
                shape,
                prompt=Prompt((0,)),
                params=SamplingParams(temperature=0.7),
                rng=rng,
                num_new=2,
            )
        )
        for shape in (OFF, LevelWidths((2,)))
    ]
    assert total_variation(*laws) < 1e-5


@each_architecture
def test_accepted_tokens_are_not_run_again(architecture):
    network = CountingNetwork(tiny_network(architecture))
    session = MambaDrafterModel(network).new_session()
    session.prefill(PROMPT)
    anchor = PROMPT.token_ids[-1]
    for _ in range(5):
        tokens = session.draft(anchor, chain(3), SamplingParams(), TorchRng(0)).tree.tokens
        session.commit(tokens)
        anchor = 7
    # Of each chain of four the last token is run with the next one.
    assert network.num_run == len(PROMPT) - 1 + 5 * 4 - 1


@each_architecture
def test_a_prompt_that_goes_on_is_run_from_there(architecture):
    network = CountingNetwork(tiny_network(architecture))
    state = MambaState(network)
    state.prefill((1, 2, 3))
    state.prefill((1, 2, 3, 4, 5))
    assert network.num_run == 5
    state.prefill((1, 2, 9))
    assert network.num_run == 8


@each_architecture
@each_way
def test_a_state_has_the_same_size_after_any_text(architecture, branching):
    network = tiny_network(architecture)
    model = MambaDrafterModel(network, branching=branching)
    sizes = set()
    for length in (1, 700):
        state = MambaState(network, branching)
        state.prefill([3] * length)
        assert state.num_bytes == model.state_bytes
        state.extend([1, 2, 3, 4], [-1, 0, 0, 1])
        sizes.add(state.num_bytes)
    assert sizes == {model.state_bytes + 4 * model.bytes_per_node}


@each_architecture
def test_an_interrupted_prefill_leaves_nothing_half_done(architecture, monkeypatch):
    network = tiny_network(architecture)
    state = MambaState(network)
    block = network.backbone.blocks[1]

    def interrupt(module, inputs):
        raise KeyboardInterrupt

    handle = block.norm.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        state.prefill((1, 2, 3))
    handle.remove()
    state.prefill((1, 2, 3))
    expected = MambaState(network)
    expected.prefill((1, 2, 3))
    assert torch.equal(state.extend([4], [-1]), expected.extend([4], [-1]))


@each_architecture
def test_a_draft_vocabulary_takes_its_rows_of_the_output_layer(architecture):
    kept = torch.tensor([3, 8, 41, 60])
    whole = first_logits(MambaState(tiny_network(architecture)))
    network = tiny_network.__wrapped__(architecture)
    network.restrict_output(kept)
    model = MambaDrafterModel(network, DraftVocabulary(kept, VOCAB_SIZE, VOCAB_SIZE))
    torch.testing.assert_close(first_logits(MambaState(network)), whole[:, kept])
    session = model.new_session()
    session.prefill(PROMPT)
    draft = session.draft(9, BestFirst(3, 3, 12), SamplingParams(), TorchRng(0))
    assert set(draft.tree.tokens[1:]) <= {*kept.tolist()}


def first_logits(state: TreeModel) -> Float[Tensor, "1 vocab"]:
    state.prefill(PROMPT.token_ids)
    return state.extend([9], [-1])
