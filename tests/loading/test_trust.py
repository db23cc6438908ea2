"""Code that a model brings runs when the user said so, and nobody else is asked."""

import ast
import builtins
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import treesnake
from treesnake.drafters.load import load_drafter
from treesnake.errors import TreesnakeError
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.models.checkpoint import save_network
from treesnake.models.mamba import Mamba, MambaConfig

LOADERS = {"from_pretrained", "from_config"}


def calls_of_auto_classes() -> Iterator[tuple[Path, ast.Call]]:
    for path in Path(treesnake.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attribute)):
                    if name.startswith("Auto") and attribute in LOADERS:
                        yield path, node


def test_every_call_that_can_run_code_of_a_model_says_whether_it_may() -> None:
    calls = list(calls_of_auto_classes())
    assert calls
    for path, call in calls:
        said = {keyword.arg for keyword in call.keywords}
        # Arguments that are handed on (None) are checked where they are made: below, by loading.
        assert said & {"trust_remote_code", None}, f"{path}:{call.lineno}"


@pytest.fixture
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> str:
        raise AssertionError("somebody was asked on standard input")

    monkeypatch.setattr(builtins, "input", refuse)


@pytest.fixture
def bring_code() -> Callable[[Path], Path]:
    """Adds a tokenizer of its own to a folder, whose code leaves a file behind when it runs."""

    def bring(folder: Path) -> Path:
        (folder / "own.py").write_text(
            "from pathlib import Path\n"
            "from transformers import PreTrainedTokenizerFast\n"
            f"Path({str(folder / 'ran')!r}).touch()\n"
            "class Own(PreTrainedTokenizerFast):\n"
            "    pass\n"
        )
        path = folder / "tokenizer_config.json"
        fields = json.loads(path.read_text()) if path.exists() else {}
        brings = {"auto_map": {"AutoTokenizer": [None, "own.Own"]}, "tokenizer_class": "Own"}
        path.write_text(json.dumps(fields | brings))
        return folder / "ran"

    return bring


@pytest.mark.usefixtures("nobody_is_asked")
def test_the_code_of_a_tokenizer_does_not_run_unasked(
    tiny_llama_folder: Path, bring_code: Callable[[Path], Path]
) -> None:
    target = find_checkpoint(str(tiny_llama_folder))
    mamba = tiny_llama_folder.parent / "mamba"
    config = MambaConfig(vocab_size=288, hidden_size=16, num_layers=1)
    save_network(Mamba(config), mamba, tiny_llama_folder)
    for folder in (tiny_llama_folder, mamba):
        ran = bring_code(folder)
        with suppress(TreesnakeError):
            if folder == mamba:
                load_drafter(str(folder), target=target)
            else:
                find_checkpoint(str(folder))
        assert not ran.exists()


@pytest.mark.usefixtures("nobody_is_asked")
def test_code_beside_a_gguf_file_does_not_run_unasked(
    tmp_path: Path, write_tiny_gguf: Callable[..., Path], bring_code: Callable[[Path], Path]
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    ran = bring_code(tmp_path)
    with suppress(TreesnakeError):
        find_checkpoint(str(path))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("add_bos_token", "yes"),
        ("model_max_length", "long"),
        ("model_max_length", True),
        ("chat_template", 5),
        ("eos_token", 2),
        ("tokenizer_class", ["Llama"]),
        ("auto_map", 3),
        ("added_tokens_decoder", []),
    ],
)
def test_a_setting_of_a_tokenizer_of_a_wrong_type_is_refused(
    tiny_llama_folder: Path, key: str, value: object
) -> None:
    path = tiny_llama_folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(TreesnakeError, match=f"tokenizer_config.json has {key} = "):
        find_checkpoint(str(tiny_llama_folder))


@pytest.mark.parametrize("text", ["[]", "[" * 9999, "{", '"a"'])
def test_settings_of_a_tokenizer_that_are_no_object_are_refused(
    tiny_llama_folder: Path, text: str
) -> None:
    (tiny_llama_folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(TreesnakeError, match=r"tokenizer_config\.json"):
        find_checkpoint(str(tiny_llama_folder))
