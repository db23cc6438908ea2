"""Torch's threads are left asleep where their spinning would hinder a compiled pass."""

import multiprocessing
import threading
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from treesnake import SamplingParams, SpeculativeDecoder, threads
from treesnake.threads import new_lock, new_reentrant_lock, on_one_thread

SHARED_FROM = 3000
"""Numbers that an operation has at least for torch to share it among threads."""

NOT_SHARED = ("gather",)
"""Looks up a few numbers in many."""


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class SharedOperations(TorchDispatchMode):
    """Lists the operations that torch may share among several threads."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, result) if isinstance(each, torch.Tensor)]
        is_large = any(each.numel() >= SHARED_FROM for each in tensors)
        is_view = any(
            each.alias_info is not None and not each.alias_info.is_write
            for each in func._schema.returns
        )
        if is_large and not is_view and torch.get_num_threads() > 1:
            self.names.add(func._schema.name.removeprefix("aten::"))
        return result


@pytest.mark.usefixtures("two_threads")
def test_a_function_has_one_thread_and_its_caller_the_former_number() -> None:
    @on_one_thread
    def count(*, fails: bool = False) -> tuple[int, int]:
        elsewhere: list[int] = []
        thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        if fails:
            raise ValueError("on one thread")
        return torch.get_num_threads(), elsewhere[0]

    assert count() == (1, 2)
    with pytest.raises(ValueError, match="on one thread"):
        count(fails=True)
    assert torch.get_num_threads() == 2


@pytest.fixture(scope="module")
def loaded() -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(dtype="int8")


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("shape", ["off", "chain(3)", "2x2x1", "best_first(2, 3, 6)"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_step_wakes_the_threads_of_torch(
    shape: str, temperature: float, loaded: SpeculativeDecoder
) -> None:
    decoder = SpeculativeDecoder(loaded.pair, tokenizer=loaded.tokenizer, search=shape)
    params = SamplingParams(temperature=temperature, top_k=50, top_p=0.9, seed=0)
    stream = decoder.stream("The sky is blue because", params, max_new_tokens=12)
    next(stream)
    next(stream)  # before it the drafter reads the prompt
    with SharedOperations() as shared:
        for _ in stream:
            pass
    assert shared.names <= {*NOT_SHARED}


has_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork here"
)


@has_fork
@pytest.mark.usefixtures("two_threads")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_computes_and_finds_its_locks_free() -> None:
    """The parent's pool of threads and the holder of a lock are not in the child."""
    torch.rand(1_000_000).exp().sum()
    locks = [new_lock(), new_reentrant_lock()]
    holder = threading.Thread(target=lambda: [lock.acquire() for lock in locks])
    holder.start()
    holder.join()

    def work() -> None:
        assert all(lock.acquire(timeout=5) for lock in locks)
        torch.rand(1_000_000).exp().sum()

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0


@pytest.mark.usefixtures("two_threads")
def test_an_interrupt_right_behind_the_change_restores_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change = threads._set_openmp_threads
    assert change is not None

    def interrupted(number: int) -> None:
        change(number)
        if number == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(threads, "_set_openmp_threads", interrupted)
    with pytest.raises(KeyboardInterrupt):
        on_one_thread(torch.get_num_threads)()
    assert torch.get_num_threads() == 2
