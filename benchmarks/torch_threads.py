"""What is lost where torch's threads are woken between compiled passes?

    python benchmarks/torch_threads.py --questions spec_bench_tune.jsonl --threads 2 \
        --output results/torch_threads.json

The default pair, each text once as it is and once with `treesnake.threads` out of work, in turn.
Reported are tokens per second of steps that drafted, or of all where nothing is drafted.
"""

from argparse import ArgumentParser, Namespace

from frame import Result, add_questions, read_questions, run

from treesnake import SamplingParams, SpeculativeDecoder, threads
from treesnake.decoder import DecoderSession
from treesnake.evaluation.tasks import Question
from treesnake.outcome import Step
from treesnake.search.by_name import search_by_name

SHAPES = ("off", "chain(2)", "chain(4)", "2x1x1")
SAMPLINGS = {"greedy": SamplingParams(), "temperature 1": SamplingParams(temperature=1.0, seed=1)}


def add_arguments(parser: ArgumentParser) -> None:
    add_questions(parser, limit=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "int8"])
    parser.add_argument("--tokens", type=int, default=64)


def measure(arguments: Namespace) -> Result:
    questions = read_questions(arguments)
    rates: Result = {}
    for dtype in arguments.dtypes:
        rates |= _measure(dtype, questions, arguments.tokens)
    return {"tokens_per_s": rates}


def _measure(dtype: str, questions: list[Question], num_tokens: int) -> dict[str, dict[str, float]]:
    decoder = SpeculativeDecoder.from_pretrained("smollm2", dtype=dtype, memory=False)
    set_threads = threads._set_openmp_threads
    steps: dict[str, dict[str, list[Step]]] = {}
    for question in questions:
        prompt = [{"role": "user", "content": question.turns[0]}]
        for sampling, params in SAMPLINGS.items():
            for shape in SHAPES:
                taken = steps.setdefault(f"{dtype}, {sampling}, {shape}", {})
                for name, setter in (("woken", None), ("asleep", set_threads)):
                    threads._set_openmp_threads = setter
                    fresh = decoder.new_session()
                    search = search_by_name(shape).new_session()
                    session = DecoderSession(fresh.target, fresh.drafter, search)
                    made = decoder.generate(
                        prompt, params, max_new_tokens=num_tokens, session=session
                    )
                    taken.setdefault(name, []).extend(
                        step for step in made.steps[1:] if len(step.tree) > 1 or shape == "off"
                    )
    threads._set_openmp_threads = set_threads
    rates = {
        setting: {name: _rate(each) for name, each in taken.items()}
        for setting, taken in steps.items()
    }
    for setting, both in rates.items():
        print(f"{setting}: {both['woken']:.1f} -> {both['asleep']:.1f} tokens/s", flush=True)
    return rates


def _rate(steps: list[Step]) -> float:
    tokens = sum(len(step.emitted) for step in steps)
    return tokens / sum(step.seconds.total_s for step in steps)


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments)
