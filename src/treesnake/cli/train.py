"""`treesnake train`: a drafter by recipe."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from treesnake.cli import options
from treesnake.errors import LoadError
from treesnake.terminal import console

PACKAGES = ("accelerate", "datasets", "tensorboard")


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of all runs.")
    ] = Path("runs"),
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write logs for it.")] = False,
    threads: options.Threads = None,
) -> None:
    """Train a drafter for your target.

    The drafter is in FOLDER/NAME/drafter when all is done. A run that ended goes on when the same
    command is given. For many devices: accelerate launch -m treesnake train RECIPE.
    """
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise LoadError(f"training needs {', '.join(missing)}; install treesnake[train]")
    import torch
    import transformers

    from treesnake.cli.garbage import collect_again
    from treesnake.cli.target_options import set_threads
    from treesnake.training.devices import keep_memory
    from treesnake.training.reporting import TerminalReporter
    from treesnake.training.training_recipe import read_training_recipe
    from treesnake.training.training_run import train_drafter

    collect_again()
    parsed = read_training_recipe(recipe)
    if not torch.cuda.is_available():
        keep_memory()
    set_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    folder = train_drafter(
        parsed, output / parsed.name, TerminalReporter(), tensorboard=tensorboard
    )
    if not folder.is_dir():
        console(is_error=True).print("No stage of the recipe trains a drafter.", style="dim")
    console().print(str(folder if folder.is_dir() else folder.parent), soft_wrap=True)
