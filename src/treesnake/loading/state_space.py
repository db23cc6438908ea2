"""Loads Mamba and Mamba-2 networks: packed for a CPU, as torch modules for other devices."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.errors import UnsupportedModelError
from treesnake.loading.checkpoint import Checkpoint
from treesnake.models.checkpoint import (
    CONFIG_FILE,
    EMBEDDINGS,
    SAMPLED_EMBEDDINGS,
    Network,
    build_network,
    parse_config,
)
from treesnake.models.rounded_weights import unrounded
from treesnake.models.state_space_cpu import CpuNetwork, to_cpu

EMBEDDING_NAMES = (
    "embed_tokens.weight",
    "embed_in.weight",
    "wte.weight",
    "word_embeddings.weight",
    "backbone.embeddings.weight",
    "token_embd.weight",
)
"""How the embedding's name ends in checkpoints of various families."""


def load_state_space(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    draft_vocab: Int[Tensor, " kept"] | None = None,
    target: Checkpoint | None = None,
) -> Network | CpuNetwork:
    """Loads a Mamba or Mamba-2.

    Args:
        checkpoint: of either layout.
        dtype: what weights are rounded to; int8 and int4 on a CPU only.
        device: where it runs.
        draft_vocab: tokens that it gives logits of, in this order; None for all.
        target: whose embeddings it may share; None for one that cannot have the same.

    Raises:
        LoadError: if files are broken.
        InvalidInputError: if a token of the draft vocabulary does not exist, or the folder leaves
            out embeddings that are not this target's.
    """
    on_cpu = device.type == "cpu"
    shared = None
    if target is not None and SAMPLED_EMBEDDINGS in checkpoint.weights:
        shared = _shared_embeddings(checkpoint, target)
    network = build_network(
        checkpoint.path,
        parse_config(checkpoint.found.fields, checkpoint.path / CONFIG_FILE),
        checkpoint.weights,
        stored_dtype(checkpoint) if on_cpu else dtype,
        device,
        shared,
    )
    if on_cpu:
        return to_cpu(network, dtype, draft_vocab)
    network.restrict_output(draft_vocab)
    return network


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Returns what a checkpoint's weights are stored in; if it does not say, that is float32."""
    stored = checkpoint.config.get_text_config().dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _shared_embeddings(
    drafter: Checkpoint, target: Checkpoint
) -> Float[Tensor, "vocab hidden"] | None:
    """Returns the target's embeddings; None if they are not found, and the drafter has its own."""
    try:
        return read_embeddings(target)
    except UnsupportedModelError:
        if EMBEDDINGS in unrounded(drafter.weights, str(drafter.path)):
            return None
        raise


def read_embeddings(target: Checkpoint) -> Float[Tensor, "vocab hidden"]:
    """Reads the embeddings of a target from its checkpoint.

    Raises:
        UnsupportedModelError: if its weights have none under a name that is known.
    """
    for name in target.weights:
        if name.endswith(EMBEDDING_NAMES):
            return target.weights[name]
    raise UnsupportedModelError(
        f"the embeddings of {target.name} have no name that is known, so that no drafter can share "
        "them; choose a drafter with embeddings of its own"
    )
