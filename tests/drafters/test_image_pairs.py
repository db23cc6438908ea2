"""Drafters by name for a target that sees images, from the folder to the text."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from treesnake import Pair, SpeculativeDecoder
from treesnake.drafters.load import load_drafter
from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.models.checkpoint import save_network
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.prompt import PromptInput
from treesnake.testing.vision_files import save_vision_model

NUM_NEW = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a small model of its family, and a Mamba with its tokens."""
    folder = tmp_path_factory.mktemp("pair")
    save_vision_model("llava", folder / "target")
    save_vision_model("llava", folder / "small", seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    mamba = folder / "mamba"
    mamba.mkdir()
    sizes = {"hidden_size": 16, "num_layers": 1, "state_dim": 4}
    save_network(Mamba(MambaConfig(vocab_size=len(tokenizer), **sizes)), mamba)
    tokenizer.save_pretrained(mamba)
    return folder


@pytest.fixture(scope="module")
def plain(folders: Path) -> SpeculativeDecoder:
    return SpeculativeDecoder.load(str(folders / "target"), "none")


def question() -> list[dict[str, object]]:
    pixels = torch.arange(20 * 30 * 3).reshape(20, 30, 3).to(torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize(
    ("drafter", "streams"),
    [
        ("{0}/small", ["M", "T"]),
        ("{0}/small:MTP:grid+prompt-lookup", ["M", "T", "P"]),
        ("{0}/small:M+{0}/mamba", ["M of {0}/small", "T of {0}/mamba"]),
        ("{0}/mamba", []),
    ],
)
def test_text_is_the_targets_own_whatever_reads_the_picture(
    folders: Path, plain: SpeculativeDecoder, drafter: str, streams: list[str]
) -> None:
    decoder = SpeculativeDecoder.load(
        str(folders / "target"), drafter.format(folders), search="chain(3)"
    )
    generation = decoder.generate(question(), max_new_tokens=NUM_NEW)
    expected = plain.generate(question(), max_new_tokens=NUM_NEW)
    assert generation.token_ids == expected.token_ids
    assert [*generation.stream_weights] == [name.format(folders) for name in streams]


def test_a_drafter_that_is_the_target_sees_the_picture(folders: Path) -> None:
    name = str(folders / "target")
    decoder = SpeculativeDecoder.load(name, f"{name}:MT:1,0", search="chain(3)")
    assert len(decoder.generate(question(), max_new_tokens=NUM_NEW).steps) == 1 + NUM_NEW // 4


def test_captions_come_from_any_model_that_sees(folders: Path, plain: SpeculativeDecoder) -> None:
    captions: list[str] = []

    def caption(image: PromptInput) -> str:
        captions.append(plain.caption(image))
        return captions[-1]

    target = find_checkpoint(str(folders / "target"))
    drafter = load_drafter(f"{folders / 'mamba'}:TC", target=target, caption=caption)
    decoder = SpeculativeDecoder(
        Pair(plain.pair.target, drafter), tokenizer=plain.tokenizer, search="chain(3)"
    )
    prompt = plain.encode(question())
    generation = decoder.generate(prompt, max_new_tokens=NUM_NEW)
    assert generation.token_ids == plain.generate(prompt, max_new_tokens=NUM_NEW).token_ids
    assert [*generation.stream_weights] == ["T", "C"]
    assert len(captions) == 1
    assert captions[0]


def test_a_model_by_name_writes_the_captions(folders: Path, plain: SpeculativeDecoder) -> None:
    target, small = folders / "target", folders / "small"
    decoder = SpeculativeDecoder.from_pretrained(
        target, f"{small}:TC", captions=small, search="chain(3)"
    )
    generation = decoder.generate(question(), max_new_tokens=NUM_NEW)
    expected = plain.generate(question(), max_new_tokens=NUM_NEW)
    assert generation.token_ids == expected.token_ids
    assert [*generation.stream_weights] == ["T", "C"]


def test_captions_that_nothing_reads_or_writes_are_refused(folders: Path) -> None:
    target, small = folders / "target", folders / "small"
    with pytest.raises(InvalidInputError, match="has no stream that reads captions"):
        SpeculativeDecoder.load(target, f"{small}:MT", captions=small)
    with pytest.raises(InvalidInputError, match="nothing writes them; name a model"):
        SpeculativeDecoder.load(target, f"{small}:MTC")
    with pytest.raises(InvalidInputError, match="mamba reads text alone and cannot write captions"):
        SpeculativeDecoder.load(target, f"{small}:MTC", captions=folders / "mamba")


def test_a_caption_needs_a_picture(plain: SpeculativeDecoder) -> None:
    image = PromptInput({"pixel_values": torch.zeros(1)}, 0, 1)
    with pytest.raises(InvalidInputError, match="a caption needs its picture"):
        plain.caption(image)
