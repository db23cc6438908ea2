"""Targets by name."""

from treesnake.loading.checkpoint import DEFAULT_MODEL, find_checkpoint
from treesnake.loading.networks import LoadedNetwork, load_network
from treesnake.loading.options import DEFAULT_OPTIONS, LoadOptions
from treesnake.targets.network import NetworkTargetModel


def load_target(
    name: str = DEFAULT_MODEL, options: LoadOptions = DEFAULT_OPTIONS
) -> tuple[NetworkTargetModel, LoadedNetwork]:
    """Loads a target.

    Args:
        name: "smollm2", "smollm2-hybrid", "shapeworld", a folder, a GGUF file, or a name at the
            hub, of a model that has a tokenizer: a Transformer, a Mamba, a Mamba-2 or a hybrid.
        options: how it is loaded.

    Returns:
        What makes sessions, and what is known of the weights behind it.

    Raises:
        LoadError: if the model cannot be had, or its weights are broken or do not fit.
        UnsupportedModelError: if it cannot be run so, with the reason.
        InvalidInputError: if there is no such device, or a revision is given for a local model.
    """
    loaded = load_network(find_checkpoint(name, options), options)
    return NetworkTargetModel(loaded.network), loaded
