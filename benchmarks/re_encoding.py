"""What does it take to write 16 drafted paths in the tokens of a target with another tokenizer?

    uv run python benchmarks/re_encoding.py --threads 1 --output results/re_encoding.json \\
        --target qwen2.5-coder-0.5b-instruct-q4_k_m.gguf

Behind each token of a text, paths of the drafter's tokens are read as bytes, encoded by the
target's tokenizer, and made into one tree. The paths are other places of the text, so nothing was
encoded before. Medians and 90th percentiles over all tokens. `benchmarks/fetch_qwen.py` fetches
the file.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

from frame import Result, print_table, run
from transformers import PreTrainedTokenizerFast

from treesnake.drafters.load import SHIPPED_FOLDER, SHIPPED_FOR_OTHERS
from treesnake.drafters.re_encoding import PathEncoder, PathTree, WrittenPath
from treesnake.drafters.spelling import Spelling
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.shape import LevelWidths

NUM_PATHS = (1, 4, 16)
DEPTH = 4
TEXT = (
    "In the small town by the river there was a clock maker who knew every bell by its voice. One "
    "morning the bell of the old tower was silent, and nobody could say why. He took his tools, "
    "climbed 212 steps, and found an owl's nest between the hammer and the bronze: three eggs, "
    "still warm. `def ring(bell, times=3):` he wrote on the wall, and went home again.\n\n"
) * 4


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--target", required=True, help="a GGUF file, a folder, or a name")


def measure(arguments: Namespace) -> Result:
    """Measures each number of paths behind every token of the text."""
    tokenizer = find_checkpoint(arguments.target).tokenizer
    drafter = find_checkpoint(str(SHIPPED_FOLDER / SHIPPED_FOR_OTHERS)).tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert isinstance(drafter, PreTrainedTokenizerFast)
    times = {str(number): [*_times(tokenizer, drafter, number)] for number in NUM_PATHS}
    return {
        "target": Path(arguments.target).name,
        "depth": DEPTH,
        "ms": {
            number: {
                "median": round(1e3 * median(seconds), 3),
                "90th percentile": round(1e3 * quantiles(seconds, n=10)[-1], 3),
            }
            for number, seconds in times.items()
        },
    }


def show(result: Result) -> None:
    rows = [
        [number, *(f"{each:.3f}" for each in row.values())] for number, row in result["ms"].items()
    ]
    print_table(
        f"Re-encoding paths of {result['depth']}", ["paths", "median, ms", "90th percentile"], rows
    )


def _times(
    tokenizer: PreTrainedTokenizerFast, drafter: PreTrainedTokenizerFast, number: int
) -> Iterator[float]:
    """Yields the seconds behind each of the target's tokens but the first ones."""
    spelling = Spelling(tokenizer)
    encoder = PathEncoder(tokenizer, spelling)
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    shape = LevelWidths((number, *(1,) * (DEPTH - 1)))
    for end in range(DEPTH, len(tokens)):
        text = tokens[max(end - 32, 0) : end]
        paths = _paths(drafter, number, first=end)
        started = perf_counter()
        tree = PathTree(text[-1], spelling, None)
        found = encoder.continuations(text, [path.data for path in paths])
        for path, written in zip(paths, found, strict=True):
            tree.add(path, written, 0, DEPTH)
        tree.draft(shape, (1, *(number,) * (DEPTH - 1)))
        yield perf_counter() - started


def _paths(drafter: PreTrainedTokenizerFast, number: int, *, first: int) -> Sequence[WrittenPath]:
    """Returns paths of the drafter's tokens from places of the text that depend on `first`."""
    spelling = Spelling(drafter)
    tokens = drafter.encode(TEXT, add_special_tokens=False)
    paths = []
    for index in range(number):
        start = (first * 7 + index * 17) % (len(tokens) - DEPTH)
        spelled = [spelling.of(token) for token in tokens[start : start + DEPTH]]
        parts = [part for part in spelled if isinstance(part, bytes)]
        ends = tuple(len(b"".join(parts[: count + 1])) for count in range(len(parts)))
        nodes = tuple(1 + index * DEPTH + count for count in range(len(parts)))
        paths.append(WrittenPath(b"".join(parts), ends, nodes))
    return paths


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
