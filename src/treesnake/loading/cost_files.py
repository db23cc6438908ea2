"""Measured costs of a pair on a machine, kept in the user's cache folder."""

import hashlib
import json
import logging
import math
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from treesnake.environment import processor_name
from treesnake.errors import InvalidInputError
from treesnake.files import write_text
from treesnake.kept_work import sha256_of
from treesnake.loading.networks import LoadedNetwork
from treesnake.models.checkpoint import CONFIG_FILE
from treesnake.search.costs import CostTable

CACHE_VARIABLE = "TREESNAKE_CACHE"
FOLDER_NAME = "costs"

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Returns the folder for what is measured here: TREESNAKE_CACHE, or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else user_cache_path("treesnake")


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
        configs: a digest of what the folders of both models say of their sizes; names such as
            "model" stand for another folder elsewhere.
    """

    target: str
    drafter: str
    dtype: str
    engine: str
    machine: str
    threads: int
    version: str
    configs: str

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
            configs=sha256_of([_config(target.checkpoint.path), _config(Path(drafter))])[:16],
        )

    @property
    def path(self) -> Path:
        """Where the costs are kept."""
        text = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cache_folder() / FOLDER_NAME / f"{digest}.json"


def write_costs(key: CostKey, costs: CostTable) -> Path:
    """Keeps costs, whole or not at all, and returns where.

    Raises:
        InvalidInputError: if they cannot be written, as on a full disk.
    """
    path = key.path
    try:
        write_text(path, json.dumps({"key": asdict(key), "costs": asdict(costs)}, indent=1) + "\n")
    except OSError as error:
        raise InvalidInputError(
            f"the costs cannot be kept in {path}: {error}; make room there, or set "
            f"{CACHE_VARIABLE} to a folder that can be written"
        ) from error
    return path


def read_costs(key: CostKey) -> CostTable | None:
    """Returns what was measured for a key, or None if nothing was or the file is broken.

    Searches learn costs as they go, so a broken file is no reason to stop; the log tells it.
    """
    path = key.path
    try:
        content = json.loads(path.read_bytes())
        if content["key"] != asdict(key):
            raise ValueError("they are those of another pair or machine")
        costs = content["costs"]
        return CostTable(_by_count(costs["score_s"]), _by_count(costs["draft_s"]))
    except FileNotFoundError:
        return None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        logger.warning(
            "the costs in %s cannot be used (%r); `treesnake calibrate` measures anew", path, error
        )
        return None


def machine_name(device: str) -> str:
    """Returns the name of an accelerator, or of the processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device != "cpu":
        return f"{device} {platform.machine()}"
    return processor_name()


def _config(path: Path) -> str | None:
    """Returns what a model's folder says of it; a file stands for itself by its size."""
    try:
        if path.is_file():
            return str(path.stat().st_size)
        return (path / CONFIG_FILE).read_text("utf-8", errors="replace")
    except (OSError, ValueError):
        return None


def _by_count(table: dict[str, Any]) -> dict[int, dict[int, float]]:
    by_count = {
        int(length): {int(count): float(seconds) for count, seconds in costs.items()}
        for length, costs in table.items()
    }
    if not all(math.isfinite(each) for costs in by_count.values() for each in costs.values()):
        raise ValueError("a cost is no number")
    return by_count
