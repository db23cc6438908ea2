"""What `generate` of a model does whose folder `export_folder` wrote."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList, StopStringCriteria

from treesnake.custom_generate import custom_generate
from treesnake.drafters.load import load_drafter
from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.protocols import DrafterModel, SharedSearch
from treesnake.search.by_name import as_search


def generate(
    model: PreTrainedModel,
    inputs: Tensor | None,
    options: Mapping[str, Any],
    *,
    drafter: str,
    search: str,
) -> Any:
    """Generates speculatively, with the arguments that `model.generate` was given.

    Drafter and search are kept for as long as the model lives: a search goes on learning.

    Args:
        model: loaded from a folder that `export_folder` wrote.
        inputs: the prompt, where it was given as the first argument.
        options: all other arguments.
        drafter: by name.
        search: by name. Sampled text is drafted by chains, so that a seed gives the same again.
    """
    loaded = _parts_of(model, drafter, search)
    options = dict(options)
    config = options.get("generation_config") or model.generation_config
    _take_stop_strings(options, cast(GenerationConfig, config))
    streamer = options.pop("streamer", None)
    sampled = options.get("do_sample", config.do_sample)
    # Transformers gives the streamer the prompt, and the method below gives it what is new.
    kind: Any = type(model)
    return kind.generate(
        model,
        inputs,
        streamer=streamer,
        token_streamer=streamer,
        custom_generate=custom_generate,
        drafter=loaded.drafter,
        search=None if sampled else loaded.search,
        **options,
    )


@dataclass(frozen=True, eq=False)
class _Parts:
    """What drafts for a model."""

    drafter: DrafterModel
    search: SharedSearch


_PARTS: "WeakKeyDictionary[PreTrainedModel, _Parts]" = WeakKeyDictionary()
_LOADING = Lock()


def _parts_of(model: PreTrainedModel, drafter: str, search: str) -> _Parts:
    with _LOADING:
        if model not in _PARTS:
            # Whoever runs this trusts the folder that it came with, and no other one.
            trusted = LoadOptions(trust_remote_code=True)
            checkpoint = find_checkpoint(str(model.name_or_path), trusted)
            options = LoadOptions(device=str(model.device))
            loaded = load_drafter(drafter, options, target=checkpoint)
            _PARTS[model] = _Parts(loaded, as_search(search))
        return _PARTS[model]


def _take_stop_strings(options: dict[str, Any], config: GenerationConfig) -> None:
    """Makes a stopping criterion of stop strings: a custom method is given no tokenizer."""
    tokenizer = options.pop("tokenizer", None)
    stated = options.pop("stop_strings", config.stop_strings)
    if not stated:
        return
    if tokenizer is None:
        raise InvalidInputError("stop_strings need a tokenizer: give generate tokenizer=")
    criterion = StopStringCriteria(getattr(tokenizer, "tokenizer", tokenizer), stated)
    given = options.get("stopping_criteria") or ()
    options["stopping_criteria"] = StoppingCriteriaList([*given, criterion])
    options["generation_config"] = without = copy.deepcopy(config)
    without.stop_strings = None
