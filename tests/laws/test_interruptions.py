"""Ctrl-C at any line leaves a session that is right, or knows that it is not.

Lines are interrupted one by one, so nothing here depends on time.
"""

import sys
from collections.abc import Callable
from functools import cache
from linecache import getline
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import treesnake
from treesnake import Pair, SpeculativeDecoder
from treesnake.decoder import DecoderSession
from treesnake.drafters.mixture import MixtureDrafterModel, Stream
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.models.hf_attention import HfAttention
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import to_cpu
from treesnake.models.tree_network import TreeNetwork
from treesnake.protocols import DrafterModel
from treesnake.targets.network import NetworkTargetModel

SOURCE = str(Path(treesnake.__file__).parent)
VOCAB_SIZE = 53
SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_layers": 2, "state_dim": 8}
MIXED = ", in two streams"
PROMPT = [3, 5, 8, 3, 5, 9, 3, 5]
OTHER = [3, 5, 8, 7, 7, 7]
NUM_NEW = 6
NUM_POINTS = 16


def mamba() -> Mamba:
    torch.manual_seed(0)
    return widened(Mamba(MambaConfig(**SIZES)).eval())


def mamba2() -> Mamba2:
    torch.manual_seed(0)
    return widened(Mamba2(Mamba2Config(**SIZES, num_heads=4, head_dim=8)).eval())


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return widened(LlamaForCausalLM(config).eval())


def widened(module: Any) -> Any:
    """Logits far enough apart that the text says something."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return module


NETWORKS: dict[str, Callable[[], TreeNetwork]] = {
    "mamba": mamba,
    "mamba2": mamba2,
    "packed mamba": lambda: to_cpu(mamba()),
    "packed mamba2": lambda: to_cpu(mamba2()),
    "llama": lambda: HfAttention(llama()),
}


@cache
def decoder(network: str) -> SpeculativeDecoder:
    """Drafts with the target itself, so that long paths are accepted."""
    weights = NETWORKS[network.removesuffix(MIXED)]()
    drafter: DrafterModel = NetworkDrafterModel(weights)
    if network.endswith(MIXED):
        readings = Stream("whole", weights), Stream("end", weights, lambda prompt: prompt.behind(3))
        drafter = MixtureDrafterModel(readings)
    return SpeculativeDecoder(Pair(NetworkTargetModel(weights), drafter), search="chain(3)")


@cache
def plain(network: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
    target = decoder(network).pair.target
    alone = SpeculativeDecoder(Pair(target, NoDrafterModel()))
    return alone.generate(list(prompt), max_new_tokens=NUM_NEW).token_ids


class Interrupting:
    """Counts the lines of treesnake that run, and interrupts one of them."""

    def __init__(self, line: int | None = None) -> None:
        self.num_lines = 0
        self._line = line

    def __enter__(self) -> "Interrupting":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        # At a `try`, and between the body of a `with` and its end, a tracer can interrupt and a
        # signal cannot; what surrounds these lines does not hear of it.
        code = getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        if event == "line" and not code.startswith(("with ", "try:")):
            self.num_lines += 1
            if self.num_lines == self._line:
                raise KeyboardInterrupt
        return self._trace


def say(network: str, session: DecoderSession, prompt: list[int]) -> tuple[int, ...]:
    return decoder(network).generate(prompt, max_new_tokens=NUM_NEW, session=session).token_ids


def interrupted(network: str, line: int, repair: int | None = None) -> DecoderSession:
    """A session whose generation was interrupted, and so was the next one, if `repair` says so."""
    session = decoder(network).new_session()
    for point in (line, repair):
        if point is not None:
            try:
                with Interrupting(point):
                    say(network, session, PROMPT)
            except KeyboardInterrupt:
                pass
    return session


@pytest.mark.parametrize("network", [*NETWORKS, f"mamba{MIXED}"])
def test_what_follows_an_interruption_at_any_line_is_plain_decoding(network: str) -> None:
    say(network, decoder(network).new_session(), PROMPT)  # what is made once is made
    with Interrupting() as counting:
        say(network, decoder(network).new_session(), PROMPT)
    step = max(1, counting.num_lines // NUM_POINTS)
    for line in range(1, counting.num_lines, step):
        session = interrupted(network, line)
        assert say(network, session, PROMPT) == plain(network, tuple(PROMPT)), line
        assert say(network, session, OTHER) == plain(network, tuple(OTHER)), line


@pytest.mark.parametrize("network", ["mamba", "packed mamba2"])
def test_a_second_interruption_may_hit_the_repair_of_the_first(network: str) -> None:
    say(network, decoder(network).new_session(), PROMPT)
    with Interrupting() as counting:
        say(network, decoder(network).new_session(), PROMPT)
    last = counting.num_lines - 40  # in the last steps, where paths are committed
    for line in range(last - 60, last, 15):
        for repair in (30, 45):
            session = interrupted(network, line, repair)
            assert say(network, session, OTHER) == plain(network, tuple(OTHER)), (line, repair)
