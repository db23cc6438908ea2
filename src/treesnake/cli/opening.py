"""From the options of a command to a decoder."""

import torch

from treesnake.decoder import SpeculativeDecoder
from treesnake.errors import InvalidInputError
from treesnake.search.static import StaticSearch
from treesnake.shape import parse_shape
from treesnake.targets.engines import EngineName
from treesnake.targets.load import DtypeName


def open_decoder(
    *,
    target: str,
    drafter: str,
    dtype: DtypeName,
    device: str,
    engine: EngineName,
    shape: str,
    threads: int | None,
    trust_remote_code: bool,
) -> SpeculativeDecoder:
    """Loads what a command needs; the options are checked before anything is loaded."""
    chosen_shape = parse_shape(shape)
    set_threads(threads)
    return SpeculativeDecoder.from_pretrained(
        target,
        drafter,
        dtype=dtype,
        device=device,
        engine=engine,
        trust_remote_code=trust_remote_code,
        new_search=lambda: StaticSearch(chosen_shape),
    )


def set_threads(threads: int | None) -> None:
    """Sets the number of CPU threads; None leaves it as it is."""
    if threads is None:
        return
    if threads < 1:
        raise InvalidInputError(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)
