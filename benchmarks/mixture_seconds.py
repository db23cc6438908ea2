"""What do streams make of the seconds of the vision-language pair of the package?

    python benchmarks/mixture_seconds.py --threads 1 --output results/mixture_seconds.json

Every method answers the same prompts of ShapeWorld, prompt by prompt in turn, greedily. The
captions of stream C are known beforehand, so nothing is spent on writing them.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from random import Random
from typing import Any

from frame import Result, print_table, run
from PIL import Image

from treesnake import Pair, SpeculativeDecoder
from treesnake.drafters.load import SHIPPED_FOLDER, load_drafter
from treesnake.evaluation.shapeworld.dialogues import TASKS, Dialogue, caption
from treesnake.evaluation.shapeworld.scenes import draw
from treesnake.loading.checkpoint import SHAPEWORLD
from treesnake.prompt import PromptInput
from treesnake.targets.load import load_target

DRAFTER = SHIPPED_FOLDER / "shapeworld-drafter"
CHAIN = "chain(5)"
METHODS = (
    ("off", "M", "off"),
    ("M", "M", CHAIN),
    ("T", "T", CHAIN),
    ("P", "P", CHAIN),
    ("MT uniform", "MT:uniform", CHAIN),
    ("MT", "MT", CHAIN),
    ("MTCP", "MTCP", CHAIN),
    ("MT, self-tuning", "MT", "self-tuning"),
    ("MTCP, self-tuning", "MTCP", "self-tuning"),
)
"""What runs: its name, the streams, the search."""

FIRST_SEED = 20_000
MAX_NEW_TOKENS = 96
MEASURED_TASKS = [name for name in TASKS if name != "bare_story"]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=4, help="of each task")


def measure(arguments: Namespace) -> Result:
    captions: dict[bytes, str] = {}
    model, loaded = load_target(SHAPEWORLD)

    def described(image: PromptInput) -> str:
        picture: Any = image.picture
        return captions[picture.convert("RGB").tobytes()]

    decoders = {
        name: SpeculativeDecoder.of_loaded(
            Pair(
                model,
                load_drafter(f"{DRAFTER}:{streams}", target=loaded.checkpoint, caption=described),
            ),
            loaded,
            search,
        )
        for name, streams, search in METHODS
    }
    counted = {name: {"tokens": 0, "steps": 0, "seconds": 0.0} for name in decoders}
    for task in MEASURED_TASKS:
        for index in range(-1, arguments.prompts):  # the first one makes room and is not counted
            seed = FIRST_SEED + index
            dialogue, rng = TASKS[task](Random(seed)), Random(seed)
            pictures = [Image.fromarray(draw(scene, rng)) for scene in dialogue.scenes]
            for picture, scene in zip(pictures, dialogue.scenes, strict=True):
                captions[picture.tobytes()] = caption(scene)
            messages = _messages(dialogue, pictures)
            for name, decoder in decoders.items():
                made = decoder.generate(messages, max_new_tokens=MAX_NEW_TOKENS)
                if index >= 0:
                    counted[name]["tokens"] += len(made.token_ids)
                    counted[name]["steps"] += len(made.steps)
                    counted[name]["seconds"] += sum(step.seconds.total_s for step in made.steps)
    return {"prompts": arguments.prompts, "methods": counted}


def _messages(dialogue: Dialogue, pictures: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the messages up to the last question."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": each} for each in pictures]
    messages: list[dict[str, Any]] = []
    for turn in dialogue.turns:
        question = [*parts, {"type": "text", "text": turn.question}]
        answer = {"role": "assistant", "content": turn.answer}
        messages += [{"role": "user", "content": question}, answer]
        parts = []
    return messages[:-1]


def show(result: Result) -> None:
    methods = result["methods"]
    plain = methods["off"]["seconds"] / methods["off"]["tokens"]
    rows = [
        [
            name,
            f"{each['tokens'] / each['steps']:.2f}",
            f"{each['seconds'] / each['tokens'] * 1e3:.2f}",
            f"{plain * each['tokens'] / each['seconds']:.2f}",
        ]
        for name, each in methods.items()
    ]
    print_table("greedy", ["method", "tokens/step", "ms a token", "x plain"], rows)


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
