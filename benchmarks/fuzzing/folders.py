"""Door: folders of models, as targets and as drafters."""

import io
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from fuzzing import models
from fuzzing.cases import Case, Opened
from fuzzing.mutations import mutate_bytes, mutate_file, mutate_json
from fuzzing.safetensors_files import PREFIXES, mutate_safetensors

WEIGHTS = ("pytorch_model.bin", ".safetensors")
WEIGHT_OF = {"config.json": 6, "generation_config.json": 2, "tokenizer_config.json": 2}
"""How often a file is chosen, beside weights and others."""

TARGET, DRAFTER = "target", "drafter"


class ModelFolders:
    """Attention, Mamba and Mamba-2; one file, shards or a pickle; target or drafter."""

    specimens: Sequence[str] = tuple(
        f"{kind} as {role}"
        for kind in (*models.CONFIGS, "llama in shards", "mamba in a pickle")
        for role in (TARGET, DRAFTER)
    )

    def prepare(self, folder: Path) -> None:
        for kind in models.CONFIGS:
            models.save_model(kind, folder / kind)
        models.save_model("llama", folder / "llama in shards", shard_size="40KB")
        model = models.save_model("mamba", folder / "mamba in a pickle")
        (folder / "mamba in a pickle" / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "mamba in a pickle" / "pytorch_model.bin")
        models.save_model("llama", folder / TARGET)

    def case(
        self, specimens: Path, specimen: str, work: Path, random: Random, num_mutations: int
    ) -> Case:
        kind, _, role = specimen.rpartition(" as ")
        folder = work / "the-model"
        shutil.copytree(specimens / kind, folder)
        done = tuple(_mutate(folder, random) for _ in range(num_mutations))
        is_generic = role == TARGET and num_mutations > 0 and random.random() < 0.25
        engine = "generic" if is_generic else "auto"
        if role == DRAFTER:
            target = specimens / TARGET
            open_it: Callable[[], Opened] = partial(models.generate, target, folder)
            meant: Callable[[], Opened] = partial(models.reference, target)
        else:
            open_it = partial(models.generate, folder, engine=engine)
            meant = partial(models.reference, folder)
        name = f"{specimen}, generic" if is_generic else specimen
        return Case(name, done, folder, open_it, meant, models.differ_in_text)


def _mutate(folder: Path, random: Random) -> str:
    files = sorted(path for path in folder.iterdir() if not path.is_dir())
    chances = [6 if path.name.endswith(WEIGHTS) else WEIGHT_OF.get(path.name, 1) for path in files]
    path = random.choices(files, chances)[0]
    if path.suffix == ".safetensors":
        return mutate_file(path, random, mutate_safetensors)
    if path.suffix == ".bin":
        return mutate_file(path, random, _mutate_pickle)
    return mutate_file(path, random, mutate_json if path.suffix == ".json" else mutate_bytes)


def _mutate_pickle(content: bytes, random: Random) -> tuple[bytes, str]:
    """Puts odd things into a pickle of weights."""
    try:
        state: dict[str, Any] = dict(torch.load(io.BytesIO(content), weights_only=True))
        name = random.choice([*state])
        changed, said = _change_state(state, name, random)
    except Exception:  # noqa: BLE001 - it was mutated before, so anything may be raised
        return mutate_bytes(content, random)
    stream = io.BytesIO()
    torch.save(changed, stream)
    return stream.getvalue(), said


def _change_state(state: dict[str, Any], name: str, random: Random) -> tuple[Any, str]:
    tensor = state[name]
    prefix = random.choice(PREFIXES)
    wholes: tuple[tuple[Any, str], ...] = (
        ({"state_dict": state}, "inside of state_dict"),
        ([*state.items()], "a list of pairs"),
        ({prefix + key: each for key, each in state.items()}, f"all names with {prefix}"),
        ({key.removeprefix("model."): each for key, each in state.items()}, "base names"),
        (tensor, "one tensor"),
        ({}, "nothing"),
        (None, "None"),
        ({"model": state, "optimizer": [1, 2]}, "with an optimizer"),
    )
    if random.random() < 0.3:
        return random.choice(wholes)
    others: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("sparse", tensor.to_sparse),
        ("meta", lambda: tensor.to("meta")),
        ("expanded", lambda: tensor[:1].expand(tensor.shape)),
        ("transposed", lambda: tensor.T),
        ("half", tensor.half),
        ("a parameter", lambda: torch.nn.Parameter(tensor)),
        ("a list", tensor.tolist),
        ("None", lambda: None),
        ("a dict", lambda: {"weight": tensor}),
        ("shorter", lambda: tensor[: len(tensor) // 2]),
        ("a view", lambda: torch.cat([tensor, tensor])[: len(tensor)]),
        ("integers", tensor.long),
        ("complex", lambda: tensor.to(torch.complex64)),
        ("quantized", lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
        ("scalar", lambda: torch.tensor(1.0)),
        ("not a number", lambda: torch.full_like(tensor, float("nan"))),
    )
    said, change = random.choice(others)
    state[random.choice((name, name, name, "a stray one", 5))] = change()  # type: ignore[index]
    return state, f"{name} is {said}"
