"""Methods of transformers decode the same model, whatever its generation config asks for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from treesnake import Pair, Prompt, SamplingParams, SpeculativeDecoder
from treesnake.drafters.none import NoDrafterModel
from treesnake.evaluation.bench.bench_recipe import PairTable
from treesnake.evaluation.bench.methods import Peer, parse_method
from treesnake.evaluation.bench.pair_loader import PairLoader
from treesnake.evaluation.bench.peers import TransformersRunner
from treesnake.models.hf_attention import HfAttention
from treesnake.targets.network import NetworkTargetModel

SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
    {"suppress_tokens": list(range(20))},
    {"num_beams": 3},
    {"guidance_scale": 2.0},
    {"stop_strings": ["a"]},
    {"max_time": 1e-9},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
@pytest.mark.parametrize("peer", [Peer.GENERATE, Peer.PROMPT_LOOKUP])
def test_a_peer_says_what_plain_decoding_says(
    tiny_model: Any, settings: dict[str, Any], peer: Peer
) -> None:
    torch.manual_seed(0)
    model = tiny_model("llama")
    prompt = Prompt((3, 5, 3, 5, 7, 3, 5))
    target = NetworkTargetModel(HfAttention(model))
    decoder = SpeculativeDecoder(Pair(target, NoDrafterModel()))
    expected = decoder.generate(prompt, max_new_tokens=12).token_ids
    own = model.generation_config = GenerationConfig(**settings)
    runner = TransformersRunner(peer, model, ())
    turn = runner.run(prompt, SamplingParams(), 12, is_shown=False).turn
    assert turn.token_ids == expected
    assert model.generation_config is own


def test_a_target_in_integers_has_peers_in_floats(tiny_folder: Path) -> None:
    loader = PairLoader(PairTable(str(tiny_folder), "none", dtype="int8", device="cpu"), {})
    runner = loader.runner(parse_method("transformers"))
    turn = runner.run(Prompt((3, 5, 7)), SamplingParams(), 4, is_shown=False).turn
    assert turn.num_new == 4
