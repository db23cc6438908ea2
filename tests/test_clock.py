"""Time in a queue is booked for the thread that waits, and is no work."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TypeVar

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake import clock
from treesnake.clock import book_sharing, book_wait, num_sharing, waited_s, work_clock
from treesnake.kernels.cpu import team
from treesnake.models import state_space_cpu, transformer_cpu
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.state_space_cpu import to_cpu
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig

T = TypeVar("T")


class Time:
    """A clock that a test moves on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(clock, "perf_counter", time)
    return time


def in_new_thread(function: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_the_work_clock_stands_still_while_a_thread_waits(time: Time) -> None:
    def work_and_wait() -> tuple[float, float]:
        started = work_clock()
        time.now += 2
        asked = time.now
        time.now += 5
        book_wait(asked)
        time.now += 1
        return work_clock() - started, waited_s()

    assert in_new_thread(work_and_wait) == (3, 5)


def test_every_thread_has_an_account_of_its_own(time: Time) -> None:
    def wait() -> float:
        book_wait(time.now - 5)
        return waited_s()

    def share() -> int:
        book_sharing(3)
        return num_sharing()

    assert in_new_thread(wait) == 5
    assert in_new_thread(waited_s) == 0
    assert in_new_thread(share) == 3
    assert in_new_thread(num_sharing) == 1


def run_transformer() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=9, **sizes, num_attention_heads=2, num_key_value_heads=2)
    )
    config = TransformerConfig.from_hf(model.config)
    network = Transformer(config, model.state_dict(), torch.float32, torch.device("cpu"))
    network.new_state().extend([1], [-1])


def run_mamba() -> None:
    sizes = {"vocab_size": 9, "hidden_size": 16, "num_layers": 1, "state_dim": 4}
    network = to_cpu(Mamba(MambaConfig(**sizes)).eval())
    network.new_state().extend([1], [-1])


@pytest.mark.parametrize(
    ("run", "queues"),
    [(run_transformer, [transformer_cpu, team]), (run_mamba, [state_space_cpu, team])],
)
def test_compiled_passes_book_how_long_they_wait_for_each_other(
    run: Callable[[], None], queues: Sequence[ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    booked: list[ModuleType] = []
    for queue in queues:
        monkeypatch.setattr(queue, "book_wait", lambda since, queue=queue: booked.append(queue))
    run()
    assert booked == queues
