"""A model that drafts for itself: its text is its own, and its copy leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake import LevelWidths, SamplingParams, SpeculativeDecoder, StaticSearch, chain
from treesnake.drafters.composite import CompositeDrafter
from treesnake.drafters.load import load_drafter
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.self_drafting import SelfDrafter
from treesnake.errors import InvalidInputError, UnsupportedModelError
from treesnake.loading.options import LoadOptions
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import to_cpu
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.tree_network import TreeNetwork
from treesnake.pairs import Pair, SelfPair, pair_by_name
from treesnake.targets.load import load_target
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import TableModel, TinyNetwork
from treesnake.testing.tokenizers import byte_level
from treesnake.testing.wide_matrices import with_wide_matrices

CPU = torch.device("cpu")
SIZES = {"vocab_size": 53, "hidden_size": 16, "num_layers": 2, "state_dim": 8}
SHAPES = (chain(3), LevelWidths((3, 2, 1)), LevelWidths((2, 2), sampled=True))
PROMPT = [3, 5, 8, 3, 5, 9, 3, 5]


def llama(vocab_size: int = 53) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    return with_wide_matrices(LlamaForCausalLM(config))


def transformers_pair() -> tuple[TreeNetwork, TreeNetwork]:
    model = llama()
    sizes, tensors = TransformerConfig.from_hf(model.config), model.state_dict()
    target = Transformer(sizes, tensors, torch.float32, CPU)
    copy = Transformer(sizes, tensors, torch.int8, CPU, cache_dtype=torch.float32)
    return target, copy


def mamba_pair() -> tuple[TreeNetwork, TreeNetwork]:
    network = with_wide_matrices(Mamba(MambaConfig(**SIZES)))
    return to_cpu(network), to_cpu(network, torch.int8)


def mamba2_pair() -> tuple[TreeNetwork, TreeNetwork]:
    network = with_wide_matrices(Mamba2(Mamba2Config(**SIZES, num_heads=4, head_dim=8)))
    return to_cpu(network), to_cpu(network, torch.int8)


PAIRS = [transformers_pair, mamba_pair, mamba2_pair]
each_kind = pytest.mark.parametrize("make", PAIRS, ids=lambda make: make.__name__)


@each_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_greedy_text_is_that_of_plain_decoding(
    make: Callable[[], tuple[TreeNetwork, TreeNetwork]], shape: LevelWidths
) -> None:
    network, copy = make()
    target = NetworkTargetModel(network)
    search = StaticSearch(shape)
    pair = SelfPair(target, copy, NgramDrafterModel())
    plain = SpeculativeDecoder(pair, search=StaticSearch(chain(0)))
    drafted = SpeculativeDecoder(pair, search=search)
    expected = plain.generate(PROMPT, max_new_tokens=40)
    found = drafted.generate(PROMPT, max_new_tokens=40)
    assert found.token_ids == expected.token_ids
    assert found.mean_tokens_per_step > 1.5
    longer = [*PROMPT, *expected.token_ids, 7, 8]
    session = drafted.new_session()
    drafted.generate(PROMPT, max_new_tokens=40, session=session)
    assert (
        drafted.generate(longer, max_new_tokens=20, session=session).token_ids
        == plain.generate(longer, max_new_tokens=20).token_ids
    )


@each_kind
def test_samples_of_a_seed_do_not_depend_on_who_holds_the_text(
    make: Callable[[], tuple[TreeNetwork, TreeNetwork]],
) -> None:
    network, copy = make()
    target = NetworkTargetModel(network)
    params = SamplingParams(temperature=1.0, seed=5)
    decoder = SpeculativeDecoder(SelfPair(target, copy), search=StaticSearch(chain(3)))
    session = decoder.new_session()
    first = decoder.generate(PROMPT, params, max_new_tokens=24, session=session).token_ids
    again = decoder.generate(PROMPT, params, max_new_tokens=24, session=session).token_ids
    assert first == again == decoder.generate(PROMPT, params, max_new_tokens=24).token_ids


def test_texts_of_another_form_are_not_borrowed() -> None:
    (transformer, _), (mamba, _), (mamba2, _) = transformers_pair(), mamba_pair(), mamba2_pair()
    toy = TinyNetwork(TableModel(4))
    for owner, borrower in ((transformer, mamba), (mamba, mamba2), (mamba2, transformer)):
        pair = SelfPair(NetworkTargetModel(owner), borrower)
        with pytest.raises(InvalidInputError, match="is another one"):
            pair.new_sessions()
    with pytest.raises(InvalidInputError, match="are not lent"):
        SelfPair(NetworkTargetModel(toy), mamba).new_sessions()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = byte_level()
    tokenizer.save_pretrained(folder)
    llama(len(tokenizer)).save_pretrained(folder)
    return folder


def test_a_folder_drafts_for_itself_by_name(folder: Path) -> None:
    model, loaded = load_target(str(folder))
    assert isinstance(pair_by_name(model, loaded, "none", LoadOptions()), Pair)
    pair = pair_by_name(model, loaded, "self+prompt-lookup", LoadOptions())
    assert isinstance(pair, SelfPair)
    _, drafter = pair.new_sessions()
    assert isinstance(drafter, CompositeDrafter)
    _, drafter = pair_by_name(model, loaded, "self", LoadOptions()).new_sessions()
    assert isinstance(drafter, SelfDrafter)


def test_what_has_no_smaller_copy_says_so(folder: Path) -> None:
    for options, reason in (
        (LoadOptions(dtype="int4"), r"its weights \(int4\)"),
        (LoadOptions(engine="generic"), "generic engine"),
    ):
        model, loaded = load_target(str(folder), options)
        with pytest.raises(UnsupportedModelError, match=reason):
            pair_by_name(model, loaded, "self", LoadOptions())
    with pytest.raises(InvalidInputError, match="loaded with the target"):
        load_drafter("self")
    model, loaded = load_target(str(folder))
    with pytest.raises(InvalidInputError, match="joins a model that drafts for itself"):
        pair_by_name(model, loaded, "self+treesnake-smol", LoadOptions())
