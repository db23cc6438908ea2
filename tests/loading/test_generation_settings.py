"""What a generation config asks for and does not get is told."""

import logging
from typing import Any

import pytest
from transformers import GenerationConfig

from treesnake.loading.generation_settings import unapplied_settings, warn_of_unapplied_settings

ASKED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.1},
    {"no_repeat_ngram_size": 3},
    {"suppress_tokens": [7]},
    {"begin_suppress_tokens": [7]},
    {"bad_words_ids": [[7]]},
    {"sequence_bias": {(7,): 1.0}},
    {"guidance_scale": 2.0},
    {"exponential_decay_length_penalty": (3, 1.5)},
    {"watermarking_config": {"bias": 2.5, "seeding_scheme": "selfhash"}},
    {"typical_p": 0.9},
    {"epsilon_cutoff": 3e-4},
    {"eta_cutoff": 3e-4},
    {"top_h": 0.4},
    {"num_beams": 4},
    {"max_time": 2.0},
    {"stop_strings": ["\n"]},
    {"min_new_tokens": 5},
    {"forced_eos_token_id": 2},
]
SILENT: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1},
    {"eos_token_id": [2, 3], "pad_token_id": 0, "max_new_tokens": 64, "max_length": 4096},
    {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "suppress_tokens": [], "num_beams": 1},
    {"typical_p": 1.0, "epsilon_cutoff": 0.0, "guidance_scale": 1, "min_length": 0},
]


@pytest.mark.parametrize("fields", ASKED, ids=lambda fields: next(iter(fields)))
def test_what_makes_another_text_is_named(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = GenerationConfig.from_dict(fields)
    assert list(unapplied_settings(config)) == list(fields)
    with caplog.at_level(logging.WARNING):
        warn_of_unapplied_settings("m", config)
    assert "the generation config of m asks for" in caplog.text
    assert next(iter(fields)) in caplog.text


@pytest.mark.parametrize("fields", SILENT, ids=str)
def test_what_changes_nothing_is_not_told(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_unapplied_settings("m", GenerationConfig.from_dict(fields))
    assert caplog.text == ""
