"""A tiny target with a byte-level tokenizer, prompts for it, and recipes that take seconds."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.loading.gguf_tokenizer import build_tokenizer
from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import load_pretrained
from treesnake.models.hf_attention import HfAttention
from treesnake.training.answering import Answerer
from treesnake.training.answers import answer_prompts, read_prompts
from treesnake.training.reporting import NoReporter
from treesnake.training.training_recipe import (
    AnswersStage,
    DistilStage,
    Mamba2Sizes,
    TrainingRecipe,
)

VOCAB_SIZE = 272
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
)
SIZES = Mamba2Sizes(hidden_size=32, num_layers=2, num_heads=4, head_dim=16, state_dim=8)


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose answers can be learned, in a folder like those of the hub."""
    folder = tmp_path_factory.mktemp("target")
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=2,
        bos_token_id=1,
        tie_word_embeddings=True,
    )
    generator = torch.Generator().manual_seed(3)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3, generator=generator)
    model.save_pretrained(folder)
    tokens = [*CONTROL_TOKENS, *sorted(ByteLevel.alphabet())]
    tokens += [f"unused{index}" for index in range(VOCAB_SIZE - len(tokens))]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in CONTROL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "llama.context_length": 128,
    }
    build_tokenizer(metadata).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety-six short prompts, of which two are the same."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    prompts = [f"{index * 37 % 101} and {index}" for index in range(95)]
    rows = [json.dumps({"prompt": prompt}) for prompt in [*prompts, prompts[0]]]
    path.write_text("\n".join(rows) + "\n")
    return path


ANSWERS = AnswersStage(name="answers", prompts=(), max_new_tokens=12, num_top=4, batch_size=16)
DISTIL = DistilStage(
    name="distil",
    data=("answers",),
    batch_tokens=300,
    pass_tokens=200,
    epochs=2,
    max_updates=9,
    learning_rate=1e-2,
    cross_entropy_weight=0.5,
    held_out=0.15,
    evaluate_every=4,
    checkpoint_every=2,
)


@pytest.fixture
def recipe(target_folder: Path, prompts_file: Path) -> TrainingRecipe:
    """Answers, then a few updates of distillation."""
    return TrainingRecipe(
        name="tiny",
        target=str(target_folder),
        drafter=SIZES,
        draft_vocabulary=96,
        stages=(replace(ANSWERS, prompts=(str(prompts_file),)), DISTIL),
        stored_dtype="float32",
    )


@pytest.fixture(scope="session")
def answers_folder(
    target_folder: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the target answers."""
    folder = tmp_path_factory.mktemp("answers")
    target = load_pretrained(str(target_folder), LoadOptions(dtype="float32", device="cpu"))
    answer_prompts(
        Answerer(HfAttention(target.model), target.tokenizer, (2,)),
        read_prompts([prompts_file]),
        ANSWERS,
        folder,
        seed=0,
        share=(0, 1),
        reporter=NoReporter(),
    )
    return folder


@pytest.fixture
def distillation(recipe: TrainingRecipe, answers_folder: Path) -> TrainingRecipe:
    """The same without the answers, which are there."""
    return replace(recipe, stages=(replace(DISTIL, data=(str(answers_folder),)),))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture
def write_recipe() -> Callable[[TrainingRecipe, Path], Path]:
    """Writes a recipe as the TOML file that it could have been read from."""

    def write(recipe: TrainingRecipe, path: Path) -> Path:
        table = _without_nothing(asdict(recipe))
        path.write_text("".join(f"{key} = {_toml(each)}\n" for key, each in table.items()))
        return path

    return write


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nothing(each) for key, each in value.items() if each is not None}
    if isinstance(value, (list, tuple)):
        return [_without_nothing(each) for each in value]
    return value
