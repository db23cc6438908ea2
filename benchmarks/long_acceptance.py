"""Does acceptance last as the context grows? Many documents, and nothing timed.

    python benchmarks/long_acceptance.py --documents document.txt \
        --output results/long_acceptance.json \
        --drafter treesnake-smol=treesnake-smol --drafter mamba=runs/variants/mamba2/drafter \
        --drafter transformer=runs/variants/transformer/drafter \
        --drafter window=runs/variants/transformer/drafter:512 --plot docs/images

The target is asked to summarise the beginning of each document, and answers greedily, once. Every
drafter then drafts chains along that answer, each step from where the one before ended, which
accepts what decoding with it would. Reported are tokens per step at each length, and the ratio to
the shortest one, with intervals over the documents.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from frame import Result, run, save_figure

from treesnake import SpeculativeDecoder
from treesnake.chance import TorchRng
from treesnake.drafters.load import load_drafter
from treesnake.evaluation.bench.bench_recipe import LongContextTable
from treesnake.evaluation.bench.documents import long_questions
from treesnake.evaluation.bootstrap import bootstrap_rate, bootstrap_ratio
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter
from treesnake.sampling import SamplingParams
from treesnake.shape import chain

GREEDY = SamplingParams()


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--documents", nargs="+", required=True)
    parser.add_argument("--drafter", action="append", required=True, help="NAME=FOLDER[:WINDOW]")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 7168])
    parser.add_argument("--num-documents", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)


def measure(arguments: Namespace) -> Result:
    decoder = SpeculativeDecoder.from_pretrained(
        arguments.target, "none", dtype="float32", search="off"
    )
    drafters = dict(_read_drafter(text, arguments.target) for text in arguments.drafter)
    documents = tuple(str(Path(name).resolve()) for name in arguments.documents)
    task = LongContextTable(documents, tuple(arguments.lengths), arguments.num_documents)
    assert decoder.tokenizer is not None
    answers: dict[str, list[dict[str, Any]]] = {}
    for question in long_questions(task, decoder.tokenizer):
        prompt = decoder.encode([{"role": "user", "content": question.turns[0]}])
        text = decoder.generate(prompt, max_new_tokens=arguments.tokens).token_ids
        steps = {
            name: _num_steps(drafter, prompt, text, arguments.depth)
            for name, drafter in drafters.items()
        }
        answers.setdefault(question.category, []).append({"tokens": len(text), "steps": steps})
        print(question.name, len(text), steps, flush=True)
    return {
        "target": arguments.target,
        "tokens": arguments.tokens,
        "depth": arguments.depth,
        "drafters": {name: _summary(answers, name) for name in drafters},
        "answers": answers,
    }


def _read_drafter(text: str, target: str) -> tuple[str, Drafter]:
    name, _, source = text.partition("=")
    folder, _, window = source.partition(":")
    model = load_drafter(
        folder,
        LoadOptions(dtype="int8", device="cpu"),
        target=find_checkpoint(target),
        window=int(window) if window else None,
    )
    return name, model.new_session()


def _num_steps(drafter: Drafter, prompt: Prompt, text: Sequence[int], depth: int) -> int:
    """Returns how many steps a drafter takes to a text that the target says greedily."""
    rng = TorchRng(0)
    drafter.prefill(prompt)
    anchor, position, num_steps = prompt.token_ids[-1], 0, 0
    while position < len(text):
        tree = drafter.draft(anchor, chain(depth), GREEDY, rng).tree
        emitted = text[position : position + len(tree.follow([anchor, *text[position:]]))]
        drafter.commit([anchor, *emitted[:-1]])
        anchor, position, num_steps = emitted[-1], position + len(emitted), num_steps + 1
    return num_steps


def _summary(answers: dict[str, list[dict[str, Any]]], drafter: str) -> dict[str, Any]:
    counts = {
        length: (
            np.array([float(each["tokens"]) for each in made]),
            np.array([float(each["steps"][drafter]) for each in made]),
        )
        for length, made in answers.items()
    }
    first = next(iter(counts.values()))
    summary = {}
    for length, (tokens, steps) in counts.items():
        rate = bootstrap_rate(tokens, steps)
        ratio = bootstrap_ratio(tokens, steps, *first)
        summary[length] = {
            "tokens_per_step": rate and asdict(rate),
            "of_the_shortest": ratio and asdict(ratio),
        }
    return summary


def draw(result: Result, folder: Path) -> None:
    """Draws tokens per step by the length of the context, with intervals."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only pictures need it

    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    for number, (name, by_length) in enumerate(result["drafters"].items()):
        lengths = [int(length.split()[0]) for length in by_length]
        rates = [each["tokens_per_step"] for each in by_length.values()]
        values = [rate["value"] for rate in rates]
        below = [rate["value"] - rate["low"] for rate in rates]
        above = [rate["high"] - rate["value"] for rate in rates]
        positions = [length * 1.03**number for length in lengths]  # so that bars lie side by side
        axis.errorbar(positions, values, yerr=(below, above), marker="o", capsize=3, label=name)
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.set_xlabel("tokens of context")
    axis.set_ylabel("tokens a step, chains of 4")
    axis.set_ylim(bottom=1)
    axis.legend(fontsize=8)
    save_figure(figure, folder / "long_acceptance.svg")


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, draw=draw)
