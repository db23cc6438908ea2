"""Models that are a model of a package but for some layers, which a folder holds.

The config of such a folder is that of the whole model, in the layout of transformers, and names the
package's model under "grafted_onto". Its weights are the new mixers alone. A Granite without
experts is a Llama in which some attentions may be Mamba-2 mixers. So all that is left is to call
the tensors of the package's Llama by their names there.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from treesnake.errors import LoadError
from treesnake.models.weights import InMemory, Stacked, StoredTensor, Weights

MODEL_TYPE = "granitemoehybrid"

MLP = {
    "mlp.gate_proj.weight": "shared_mlp.input_linear.weight",
    "mlp.up_proj.weight": "shared_mlp.input_linear.weight",
    "mlp.down_proj.weight": "shared_mlp.output_linear.weight",
}
"""Parts of a layer by their names in a Llama, and those in a Granite, which joins the first two."""

ATTENTION, MIXER = ".self_attn.", ".mamba."


def grafted_weights(
    fields: Mapping[str, Any], own: Mapping[str, Tensor], base: Weights, where: str
) -> Weights:
    """Returns all tensors of a model: a folder's mixers, and everything else of a package's model.

    The folder's are read at once, the others when they are asked for.

    Args:
        fields: the config of the whole model.
        own: the new mixers, by name.
        base: what they are grafted onto: a Llama.
        where: the folder, for messages.

    Raises:
        LoadError: if this is no such model, or the folder holds anything but mixers.
    """
    if fields.get("model_type") != MODEL_TYPE:
        raise LoadError(
            f"{where} is of the type {fields.get('model_type')!r:.60}, and only a {MODEL_TYPE} "
            "model is put together of two parts"
        )
    foreign = next((name for name in own if MIXER not in name), None)
    if foreign is not None:
        raise LoadError(f"{where} holds {foreign}, which belongs to the model it is grafted onto")
    replaced = {name.split(MIXER)[0] + ATTENTION for name in own}
    entries: dict[str, StoredTensor] = {}
    for name, entry in base.entries.items():
        if not name.startswith((*replaced,)):
            called = _called(name)
            is_second = called in entries
            entries[called] = Stacked((entries[called], entry)) if is_second else entry
    return Weights(entries | {name: InMemory(tensor) for name, tensor in own.items()})


def _called(name: str) -> str:
    """Returns what a tensor of a Llama is called in a Granite."""
    for part, other in MLP.items():
        if name.endswith(part):
            return name.removesuffix(part) + other
    return name
