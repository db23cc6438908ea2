"""The vision-language pair that comes with the package."""

import hashlib
import json
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.load import SHIPPED_FOLDER as DRAFTERS
from treesnake.drafters.load import load_drafter
from treesnake.drafters.mixture import MixtureDrafterModel
from treesnake.evaluation.shapeworld.dialogues import describe
from treesnake.evaluation.shapeworld.scenes import draw
from treesnake.evaluation.verification import SamplingPlan, VerifyPlan, verify
from treesnake.evaluation.verification.verify import default_prompts
from treesnake.loading.checkpoint import SHAPEWORLD, SHIPPED_FOLDER, find_checkpoint

TARGET = SHIPPED_FOLDER / SHAPEWORLD
DRAFTER = DRAFTERS / "shapeworld-drafter"
MOST_BYTES = 8e6


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(SHAPEWORLD, search="chain(4)")


def test_the_pair_is_small() -> None:
    files = [*TARGET.iterdir(), *DRAFTER.iterdir()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


@pytest.mark.parametrize("folder", [TARGET, DRAFTER], ids=["target", "drafter"])
def test_every_file_is_the_one_that_was_trained(folder: Path) -> None:
    provenance = json.loads((folder / "provenance.json").read_text("utf-8"))
    digests = provenance["file_sha256"]
    assert {*digests, "provenance.json"} == {path.name for path in folder.iterdir()}
    for name, digest in digests.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert provenance["recipe"]["tower"]["patch_size"] == 12


def test_auto_is_a_mixture_with_and_without_pictures_beside_prompt_lookup() -> None:
    drafter = load_drafter("auto", target=find_checkpoint(SHAPEWORLD))
    assert isinstance(drafter, CompositeDrafterModel)
    assert isinstance(drafter.first, MixtureDrafterModel)
    assert [stream.name for stream in drafter.first.streams] == ["M", "T"]


def test_the_target_says_what_is_in_pictures_and_accepts_much_of_the_draft(
    decoder: SpeculativeDecoder,
) -> None:
    right = tokens = steps = 0
    for seed in range(500, 508):
        dialogue = describe(Random(seed))
        picture = Image.fromarray(draw(dialogue.scenes[0], Random(seed)))
        content = [
            {"type": "image", "image": picture},
            {"type": "text", "text": dialogue.turns[0].question},
        ]
        made = decoder.generate([{"role": "user", "content": content}], max_new_tokens=96)
        right += made.text == dialogue.turns[0].answer
        tokens += len(made.token_ids)
        steps += len(made.steps)
    assert right >= 7
    assert tokens / steps > 2.5


def test_decoding_beside_pictures_and_text_alone_is_lossless(decoder: SpeculativeDecoder) -> None:
    sampling = SamplingPlan(SamplingParams(1.0), num_samples=20, seed=0)
    plan = VerifyPlan(32, sampling, num_sampled_prompts=2)
    verdict = verify(decoder, default_prompts(decoder)[:3], plan)
    assert verdict.is_lossless, verdict.as_json()
