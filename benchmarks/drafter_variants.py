"""Which drafter learns most from the same few answers: architectures and starts, side by side.

    uv run --extra train python benchmarks/drafter_variants.py \
        --answers runs/treesnake-smol/answers --runs runs/variants \
        --output results/drafter_variants.json --plot docs/images
    uv run --extra train python benchmarks/drafter_variants.py \
        --answers runs/treesnake-smol-every-model/own-greedy --runs runs/twins --seeds 0 1 2 \
        --only mamba2 transformer "mamba2, 1 layer" --output results/drafter_twins.json

Every variant is the recipe of treesnake-smol but for what its name says, and learns from the same
texts, for each seed in the same order; all have about as many weights in their layers, but for
those of another number of layers. Variants that are there already are not trained again, so
`--only` and `--seeds` can share them out among processes, and the last call collects.
"""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from frame import Result, run, save_figure

from treesnake.training.provenance import PROVENANCE_FILE
from treesnake.training.reporting import TerminalReporter
from treesnake.training.training_recipe import (
    DistilStage,
    Mamba2Sizes,
    Start,
    TrainingRecipe,
    read_training_recipe,
)
from treesnake.training.training_run import train_drafter

RECIPES = Path(__file__).parent.parent / "recipes" / "treesnake-smol"

ATTENTION_SIZES = Mamba2Sizes(
    hidden_size=576, num_layers=4, num_heads=9, head_dim=64, num_groups=9, state_dim=64
)
"""A head and a group for each head of the target's queries, as its attention layers need."""

ATTENTION_LAYERS = (0, 10, 20, 29)
"""Spread over the target's 30 layers."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--answers", type=Path, required=True, help="folder of the target's")
    parser.add_argument("--runs", type=Path, required=True, help="folder of what is trained")
    parser.add_argument("--updates", type=int, default=80)
    parser.add_argument("--batch-tokens", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of starts and orders")
    parser.add_argument("--only", nargs="+", help="variants; all if left out")


def measure(arguments: Namespace) -> Result:
    trained: dict[str, list[Any]] = {}
    for name, recipe in variants(arguments.answers, arguments.updates, arguments.batch_tokens):
        if arguments.only and name not in arguments.only:
            continue
        for seed in arguments.seeds:
            seeded = replace(recipe, seed=seed)
            folder = arguments.runs / (recipe.name if seed == 0 else f"{recipe.name}-{seed}")
            drafter = train_drafter(seeded, folder, TerminalReporter())
            provenance = json.loads((drafter / PROVENANCE_FILE).read_text())
            trained.setdefault(name, []).append(provenance)
            last = provenance["stages"][0]["evaluations"][-1]["judgement"]
            print(f"{name}, seed {seed}: {last}", flush=True)
    return {"variants": trained}


def variants(answers: Path, updates: int, batch_tokens: int) -> list[tuple[str, TrainingRecipe]]:
    """Returns the variants, each with its recipe."""
    recipe = read_training_recipe(RECIPES / "recipe.toml")
    transformer = read_training_recipe(RECIPES / "transformer.toml")
    (stage,) = (stage for stage in recipe.stages if isinstance(stage, DistilStage))
    stage = replace(
        stage,
        data=(str(answers),),
        batch_tokens=batch_tokens,
        max_updates=updates,
        evaluate_every=max(updates // 4, 1),
        checkpoint_every=max(updates // 4, 1),
    )
    recipe = replace(recipe, stages=(stage,))
    sizes = recipe.drafter
    assert isinstance(sizes, Mamba2Sizes)
    attention = replace(recipe.start, attention_layers=ATTENTION_LAYERS, output_scale=1.0)
    made = {
        "mamba2": recipe,
        "transformer": replace(recipe, drafter=transformer.drafter),
        "mamba2, embeddings from chance": replace(recipe, start=Start()),
        "mamba2 from attention layers": replace(recipe, drafter=ATTENTION_SIZES, start=attention),
        "mamba2, 1 layer": replace(recipe, drafter=replace(sizes, num_layers=1)),
        "mamba2, 6 layers": replace(recipe, drafter=replace(sizes, num_layers=6)),
    }
    return [
        (name, replace(each, name=name.replace(",", "").replace(" ", "-")))
        for name, each in made.items()
    ]


def draw(result: Result, folder: Path) -> None:
    """Draws what each variant makes of more tokens."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only pictures need it

    measures = {
        "agreement": "agreement",
        "tokens_per_step": "tokens a step, chains of 4",
        "calibration_error": "calibration error",
    }
    figure, axes = plt.subplots(1, len(measures), figsize=(4.2 * len(measures), 3.4))
    for axis, (measure, label) in zip(axes, measures.items(), strict=True):
        for name, seeds in result["variants"].items():
            curves = [provenance["stages"][0]["evaluations"] for provenance in seeds]
            tokens = [each["num_tokens"] / 1e3 for each in curves[0]]
            values = [
                [each["judgement"][measure] for each in evaluations]
                for evaluations in zip(*curves, strict=True)
            ]
            (line,) = axis.plot(tokens, list(map(fmean, values)), marker="o", label=name)
            lowest, highest = zip(*((min(each), max(each)) for each in values), strict=True)
            axis.fill_between(tokens, lowest, highest, color=line.get_color(), alpha=0.2)
        axis.set_xlabel("thousand tokens run")
        axis.set_title(label, fontsize=10)
    axes[0].legend(fontsize=8)
    save_figure(figure, folder / "drafter_variants.svg")


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, draw=draw)
