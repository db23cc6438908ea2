"""`treesnake report`: results of benchmarks as one page."""

from pathlib import Path
from typing import Annotated

import typer

from treesnake.outputs import check_output, write_output
from treesnake.terminal import console


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="What bench wrote: .json files.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The first with .html if left out."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write pictures for papers there.")
    ] = None,
    suffix: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="Of pictures: svg, pdf or png.")
    ] = "svg",
) -> None:
    """Make one HTML page of results, which needs nothing else.

    Steps are shown where the records lie beside the results.
    """
    from treesnake.evaluation.report import read_result, save_pictures, to_html

    page = output or results[0].with_suffix(".html")
    read = [read_result(path) for path in results]
    check_output(page)
    write_output(page, to_html(read))
    written = [page]
    if pictures is not None:
        for result in read:
            written += save_pictures(result, pictures, suffix=suffix)
    for path in written:
        console().print(str(path), soft_wrap=True)
