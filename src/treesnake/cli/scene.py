"""`treesnake scene`: a picture that the shipped vision-language pair can talk about."""

from pathlib import Path
from random import Random
from typing import Annotated

import typer

from treesnake.files import replacing
from treesnake.outputs import check_output, telling_failure

SCALE = 8


def scene(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="Where the picture goes, a PNG.")],
    seed: Annotated[int, typer.Option(metavar="N", help="Another number, another scene.")] = 0,
) -> None:
    """Draw coloured shapes to ask the model shapeworld about.

    What is in the picture goes to standard output.
    """
    from treesnake.evaluation.shapeworld.dialogues import caption
    from treesnake.evaluation.shapeworld.scenes import as_png, draw, random_scene

    check_output(output)
    rng = Random(seed)
    drawn = random_scene(rng)
    picture = as_png(draw(drawn, rng), SCALE)
    with telling_failure(output, "make room or choose another one"), replacing(output) as partial:
        partial.write_bytes(picture)
    print(caption(drawn))
