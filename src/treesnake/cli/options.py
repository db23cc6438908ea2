"""Options that several commands share."""

from typing import Annotated

import typer

from treesnake.targets.engines import EngineName
from treesnake.targets.load import DtypeName

Target = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        help="Name on the hub, a folder, a .gguf file, or smollm2, which comes as a package.",
    ),
]
Drafter = Annotated[
    str, typer.Option("--drafter", "-d", help="prompt-lookup, or none for plain decoding.")
]
Dtype = Annotated[
    DtypeName, typer.Option(help="Of the weights; int8 is for the native engine on a CPU.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Engine = Annotated[
    EngineName,
    typer.Option(help="native has our own kernels, generic is the model of transformers."),
]
Shape = Annotated[
    str, typer.Option(help='Tree to draft: "chain(4)", "3x2x2", "best_first(4, 6, 24)", off.')
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default one per core.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", help="At most so many.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Sample from the k most probable tokens.")]
TopP = Annotated[float, typer.Option(help="Sample from the smallest set with this mass.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the best one.")]
Seed = Annotated[int | None, typer.Option(help="Makes a sampled text reproducible.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this string; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
TrustRemoteCode = Annotated[
    bool, typer.Option(help="Run code that comes with the model. Only if you read it.")
]
