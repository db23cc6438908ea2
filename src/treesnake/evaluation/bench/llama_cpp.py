"""llama.cpp on the very file of the target, through llama-cpp-python."""

from collections.abc import Collection
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.record import TurnRecord
from treesnake.evaluation.bench.runners import MeasuredTurn
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams

SMALLEST_CONTEXT = 1024
"""Tokens that a context holds at least."""


class LlamaCppRunner:
    """Plain decoding of llama.cpp, with as many threads as torch has.

    It is given the target's own token ids, so that both continue the same prompt. Its cache is
    emptied before each prompt.

    Args:
        path: the GGUF file.
        end_token_ids: the tokens after which a text ends.

    Raises:
        InvalidInputError: if llama-cpp-python is not installed.
    """

    def __init__(self, path: Path, end_token_ids: Collection[int]) -> None:
        if find_spec("llama_cpp") is None:
            raise InvalidInputError(
                "the method llama.cpp needs llama-cpp-python: pip install llama-cpp-python, which "
                "compiles it"
            )
        self._path = path
        self._ends = frozenset(end_token_ids)
        self._llama: Any = None
        self._num_threads = 0

    def run(
        self, prompt: Prompt, params: SamplingParams, max_new_tokens: int, *, is_shown: bool
    ) -> MeasuredTurn:
        """Continues a prompt."""
        prompt.check_text_only()
        llama = self._loaded(len(prompt) + max_new_tokens)
        llama.reset()
        llama.set_seed(0 if params.seed is None else params.seed % 2**32)
        tokens: list[int] = []
        first_s = None
        started = perf_counter()
        for token in llama.generate(prompt.token_ids, **_sampling_options(params)):
            first_s = perf_counter() - started if first_s is None else first_s
            tokens.append(int(token))
            if len(tokens) == max_new_tokens or tokens[-1] in self._ends:
                break
        total_s = perf_counter() - started
        turn = TurnRecord(
            num_prompt=len(prompt),
            num_new=len(tokens),
            num_emissions=len(tokens),
            num_first=min(len(tokens), 1),
            first_s=total_s if first_s is None else first_s,
            total_s=total_s,
            token_ids=tuple(tokens),
        )
        return MeasuredTurn(turn, self._path.stat().st_size)

    def _loaded(self, num_tokens: int) -> Any:
        """Returns the model with room for a text; it is opened again where it has too little."""
        threads = torch.get_num_threads()
        if self._llama is None or self._num_threads != threads or self._llama.n_ctx() < num_tokens:
            self._llama = import_module("llama_cpp").Llama(
                str(self._path),
                n_ctx=max(SMALLEST_CONTEXT, num_tokens),
                n_threads=threads,
                n_threads_batch=threads,
                verbose=False,
            )
            self._num_threads = threads
        return self._llama


def _sampling_options(params: SamplingParams) -> dict[str, float]:
    return {
        "temp": params.temperature,
        "top_k": params.top_k or 0,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repeat_penalty": 1.0,
    }
