"""Measured costs of a pair on a machine, kept in the user's cache folder."""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from treesnake.environment import processor_name
from treesnake.errors import InvalidInputError
from treesnake.files import write_text
from treesnake.loading.networks import LoadedNetwork
from treesnake.loading.smollm import cache_folder
from treesnake.search.costs import CostTable

FOLDER_NAME = "costs"


@dataclass(frozen=True)
class CostKey:
    """What costs depend on: measured for one key, they mean nothing for another.

    Attributes:
        target: the name by which it was loaded.
        drafter: likewise.
        dtype: of the target's weights.
        engine: that runs the target.
        machine: the name of the processor or accelerator.
        threads: of a CPU.
        version: of treesnake.
    """

    target: str
    drafter: str
    dtype: str
    engine: str
    machine: str
    threads: int
    version: str

    @classmethod
    def of(cls, target: LoadedNetwork, drafter: str) -> "CostKey":
        """Returns the key of a pair on this machine, as it is set now."""
        return cls(
            target=target.checkpoint.name,
            drafter=drafter,
            dtype=target.dtype,
            engine=target.engine,
            machine=machine_name(target.device),
            threads=torch.get_num_threads(),
            version=version("treesnake"),
        )

    @property
    def path(self) -> Path:
        """Where the costs are kept."""
        text = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cache_folder() / FOLDER_NAME / f"{digest}.json"


def write_costs(key: CostKey, costs: CostTable) -> Path:
    """Keeps costs, whole or not at all, and returns where."""
    path = key.path
    write_text(path, json.dumps({"key": asdict(key), "costs": asdict(costs)}, indent=1) + "\n")
    return path


def read_costs(key: CostKey) -> CostTable | None:
    """Returns what was measured for a key, or None if nothing was or the file cannot be read.

    Searches learn costs as they go, so a broken file is no reason to stop.
    """
    try:
        content = json.loads(key.path.read_text())
        if content["key"] != asdict(key):
            return None
        costs = content["costs"]
        return CostTable(_by_count(costs["score_s"]), _by_count(costs["draft_s"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InvalidInputError):
        return None


def machine_name(device: str) -> str:
    """Returns the name of an accelerator, or of the processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device != "cpu":
        return f"{device} {platform.machine()}"
    return processor_name()


def _by_count(table: dict[str, Any]) -> dict[int, dict[int, float]]:
    return {
        int(length): {int(count): float(seconds) for count, seconds in costs.items()}
        for length, costs in table.items()
    }
