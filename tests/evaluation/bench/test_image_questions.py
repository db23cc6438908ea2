"""Questions about images, asked by our method and by those of transformers."""

from pathlib import Path

import pytest
from PIL import Image

from treesnake.conversation import user_message
from treesnake.decoder import SpeculativeDecoder
from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench import BenchRecipe, run_recipe
from treesnake.evaluation.bench.bench_recipe import PairTable, TaskTable
from treesnake.evaluation.bench.methods import Peer
from treesnake.evaluation.bench.pair_loader import PairLoader
from treesnake.evaluation.bench.peers import TransformersRunner
from treesnake.evaluation.bench.turns import prompt_behind
from treesnake.evaluation.tasks import Question
from treesnake.images import SMALL_SIDE, read_image
from treesnake.models.hf_attention import HfAttention
from treesnake.sampling import SamplingParams
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing.vision_files import save_vision_model


def test_every_method_is_asked_about_the_same_image(tmp_path: Path) -> None:
    picture = tmp_path / "noise.png"
    Image.effect_noise((40, 30), 80).save(picture)
    folder = save_vision_model("qwen2_5_vl", tmp_path / "target")
    decoder = SpeculativeDecoder.from_pretrained(folder, "prompt-lookup")
    prompt = prompt_behind(decoder, Question("1", "seen", ("What?", "Why?"), (str(picture),)), ())
    assert prompt == decoder.encode([user_message("What?", [str(picture)])])
    assert len(prompt.inputs) == 1
    target = decoder.pair.target
    assert isinstance(target, NetworkTargetModel)
    assert isinstance(target.network, HfAttention)
    peer = TransformersRunner(Peer.GENERATE, target.network.model, decoder.end_token_ids)
    turn = peer.run(prompt, SamplingParams(), 8, is_shown=False).turn
    assert turn.token_ids == decoder.generate(prompt, max_new_tokens=8).token_ids
    two = decoder.encode([user_message("What?", [str(picture)] * 2)])
    with pytest.raises(InvalidInputError, match="run with one image"):
        peer.run(two, SamplingParams(), 8, is_shown=False)


def test_the_pair_of_a_recipe_sees(tmp_path: Path) -> None:
    picture = tmp_path / "noise.png"
    Image.effect_noise((40, 30), 80).save(picture)
    folder = save_vision_model("llava", tmp_path / "target")
    loader = PairLoader(PairTable(str(folder), "prompt-lookup"), {})
    prompt = prompt_behind(loader.decoder, Question("1", "seen", ("What?",), (str(picture),)), ())
    assert len(prompt.inputs) == 1


def test_pictures_are_kept_small_beside_the_steps_that_are_shown(tmp_path: Path) -> None:
    Image.effect_noise((500, 100), 80).save(tmp_path / "noise.png")
    questions = tmp_path / "seen.jsonl"
    questions.write_text('{"turns": ["What?", "Why?"], "images": "noise.png"}\n' * 2)
    folder = save_vision_model("llava", tmp_path / "target")
    recipe = BenchRecipe(
        name="seen",
        description="a mixture",
        pairs={"tiny": PairTable(str(folder), f"{folder}:MT", device="cpu")},
        methods=("chain(2)",),
        tasks=(TaskTable(str(questions)),),
        max_new_tokens=4,
        num_agreement=0,
    )
    shown, other = run_recipe(recipe, tmp_path / "seen.log.jsonl").runs
    (address,) = shown.pictures
    assert read_image(address, "the copy").size == (SMALL_SIDE, SMALL_SIDE // 5)
    assert shown.turns[0].shown[1].stream_weights.keys() == {"M", "T"}
    assert other.pictures == ()


def test_a_question_about_images_needs_a_chat_template(tmp_path: Path) -> None:
    folder = save_vision_model("llava", tmp_path / "target")
    (folder / "chat_template.jinja").unlink()
    decoder = SpeculativeDecoder.from_pretrained(folder, "none")
    with pytest.raises(InvalidInputError, match="needs the chat template"):
        prompt_behind(decoder, Question("1", "seen", ("What?",), ("cat.png",)), ())
