"""Door: recipes of trainings and of benchmarks."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.cases import Case
from fuzzing.mutations import mutate_bytes, mutate_file, mutate_value
from fuzzing.toml_files import to_toml
from treesnake.evaluation.bench import read_bench_recipe
from treesnake.training.training_recipe import read_training_recipe

TRAINING: dict[str, Any] = {
    "name": "tiny",
    "target": "the-target",
    "target_dtype": "float32",
    "draft_vocabulary": 96,
    "seed": 3,
    "drafter": {
        "kind": "mamba2",
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "head_dim": 16,
        "state_dim": 8,
    },
    "start": {"embeddings": "target", "frozen": ["embeddings"], "output_scale": 0.5},
    "stages": [
        {
            "kind": "corpus",
            "name": "questions",
            "source": "rows.jsonl",
            "content": "prompts",
            "column": "text",
            "max_rows": 10,
            "exclude": ["others.jsonl"],
        },
        {"kind": "answers", "name": "answers", "prompts": ["questions"], "max_new_tokens": 12},
        {"kind": "pretrain", "name": "first", "data": ["answers"], "learning_rate": 1e-3},
        {
            "kind": "distil",
            "name": "second",
            "data": ["answers"],
            "divergence": "reverse_kl",
            "probabilities": "target",
            "rollout_tokens": 2,
        },
    ],
}
BENCH: dict[str, Any] = {
    "name": "tiny",
    "description": "a tiny benchmark",
    "methods": ["plain", "chain(2)", "lookup@self-tuning"],
    "max_new_tokens": 8,
    "threads": 1,
    "repeats": 2,
    "pairs": {"tiny": {"target": "the-target", "drafter": "prompt-lookup", "dtype": "float32"}},
    "drafters": {"lookup": {"model": "prompt-lookup", "window": 16}},
    "tasks": [{"source": "questions.jsonl", "name": "questions", "per_category": 1}],
    "long_context": [{"documents": ["text.txt"], "lengths": [64], "num_documents": 1}],
    "sampling": [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 5, "top_p": 0.9}],
}
READERS: Mapping[str, tuple[dict[str, Any], Callable[[Path], Any]]] = {
    "training": (TRAINING, read_training_recipe),
    "bench": (BENCH, read_bench_recipe),
}


class Recipes:
    """What is read of a recipe is what stands in it."""

    specimens: Sequence[str] = tuple(READERS)

    def prepare(self, folder: Path) -> None:
        pass

    def case(
        self, specimens: Path, specimen: str, work: Path, random: Random, num_mutations: int
    ) -> Case:
        table, read = READERS[specimen]
        files = work / "the-recipe"
        files.mkdir()
        path = files / "recipe.toml"
        path.write_bytes(to_toml(table))
        done = tuple(mutate_file(path, random, _mutate_toml) for _ in range(num_mutations))
        return Case(
            specimen,
            done,
            files,
            partial(_read, read, path),
            partial(_read_plainly, path),
            _differ,
        )


def _mutate_toml(content: bytes, random: Random) -> tuple[bytes, str]:
    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError):  # it was mutated before
        return mutate_bytes(content, random)
    changed, said = mutate_value(table, random)
    if not isinstance(changed, dict):
        return mutate_bytes(content, random)
    return to_toml(changed), said


def _read(read: Callable[[Path], Any], path: Path) -> Any:
    return asdict(read(path))


def _read_plainly(path: Path) -> Any:
    return tomllib.loads(path.read_bytes().decode("utf-8-sig"))


def _differ(opened: Any, meant: Any, place: str = "") -> str | None:
    """Returns what stands in the file and was not read so; what was left out is the reader's."""
    if isinstance(meant, dict):
        if not isinstance(opened, dict):
            return f"{place} is no table"
        for key, item in meant.items():
            if key not in opened:
                return f"{place}.{key} was not read"
            if found := _differ(opened[key], item, f"{place}.{key}"):
                return found
        return None
    if isinstance(meant, list):
        if not isinstance(opened, list) or len(opened) != len(meant):
            return f"{place} is {str(opened)[:80]}"
        pairs = enumerate(zip(opened, meant, strict=True))
        return next((said for i, (a, b) in pairs if (said := _differ(a, b, f"{place}.{i}"))), None)
    both_nan = meant != meant and opened != opened
    return None if both_nan or opened == meant else f"{place} is {opened!r}, not {meant!r}"
