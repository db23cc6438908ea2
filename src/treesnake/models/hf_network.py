"""A transformers model as a network: how it branches is decided here."""

import transformers

from treesnake.errors import UnsupportedModelError
from treesnake.models.hf_attention import HfAttention
from treesnake.models.hf_hybrid import HfHybrid
from treesnake.models.hf_recurrent_families import has_recurrent_layers
from treesnake.models.hf_replay import HfReplay

HfNetwork = HfAttention | HfHybrid | HfReplay


def hf_network(model: "transformers.PreTrainedModel") -> HfNetwork:
    """Returns the network of a model, which is used as it is.

    Attention alone takes masks. Layers with a recurrent state take the dispatch of `hf_dispatch`,
    and where their mixers are not known, copies of the state.

    Args:
        model: a decoder with a language-model head, in evaluation mode.

    Raises:
        UnsupportedModelError: if it cannot run trees, with the reason.
        InvalidInputError: if the model is in training mode.
    """
    config = model.config.get_text_config(decoder=True)
    if has_recurrent_layers(config):
        try:
            return HfHybrid(model)
        except UnsupportedModelError as reason:
            return _replayed(model, reason)
    try:
        return HfAttention(model)
    except UnsupportedModelError as reason:
        if not getattr(model, "_is_stateful", False):
            raise
        return _replayed(model, reason)


def _replayed(model: "transformers.PreTrainedModel", reason: UnsupportedModelError) -> HfReplay:
    """Returns a model that is replayed, if it can be; or else the reason why it must be."""
    try:
        return HfReplay(model)
    except UnsupportedModelError as refusal:
        raise reason from refusal
