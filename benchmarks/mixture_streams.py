"""What do the streams of a mixture cost, and the rule that moves their weights?

    uv run python benchmarks/mixture_streams.py --threads 2 --output results/mixture_streams.json

Streams read the end of one text from different places on. *Shared* streams are of one network and
run in one pass; *copies* are of a network each and run one after another, as in the code published
with TABED. A chain of 5 tokens is drafted; all run in turn in every round, medians are reported.
The cost of a rule is that of a commit that moves weights less that of one that does not; they take
turns in one text, and medians are compared. Its share is that of a mean step of the pair of the
package, four streams of whose drafter draft.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from time import perf_counter

from frame import Result, add_rounds, milliseconds, print_table, run, time_in_turn

from treesnake.chance import TorchRng
from treesnake.decoder import SpeculativeDecoder
from treesnake.draft import Draft, Scored
from treesnake.drafters.load import load_drafter
from treesnake.drafters.mixture import MixtureDrafterModel, Stream
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.vocabulary import SAME_VOCABULARY
from treesnake.drafters.weight_rules import WEIGHT_RULES
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, DrafterModel
from treesnake.sampling import Rng, SamplingParams
from treesnake.shape import Shape, chain

NUM_STREAMS = (2, 4)
DRAFTERS = (("treesnake-smol", "int8"), ("smollm2", "int8"))
SHAPE = chain(5)
TEXT = (
    "In the small town by the river there was a clock maker who knew every bell by its voice. One "
    "morning the bell of the old tower was silent, and nobody could say why. "
)
QUESTION = "Write a short story about a bell that would not ring."
RULES = ("hedge", "em", "inverse-kl", "grid", "total-variation")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--new-tokens", type=int, default=128)
    add_rounds(parser, 15)


def measure(arguments: Namespace) -> Result:
    """Measures drafts of one network after the other, then rules with the package's pair."""
    drafts = {}
    for name, dtype in DRAFTERS:
        times = time_in_turn(dict(_drafting(name, dtype)), arguments.rounds)
        row = {variant: milliseconds(seconds) for variant, seconds in times.items()}
        one = row["1 alone"]["median"]
        drafts[f"{name} {dtype}"] = {
            variant: {**cost, "x one stream": round(cost["median"] / one, 2)}
            for variant, cost in row.items()
        }
    return {"drafts_ms": drafts, "rules": _rules(arguments.new_tokens)}


def show(result: Result) -> None:
    variants = next(iter(result["drafts_ms"].values()))
    print_table(
        f"Drafting {SHAPE}, ms (and x one stream)",
        ["network", *variants],
        [
            [name, *(f"{cost['median']:.1f} ({cost['x one stream']:.2f})" for cost in row.values())]
            for name, row in result["drafts_ms"].items()
        ],
    )
    print_table(
        "Moving the weights of four streams, and its share of a step",
        ["temperature", "rule", "ms", "share"],
        [
            [str(each["temperature"]), each["rule"], f"{each['ms']:.2f}", f"{each['share']:.1%}"]
            for each in result["rules"]
        ],
    )


def _load(name: str, dtype: str) -> NetworkDrafterModel:
    options = LoadOptions(dtype=dtype, device="cpu")  # type: ignore[arg-type]
    drafter = load_drafter(name, options, target=find_checkpoint())
    assert isinstance(drafter, NetworkDrafterModel)
    return drafter


def _mixture(drafters: Sequence[NetworkDrafterModel], rule: str = "hedge") -> MixtureDrafterModel:
    """Returns streams that read a text from different places on, and never leave."""
    streams = [
        Stream(
            str(number),
            drafter.network,
            lambda prompt, start=number: prompt.behind(min(start, len(prompt) - 1)),
            drafter.vocabulary or SAME_VOCABULARY,
        )
        for number, drafter in enumerate(drafters)
    ]
    return MixtureDrafterModel(tuple(streams), WEIGHT_RULES[rule](), least_weight=0.0, clock=None)


def _drafting(name: str, dtype: str) -> Iterator[tuple[str, Callable[[], Draft]]]:
    copies = [_load(name, dtype) for _ in range(max(NUM_STREAMS))]
    tokens = find_checkpoint().tokenizer.encode(TEXT * 4)
    models: dict[str, DrafterModel] = {"1 alone": copies[0], "1 stream": _mixture(copies[:1])}
    for number in NUM_STREAMS:
        models[f"{number} shared"] = _mixture(copies[:1] * number)
        models[f"{number} copies"] = _mixture(copies[:number])
    for variant, model in models.items():
        session = model.new_session()
        session.prefill(Prompt.of(tokens))
        yield variant, lambda session=session: _draft(session, tokens[-1])


def _draft(session: Drafter, anchor: int) -> Draft:
    return session.draft(anchor, SHAPE, SamplingParams(), TorchRng(0))


def _rules(num_tokens: int) -> list[Result]:
    decoder = SpeculativeDecoder.from_pretrained(drafter="none", device="cpu")
    four = [_load(*DRAFTERS[0])] * max(NUM_STREAMS)
    messages = [{"role": "user", "content": QUESTION}]
    results = []
    for temperature in (0.0, 1.0):
        for rule in RULES:
            timed = TimedModel(_mixture(four, rule))
            timed_decoder = SpeculativeDecoder(
                Pair(decoder.pair.target, timed),
                tokenizer=decoder.tokenizer,
                end_token_ids=decoder.end_token_ids,
                search=str(SHAPE),
            )
            params = SamplingParams(temperature, seed=0)
            generation = timed_decoder.generate(messages, params, max_new_tokens=num_tokens)
            step_s = mean(step.seconds.work_s for step in generation.steps)
            seconds = max(median(timed.told_s) - median(timed.untold_s), 0.0)
            results.append(
                {
                    "temperature": temperature,
                    "rule": rule,
                    "ms": round(1e3 * seconds, 3),
                    "step_ms": round(1e3 * step_s, 2),
                    "share": round(seconds / step_s, 4),
                }
            )
    return results


@dataclass(frozen=True, eq=False)
class TimedModel:
    """Notes the seconds of commits; every second one is told what the target said."""

    model: DrafterModel
    told_s: list[float] = field(default_factory=list)
    untold_s: list[float] = field(default_factory=list)

    def new_session(self) -> "TimedSession":
        return TimedSession(self)


class TimedSession:
    def __init__(self, timed: TimedModel) -> None:
        self._timed = timed
        self._session = timed.model.new_session()
        self.prefill = self._session.prefill

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        return self._session.draft(anchor, shape, params, rng)

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        timed = self._timed
        is_told = len(timed.told_s) <= len(timed.untold_s)
        started = perf_counter()
        self._session.commit(token_ids, scored if is_told else None)
        (timed.told_s if is_told else timed.untold_s).append(perf_counter() - started)


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
