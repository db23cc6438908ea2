"""Ways that corrupt states in silence: every kind of layer passes, planted faults do not."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from treesnake.decoder import SpeculativeDecoder
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.evaluation.verification import StateEvidence, VerifyPlan, verify, verify_state
from treesnake.evaluation.verification.page import to_page
from treesnake.models.hf_attention import HfAttention
from treesnake.models.hf_hybrid import HfHybrid
from treesnake.models.hf_replay import HfReplay
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import to_cpu
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.states.hybrid import HybridMemory
from treesnake.states.layer_memory import LayerMemory
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TinyNetwork
from treesnake.testing.recurrent import RECURRENT_FAMILIES
from treesnake.testing.tiny import TinyState

PROMPTS = [Prompt.of([5, 17, 60, 2, 33, 8, 8, 41, 12]), Prompt.of([7, 3, 58, 22, 41, 9, 35, 14])]
SHALLOW: dict[str, dict[str, Any]] = {
    "mamba": {"num_hidden_layers": 1},
    "mamba2": {"num_hidden_layers": 1},
    "falcon_h1": {"num_hidden_layers": 1},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
}
NUM_WAYS = 12


def judged(network: Any) -> StateEvidence:
    return verify_state(NetworkTargetModel(network), PROMPTS)


@pytest.fixture
def hybrid(tiny_model) -> Callable[[str], HfHybrid]:
    def make(family: str) -> HfHybrid:
        room = {} if family in ("mamba", "mamba2") else {"max_position_embeddings": 256}
        settings = {**RECURRENT_FAMILIES[family], **SHALLOW[family], **room}
        return HfHybrid(tiny_model(family, **settings))

    return make


@pytest.mark.parametrize("family", SHALLOW)
def test_every_kind_of_recurrent_layer_passes(family, hybrid):
    evidence = judged(hybrid(family))
    assert evidence.is_passed, evidence
    assert len(evidence.checks) == NUM_WAYS


def test_attention_replayed_models_and_our_own_networks_pass(tiny_model):
    torch.manual_seed(0)
    config = Mamba2Config(vocab_size=61, hidden_size=32, num_layers=1, num_heads=4, head_dim=16)
    networks = (
        HfAttention(tiny_model("llama", max_position_embeddings=256, num_hidden_layers=1)),
        HfReplay(tiny_model("rwkv", attention_hidden_size=32, num_hidden_layers=2)),
        to_cpu(Mamba2(config), torch.float32),
        TinyNetwork(RecurrentModel(61, seed=5)),
    )
    for network in networks:
        evidence = judged(network)
        assert evidence.is_passed, (type(network).__name__, evidence)


Fault = Callable[[pytest.MonkeyPatch], None]


def not_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is committed with the nodes beside it."""
    commit = LayerMemory.commit

    def commit_all(memory: LayerMemory, path: Sequence[int]) -> None:
        commit(memory, range(max(path) + 1) if path else ())

    monkeypatch.setattr(LayerMemory, "commit", commit_all)


def convolution_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit moves the recurrent state and not the inputs of the convolution."""
    commit = LayerMemory.commit

    def commit_states(memory: LayerMemory, path: Sequence[int]) -> None:
        histories = dict(memory.histories)
        commit(memory, path)
        memory.histories = histories

    monkeypatch.setattr(LayerMemory, "commit", commit_states)


def rows_cut_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coming back to an earlier text cuts keys and values, and leaves the state."""

    def return_to(memory: HybridMemory, length: int, marked: Any) -> None:
        memory.length = length
        memory.rows.keep(length)

    monkeypatch.setattr(HybridMemory, "return_to", return_to)


@pytest.mark.parametrize("fault", [not_rolled_back, convolution_left_behind, rows_cut_alone])
def test_a_state_that_is_not_that_of_the_text_is_found(fault, hybrid, monkeypatch):
    network = hybrid("falcon_h1")
    fault(monkeypatch)
    evidence = judged(network)
    failed = [check.name for check in evidence.checks if not check.is_passed]
    assert failed
    assert "a prompt at once" not in failed or fault is convolution_left_behind


def test_a_session_that_another_one_writes_into_is_found(monkeypatch):
    network = TinyNetwork(RecurrentModel(61, seed=5))
    shared: list[Any] = []

    def commit(state: TinyState, path: Sequence[int]) -> None:
        if path:
            shared[:] = [state._nodes[path[-1]]]
        if shared:
            state._committed = shared[0]
        state._held.commit(path)
        state._nodes = []

    monkeypatch.setattr(TinyState, "commit", commit)
    assert not judged(network).is_passed


def test_it_is_a_part_of_the_verdict_and_of_the_page():
    target = NetworkTargetModel(TinyNetwork(RecurrentModel(61, seed=5)))
    decoder = SpeculativeDecoder(Pair(target, NoDrafterModel()))
    verdict = verify(decoder, [list(PROMPTS[0].token_ids)], VerifyPlan(0, None, state=True))
    assert verdict.is_lossless
    assert verdict.state is not None
    assert len(verdict.as_json()["state"]["checks"]) == NUM_WAYS
    assert "| an edited text |" in to_page(verdict)
    with pytest.raises(InvalidInputError, match="nothing to verify"):
        verify(decoder, [[1, 2]], VerifyPlan(0, None))


def test_a_context_that_is_too_short_is_refused():
    network = TinyNetwork(RecurrentModel(61, seed=5), context_length=16)
    with pytest.raises(InvalidInputError, match="holds 16 tokens"):
        judged(network)
