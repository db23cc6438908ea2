"""The trained drafter that comes with the package."""

import json

import torch

from treesnake.drafters.load import SHIPPED_FOLDER, SHIPPED_FOR, load_drafter
from treesnake.drafters.mamba import MambaDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.loading.checkpoint import DEFAULT_MODEL, find_checkpoint
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams, TorchRng
from treesnake.shape import chain

FOLDER = SHIPPED_FOLDER / "treesnake-smol"
MOST_BYTES = 25e6


def test_auto_is_the_drafter_that_was_trained_for_the_default_target() -> None:
    target = find_checkpoint(DEFAULT_MODEL)
    assert SHIPPED_FOR[target.name] == FOLDER.name
    assert isinstance(load_drafter("auto", target=target), MambaDrafterModel)


def test_it_continues_a_text_as_the_target_would() -> None:
    target = find_checkpoint(DEFAULT_MODEL)
    text = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = target.tokenizer.apply_chat_template(
        text, add_generation_prompt=True, return_dict=False
    )
    answer = target.tokenizer.encode("The capital of France is")
    session = load_drafter(FOLDER.name, target=target).new_session()
    session.prefill(Prompt((*prompt, *answer[:-1])))
    draft = session.draft(answer[-1], chain(1), SamplingParams(), TorchRng(0))
    assert target.tokenizer.decode(draft.tree.tokens[1:]) == " Paris"


def test_it_is_small_and_says_where_it_comes_from() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MOST_BYTES
    provenance = json.loads((FOLDER / "provenance.json").read_text())
    assert provenance["recipe"]["name"] == FOLDER.name
    (stage,) = [each for each in provenance["stages"] if each["name"] == "distil"]
    best = max(each["judgement"]["tokens_per_step"] for each in stage["evaluations"])
    assert best > 1.5
    assert stage["num_answer_tokens"] > 0
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float16"
