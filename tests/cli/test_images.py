"""Pictures on the command line: `generate --image` and `/image` of the chat."""

from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from treesnake.cli import chat as chat_module
from treesnake.cli.chat import chat
from treesnake.cli.generate import generate
from treesnake.errors import InvalidInputError
from treesnake.testing.vision_files import save_vision_model


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_vision_model("llava", tmp_path_factory.mktemp("target")))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (20, 30, 3), dtype=torch.uint8, generator=generator)
    Image.fromarray(pixels.numpy()).save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


def test_a_question_may_be_about_pictures(
    target: str, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for images in ([], [picture], [picture, picture]):
        generate("What?", target, drafter="none", max_new_tokens=6, image=images)
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) == 3


def test_a_picture_that_is_missing_is_told_before_a_model_is_loaded() -> None:
    with pytest.raises(InvalidInputError, match=r"the picture, missing\.png, does not exist"):
        generate("What?", "no/such/model", image=["missing.png"])


def test_a_picture_that_cannot_be_shown_is_told(target: str, picture: str) -> None:
    with pytest.raises(InvalidInputError, match="leave out --raw"):
        generate("What?", target, drafter="none", image=[picture], raw=True)


def test_a_target_that_reads_text_says_so(picture: str) -> None:
    with pytest.raises(InvalidInputError, match="the target reads text and nothing else"):
        generate("What?", drafter="none", image=[picture])


def test_a_chat_shows_pictures(
    target: str,
    picture: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = iter(["/image missing.png", "/image", f"/image {picture}", "What?", "/reset", "What?"])

    def ask(notes: object) -> str | None:
        return next(lines, None)

    monkeypatch.setattr(chat_module, "_ask", ask)
    monkeypatch.setattr("sys.stdin", StringIO())
    chat(target, drafter="none", max_new_tokens=6)
    output = capsys.readouterr()
    shown, unseen = output.out.splitlines()
    assert shown != unseen
    assert "missing.png, does not exist" in output.err
    assert "The commands are /image FILE and /reset." in output.err
    assert "A picture of 30 x 20 pixels" in output.err
