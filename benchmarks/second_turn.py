"""What does the second turn of a long chat take, with the state that the first left and without?

    python benchmarks/second_turn.py --threads 2 --output results/second_turn.json

A chat whose first message has about `--length` tokens gets an answer, and then a second, short
message. The first token of each answer is waited for: of the first turn, of the second one in the
session that has held the chat so far, and of the second one in a session that knows nothing. The
targets decode without a drafter; plain decoding is what a first token is. Tokens are counted that
run through the target beside the answers. Sessions of all targets take turns in every round.
"""

from argparse import ArgumentParser, Namespace
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

from frame import Result, add_rounds, print_table, run

from treesnake.decoder import DecoderSession, SpeculativeDecoder
from treesnake.models.transformer import Transformer
from treesnake.pairs import Pair
from treesnake.targets.network import NetworkTargetModel

TARGETS = (
    "smollm2-hybrid",
    "src/treesnake/drafters/shipped/treesnake-smol",
    "smollm2",
)
TURNS = ("first", "second", "second, nothing kept")
SENTENCE = "The harbour master wrote down every ship that came in, with its cargo and its captain. "
QUESTION = "Summarise the notes above in one sentence."


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--length", type=int, default=2000, help="tokens of the first message")
    parser.add_argument("--answer", type=int, default=32, help="tokens of the first answer")
    parser.add_argument("--dtype", default="float32")
    add_rounds(parser, 5)


def measure(arguments: Namespace) -> Result:
    decoders = {
        name.rsplit("/", 1)[-1]: SpeculativeDecoder.from_pretrained(
            name, "none", dtype=arguments.dtype, device="cpu"
        )
        for name in TARGETS
    }
    turns: dict[str, dict[str, list[Any]]] = {
        name: {turn: [] for turn in TURNS} for name in decoders
    }
    for number in range(arguments.rounds + 1):
        for name, decoder in decoders.items():
            for turn, measured in _chat(decoder, arguments).items():
                if number > 0:
                    turns[name][turn].append(measured)
    return {
        "dtype": arguments.dtype,
        "targets": {
            name: {
                turn: {
                    "tokens": found[0][0],
                    "first_token_ms": round(1e3 * median(seconds for _, seconds in found), 1),
                }
                for turn, found in measured.items()
            }
            for name, measured in turns.items()
        },
    }


def _chat(decoder: SpeculativeDecoder, arguments: Namespace) -> dict[str, tuple[int, float]]:
    """Returns the tokens that each turn ran, and the seconds to its first token."""
    first: list[Any] = [{"role": "user", "content": _long_message(decoder, arguments.length)}]
    session = decoder.new_session()
    found = {"first": _first_token(decoder, first, session)}
    answer = decoder.generate(first, max_new_tokens=arguments.answer, session=session).text
    second = [
        *first,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And in three words?"},
    ]
    found["second"] = _first_token(decoder, second, session)
    found["second, nothing kept"] = _first_token(decoder, second, decoder.new_session())
    return found


def _first_token(
    decoder: SpeculativeDecoder, messages: list[Any], session: DecoderSession
) -> tuple[int, float]:
    pair = decoder.pair
    assert isinstance(pair, Pair)
    assert isinstance(pair.target, NetworkTargetModel)
    network = pair.target.network
    reads = "read" if isinstance(network, Transformer) else "run_text"
    prompt = decoder.encode(messages)
    with patch.object(network, reads, wraps=getattr(network, reads)) as spy:
        began = perf_counter()
        decoder.generate(prompt, max_new_tokens=1, session=session)
        seconds = perf_counter() - began
    # The last token of the prompt is the first anchor, which is run apart from the others.
    return 1 + sum(len(call.args[0]) for call in spy.call_args_list), seconds


def _long_message(decoder: SpeculativeDecoder, num_tokens: int) -> str:
    per_sentence = len(decoder.encode(SENTENCE * 2)) - len(decoder.encode(SENTENCE))
    return SENTENCE * (num_tokens // per_sentence) + QUESTION


def show(result: Result) -> None:
    for name, turns in result["targets"].items():
        print_table(
            f"{name}, {result['dtype']}",
            ("turn", "tokens run", "first token, ms"),
            (
                (turn, str(found["tokens"]), f"{found['first_token_ms']:.0f}")
                for turn, found in turns.items()
            ),
        )


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
