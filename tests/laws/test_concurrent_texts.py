"""Texts that are generated at the same time are what each is alone, and teach as if they were."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake import Generation, SamplingParams, SpeculativeDecoder
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import to_cpu
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig
from treesnake.outcome import Step
from treesnake.pairs import Pair
from treesnake.search.by_name import SELF_TUNING, search_by_name
from treesnake.search.costs import LearnedCosts
from treesnake.shape import is_off
from treesnake.targets.network import NetworkTargetModel

VOCAB_SIZE = 31
NUM_THREADS = 8
NUM_NEW = 30
PROMPTS = [[1 + (index * place) % 29 for place in range(3 + 7 * index)] for index in range(8)]
GREEDY = [SamplingParams()] * 8
MIXED = [SamplingParams(temperature=index % 2, seed=index) for index in range(8)]
SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_layers": 2}
DRAFTERS = {
    "mamba": lambda: Mamba(MambaConfig(**SIZES, state_dim=4)),
    "mamba2": lambda: Mamba2(Mamba2Config(**SIZES, num_heads=4, head_dim=8, state_dim=8)),
}


@pytest.fixture(autouse=True)
def threads_that_interrupt_each_other() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def target() -> NetworkTargetModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB_SIZE, **sizes, num_attention_heads=4, num_key_value_heads=2)
    )
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0, 0.3)
    config = TransformerConfig.from_hf(model.config)
    network = Transformer(config, model.state_dict(), torch.float32, torch.device("cpu"))
    return NetworkTargetModel(network)


@pytest.fixture(scope="module", params=DRAFTERS)
def drafter(request: pytest.FixtureRequest) -> NetworkDrafterModel:
    torch.manual_seed(1)
    return NetworkDrafterModel(to_cpu(DRAFTERS[request.param]().eval()))


def decoder(
    target: NetworkTargetModel, drafter: NetworkDrafterModel, name: str = SELF_TUNING
) -> SpeculativeDecoder:
    return SpeculativeDecoder(Pair(target, drafter), search=search_by_name(name))


def texts_at_once(
    decoder: SpeculativeDecoder, params: Sequence[SamplingParams]
) -> list[Generation]:
    run = partial(decoder.generate, max_new_tokens=NUM_NEW)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(run, PROMPTS, params))


@pytest.mark.parametrize("name", [SELF_TUNING, "thompson", "3x2"])
def test_each_text_is_its_own_alone(
    name: str, target: NetworkTargetModel, drafter: NetworkDrafterModel
) -> None:
    alone = [
        decoder(target, drafter, name).generate(prompt, params, max_new_tokens=NUM_NEW).token_ids
        for prompt, params in zip(PROMPTS, MIXED, strict=True)
    ]
    made = texts_at_once(decoder(target, drafter, name), MIXED)
    assert [each.token_ids for each in made] == alone


def facts_of(prompt: Sequence[int], steps: Sequence[Step]) -> dict[int, tuple[int, int]]:
    """Returns for each step how long its text was, and how many tokens the drafter read first.

    The first step drafts nothing and teaches nothing.
    """
    facts = {}
    length, num_behind = len(prompt) + len(steps[0].emitted), 0
    for step in steps[1:]:
        runs_drafter = not is_off(step.shape)
        facts[id(step)] = length, num_behind if runs_drafter else 0
        num_behind = 0 if runs_drafter else num_behind + len(step.emitted)
        length += len(step.emitted)
    return facts


def test_every_step_teaches_about_its_own_text(
    target: NetworkTargetModel, drafter: NetworkDrafterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[tuple[Step, int, int]] = []
    observe = LearnedCosts.observe

    def noting(costs: LearnedCosts, step: Step, context_length: int, *, num_behind: int) -> float:
        learned.append((step, context_length, num_behind))
        return observe(costs, step, context_length, num_behind=num_behind)

    monkeypatch.setattr(LearnedCosts, "observe", noting)
    made = texts_at_once(decoder(target, drafter), GREEDY)
    facts: dict[int, tuple[int, int]] = {}
    for prompt, generation in zip(PROMPTS, made, strict=True):
        facts |= facts_of(prompt, generation.steps)
    assert len(learned) > 20
    assert [each[1:] for each in learned] == [facts[id(step)] for step, *_ in learned]
