"""The script that trains the pair: what it feeds to the models, and that it runs."""

import json
import runpy
import tomllib
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import AutoProcessor

from treesnake.evaluation.shapeworld.dialogues import TASKS, Dialogue
from treesnake.evaluation.shapeworld.scenes import draw

FOLDER = Path(__file__).parents[3] / "recipes" / "shapeworld"
FEW = {"steps": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "train.py"), run_name="imported")


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    whole = tomllib.loads((FOLDER / "recipe.toml").read_text("utf-8"))
    whole["tokenizer"]["num_dialogues"] = 550
    for part in ("tower", "target", "drafter"):
        whole[part] |= FEW
    return whole | {"seeds": [0]}


@pytest.fixture(scope="module")
def trained(
    script: dict[str, Any], recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("shapeworld")
    script["train"](recipe, folder)
    return folder


def test_the_recipe_makes_a_pair_with_provenance(trained: Path, recipe: dict[str, Any]) -> None:
    for name, seed in {"target-0": 0, "drafter-0": 0}.items():
        provenance = json.loads((trained / name / "provenance.json").read_text())
        assert provenance["recipe"]["drafter"] == recipe["drafter"]
        assert provenance["seed"] == seed


def test_a_stage_that_is_done_is_not_run_again(
    trained: Path, script: dict[str, Any], recipe: dict[str, Any]
) -> None:
    before = (trained / "target-0" / "model.safetensors").stat().st_mtime_ns
    script["train"](recipe, trained)
    assert (trained / "target-0" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("task", TASKS)
def test_what_is_learned_is_what_the_chat_template_makes(
    trained: Path, script: dict[str, Any], recipe: dict[str, Any], task: str
) -> None:
    processor = AutoProcessor.from_pretrained(trained / "target-0")
    tokenizer = processor.tokenizer.backend_tokenizer
    examples = script["Examples"](tokenizer, 16, {task: 1.0}, script["Pictures"]())
    rng = Random(5)
    rng.choices([task], [1.0])
    dialogue = TASKS[task](rng)
    example = examples._example(Random(5))
    rendered = processor.apply_chat_template(
        _messages(dialogue), tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert rendered["input_ids"][0].tolist() == example.token_ids
    assert example.scenes == dialogue.scenes
    if dialogue.scenes:
        drawn = script["pixels"](dialogue.scenes, Random(0))
        assert rendered["pixel_values"].equal(drawn)


def test_answers_alone_are_labelled(trained: Path, script: dict[str, Any]) -> None:
    processor = AutoProcessor.from_pretrained(trained / "target-0")
    tokenizer = processor.tokenizer.backend_tokenizer
    examples = script["Examples"](tokenizer, 16, {"summary": 1.0}, script["Pictures"]())
    example = examples._example(Random(0))
    labelled = [token for token in example.labels if token >= 0]
    text = processor.tokenizer.decode(labelled)
    assert text.count("</s>") == 2
    assert "<user>" not in text


def _messages(dialogue: Dialogue) -> list[dict[str, Any]]:
    rng = Random(0)
    parts = [{"type": "image", "image": draw(scene, rng)} for scene in dialogue.scenes]
    messages: list[dict[str, Any]] = []
    for turn in dialogue.turns:
        question = [*parts, {"type": "text", "text": turn.question}]
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": turn.answer})
        parts = []
    return messages
