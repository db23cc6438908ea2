"""Mamba and Mamba-2 draft, with both ways to branch, at a cost that the text does not change."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.vocabulary import DraftVocabulary
from treesnake.generate import generate
from treesnake.models.hf_attention import HfAttention
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceNetwork
from treesnake.models.tree_network import Part, TreeState
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel, TargetModel
from treesnake.sampling import Rng, SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF, BestFirst, LevelWidths, Shape, chain
from treesnake.states.branching import PathSums, StateCopies
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


class Branching:
    """A network whose states branch in the other way than its own, or in its own."""

    def __init__(
        self, network: StateSpaceNetwork, kind: type[StateCopies] | type[PathSums]
    ) -> None:
        self._network = network
        self._kind = kind

    @property
    def vocab_size(self) -> int:
        return self._network.vocab_size

    @property
    def context_length(self) -> int | None:
        return self._network.context_length

    def new_state(self) -> TreeState:
        return self._network.new_state(self._kind)

    def extend_all(self, parts: Sequence[Part]) -> list[Tensor]:
        return self._network.extend_all(parts)


@contextmanager
def counted(network: StateSpaceNetwork) -> Iterator[Counter[str]]:
    """Counts the tokens that a network runs."""
    count: Counter[str] = Counter()
    embeddings = network.backbone.embeddings
    handle = embeddings.register_forward_pre_hook(
        lambda _, inputs: count.update(tokens=inputs[0].numel())
    )
    yield count
    handle.remove()


@each_architecture
@each_way
def test_a_mamba_is_a_drafter(architecture, branching):
    model = NetworkDrafterModel(Branching(tiny_network(architecture), branching))
    check_drafter(model, VOCAB_SIZE, num_steps=1)


@each_architecture
@pytest.mark.parametrize("shape", [chain(3), LevelWidths((3, 2)), BestFirst(3, 3, 6)], ids=str)
def test_greedy_output_is_that_of_a_transformer(architecture, shape, tiny_model):
    target = NetworkTargetModel(HfAttention(tiny_model("llama")))
    drafter = NetworkDrafterModel(tiny_network(architecture))
    assert generated(target, drafter, shape) == generated(target, drafter, OFF)


@each_architecture
@each_way
@pytest.mark.parametrize("shape", [chain(2), LevelWidths((2,)), LevelWidths((2,), False)], ids=str)
def test_sampled_texts_have_the_targets_distribution(architecture, branching, shape):
    table = TableModel(3, seed=5)
    drafter = NetworkDrafterModel(Branching(tiny_network(architecture, 3), branching))
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
    target = NetworkTargetModel(HfAttention(tiny_model("llama", vocab_size=3)))
    drafter = NetworkDrafterModel(tiny_network(architecture, 3))
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
    network = tiny_network(architecture)
    session = NetworkDrafterModel(network).new_session()
    with counted(network) as count:
        session.prefill(PROMPT)
        anchor = PROMPT.token_ids[-1]
        for _ in range(5):
            tokens = session.draft(anchor, chain(3), SamplingParams(), TorchRng(0)).tree.tokens
            session.commit(tokens)
            anchor = 7
    # Of each chain of four the last token is run with the next one.
    assert count["tokens"] == len(PROMPT) - 1 + 5 * 4 - 1


@each_architecture
def test_a_prompt_that_goes_on_is_run_from_there(architecture):
    network = tiny_network(architecture)
    state = network.new_state()
    with counted(network) as count:
        state.prefill(holding(1, 2, 3))
        state.prefill(holding(1, 2, 3, 4, 5))
        assert count["tokens"] == 5
        state.prefill(holding(1, 2, 9))
        assert count["tokens"] == 8, "nothing was kept of the text after its second token"
        state.prefill(holding(1, 2, 3, 6))
        assert count["tokens"] == 9, "the end of the first prompt was kept"


@each_architecture
def test_a_turn_that_leaves_thoughts_out_runs_what_is_new(architecture):
    """The second turn begins like the first up to the border, and not like what was said then."""
    network = tiny_network(architecture)
    session = NetworkDrafterModel(network).new_session().inner
    turns = [tuple(range(10)), (*range(9), 33, 34, 35, 36)]
    with counted(network) as count:
        session.prefill(Prompt(turns[0], borders=(8,)))
        tokens = session.draft(turns[0][-1], chain(4), SamplingParams(), TorchRng(0)).tree.tokens
        session.commit(tokens)
        before = count["tokens"]
        session.prefill(Prompt((*turns[1], 1), borders=(11,)))
        assert count["tokens"] - before == len(turns[1]) - 9


@each_architecture
@each_way
def test_a_state_has_the_same_size_after_any_text(architecture, branching):
    network = tiny_network(architecture)
    text_bytes, tree_bytes = set(), set()
    for length in (1, 700):
        state = network.new_state(branching)
        state.prefill(holding(*[3] * length))
        text_bytes.add(state.num_bytes)
        state.extend([1, 2, 3, 4], [-1, 0, 0, 1])
        tree_bytes.add(state.num_bytes)
    assert len(text_bytes) == len(tree_bytes) == 1
    assert max(text_bytes) < min(tree_bytes)


@each_architecture
def test_an_interrupted_prefill_leaves_nothing_half_done(architecture, monkeypatch):
    network = tiny_network(architecture)
    state = network.new_state()
    block = network.backbone.blocks[1]

    def interrupt(module, inputs):
        raise KeyboardInterrupt

    handle = block.norm.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        state.prefill(holding(1, 2, 3))
    handle.remove()
    state.prefill(holding(1, 2, 3))
    expected = network.new_state()
    expected.prefill(holding(1, 2, 3))
    assert torch.equal(state.extend([4], [-1]), expected.extend([4], [-1]))


@each_architecture
def test_a_draft_vocabulary_takes_its_rows_of_the_output_layer(architecture):
    kept = torch.tensor([3, 8, 41, 60])
    whole = first_logits(tiny_network(architecture).new_state())
    network = tiny_network.__wrapped__(architecture)
    network.restrict_output(kept)
    model = NetworkDrafterModel(network, DraftVocabulary(kept, VOCAB_SIZE, VOCAB_SIZE))
    torch.testing.assert_close(first_logits(network.new_state()), whole[:, kept])
    session = model.new_session()
    session.prefill(PROMPT)
    draft = session.draft(9, BestFirst(3, 3, 12), SamplingParams(), TorchRng(0))
    assert set(draft.tree.tokens[1:]) <= {*kept.tolist()}


def first_logits(state: TreeState) -> Float[Tensor, "1 vocab"]:
    state.prefill(PROMPT)
    return state.extend([9], [-1])


def holding(*tokens: int) -> Prompt:
    """Returns the prompt of which a state holds these tokens: one more."""
    return Prompt((*tokens, 0))
