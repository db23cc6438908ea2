"""Verification of a target that sees images is about pictures, too."""

from pathlib import Path

from treesnake.decoder import SpeculativeDecoder
from treesnake.evaluation.verification import SamplingPlan, VerifyPlan, verify
from treesnake.evaluation.verification.verify import default_prompts
from treesnake.testing.vision_files import save_vision_model


def test_texts_about_pictures_are_looked_at(tmp_path: Path) -> None:
    folder = save_vision_model("qwen2_5_vl", tmp_path)
    decoder = SpeculativeDecoder.from_pretrained(folder, "prompt-lookup", search="chain(2)")
    prompts = default_prompts(decoder)
    assert [len(decoder.encode(prompt).inputs) for prompt in prompts[:3]] == [1, 1, 0]
    plan = VerifyPlan(6, SamplingPlan(num_samples=12, num_long_tokens=6), num_sampled_prompts=1)
    verdict = verify(decoder, prompts[:2], plan)
    assert verdict.is_lossless
