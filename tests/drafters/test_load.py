"""Drafters by name."""

import builtins
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from treesnake.chance import TorchRng
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.load import describe_default, load_drafter
from treesnake.drafters.mixture import MixtureDrafterModel
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.drafters.text import TextDrafterModel
from treesnake.drafters.vocabulary import save_draft_vocabulary
from treesnake.drafters.weight_rules import FixedWeights
from treesnake.errors import InvalidInputError, LoadError, TreesnakeError, UnsupportedModelError
from treesnake.loading.architecture import identify
from treesnake.loading.checkpoint import Checkpoint, find_checkpoint, open_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.models.checkpoint import save_network
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.state_space_cpu import CpuMamba
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel
from treesnake.sampling import SamplingParams
from treesnake.shape import LevelWidths, chain
from treesnake.testing import check_drafter
from treesnake.testing.tokenizers import KINDS


def test_names_give_drafters() -> None:
    assert isinstance(load_drafter("prompt-lookup"), NgramDrafterModel)
    assert isinstance(load_drafter("none"), NoDrafterModel)


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(TreesnakeError, match=r"auto, treesnake-smol, .*prompt-lookup, none, self"):
        load_drafter("oracle")


@pytest.mark.parametrize("name", ["auto:MT", "self:em", "prompt-lookup:T", "self+none:grid"])
def test_only_the_name_of_a_model_says_how_it_takes_part(name: str) -> None:
    with pytest.raises(InvalidInputError, match="no name of a model; name one before the colon"):
        load_drafter(name)


def test_auto_is_prompt_lookup_alone_where_there_is_no_target() -> None:
    assert isinstance(load_drafter("auto"), NgramDrafterModel)
    assert isinstance(load_drafter("auto+prompt-lookup"), NgramDrafterModel)


def test_no_drafter_drafts_nothing() -> None:
    check_drafter(NoDrafterModel(), vocab_size=5)
    session = NoDrafterModel().new_session()
    session.prefill(Prompt((1, 1, 1)))
    draft = session.draft(1, chain(4), SamplingParams(), TorchRng(0))
    assert draft.tree.tokens == (1,)


@pytest.fixture
def mamba_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = Mamba(MambaConfig(vocab_size=61, hidden_size=16, num_layers=2, state_dim=4))
    save_network(network, tmp_path)
    return tmp_path


def test_a_mamba_drafts_from_packed_weights_on_a_cpu(mamba_folder: Path) -> None:
    model = load_drafter(str(mamba_folder), LoadOptions(device="cpu"))
    assert isinstance(model, NetworkDrafterModel)
    assert isinstance(model.network, CpuMamba)
    check_drafter(model, vocab_size=61, num_steps=1)


def test_the_draft_vocabulary_of_a_folder_is_all_that_is_drafted(mamba_folder: Path) -> None:
    kept = [3, 8, 41]
    save_draft_vocabulary(mamba_folder, torch.tensor(kept))
    session = load_drafter(str(mamba_folder), LoadOptions(device="cpu")).new_session()
    session.prefill(Prompt((1, 2, 50, 60)))
    draft = session.draft(60, LevelWidths((3, 2), False), SamplingParams(), TorchRng(0))
    assert {*draft.tree.tokens[1:]} <= {*kept}


def test_a_mamba_has_weights_of_4_bits_on_a_cpu_unless_told_otherwise(mamba_folder: Path) -> None:
    chosen, rounded, exact = (
        load_drafter(str(mamba_folder), LoadOptions(dtype, "cpu"))
        for dtype in ("auto", "int4", "float32")
    )
    assert num_bytes(chosen) == num_bytes(rounded) < num_bytes(exact)


def num_bytes(model: DrafterModel) -> int:
    assert isinstance(model, NetworkDrafterModel)
    assert isinstance(model.network, CpuMamba)
    return model.network.num_bytes


def test_models_joined_by_a_plus_draft_as_a_mixture(mamba_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    torch.manual_seed(1)
    save_network(
        Mamba(MambaConfig(vocab_size=61, hidden_size=16, num_layers=2, state_dim=4)), other
    )
    name = f"{mamba_folder}+{other}:uniform+prompt-lookup"
    model = load_drafter(name, LoadOptions(device="cpu"))
    assert isinstance(model, CompositeDrafterModel)
    assert isinstance(model.first, MixtureDrafterModel)
    assert [stream.name for stream in model.first.streams] == [str(mamba_folder), str(other)]
    assert model.first.rule == FixedWeights()
    check_drafter(model, vocab_size=61, num_steps=1)


def with_prompt_window(folder: Path, into: Path, window: object) -> Path:
    shutil.copytree(folder, into)
    config = json.loads((into / "config.json").read_text())
    (into / "config.json").write_text(json.dumps({**config, "prompt_window": window}))
    return into


def test_a_mamba_reads_as_much_of_a_prompt_as_its_config_says(
    mamba_folder: Path, tmp_path: Path
) -> None:
    folder = str(with_prompt_window(mamba_folder, tmp_path / "windowed", 8))
    options = LoadOptions(device="cpu")
    for name, asked, window in ((folder, None, 8), (folder, 4, 4), (str(mamba_folder), None, None)):
        model = load_drafter(name, options, window=asked)
        assert isinstance(model, NetworkDrafterModel)
        assert model.window == window
    check_drafter(load_drafter(folder, options), vocab_size=61, num_steps=2)


def test_streams_read_the_whole_prompt(mamba_folder: Path, tmp_path: Path) -> None:
    folder = with_prompt_window(mamba_folder, tmp_path / "windowed", 8)
    model = load_drafter(f"{mamba_folder}+{folder}", LoadOptions(device="cpu"))
    assert isinstance(model, MixtureDrafterModel)


def test_a_prompt_window_that_is_no_number_is_refused(mamba_folder: Path, tmp_path: Path) -> None:
    folder = with_prompt_window(mamba_folder, tmp_path / "broken", "all")
    with pytest.raises(LoadError, match="must be a whole number of tokens"):
        load_drafter(str(folder), LoadOptions(device="cpu"))


def test_a_mamba_may_draft_in_the_generic_engine(mamba_folder: Path) -> None:
    options = LoadOptions(device="cpu", engine="generic")
    check_drafter(load_drafter(str(mamba_folder), options), vocab_size=61, num_steps=2)


@pytest.fixture
def target(mamba_folder: Path, tmp_path: Path) -> Checkpoint:
    """A target with the tokens of the Mamba, which gets a tokenizer, too."""
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    folder = tmp_path / "target"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokens = {f"t{index}": index for index in range(61)}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="t0"))
    for place in (folder, mamba_folder):
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(place)
    return find_checkpoint(str(folder))


def test_the_config_of_a_mamba_is_opened_once(
    mamba_folder: Path, target: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_draft_vocabulary(mamba_folder, torch.tensor([3, 8, 41]))
    opened: list[Path] = []

    def open_and_count(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(Path(str(file)))
        return open_file(file, *arguments, **options)

    open_file = builtins.open
    monkeypatch.setattr(builtins, "open", open_and_count)
    monkeypatch.setattr(io, "open", open_and_count)
    load_drafter(str(mamba_folder), LoadOptions(device="cpu"), target=target)
    assert opened.count(mamba_folder / "config.json") == 1
    assert opened.count(mamba_folder / "draft_vocabulary.json") == 1


@pytest.mark.parametrize("trusted", [False, True])
def test_whether_code_of_a_tokenizer_may_run_is_always_said(
    mamba_folder: Path, target: Checkpoint, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    read = AutoTokenizer.from_pretrained

    def read_and_note(*arguments: Any, **options: Any) -> Any:
        said.append(options["trust_remote_code"])
        return read(*arguments, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", read_and_note)
    options = LoadOptions(device="cpu", trust_remote_code=trusted)
    load_drafter(str(mamba_folder), options, target=target)
    assert said == [trusted]


@pytest.mark.parametrize("size", [1061, 40])
def test_a_mamba_without_a_tokenizer_has_about_as_many_tokens_as_the_target(
    tmp_path: Path, target: Checkpoint, size: int
) -> None:
    config = MambaConfig(vocab_size=size, hidden_size=16, num_layers=1, state_dim=4)
    save_network(Mamba(config), tmp_path / "bare")
    if size == 40:
        load_drafter(str(tmp_path / "bare"), LoadOptions(device="cpu"), target=target)
        return
    with pytest.raises(InvalidInputError, match="has 1061 tokens and no tokenizer, the target has"):
        load_drafter(str(tmp_path / "bare"), LoadOptions(device="cpu"), target=target)


def test_a_head_is_told_before_anything_of_it_is_loaded(target: Checkpoint) -> None:
    folder = target.path
    tensors = {"fc.weight": torch.zeros(16, 48), "midlayer.mlp.up_proj.weight": torch.zeros(2, 2)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="reads the hidden states of its target"):
        load_drafter(str(folder), target=target)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="reads the hidden states of its target"):
        load_drafter(str(folder), target=target)


@pytest.mark.parametrize("name", ["", "a\0b", "n" * 5000, "half \ud83d"])
def test_what_can_be_no_name_of_a_drafter_is_told(name: str) -> None:
    with pytest.raises(TreesnakeError):
        load_drafter(name)


def with_tokenizer(folder: Path, kind: str) -> int:
    tokenizer = KINDS[kind]()
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@pytest.fixture
def byte_level_mamba(tmp_path: Path) -> Path:
    folder = tmp_path / "drafter"
    folder.mkdir()
    size = with_tokenizer(folder, "byte-level")
    torch.manual_seed(0)
    network = Mamba(MambaConfig(vocab_size=size, hidden_size=16, num_layers=1, state_dim=4))
    save_network(network, folder)
    return folder


@pytest.fixture
def word_piece_target(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "other"
    folder.mkdir()
    size = with_tokenizer(folder, "word pieces")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=size, **sizes, num_attention_heads=2, bos_token_id=None, eos_token_id=None
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return find_checkpoint(str(folder))


def test_a_drafter_with_another_tokenizer_drafts_in_text(
    byte_level_mamba: Path, word_piece_target: Checkpoint
) -> None:
    options = LoadOptions(device="cpu")
    model = load_drafter(str(byte_level_mamba), options, target=word_piece_target)
    assert isinstance(model, TextDrafterModel)
    check_drafter(model, word_piece_target.config.vocab_size, num_steps=1)
    shared = load_drafter(str(byte_level_mamba), options, target=word_piece_target, tokens="shared")
    assert isinstance(shared, NetworkDrafterModel)


def test_the_same_tokens_can_be_asked_for(
    byte_level_mamba: Path, word_piece_target: Checkpoint
) -> None:
    with pytest.raises(InvalidInputError, match='in text with tokens="text"'):
        load_drafter(str(byte_level_mamba), target=word_piece_target, tokens="same")


def test_auto_drafts_in_text_beside_prompt_lookup_for_any_target(
    word_piece_target: Checkpoint, mamba_folder: Path
) -> None:
    model = load_drafter("auto", LoadOptions(device="cpu"), target=word_piece_target)
    assert isinstance(model, CompositeDrafterModel)
    assert isinstance(model.first, TextDrafterModel)
    assert isinstance(model.second, NgramDrafterModel)
    described = "treesnake-smol in text, and prompt-lookup"
    assert describe_default(word_piece_target) == described
    default = find_checkpoint()
    assert describe_default(default) == described.replace("in text", "in the target's tokens")
    bare = open_checkpoint(identify("bare", mamba_folder))
    assert describe_default(bare) == "prompt-lookup"
    word_piece_target.config.image_token_id = 7
    assert describe_default(word_piece_target) == f"{described}; they see no images"


def test_the_drafter_of_the_package_drafts_in_text_for_any_target(
    word_piece_target: Checkpoint,
) -> None:
    model = load_drafter("treesnake-smol", LoadOptions(device="cpu"), target=word_piece_target)
    assert isinstance(model, TextDrafterModel)
    theirs = word_piece_target.tokenizer
    session = model.new_session()
    tokens = theirs.encode("the snake reads the", add_special_tokens=False)
    session.prefill(Prompt.of(tokens))
    draft = session.draft(tokens[-1], chain(3), SamplingParams(), TorchRng(0))
    assert 0 < draft.tree.num_drafted <= 3
