"""Do harnesses get the same likelihoods from a server, with drafting and without, as in process?

    uv run python benchmarks/served_likelihood.py --threads 2 \
        --output results/served_likelihood.json

The requests are those of lm-eval's `local-completions`: token ids with echo, log probabilities and
one new token, of which the log probabilities of the choice are summed. Questions have two
choices each. `treesnake serve` runs with a drafter and without; the third way is `score_text`.
"""

import json
import sys
import urllib.request
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from frame import Result, print_table, run
from server_process import free_port, started

from treesnake import SpeculativeDecoder

TARGET = "smollm2"
QUESTIONS = (
    ("The capital of France is", " Paris", " Rome"),
    ("Water freezes at zero degrees", " Celsius", " Fahrenheit"),
    ("Two plus two equals", " four", " five"),
    ("The sun rises in the", " east", " west"),
    ("A week has seven", " days", " months"),
    ("Snow is usually", " white", " black"),
    ("The opposite of hot is", " cold", " warm"),
    ("Bees make", " honey", " milk"),
    ("A triangle has three", " sides", " wheels"),
    ("Shakespeare wrote", " Hamlet", " Ulysses"),
    ("The largest ocean is the", " Pacific", " Arctic"),
    ("Iron is a", " metal", " gas"),
    ("Fish breathe through their", " gills", " lungs"),
    ("The Earth goes around the", " Sun", " Moon"),
    ("In Python, a list is written in square", " brackets", " circles"),
    ("Cats and dogs are", " animals", " minerals"),
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--target", default=TARGET)


def measure(arguments: Namespace) -> Result:
    decoder = SpeculativeDecoder.from_pretrained(arguments.target, "none")
    pairs = [
        [(decoder.encode(question).token_ids, decoder.encode(question + choice).token_ids)
         for choice in choices]
        for question, *choices in QUESTIONS
    ]  # fmt: skip
    flat = [each for pair in pairs for each in pair]
    sums = {"in process": [_in_process(decoder, *each) for each in flat]}
    for name, drafter in {"drafting": "auto", "plain": "none"}.items():
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "treesnake",
            "serve",
            arguments.target,
            "--port",
            str(port),
        ]
        command += ["--drafter", drafter, "--threads", str(arguments.threads)]
        with started(name, command, port, arguments.target) as client:
            sums[name] = [_over_http(client.address.url, *each) for each in flat]
    expected = sums["in process"]
    return {
        "target": arguments.target,
        "questions": len(QUESTIONS),
        "right": {
            name: sum(first > second for first, second in zip(got[::2], got[1::2], strict=True))
            for name, got in sums.items()
        },
        "largest_difference": {
            name: max(abs(a - b) for a, b in zip(got, expected, strict=True))
            for name, got in sums.items()
        },
    }


def show(result: Result) -> None:
    print_table(
        f"{result['questions']} questions, {result['target']}",
        ["", "right", "largest difference"],
        [
            [name, str(right), f"{result['largest_difference'][name]:.1e}"]
            for name, right in result["right"].items()
        ],
    )


def _in_process(decoder: SpeculativeDecoder, context: Sequence[int], text: Sequence[int]) -> float:
    scored = decoder.score_text(list(text))
    return sum(token.logprob for token in scored[len(context) - 1 :])


def _over_http(url: str, context: Sequence[int], text: Sequence[int]) -> float:
    body = {"prompt": [*text], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        [choice] = json.load(response)["choices"]
    return sum(choice["logprobs"]["token_logprobs"][len(context) : -1])


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
