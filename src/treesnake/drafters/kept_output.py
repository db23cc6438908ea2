"""What a drafter learned, in a file: its output layer, for one target and one drafter."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from treesnake.files import replacing
from treesnake.kept_work import sha256_of
from treesnake.memory.memory_log import LEARNED_SUFFIX
from treesnake.outputs import make_private_folder

WEIGHT, FIRST = "weight", "first"
"""The tensor, and the digest of the output layer that learning began with."""

logger = logging.getLogger(__name__)


class KeptOutput:
    """The file of one learner, which is whole at any time.

    Processes may share it: each reads it when it begins, and who writes last is read next.

    Args:
        folder: where it is; folders on the way are made, for their owner alone.
        made_from: what was learned from: the target and its tokenizer.

    Raises:
        InvalidInputError: if the folder cannot be made.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, str]) -> None:
        self.path = folder / f"{sha256_of(dict(made_from))[:16]}{LEARNED_SUFFIX}"
        self._first = ""
        self._is_broken = False
        make_private_folder(folder, "what is learned")

    def read(
        self, first: Float[Tensor, "outputs hidden"]
    ) -> Float[Tensor, "outputs hidden"] | None:
        """Returns what was learned; None if that is nothing, or of another drafter.

        Args:
            first: the drafter's own output layer.
        """
        self._first = hashlib.sha256(first.numpy().data).hexdigest()
        try:
            with safe_open(self.path, framework="pt") as file:
                if (file.metadata() or {}).get(FIRST) != self._first:
                    return None
                weight = file.get_tensor(WEIGHT).float()
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            logger.warning("%s cannot be read, so learning begins anew: %s", self.path, error)
            return None
        return weight if weight.shape == first.shape and weight.isfinite().all() else None

    def write(self, weight: Float[Tensor, "outputs hidden"]) -> None:
        """Writes what was learned. What cannot be written is told in the log, once."""
        if self._is_broken:
            return
        try:
            with replacing(self.path) as partial:
                save_file({WEIGHT: weight.to(torch.float16)}, partial, {FIRST: self._first})
                partial.chmod(0o600)
        except (OSError, SafetensorError) as error:
            self._is_broken = True
            logger.warning(
                "%s is not written any more: %s; what is learned ends with the process",
                self.path,
                error,
            )
