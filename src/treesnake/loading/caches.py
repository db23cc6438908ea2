"""What is kept on this machine between runs: where it lies, how large it is, and its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from treesnake.kernels.cpu.jit import kernel_folder, kernels_in
from treesnake.loading.cost_files import FOLDER_NAME, cache_folder
from treesnake.outputs import remove_files


@dataclass(frozen=True)
class Cache:
    """Files of one kind. All of them are made anew when they are missing.

    Attributes:
        name: what they hold.
        folder: where they lie; None if there is nowhere to write them.
        files: those that are there.
    """

    name: str
    folder: Path | None
    files: Sequence[Path]

    @property
    def num_bytes(self) -> int:
        """The bytes that they take on disk."""
        return sum(file.stat().st_size for file in self.files if file.exists())

    def clear(self) -> None:
        """Removes the files.

        Raises:
            OutputError: if one cannot be removed.
        """
        remove_files(self.files)


def find_caches() -> tuple[Cache, ...]:
    """Returns the kernels that were compiled, and the costs that `treesnake calibrate` measured."""
    kernels, costs = kernel_folder(), cache_folder() / FOLDER_NAME
    return (
        Cache("compiled_kernels", kernels, kernels_in(kernels) if kernels else ()),
        Cache("measured_costs", costs, sorted(costs.glob("*.json"))),
    )
