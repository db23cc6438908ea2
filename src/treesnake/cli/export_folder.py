"""`treesnake export-folder`: a model folder whose `generate` speculates."""

from pathlib import Path
from typing import Annotated

import typer

from treesnake.cli import options
from treesnake.loading.options import LoadOptions
from treesnake.terminal import console, plain


def export_folder(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="At the hub, a folder, a GGUF file, or smollm2.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet.")],
    drafter: options.Drafter = "auto",
    search: options.Search = "self-tuning",
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy files instead of linking them, to move the folder.")
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Write a model folder that transformers decodes speculatively.

    It is for `transformers serve OUT --trust-remote-code`, and for from_pretrained(OUT,
    trust_remote_code=True), whose generate() then speculates.
    """
    from treesnake.cli.target_options import loading
    from treesnake.integrations.model_folders import export_folder as export

    loaded = LoadOptions(trust_remote_code=trust_remote_code)
    with loading(target):
        export(target, out, drafter=drafter, search=search, copies=copy, options=loaded)
    notes = console(is_error=True)
    notes.print(plain(f"transformers serve {out} --trust-remote-code"), soft_wrap=True)
