"""A drafter that shares its target's embeddings gets its own, in fewer bits."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.drafters.load import load_drafter
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.text import TextDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import Checkpoint, find_checkpoint
from treesnake.loading.options import LoadOptions
from treesnake.models.checkpoint import read_network, save_network
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.testing.tokenizers import KINDS
from treesnake.training.standing_alone import make_stand_alone

CPU = LoadOptions(device="cpu")


def made_target(folder: Path, kind: str) -> Checkpoint:
    tokenizer = KINDS[kind]()
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **sizes,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return find_checkpoint(str(folder))


@pytest.fixture
def target(tmp_path: Path) -> Checkpoint:
    return made_target(tmp_path / "target", "byte-level")


@pytest.fixture
def drafter_folder(tmp_path: Path, target: Checkpoint) -> Path:
    torch.manual_seed(0)
    size = target.config.vocab_size
    network = Mamba2(
        Mamba2Config(
            vocab_size=size,
            hidden_size=64,
            num_layers=1,
            num_heads=4,
            head_dim=32,
            state_dim=8,
            tie_embeddings=True,
        )
    )
    network.backbone.embeddings.weight.data = target.weights["model.embed_tokens.weight"]
    network.tie_embeddings()
    save_network(network, tmp_path / "drafter", leave_out_embeddings=True)
    return tmp_path / "drafter"


def test_it_drafts_for_its_target_and_for_others(
    drafter_folder: Path, target: Checkpoint, tmp_path: Path
) -> None:
    exact = target.weights["model.embed_tokens.weight"]
    make_stand_alone(drafter_folder, target)
    alone = read_network(drafter_folder).backbone.embeddings.weight
    beside = read_network(drafter_folder, target_embeddings=exact).backbone.embeddings.weight
    other = read_network(drafter_folder, target_embeddings=-exact).backbone.embeddings.weight
    assert torch.equal(beside, exact)
    assert torch.equal(alone, other)
    assert 0 < (alone - exact).abs().max() <= 0.13 * exact.abs().max()
    own = load_drafter(str(drafter_folder), CPU, target=target)
    assert isinstance(own, NetworkDrafterModel)
    others = made_target(tmp_path / "other", "unigram")
    assert isinstance(load_drafter(str(drafter_folder), CPU, target=others), TextDrafterModel)


def test_one_with_embeddings_of_its_own_is_refused(tmp_path: Path, target: Checkpoint) -> None:
    network = Mamba2(
        Mamba2Config(vocab_size=9, hidden_size=64, num_layers=1, num_heads=4, head_dim=32)
    )
    save_network(network, tmp_path / "own")
    with pytest.raises(InvalidInputError, match="does not share"):
        make_stand_alone(tmp_path / "own", target)
