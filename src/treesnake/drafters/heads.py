"""Drafting heads, such as those of EAGLE and Medusa: told apart from models that draft.

A head has no text of its own to read: it continues the hidden states of one target. Drafters here
are models that read token ids, so a head cannot take the place of one.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from treesnake.errors import UnsupportedModelError

KINDS = re.compile(r"eagle|medusa|hydra|speculator|mtp|nextn|hass\b|dflash", re.IGNORECASE)
"""What architectures and model types of heads are called."""

KEYS = (
    "speculators_model_type",
    "speculators_config",
    "eagle_config",
    "dflash_config",
    "draft_vocab_size",
    "medusa_num_heads",
    "medusa_num_layers",
)
"""Keys that only the configs of heads have."""

TENSORS = re.compile(
    r"(model\.)?(fc|eh_proj|hidden_norm|enorm|hnorm)\.weight|(model\.)?midlayer\..*|d2t|t2d"
    r"|medusa_heads?\..*"
)
"""What joins hidden states to tokens, or draft tokens to the target's."""


def check_config_is_of_a_model(name: str, fields: Mapping[str, Any]) -> None:
    """Checks that a config is not that of a drafting head.

    Raises:
        UnsupportedModelError: if it is.
    """
    architectures = fields.get("architectures")
    stated = [fields.get("model_type"), *(architectures if isinstance(architectures, list) else [])]
    kind = next((each for each in stated if isinstance(each, str) and KINDS.search(each)), None)
    kind = kind or next((key for key in KEYS if fields.get(key) is not None), None)
    if kind is not None:
        raise _is_a_head(name, f"its config says {kind}")


def check_tensors_are_of_a_model(name: str, tensors: Iterable[str]) -> None:
    """Checks that tensors are not those of a drafting head.

    Raises:
        UnsupportedModelError: if they are.
    """
    found = next((tensor for tensor in sorted(tensors) if TENSORS.fullmatch(tensor)), None)
    if found is not None:
        raise _is_a_head(name, f"it has a tensor {found}")


def _is_a_head(name: str, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} is a drafting head, which reads the hidden states of its target ({why}); drafters "
        "here are models that read tokens: name a small model with the target's tokenizer, or "
        "prompt-lookup"
    )
