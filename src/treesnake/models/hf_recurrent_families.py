"""What a recurrent or hybrid model of transformers says about its layers."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedConfig

from treesnake.errors import UnsupportedModelError
from treesnake.models.hf_families import LOCALITIES, RECURRENT, ROWLESS, layer_kinds
from treesnake.models.hf_masks import Locality, Span

# fmt: off
VERIFIED_RECURRENT = frozenset({
    "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba",
    "kimi_linear", "lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2", "nemotron_h", "olmo_hybrid",
    "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "zamba", "zamba2",
})
# fmt: on
"""Families, by `model_type`, whose trees the tests compare with plain stepping."""

ATTENTION_OF: dict[str, str] = {"hybrid": "full_attention", "hybrid_sliding": "sliding_attention"}
"""The attention of layers that have a recurrence beside it, by transformers' name of the kind."""


@dataclass(frozen=True)
class HybridLayout:
    """What each layer keeps and how far back its attention looks.

    Attributes:
        has_rows: for each layer whether it keeps rows of keys and values.
        num_convolutions: those of each layer; 0 if it keeps no recurrent state.
        spans: for each of the model's kinds of attention, by transformers' name of the kind.
        recurrent_kinds: transformers' names of the kinds of layers with a recurrent state.
    """

    has_rows: tuple[bool, ...]
    num_convolutions: tuple[int, ...]
    spans: Mapping[str, Span]
    recurrent_kinds: tuple[str, ...]


def has_recurrent_layers(config: PreTrainedConfig) -> bool:
    """Tells whether a decoder says of itself that it keeps a recurrent state that is known here."""
    return any(kind in RECURRENT for kind, _ in layer_kinds(config))


def read_hybrid_layout(config: PreTrainedConfig) -> HybridLayout:
    """Returns the layout of a decoder, from what transformers would make its cache of.

    Raises:
        UnsupportedModelError: if a layer keeps anything but rows and recurrent states.
    """
    layers = layer_kinds(config)
    spans: dict[str, Span] = {}
    has_rows: list[bool] = []
    num_convolutions: list[int] = []
    for index, (kind, option) in enumerate(layers):
        attention = ATTENTION_OF.get(kind, kind)
        if kind != ROWLESS and kind not in RECURRENT and kind not in LOCALITIES:
            raise UnsupportedModelError(
                f'layer {index} of {config.model_type} ("{kind}") keeps more than rows of keys and '
                "values or a recurrent state"
            )
        has_rows.append(attention in LOCALITIES)
        num_convolutions.append(option["number_of_states"] if kind in RECURRENT else 0)
        if attention in LOCALITIES:
            locality = LOCALITIES[attention]
            size = 0 if locality is Locality.FULL else option["sliding_window"]
            if spans.setdefault(attention, Span(locality, size)) != Span(locality, size):
                raise UnsupportedModelError(
                    f'layers of {config.model_type} that are all called "{attention}" look back '
                    "by different numbers of positions; one mask cannot say both"
                )
    recurrent_kinds = tuple({kind for kind, _ in layers if kind in RECURRENT})
    return HybridLayout(tuple(has_rows), tuple(num_convolutions), spans, recurrent_kinds)
