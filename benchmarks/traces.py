"""Records traces of a pair, for searches to be compared on: see `benchmarks/simulation.py`.

    uv run python benchmarks/traces.py --questions spec_bench_tune.jsonl --drafter FOLDER \
        --output traces/tune.jsonl.gz

For the first turn of each question the target answers, greedily or by a seed, and at every position
of the answer the drafter drafts a large tree. That takes about ten drafting steps a token, once;
every search on every machine is then replayed in seconds. A run that was stopped continues.
"""

from argparse import ArgumentParser
from pathlib import Path

from frame import parse

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.evaluation.simulation.recording import record
from treesnake.evaluation.simulation.trace import Trace, read_traces, write_traces
from treesnake.evaluation.tasks import load_questions

WRITE_EVERY = 10


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--drafter", required=True)
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="samples have the seed 0")
    parser.add_argument("--per-category", type=int, help="only so many questions of each")
    parser.add_argument("--longest-prompt", type=int, default=1024, help="in tokens")


def main() -> None:
    """Records what is missing."""
    arguments = parse(__doc__, add_arguments)
    decoder = SpeculativeDecoder.from_pretrained(
        arguments.target, arguments.drafter, dtype=arguments.dtype
    )
    traces = read_traces([arguments.output]) if arguments.output.exists() else []
    done = {trace.name for trace in traces}
    for question in load_questions(str(arguments.questions), per_category=arguments.per_category):
        prompt = decoder.encode([{"role": "user", "content": question.turns[0]}])
        if question.name in done or len(prompt) > arguments.longest_prompt:
            continue
        trace = record(
            decoder.pair,
            prompt,
            num_tokens=arguments.tokens,
            end_token_ids=decoder.end_token_ids,
            name=question.name,
            category=question.category,
            params=SamplingParams(temperature=arguments.temperature, seed=0),
        )
        traces.append(trace)
        if len(traces) % WRITE_EVERY == 0:
            write_traces(arguments.output, traces)
        print(f"\r{len(traces)} traces, {_summary(traces)}", end="", flush=True)
    write_traces(arguments.output, traces)
    print()


def _summary(traces: list[Trace]) -> str:
    ranks = [rank for trace in traces for rank in trace.ranks]
    first = sum(rank == 0 for rank in ranks) / len(ranks)
    among = sum(rank >= 0 for rank in ranks) / len(ranks)
    return f"{len(ranks)} tokens: {first:.0%} are the drafter's first, {among:.0%} its best eight"


if __name__ == "__main__":
    main()
