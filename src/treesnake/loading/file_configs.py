"""Configs of models that our own engines run, without the classes of transformers.

Importing the class of one family brings in a good deal of transformers and of torch, which takes
longer than reading a small model. Our own engines read a few fields. So configs of the families
below are of the class that all families have in common; `config_of_transformers` makes one of the
family's own class where its model is needed.
"""

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import PreTrainedConfig

UNSTATED: Mapping[str, Mapping[str, Any]] = {
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "mamba": {},
    "mamba2": {},
}
"""The families, with what the family's class has where a file of it says nothing."""


def file_config(model_type: str, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """Returns a config with the fields, of the class of its family or the common one."""
    if model_type not in UNSTATED:
        return transformers.CONFIG_MAPPING[model_type].from_dict(dict(fields))
    config: Any = PreTrainedConfig.from_dict({**UNSTATED[model_type], **fields})
    config.model_type = model_type
    return config


def config_of_transformers(config: PreTrainedConfig) -> PreTrainedConfig:
    """Returns a config of the class that models of transformers are made of."""
    if type(config) is not PreTrainedConfig:
        return config
    fields = config.to_dict()
    del fields["model_type"]
    return transformers.CONFIG_MAPPING[config.model_type].from_dict(fields)
