"""The methods of transformers, through its own `generate`."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.methods import Peer
from treesnake.evaluation.bench.record import TurnRecord
from treesnake.evaluation.bench.runners import MeasuredTurn
from treesnake.models.hf_images import HfImages, sees_images
from treesnake.models.hf_passes import at_home
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams

LOOKED_UP_TOKENS = 10
"""What the documentation of transformers shows for prompt lookup."""


class TransformersRunner:
    """One of the methods of transformers.

    Args:
        peer: which one.
        model: the target.
        end_token_ids: the tokens after which a text ends.
        drafter: for assisted generation.

    Raises:
        InvalidInputError: if assisted generation has no drafter.
    """

    def __init__(
        self,
        peer: Peer,
        model: PreTrainedModel,
        end_token_ids: Collection[int],
        drafter: PreTrainedModel | None = None,
    ) -> None:
        if peer is Peer.ASSISTED and drafter is None:
            raise InvalidInputError(
                "transformers' assisted generation needs a Transformer: name one as assisted_by"
            )
        self._model: Any = model
        models = [one for one in (model, drafter) if one is not None]
        self._weights_bytes = sum(one.get_memory_footprint() for one in models)
        ends = sorted(end_token_ids)
        self._options: dict[str, Any] = {
            "eos_token_id": ends or None,
            "pad_token_id": ends[0] if ends else 0,
        }
        if peer is Peer.ASSISTED:
            self._options["assistant_model"] = drafter
        if peer is Peer.PROMPT_LOOKUP:
            self._options["prompt_lookup_num_tokens"] = LOOKED_UP_TOKENS
        if peer is Peer.COMPILED:
            self._options["cache_implementation"] = "static"
            self._model.forward = torch.compile(self._model.forward, dynamic=False)

    def run(
        self, prompt: Prompt, params: SamplingParams, max_new_tokens: int, *, is_shown: bool
    ) -> MeasuredTurn:
        """Continues a prompt; the seed goes to torch's global generator, as transformers has it."""
        if params.seed is not None:
            torch.manual_seed(params.seed)
        ids = torch.tensor([prompt.token_ids], device=self._model.device)
        clock = _Clock()
        started = perf_counter()
        with _without_settings(self._model):
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                streamer=clock,
                **_images_of(prompt, self._model),
                **_sampling_options(params),
                **self._options,
            )
        total_s = perf_counter() - started
        new = output[0, len(prompt) :].tolist()
        return MeasuredTurn(
            TurnRecord(
                num_prompt=len(prompt),
                num_new=len(new),
                num_emissions=len(clock.emissions),
                num_first=clock.emissions[0][1] if clock.emissions else 0,
                first_s=clock.emissions[0][0] - started if clock.emissions else total_s,
                total_s=total_s,
                token_ids=tuple(new),
            ),
            self._weights_bytes,
        )


def _images_of(prompt: Prompt, model: PreTrainedModel) -> Mapping[str, Tensor]:
    """Returns what transformers is given of the image in a prompt.

    Raises:
        InvalidInputError: if there are several, which each family joins in a way of its own.
    """
    if not prompt.inputs:
        return {}
    if len(prompt.inputs) > 1 or not sees_images(model):
        raise InvalidInputError(
            f"the methods of transformers are run with one image and a model that sees it, got "
            f"{len(prompt.inputs)} images for {type(model).__name__}; leave these methods out"
        )
    return at_home({**prompt.inputs[0].tensors, **HfImages(model).token_types(prompt)}, model)


class _Clock(BaseStreamer):
    """Notes when tokens came out, and how many."""

    def __init__(self) -> None:
        self.emissions: list[tuple[float, int]] = []
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        """Takes the prompt first, then new tokens."""
        if not self._is_prompt:
            self.emissions.append((perf_counter(), value.numel()))
        self._is_prompt = False

    def end(self) -> None:
        """Needs nothing at the end."""


@contextmanager
def _without_settings(model: Any) -> Iterator[None]:
    """Keeps a model's generation config out, whose penalties would make it another model.

    Methods are compared on one distribution: the model's own, as `params` shape it.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _sampling_options(params: SamplingParams) -> dict[str, Any]:
    if params.is_greedy:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {
        "do_sample": True,
        "temperature": params.temperature,
        "top_k": params.top_k or 0,
        "top_p": params.top_p,
        "min_p": params.min_p or None,
    }
