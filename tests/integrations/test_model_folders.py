"""Folders that transformers decodes speculatively, as its own from_pretrained loads them."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import openai
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    dynamic_module_utils,
)

from treesnake.errors import InvalidInputError, LoadError
from treesnake.integrations import folder_generation
from treesnake.integrations.model_folders import export_folder
from treesnake.loading.options import DEFAULT_OPTIONS
from treesnake.testing.tokenizers import byte_level
from treesnake.testing.wide_matrices import with_wide_matrices

PROMPT = "def draft(tree):\n    return [node for node in tree]\n\ndef draft("


class Pieces:
    """Notes what a streamer is given; it inherits from nothing, as that of `transformers serve`."""

    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.has_ended = False

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.has_ended = True


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    tokenizer = byte_level()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
        pad_token_id=0,
    )
    with_wide_matrices(LlamaForCausalLM(config), deviation=0.4).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def code_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers puts the code of folders, so that it goes with the test."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture
def exported(target: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    export_folder(str(target), out, drafter="prompt-lookup", options=DEFAULT_OPTIONS)
    return out


@pytest.fixture
def models(target: Path, exported: Path) -> tuple[Any, Any, Any, torch.Tensor]:
    """The model as it is and as it was exported, a tokenizer and a prompt."""
    plain: Any = AutoModelForCausalLM.from_pretrained(target)
    ours: Any = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(exported)
    return plain, ours, tokenizer, torch.tensor([tokenizer.encode(PROMPT)])


def stop_string(tokenizer: Any, token_ids: list[int]) -> str:
    """The text of a token in the middle that is whole characters."""
    texts = [tokenizer.decode([token]) for token in token_ids[3:-3]]
    return next(text for text in texts if text.isascii() and text.isprintable())


def test_generate_speculates_and_gives_the_same_text(models: Any) -> None:
    plain, ours, _, prompt = models
    expected = plain.generate(prompt, max_new_tokens=24, do_sample=False)
    streamer = Pieces()
    got = ours.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        streamer=streamer,
        generation_config=GenerationConfig(max_new_tokens=24, do_sample=False),
    )
    assert got.tolist() == expected.tolist()
    asked, *new = streamer.pieces
    assert asked == prompt[0].tolist()
    assert [token for piece in new for token in piece] == expected[0, prompt.shape[1] :].tolist()
    assert ours in folder_generation._PARTS
    assert streamer.has_ended


def test_a_stop_string_ends_the_text_as_in_transformers(models: Any) -> None:
    plain, ours, tokenizer, prompt = models
    [whole] = plain.generate(prompt, max_new_tokens=24, do_sample=False)
    stop = stop_string(tokenizer, whole[prompt.shape[1] :].tolist())
    options = {"max_new_tokens": 24, "do_sample": False, "tokenizer": tokenizer}
    expected = plain.generate(prompt, stop_strings=[stop], **options)
    assert expected.shape[1] < prompt.shape[1] + 24
    assert ours.generate(prompt, stop_strings=[stop], **options).tolist() == expected.tolist()
    config = GenerationConfig(max_new_tokens=24, do_sample=False, stop_strings=[stop])
    got = ours.generate(prompt, generation_config=config, tokenizer=tokenizer)
    assert got.tolist() == expected.tolist()
    assert config.stop_strings == [stop]
    with pytest.raises(InvalidInputError, match="give generate tokenizer="):
        ours.generate(prompt, generation_config=config)


def test_what_drafts_is_loaded_once_and_a_seed_gives_the_same_sample(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours, _, prompt = models
    loads: list[str] = []
    load = folder_generation.load_drafter

    def counted(name: str, *others: Any, **options: Any) -> Any:
        loads.append(name)
        return load(name, *others, **options)

    monkeypatch.setattr(folder_generation, "load_drafter", counted)
    texts = []
    for _ in range(2):
        torch.manual_seed(5)
        texts.append(ours.generate(prompt, max_new_tokens=12, do_sample=True).tolist())
    assert texts[0] == texts[1]
    assert loads == ["prompt-lookup"]


def test_files_are_links_or_copies(target: Path, exported: Path, tmp_path: Path) -> None:
    assert (exported / "model.safetensors").resolve() == target / "model.safetensors"
    copied = tmp_path / "copied"
    export_folder(str(target), copied, copies=True, options=DEFAULT_OPTIONS)
    assert not any(path.is_symlink() for path in copied.rglob("*"))
    assert (copied / "config.json").read_bytes() == (target / "config.json").read_bytes()


def test_what_cannot_be_is_told_before_anything_is_written(target: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(LoadError):
        export_folder(str(target), out, drafter="./none-there", options=DEFAULT_OPTIONS)
    with pytest.raises(InvalidInputError, match="none of the searches"):
        export_folder(str(target), out, search="best", options=DEFAULT_OPTIONS)
    assert not out.exists()
    with pytest.raises(InvalidInputError, match="is not empty"):
        export_folder(str(target), target, options=DEFAULT_OPTIONS)


@pytest.mark.slow
def test_the_default_model_becomes_a_folder_of_transformers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_folder("smollm2", out, options=DEFAULT_OPTIONS)
    model: Any = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    prompt = torch.tensor([tokenizer.encode("One, two, three, four,")])
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = type(model).generate(model, prompt, **options)
    assert model.generate(prompt, **options).tolist() == expected.tolist()


@pytest.fixture
def served(exported: Path) -> Iterator[str]:
    """`transformers serve`, in this process."""
    pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
    from transformers.cli.serve import Serve  # noqa: PLC0415 - an optional dependency

    from treesnake.serving.server import address_of, listen  # noqa: PLC0415

    listener = listen("127.0.0.1", 0)
    address = address_of(listener)
    listener.close()
    server = Serve(
        str(exported),
        trust_remote_code=True,
        device="cpu",
        host="127.0.0.1",
        port=int(address.rsplit(":", 1)[1]),
        non_blocking=True,
    )
    yield address
    server.server.should_exit = True
    thread: Thread = server._thread
    thread.join()


@pytest.mark.slow
def test_clients_of_transformers_serve_get_the_same_text_whole_and_as_a_stream(
    served: str, exported: Path, target: Path
) -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(target)
    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    prompt = torch.tensor([tokenizer.encode(f"{PROMPT}\n")])
    text = tokenizer.decode(
        plain.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :],
        skip_special_tokens=True,
    )
    client = openai.OpenAI(base_url=f"{served}/v1", api_key="none", max_retries=3)
    asked: Any = {
        "model": str(exported),
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 24,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == text
    chunks = client.chat.completions.create(stream=True, **asked)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == text
    stop = stop_string(tokenizer, tokenizer.encode(text))
    stopped = client.chat.completions.create(stop=[stop], **asked)
    expected = plain.generate(
        prompt, max_new_tokens=24, do_sample=False, stop_strings=[stop], tokenizer=tokenizer
    )[0, prompt.shape[1] :]
    assert stopped.choices[0].message.content == tokenizer.decode(expected)
