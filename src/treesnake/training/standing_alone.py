"""Makes a drafter that shares its target's embeddings stand alone, for targets of all kinds.

Its folder gets the embeddings in 4 bits (in 16 if they are not whole groups of 64 wide), its own
layers in 8 bits, and the target's tokenizer. With its own target the drafter still reads the
target's embeddings. `stands_alone` in a recipe does this at the end of training.
"""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import Checkpoint
from treesnake.loading.state_space import read_embeddings
from treesnake.models.checkpoint import (
    EMBEDDINGS,
    SAMPLED_EMBEDDINGS,
    TOKENIZER_FILES,
    open_tensors,
)
from treesnake.models.rounded_weights import GROUP, round_to_4_bits, round_to_8_bits, unrounded
from treesnake.models.weights import SINGLE_FILE
from treesnake.training.provenance import PROVENANCE_FILE

FEWEST_ROUNDED = 1 << 16
"""Values of the smallest matrix that is stored in 8 bits."""


def make_stand_alone(folder: Path, target: Checkpoint) -> None:
    """Rewrites the folder of a drafter so that it needs no target.

    Args:
        folder: of a drafter that leaves out embeddings which are this target's.
        target: what it was trained for.

    Raises:
        InvalidInputError: if the drafter has embeddings of its own only.
    """
    stored = unrounded(open_tensors(folder), str(folder))
    if SAMPLED_EMBEDDINGS not in stored:
        raise InvalidInputError(f"{folder} does not share the embeddings of a target")
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name != EMBEDDINGS:
            tensors |= _layer(name, tensor)
    embeddings = read_embeddings(target)
    are_groups = embeddings.shape[1] % GROUP == 0
    if are_groups:
        tensors |= round_to_4_bits(EMBEDDINGS, embeddings)
    else:
        tensors[EMBEDDINGS] = embeddings.half()
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / SINGLE_FILE, metadata={"format": "pt"})
    for name in TOKENIZER_FILES:
        if (target.path / name).is_file():
            (folder / name).write_text(_compact((target.path / name).read_text("utf-8"), name))
    _note(folder / PROVENANCE_FILE, target.name, 4 if are_groups else 16)


def _layer(name: str, tensor: Float[Tensor, "..."]) -> dict[str, Tensor]:
    is_large = tensor.ndim == 2 and tensor.numel() >= FEWEST_ROUNDED and name != SAMPLED_EMBEDDINGS
    return round_to_8_bits(name, tensor) if is_large else {name: tensor}


def _compact(text: str, name: str) -> str:
    if not name.endswith(".json"):
        return text
    return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")) + "\n"


def _note(path: Path, target: str, bits: int) -> None:
    """Adds to the provenance what was done."""
    provenance = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    provenance["standing_alone"] = {
        "embeddings_of": target,
        "embedding_bits": bits,
        "values_per_scale": GROUP,
        "layer_bits": 8,
        "torch": torch.__version__,
    }
    path.write_text(json.dumps(provenance, indent=2) + "\n", "utf-8")
