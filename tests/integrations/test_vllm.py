"""The proposer for vLLM, by the contract of its method custom_class (vLLM 0.32 and 0.33)."""

import ast
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from treesnake.draft import Draft
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.integrations.vllm import Proposer, likeliest_chain
from treesnake.testing import RecurrentModel, TinyNetwork
from treesnake.testing.package_sources import calls, fields, is_installed, takes
from treesnake.tree import TokenTree

MAX_LENGTH = 12


def config(rank: int = 0, **options: Any) -> Any:
    """What is read of vLLM's config."""
    return SimpleNamespace(
        additional_config={"treesnake": options} if options else {},
        model_config=SimpleNamespace(model="none-there", max_model_len=MAX_LENGTH),
        speculative_config=SimpleNamespace(num_speculative_tokens=3),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        parallel_config=SimpleNamespace(rank=rank, tensor_parallel_size=2),
    )


@pytest.fixture
def model() -> RecurrentModel:
    return RecurrentModel(16, seed=2)


@pytest.fixture
def proposer(model: RecurrentModel) -> Proposer:
    proposer = Proposer(config(least_prob=0.0))
    proposer.use(NetworkDrafterModel(TinyNetwork(model)))
    return proposer


def greedy(model: RecurrentModel, text: Sequence[int], num_new: int) -> list[int]:
    state: Any = model.initial()
    for token in text:
        state, logits = model.step(state, token)
    found = []
    for _ in range(num_new):
        found.append(int(logits.argmax()))
        state, logits = model.step(state, found[-1])
    return found


def batch(texts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """The lengths, and the tokens with stale ones behind, as vLLM keeps them."""
    lengths = np.zeros(4, np.int32)
    tokens = np.full((4, MAX_LENGTH), 15, np.int32)
    for index, text in enumerate(texts):
        lengths[index] = len(text)
        tokens[index, : len(text)] = text
    return lengths, tokens


def test_rows_get_the_drafters_chains(proposer: Proposer, model: RecurrentModel) -> None:
    texts = [[3, 1, 4], [2, 7]]
    for _ in range(2):
        chains = proposer.propose([[text[-1]] for text in texts], *batch(texts), slot_mappings=None)
        assert chains == [greedy(model, text, 3) for text in texts]
        for text in texts:
            text += [5, 6]


def test_a_prompt_under_way_has_no_chain(proposer: Proposer, model: RecurrentModel) -> None:
    texts = [[3, 1, 4], [2, 7]]
    chains = proposer.propose([[], [7]], *batch(texts))
    assert chains == [[], greedy(model, texts[1], 3)]


def test_calls_that_were_skipped_are_caught_up_with(
    proposer: Proposer, model: RecurrentModel
) -> None:
    text = [3, 1, 4]
    proposer.propose([[4]], *batch([text]))
    text += [9, 8, 7, 6]
    assert proposer.propose([[6]], *batch([text])) == [greedy(model, text, 3)]


@pytest.mark.parametrize(("length", "room"), [(8, 3), (10, 1), (11, 0), (12, 0)])
def test_chains_end_before_the_context_does(proposer: Proposer, length: int, room: int) -> None:
    text = [1] * length
    assert len(proposer.propose([[1]], *batch([text]))[0]) == room


def test_the_texts_of_the_batch_are_not_kept(proposer: Proposer, model: RecurrentModel) -> None:
    lengths, tokens = batch([[3, 1, 4]])
    proposer.propose([[4]], lengths, tokens)
    tokens[:] = 15
    assert proposer.propose([[5]], *batch([[3, 1, 4, 5]])) == [greedy(model, [3, 1, 4, 5], 3)]


def test_chains_end_where_the_drafter_is_unsure(model: RecurrentModel) -> None:
    proposer = Proposer(config(least_prob=0.999))
    proposer.use(NetworkDrafterModel(TinyNetwork(model)))
    assert proposer.propose([[4]], *batch([[3, 1, 4]])) == [[]]


def test_ranks_that_are_not_asked_load_nothing() -> None:
    proposer = Proposer(config(rank=1))
    proposer.load_model(nn.Linear(2, 2))
    assert proposer.propose([[1], [2]], *batch([[1], [2]])) == [[], []]


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"no options drafters .* it has drafter, device"):
        Proposer(config(drafters="none"))


def test_a_chain_of_a_tree_goes_down_the_most_probable_children() -> None:
    tree = TokenTree((0, 5, 6, 7, 8), (-1, 0, 0, 2, 2))
    assert likeliest_chain(Draft.chosen(tree, node_probs=(1, 0.3, 0.6, 0.1, 0.4))) == [6, 8]
    assert likeliest_chain(Draft.chosen(tree)) == [5]


@pytest.mark.skipif(not is_installed("vllm"), reason="vLLM is not installed")
def test_vllm_calls_a_proposer_as_the_contract_says(proposer: Proposer) -> None:
    [made] = calls("vllm.v1.spec_decode.custom_class_proposer", "user_class")
    assert takes(Proposer, made)
    asked = [
        [*map(ast.unparse, call.args)]
        for call in calls("vllm.v1.worker.gpu_model_runner", "propose")
        if call.args and ast.unparse(call.args[0]) == "sampled_token_ids"
        if takes(proposer.propose, call)
    ]
    assert asked == [
        [
            "sampled_token_ids",
            "self.input_batch.num_tokens_no_spec",
            "self.input_batch.token_ids_cpu",
        ]
    ]
    for runner in ("gpu", "cpu"):
        loads = calls(f"vllm.v1.worker.{runner}_model_runner", "load_model")
        drafter_loads = [call for call in loads if "drafter" in ast.unparse(call.func)]
        assert drafter_loads
        assert all(takes(proposer.load_model, call) for call in drafter_loads)


@pytest.mark.skipif(not is_installed("vllm"), reason="vLLM is not installed")
def test_vllms_config_has_what_is_read_of_it() -> None:
    owners = {
        "additional_config": ("vllm", "VllmConfig"),
        "model_config": ("model", "ModelConfig"),
        "speculative_config": ("speculative", "SpeculativeConfig"),
        "scheduler_config": ("scheduler", "SchedulerConfig"),
        "parallel_config": ("parallel", "ParallelConfig"),
    }
    for part, value in vars(config()).items():
        module, name = owners[part]
        read = {part} if isinstance(value, dict) else {*vars(value)}
        assert read <= fields(f"vllm.config.{module}", name)
