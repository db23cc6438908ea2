"""Prompts with images are those of transformers' own processors, and the answers are its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from treesnake.conversation import Message
from treesnake.decoder import SpeculativeDecoder
from treesnake.errors import InvalidInputError, LoadError, UnsupportedModelError
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.loading.processors import load_processor
from treesnake.testing.vision_files import PROCESSORS, save_vision_model

Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Returns folders of tiny models, each made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save_vision_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make


def picture(width: int, height: int, *, seed: int = 0) -> Image.Image:
    chance = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), generator=chance, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


PICTURES = [picture(40, 30), picture(20, 64, seed=1)]


def asking(*images: Any, text: str = "What is it?") -> Message:
    parts = [{"type": "image", "image": each} for each in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("family", PROCESSORS)
def test_prompt_and_text_are_those_of_transformers(
    family: str, number: int, folder: Folder
) -> None:
    where = folder(family)
    decoder = SpeculativeDecoder.from_pretrained(where, "prompt-lookup", search="chain(3)")
    messages = [asking(*PICTURES[:number])]
    processor: Any = load_processor(find_checkpoint(str(where)))
    expected = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    prompt = decoder.encode(messages)
    assert prompt.token_ids == tuple(expected["input_ids"][0].tolist())
    assert len(prompt.inputs) == number
    assert prompt.borders[0] < len(prompt)
    model: Any = AutoModelForImageTextToText.from_pretrained(where).eval()
    continued = model.generate(**expected, max_new_tokens=16, do_sample=False)
    assert decoder.generate(messages, max_new_tokens=16).token_ids == tuple(
        continued[0, len(prompt) :].tolist()
    )


def test_the_next_turn_runs_what_is_new_and_may_bring_an_image(folder: Folder) -> None:
    decoder = SpeculativeDecoder.from_pretrained(folder("llava"), "none")
    session = decoder.new_session()
    messages = [asking(PICTURES[0])]
    for image in (None, PICTURES[1]):
        answer = decoder.generate(messages, max_new_tokens=6, session=session)
        assert answer.token_ids == decoder.generate(messages, max_new_tokens=6).token_ids
        images = [] if image is None else [image]
        messages = [*messages, {"role": "assistant", "content": answer.text}, asking(*images)]
    answer = decoder.generate(messages, max_new_tokens=6, session=session)
    assert answer.token_ids == decoder.generate(messages, max_new_tokens=6).token_ids


def test_a_conversation_without_images_is_read_by_the_same_template(folder: Folder) -> None:
    decoder = SpeculativeDecoder.from_pretrained(folder("llava"), "none")
    prompt = decoder.encode([{"role": "user", "content": "What is it?"}])
    assert prompt == decoder.encode([asking()])
    assert decoder.tokenizer is not None
    assert "What is it?" in decoder.tokenizer.decode(prompt.token_ids)


def test_images_from_files_are_those_in_memory(folder: Folder, tmp_path: Path) -> None:
    decoder = SpeculativeDecoder.from_pretrained(folder("qwen2_5_vl"), "none")
    path = tmp_path / "cat.png"
    PICTURES[0].save(path)
    part = {"type": "image", "path": str(path)}
    message = {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}
    assert decoder.encode([message]) == decoder.encode([asking(PICTURES[0])])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (asking("missing.png"), "the image in part 1 of message 1, missing.png, does not exist"),
        (
            asking(PICTURES[0], text="<image>?"),
            "conversation: 1; .* them: 2; a text must not say <image>",
        ),
        (asking(*[PICTURES[0]] * 20), "context holds 256, .*; give fewer images"),
    ],
)
def test_what_cannot_be_asked_is_said(message: Message, expected: str, folder: Folder) -> None:
    decoder = SpeculativeDecoder.from_pretrained(folder("llava"), "none")
    with pytest.raises(InvalidInputError, match=expected):
        decoder.generate([message])


def test_a_template_without_a_place_for_images_is_named(folder: Folder) -> None:
    decoder = SpeculativeDecoder.from_pretrained(folder("llava"), "none")
    tokenizer: Any = decoder.tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}"
    with pytest.raises(InvalidInputError, match=r"conversation: 1; .* for them: 0"):
        decoder.encode([asking(PICTURES[0])])


def test_a_missing_package_or_file_is_named_and_text_goes_on(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = folder("llava")
    for file in where.iterdir():
        if file.name != "processor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    decoder = SpeculativeDecoder.from_pretrained(tmp_path, "none")
    with pytest.raises(LoadError, match=r"processor of .*, which reads images, cannot be loaded"):
        decoder.encode([asking(PICTURES[0])])
    monkeypatch.setattr("treesnake.images.find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"install treesnake\[vision\]"):
        SpeculativeDecoder.from_pretrained(where, "none").encode([asking("cat.png")])
    assert decoder.generate([asking()], max_new_tokens=2).token_ids


def test_a_family_without_a_processor_is_named(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treesnake.loading.processors.transformers.PROCESSOR_MAPPING", {})
    with pytest.raises(UnsupportedModelError, match="no processor of images"):
        load_processor(find_checkpoint(str(folder("llava"))))


def test_a_drafter_of_the_same_kind_sees_the_images_of_its_target(
    folder: Folder, tmp_path: Path
) -> None:
    target = folder("llava")
    drafter = save_vision_model("llava", tmp_path / "drafter", seed=1)
    decoder = SpeculativeDecoder.from_pretrained(target, f"{drafter}:M", search="chain(2)")
    plain = SpeculativeDecoder.from_pretrained(target, "none")
    messages = [asking(PICTURES[0])]
    answer = decoder.generate(messages, max_new_tokens=6)
    assert answer.token_ids == plain.generate(messages, max_new_tokens=6).token_ids
    settings = drafter / "processor_config.json"
    settings.write_text(settings.read_text().replace('"patch_size": 4', '"patch_size": 8'))
    with pytest.raises(InvalidInputError, match="otherwise than its target: patch_size is 8 and"):
        SpeculativeDecoder.from_pretrained(target, f"{drafter}:MT")
    SpeculativeDecoder.from_pretrained(target, f"{drafter}:T").generate(messages, max_new_tokens=2)
