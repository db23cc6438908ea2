"""What is done once for a pair, before its first text."""

from typing import NoReturn

from treesnake import Pair, SamplingParams, SpeculativeDecoder
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import BrokenModelError
from treesnake.kernels.cpu import best_tokens
from treesnake.kernels.cpu.mamba2 import commit_mamba2, run_mamba2
from treesnake.kernels.cpu.transformer import decode
from treesnake.pairs import warm_up


class BrokenTargetModel:
    """Fails in every session."""

    def new_session(self) -> NoReturn:
        raise BrokenModelError("no numbers")


def test_a_model_that_fails_is_left_to_the_first_real_step() -> None:
    warm_up(Pair(BrokenTargetModel(), NoDrafterModel()))


def test_a_decoder_that_is_loaded_compiles_nothing_more() -> None:
    decoder = SpeculativeDecoder.from_pretrained("smollm2", search="chain(2)")
    choosing = (best_tokens._find_best, best_tokens._first_come)
    kernels = (decode, run_mamba2, commit_mamba2, *choosing)
    after_loading = [len(kernel.overloads) for kernel in kernels]
    assert min(after_loading) > 0
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, seed=0)
        decoder.generate("one two three one two", max_new_tokens=24, params=params)
    assert [len(kernel.overloads) for kernel in kernels] == after_loading
