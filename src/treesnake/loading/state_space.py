"""Loads Mamba and Mamba-2 networks: packed for a CPU, as torch modules for other devices."""

import json
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.errors import LoadError, UnsupportedModelError
from treesnake.loading.checkpoint import Checkpoint
from treesnake.loading.pretrained import DtypeName
from treesnake.models.checkpoint import CONFIG_FILE, Network, load_network, shares_embeddings
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


def load_state_space_network(
    folder: Path,
    dtype: DtypeName,
    device: torch.device,
    draft_vocab: Int[Tensor, " kept"] | None = None,
    target: Checkpoint | None = None,
) -> Network | CpuNetwork:
    """Loads the network in a folder, ready to draft.

    Args:
        folder: config.json and weights, of either layout.
        dtype: what weights are rounded to. "auto" is int8 on a CPU, where a drafter's time is that
            of reading its weights, and the stored one elsewhere.
        device: where it runs.
        draft_vocab: tokens that it gives logits of, in this order; None for all.
        target: whose embeddings it may share.

    Raises:
        LoadError: if files are missing or broken.
        UnsupportedModelError: if it is another kind of network, or int8 weights are asked for on
            another device than a CPU.
        InvalidInputError: if a token of the draft vocabulary does not exist, or the folder leaves
            out embeddings that are not this target's.
    """
    stored = _stored_dtype(folder)
    shared = None
    if target is not None and shares_embeddings(folder):
        shared = read_embeddings(target)
    if device.type == "cpu":
        rounded = torch.int8 if dtype == "auto" else getattr(torch, dtype)
        return to_cpu(load_network(folder, stored, device, shared), rounded, draft_vocab)
    if dtype == "int8":
        raise UnsupportedModelError(
            f"a Mamba has int8 weights on a CPU only, not on {device}; choose bfloat16"
        )
    placed = stored if dtype == "auto" else getattr(torch, dtype)
    network = load_network(folder, placed, device, shared)
    network.restrict_output(draft_vocab)
    return network


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


def _stored_dtype(folder: Path) -> torch.dtype:
    """Returns what the weights are stored in; a config that does not say means float32."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text("utf-8"))
        name = str(config.get("dtype") or config.get("torch_dtype"))
    except (OSError, ValueError, AttributeError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from error
    stored = getattr(torch, name, None)
    return stored if isinstance(stored, torch.dtype) else torch.float32
