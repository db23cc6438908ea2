"""Weights that are stored in fewer bits than they are used in.

A matrix is stored as whole numbers and scales: a number of 8 bits for each value, or of 4 bits, two
in a byte, and a scale for each group of values in a row. In a file, these are two tensors in the
place of the matrix, with its name and an ending.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import LoadError

EIGHT_BITS, FOUR_BITS, SCALES = ".int8", ".int4", ".scales"
"""What the names of the two tensors end in."""

DTYPES = {EIGHT_BITS: torch.int8, FOUR_BITS: torch.uint8}

GROUP = 64
"""Values of a row that share a scale, in 4 bits."""


def round_to_8_bits(name: str, matrix: Float[Tensor, "rows width"]) -> dict[str, Tensor]:
    """Returns what stores a matrix with a scale for each row."""
    exact = matrix.float()
    scales = exact.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    values = (exact / scales).round().to(torch.int8)
    return {name + EIGHT_BITS: values, name + SCALES: scales}


def round_to_4_bits(name: str, matrix: Float[Tensor, "rows width"]) -> dict[str, Tensor]:
    """Returns what stores a matrix with a scale for each 64 values of a row."""
    groups = matrix.float().unflatten(1, (-1, GROUP))
    # The value that is farthest from 0 becomes -8, which the other sign does not reach.
    farthest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scales = (farthest / -8).to(torch.float16).float()
    scales[scales == 0] = 1e-6
    values = (groups / scales).round().clamp(-8, 7).add(8).to(torch.uint8).flatten(1)
    packed = values[:, ::2] | (values[:, 1::2] << 4)
    return {name + FOUR_BITS: packed, name + SCALES: scales.squeeze(2).to(torch.float16)}


def unrounded(stored: Mapping[str, Tensor], where: str) -> Mapping[str, Tensor]:
    """Returns the tensors of a checkpoint under their own names, also those stored in fewer bits.

    Nothing is read before it is asked for.

    Args:
        stored: what the files hold.
        where: the folder, for messages.
    """
    return UnroundedWeights(stored, where) if is_rounded(stored) else stored


def is_rounded(stored: Mapping[str, Tensor]) -> bool:
    """Tells whether files hold matrices in fewer bits than they are used in."""
    return any(name.endswith((*DTYPES,)) for name in stored)


class UnroundedWeights(Mapping[str, Tensor]):
    """Tensors by name; a matrix in fewer bits is multiplied by its scales when it is asked for.

    Args:
        stored: what the files hold.
        where: the folder, for messages.
    """

    def __init__(self, stored: Mapping[str, Tensor], where: str) -> None:
        self._stored = stored
        self._where = where
        self._ending_of = {
            name.removesuffix(ending): ending
            for name in stored
            for ending in DTYPES
            if name.endswith(ending)
        }
        scales = {name + SCALES for name in self._ending_of}
        others = (name for name in stored if not name.endswith((*DTYPES,)) and name not in scales)
        self._names = dict.fromkeys((*self._ending_of, *others))

    def __getitem__(self, name: str) -> Tensor:
        """Returns a tensor; what was rounded is float16.

        Raises:
            LoadError: if what stores a matrix does not fit together.
        """
        ending = self._ending_of.get(name)
        if ending is None:
            return self._stored[name]
        if name in self._stored or name + SCALES not in self._stored:
            raise LoadError(f"{self._where} holds {name} twice, or {name + ending} without scales")
        return self._read(name, ending)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def _read(self, name: str, ending: str) -> Float[Tensor, "rows width"]:
        values, scales = self._stored[name + ending], self._stored[name + SCALES]
        per_byte = 2 if ending == FOUR_BITS else 1
        fits = (
            values.dtype == DTYPES[ending]
            and scales.dtype.is_floating_point
            and values.ndim == scales.ndim == 2
            and len(values) == len(scales)
            and scales.shape[1] > 0
            and values.shape[1] * per_byte % scales.shape[1] == 0
        )
        if not fits:
            raise LoadError(
                f"{self._where} holds {name + ending} of {list(values.shape)} {values.dtype} with "
                f"scales of {list(scales.shape)} {scales.dtype}, which do not fit together; is the "
                "file whole?"
            )
        if ending == FOUR_BITS:
            values = torch.stack([values & 15, values >> 4], 2).flatten(1).to(torch.int8) - 8
        groups = values.unflatten(1, (scales.shape[1], -1))
        return (groups * scales.float().unsqueeze(2)).flatten(1).to(torch.float16)
