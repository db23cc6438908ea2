"""Options that several commands share."""

from typing import Annotated

import typer

from treesnake.loading.options import DtypeName, EngineName

Target = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        metavar="NAME",
        help="At the hub, a folder, a GGUF file, smollm2 (a package), smollm2-hybrid, shapeworld.",
    ),
]
Dtype = Annotated[
    DtypeName,
    typer.Option(
        metavar="DTYPE",
        show_default=False,
        help="float32, float16, bfloat16, int8, int4, stored (a file's own bits) or auto.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE", show_default=False, help="cpu, cuda, cuda:1, mps, or auto, the best."
    ),
]
Engine = Annotated[
    EngineName,
    typer.Option(
        metavar="ENGINE",
        show_default=False,
        help="native is our own network, generic that of transformers, auto the faster one.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Threads on a CPU; one for each core if left out."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that comes with the model. Read it first."),
]
Drafter = Annotated[
    str,
    typer.Option(
        "--drafter",
        "-d",
        metavar="NAME",
        show_default=False,
        help="auto, the default; prompt-lookup; a model; or none for plain decoding.",
    ),
]
Captions = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A model that sees images, and describes them for a drafter such as NAME:MTC.",
    ),
]
Search = Annotated[
    str,
    typer.Option(
        "--search",
        "-s",
        metavar="SEARCH",
        show_default=False,
        help="What chooses the trees: self-tuning, the default, ucb, discounted-ucb, thompson, "
        'moving-average, trial; or one shape for all: "chain(4)", 3x2x2, off.',
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", min=1, metavar="N", help="End after so many.")
]
Temperature = Annotated[
    float,
    typer.Option(metavar="T", show_default=False, help="0, the default, is greedy."),
]
TopK = Annotated[
    int | None, typer.Option(metavar="K", help="Sample from the K most probable tokens.")
]
TopP = Annotated[
    float,
    typer.Option(metavar="P", show_default=False, help="Sample from the fewest of mass P."),
]
MinP = Annotated[
    float,
    typer.Option(metavar="P", show_default=False, help="Sample from those above P x the best."),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Sample the same text every time.")]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End before TEXT; may be given again.")
]
Image = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        "-i",
        metavar="FILE",
        help="A picture to ask about, or its address; may be given again.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|on|off",
        envvar="TREESNAKE_MEMORY",
        help="Draft from earlier answers, too: of this process (on), or kept in a folder for later "
        "runs.",
    ),
]
Learn = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|on|off",
        envvar="TREESNAKE_LEARN",
        help="Let the drafter learn from answers: in this process (on), or kept in a folder for "
        "later runs.",
    ),
]

ON, OFF = "on", "off"


def on_or_folder(name: str | None) -> bool | str:
    """Returns what --memory or --learn stands for: in this process alone, not, or in a folder."""
    return False if name in (None, OFF) else name == ON or name
