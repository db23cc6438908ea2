"""Each text of an engine is what it would be alone; what one does is no matter to the others."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from treesnake import Generation, SamplingParams, SpeculativeDecoder
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.memory.text_memory import TextMemory
from treesnake.models.hybrid_config import HybridConfig
from treesnake.models.hybrid_cpu import CpuHybrid
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.state_space_cpu import to_cpu
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig
from treesnake.outcome import FinishReason
from treesnake.pairs import Pair
from treesnake.pauses import pause
from treesnake.prompt import Prompt
from treesnake.serving.engine import Engine, EngineLimits, QueueFullError
from treesnake.serving.tickets import Ticket
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing.tiny import RecurrentModel, TinyNetwork, TinyState

VOCAB_SIZE = 31
PROMPTS = [[1 + (index * place) % 29 for place in range(3 + 5 * index)] for index in range(8)]
GREEDY = SamplingParams()
MIXED = [SamplingParams(temperature=index % 2, seed=index) for index in range(8)]
NUM_NEW = 8


def _llama(seed: int) -> Transformer:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB_SIZE, **sizes, num_attention_heads=4, num_key_value_heads=2)
    )
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0, 0.3)
    config = TransformerConfig.from_hf(model.config)
    return Transformer(config, model.state_dict(), torch.float32, torch.device("cpu"))


def _mamba(seed: int) -> object:
    torch.manual_seed(seed)
    return to_cpu(Mamba(MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, num_layers=2)))


def _hybrid(seed: int) -> CpuHybrid:
    torch.manual_seed(seed)
    config = GraniteMoeHybridConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=24,
        shared_intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=0,
        num_experts_per_tok=0,
        layer_types=["mamba", "attention"],
        mamba_n_heads=4,
        mamba_n_groups=2,
        mamba_d_state=8,
        mamba_d_head=12,
        mamba_chunk_size=4,
    )
    model = GraniteMoeHybridForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return CpuHybrid(HybridConfig.from_hf(model.config), model.state_dict())


@pytest.fixture(
    scope="module",
    params=[_llama, _mamba, _hybrid],
    ids=["attention", "recurrent", "hybrid"],
)
def decoder(request: pytest.FixtureRequest) -> SpeculativeDecoder:
    target = NetworkTargetModel(request.param(0))
    return SpeculativeDecoder(Pair(target, NetworkDrafterModel(_mamba(1))), search="chain(3)")


@contextmanager
def running(decoder: SpeculativeDecoder, limits: EngineLimits | None = None) -> Iterator[Engine]:
    engine = Engine(decoder, limits)
    try:
        yield engine
    finally:
        engine.close(finish_s=0)


def submit(engine: Engine, prompt: Sequence[int], params: SamplingParams = GREEDY) -> Ticket:
    return engine.submit(prompt, params, max_new_tokens=NUM_NEW)


def alone(decoder: SpeculativeDecoder, prompt: Sequence[int], params: SamplingParams) -> Generation:
    return decoder.generate(prompt, params, max_new_tokens=NUM_NEW)


class Gate:
    """A constraint that changes nothing and lets each text go on only once it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(
        self, context: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        self.reached.release()
        assert self.opened.acquire(timeout=60)
        return logits


def failing(context: Sequence[int], logits: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
    raise ArithmeticError("a constraint with a fault")


@pytest.mark.parametrize("cache_bytes", [20_000, 512 << 20])
def test_texts_at_once_are_what_each_is_alone_whatever_is_kept(
    decoder: SpeculativeDecoder, cache_bytes: int
) -> None:
    expected = [
        alone(decoder, prompt, params).token_ids
        for prompt, params in zip(PROMPTS, MIXED, strict=True)
    ]
    with running(decoder, EngineLimits(cache_bytes=cache_bytes)) as engine:
        for _ in range(2):
            tickets = [
                submit(engine, prompt, params)
                for prompt, params in zip(PROMPTS, MIXED, strict=True)
            ]
            assert [ticket.wait().token_ids for ticket in tickets] == expected
        assert engine.stats.cache_bytes <= cache_bytes
        assert engine.stats.num_parts >= engine.stats.num_passes > 0


def test_the_pieces_of_a_text_are_its_steps(decoder: SpeculativeDecoder) -> None:
    with running(decoder) as engine:
        ticket = engine.submit(PROMPTS[2], GREEDY, max_new_tokens=NUM_NEW, logprobs=1)
        pieces = list(ticket)
        assert [piece.step for piece in pieces] == list(ticket.generation.steps)
        tokens = [token for piece in pieces for token in piece.token_ids]
        assert tuple(tokens) == alone(decoder, PROMPTS[2], GREEDY).token_ids
        assert sum(len(piece.logprobs) for piece in pieces) == NUM_NEW
        assert ticket.first_token_s is not None
        assert ticket.queued_s is not None
        assert 0 <= ticket.queued_s <= ticket.first_token_s


def test_the_second_turn_of_a_chat_begins_in_the_session_of_the_first(
    decoder: SpeculativeDecoder,
) -> None:
    with running(decoder) as engine:
        first = submit(engine, PROMPTS[7])
        text = [*PROMPTS[7], *first.wait().token_ids]
        second = submit(engine, [*text, 3, 4])
        assert second.wait().token_ids == alone(decoder, [*text, 3, 4], GREEDY).token_ids
        assert (first.num_cached, second.num_cached) == (0, len(text) - 1)
        stats = engine.stats
        assert (stats.cache_hits, stats.cache_misses) == (1, 1)
        assert stats.num_cached_tokens == len(text) - 1


def test_a_cancelled_text_ends_within_a_step_and_frees_its_place(
    decoder: SpeculativeDecoder,
) -> None:
    gate = Gate()
    with running(decoder, EngineLimits(max_num_seqs=1)) as engine:
        ticket = engine.submit(PROMPTS[1], GREEDY, max_new_tokens=NUM_NEW, constraints=[gate])
        assert gate.reached.acquire(timeout=60)
        ticket.cancel()
        for _ in range(4):  # the nodes of one step
            gate.opened.release()
        made = ticket.wait()
        assert made.finish_reason is FinishReason.CANCELLED
        assert len(made.steps) <= 1
        assert submit(engine, PROMPTS[0]).wait().finish_reason is FinishReason.LENGTH


def test_a_text_that_is_cancelled_reads_no_further_part_of_its_prompt() -> None:
    tickets: list[Ticket] = []
    submitted = threading.Event()

    class Cancelling(TinyNetwork):
        def new_state(self) -> TinyState:
            state = super().new_state()
            state.prefill = self.prefill  # type: ignore[method-assign]
            return state

        def prefill(self, prompt: Prompt) -> None:
            pause()
            assert submitted.wait(60)
            tickets[0].cancel()
            pause()
            raise AssertionError("it reads on")

    pair = Pair(NetworkTargetModel(Cancelling(RecurrentModel(VOCAB_SIZE))), NoDrafterModel())
    with running(SpeculativeDecoder(pair)) as engine:
        tickets.append(submit(engine, PROMPTS[2]))
        submitted.set()
        made = tickets[0].wait()
        assert (made.finish_reason, made.steps) == (FinishReason.CANCELLED, ())
        assert engine.stats.cache_bytes == 0


def test_a_full_queue_refuses_at_once_and_a_cancelled_text_leaves_it(
    decoder: SpeculativeDecoder,
) -> None:
    gate = Gate()
    with running(decoder, EngineLimits(max_num_seqs=1, max_queued=1)) as engine:
        held = engine.submit(PROMPTS[1], GREEDY, max_new_tokens=1, constraints=[gate])
        assert gate.reached.acquire(timeout=60)
        waiting = submit(engine, PROMPTS[0])
        assert (engine.num_running, engine.num_waiting) == (1, 1)
        with pytest.raises(QueueFullError, match="1 texts wait"):
            submit(engine, PROMPTS[0])
        waiting.cancel()
        another = submit(engine, PROMPTS[2])
        gate.opened.release()
        assert held.wait().num_emitted == 1
        assert waiting.wait().num_emitted == 0
        assert another.wait().num_emitted == NUM_NEW


def test_a_text_that_fails_does_not_hurt_the_others(decoder: SpeculativeDecoder) -> None:
    with running(decoder) as engine:
        tickets = [
            engine.submit(
                prompt, GREEDY, max_new_tokens=NUM_NEW, constraints=[failing] if index % 2 else []
            )
            for index, prompt in enumerate(PROMPTS)
        ]
        for index, (prompt, ticket) in enumerate(zip(PROMPTS, tickets, strict=True)):
            if index % 2:
                with pytest.raises(ArithmeticError, match="a constraint with a fault"):
                    ticket.wait()
            else:
                assert ticket.wait().token_ids == alone(decoder, prompt, GREEDY).token_ids


def test_bad_input_is_refused_before_it_waits(decoder: SpeculativeDecoder) -> None:
    with running(decoder, EngineLimits(max_model_len=12)) as engine:
        with pytest.raises(InvalidInputError, match="not in the vocabulary"):
            submit(engine, [VOCAB_SIZE])
        with pytest.raises(ContextLengthError, match="12"):
            submit(engine, [1] * 12)
        assert submit(engine, [1] * 10).wait().num_emitted == 2
        assert engine.max_model_len == 12
        assert engine.num_waiting == 0


def test_nothing_is_left_of_many_cancelled_texts(decoder: SpeculativeDecoder) -> None:
    num_threads = threading.active_count()
    with running(decoder, EngineLimits(max_queued=200, cache_bytes=40_000)) as engine:
        tickets = [submit(engine, PROMPTS[index % 8]) for index in range(100)]
        for ticket in tickets:
            ticket.cancel()
            ticket.wait()
        assert submit(engine, PROMPTS[0]).wait().num_emitted == NUM_NEW
        assert engine.stats.cache_bytes <= 40_000
    assert engine.num_running == engine.num_waiting == 0
    assert engine.stats.num_ended == 101
    assert threading.active_count() == num_threads


@pytest.mark.parametrize(("finish_s", "num_emitted"), [(None, NUM_NEW), (0, 0)])
def test_closing_finishes_or_cancels_what_runs_and_waits(
    decoder: SpeculativeDecoder, finish_s: float | None, num_emitted: int
) -> None:
    gate = Gate()
    engine = Engine(decoder, EngineLimits(max_num_seqs=1))
    tickets = [
        engine.submit(PROMPTS[0], GREEDY, max_new_tokens=1, constraints=[gate]),
        submit(engine, PROMPTS[1]),
    ]
    assert gate.reached.acquire(timeout=60)
    closing_thread = threading.Thread(target=engine.close, kwargs={"finish_s": finish_s})
    closing_thread.start()
    if finish_s is not None:
        while not tickets[1].is_cancelled:
            threading.Event().wait(0.001)
    gate.opened.release()
    closing_thread.join(timeout=60)
    assert tickets[0].wait().num_emitted == 1
    assert tickets[1].wait().num_emitted == num_emitted
    with pytest.raises(QueueFullError, match="about to end"):
        submit(engine, PROMPTS[0])


def test_counts_are_those_of_the_texts(decoder: SpeculativeDecoder) -> None:
    with running(decoder) as engine:
        made = [submit(engine, prompt).wait() for prompt in PROMPTS[:3]]
    stats = engine.stats
    assert stats.num_ended == 3
    assert stats.num_prompt_tokens == sum(map(len, PROMPTS[:3]))
    assert stats.num_new_tokens == 3 * NUM_NEW
    assert stats.num_steps == sum(len(each.steps) for each in made)
    assert stats.num_draft_tokens == sum(each.num_drafted for each in made)
    assert stats.num_accepted_tokens == sum(each.num_accepted for each in made)
    assert sum(stats.accepted_by_position) == stats.num_accepted_tokens
    assert stats.draft_s > 0
    assert stats.score_s > 0


@pytest.mark.parametrize("name", ["max_num_seqs", "max_queued", "cache_bytes", "max_model_len"])
def test_limits_that_are_too_small_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match=name):
        EngineLimits(**{name: -1})


def test_an_end_token_may_be_put_off(decoder: SpeculativeDecoder) -> None:
    ending = SpeculativeDecoder(decoder.pair, end_token_ids=range(5, VOCAB_SIZE))
    with running(ending) as engine:
        ticket = engine.submit(PROMPTS[1], GREEDY, max_new_tokens=8, min_new_tokens=3)
        least = ending.generate(PROMPTS[1], max_new_tokens=8, min_new_tokens=3)
        assert ticket.wait().token_ids == least.token_ids
        assert len(least.token_ids) >= 3


def test_users_share_neither_what_was_said_nor_sessions() -> None:
    """The second text of a user takes fewer steps than the first; another user's does not."""
    target = NetworkTargetModel(_llama(0))
    pair = Pair(target, NetworkDrafterModel(_mamba(1)))
    decoder = SpeculativeDecoder(pair, search="chain(3)", memory=TextMemory())
    with running(decoder) as engine:

        def num_steps(user: str | None) -> int:
            ticket = engine.submit(PROMPTS[5], GREEDY, max_new_tokens=24, user=user)
            made = ticket.wait()
            assert (ticket.num_cached > 0) == (user in seen)
            seen.add(user)
            return len(made.steps)

        seen: set[str | None] = set()
        first = num_steps("one")
        assert num_steps("one") < first
        assert num_steps("two") == num_steps(None) == first
        assert num_steps("two") < first
