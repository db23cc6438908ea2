"""Drafters by name."""

from pathlib import Path

import pytest
import torch

from treesnake.drafters.load import load_drafter
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.drafters.vocabulary import save_draft_vocabulary
from treesnake.errors import TreesnakeError
from treesnake.loading.options import LoadOptions
from treesnake.models.checkpoint import save_network
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.state_space_cpu import CpuMamba
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams, TorchRng
from treesnake.shape import LevelWidths, chain
from treesnake.testing import check_drafter


def test_names_give_drafters() -> None:
    assert isinstance(load_drafter("prompt-lookup"), NgramDrafterModel)
    assert isinstance(load_drafter("none"), NoDrafterModel)


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(TreesnakeError, match="auto, treesnake-smol, prompt-lookup, none"):
        load_drafter("oracle")


def test_auto_is_prompt_lookup_where_no_drafter_was_trained_for_the_target() -> None:
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
