"""Decodes with vLLM: `python vllm_texts.py QUESTION ANSWER`, two files of JSON.

It runs in a process of its own, which imports nothing before vLLM does: vLLM for CPUs forks its
worker and then looks at everything that was imported, which fails where numba is among it.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main(question: Path, answer: Path) -> None:
    """Writes the tokens of each text, and what vLLM counted."""
    told = json.loads(question.read_text())
    engine = LLM(**told["engine"])
    greedy = SamplingParams(temperature=0, max_tokens=told["num_tokens"])
    outputs = engine.chat(told["asked"], greedy, use_tqdm=False)
    made = {
        "token_ids": [list(each.outputs[0].token_ids) for each in outputs],
        "metrics": {
            each.name: each.value for each in engine.get_metrics() if hasattr(each, "value")
        },
    }
    answer.write_text(json.dumps(made))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
