"""Mamba networks in memory: packed on a CPU, in a dtype of choice, and nothing of them twice."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from treesnake.errors import InvalidInputError, LoadError, UnsupportedModelError
from treesnake.loading.architecture import identify
from treesnake.loading.checkpoint import Checkpoint, open_checkpoint
from treesnake.loading.networks import load_network
from treesnake.loading.options import DtypeName, LoadOptions
from treesnake.loading.pretrained import load_checkpoint
from treesnake.models.checkpoint import Network, build_network, save_network
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.rounded_weights import round_to_8_bits
from treesnake.models.state_space_cpu import CpuNetwork
from treesnake.models.weights import SINGLE_FILE

VOCAB = 64


@pytest.fixture(params=["mamba", "mamba2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "state_dim": 16}
    if request.param == "mamba":
        network: Mamba | Mamba2 = Mamba(MambaConfig(**sizes))
    else:
        network = Mamba2(Mamba2Config(**sizes, num_heads=4, head_dim=16))
    save_network(network, tmp_path)
    return tmp_path


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(identify("tiny", folder))


def load(
    folder: Path, dtype: DtypeName = "auto", draft_vocab: torch.Tensor | None = None
) -> CpuNetwork:
    loaded = load_network(opened(folder), LoadOptions(dtype, "cpu"), draft_vocab=draft_vocab)
    assert isinstance(loaded.network, CpuNetwork)
    assert loaded.num_bytes == loaded.network.num_bytes
    return loaded.network


def first_logits(network: CpuNetwork) -> torch.Tensor:
    return network.new_state().extend([3], [-1])


def test_weights_are_those_of_the_folder_unless_they_are_to_be_rounded(folder: Path) -> None:
    stored, exact, rounded = (load(folder, dtype) for dtype in ("auto", "float32", "int8"))
    assert rounded.num_bytes < exact.num_bytes == stored.num_bytes
    assert torch.equal(first_logits(stored), first_logits(exact))
    torch.testing.assert_close(first_logits(rounded), first_logits(exact), rtol=0, atol=0.05)


def test_a_draft_vocabulary_has_the_only_rows_of_the_output_layer(folder: Path) -> None:
    kept = torch.tensor([7, 3, 60])
    whole, restricted = first_logits(load(folder)), first_logits(load(folder, draft_vocab=kept))
    assert torch.equal(restricted, whole[:, kept])
    with pytest.raises(InvalidInputError, match=f"within the network's {VOCAB} tokens"):
        load(folder, draft_vocab=torch.tensor([VOCAB]))


def test_the_packed_weights_are_the_only_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Network]] = []

    def build_and_watch(*arguments: Any) -> Network:
        network = build_network(*arguments)
        loaded.append(weakref.ref(network))
        return network

    monkeypatch.setattr("treesnake.loading.state_space.build_network", build_and_watch)
    packed = load(folder)
    gc.collect()
    assert packed.num_bytes > 0
    assert [network() for network in loaded] == [None]


def test_8_bits_are_refused_on_other_devices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "treesnake.loading.networks.resolve_device", lambda _name: torch.device("meta")
    )
    with pytest.raises(UnsupportedModelError, match=r"int8 weights on a CPU only.*bfloat16"):
        load(folder, "int8")


def test_what_only_other_engines_can_is_refused(folder: Path) -> None:
    pytest.importorskip("accelerate")
    with pytest.raises(UnsupportedModelError, match="on one device, not on a device_map"):
        load_network(opened(folder), LoadOptions(device_map="auto"))


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"config\.json"):
        load(tmp_path)


def test_a_drafter_that_shares_embeddings_needs_its_target(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "state_dim": 16}
    network = Mamba2(Mamba2Config(**sizes, num_heads=4, head_dim=16))
    save_network(network, tmp_path, leave_out_embeddings=True)
    with pytest.raises(InvalidInputError, match="together with the target"):
        load(tmp_path)


@torch.no_grad()
def test_transformers_runs_a_folder_whose_matrices_have_8_bits(folder: Path) -> None:
    stored = load_file(folder / SINGLE_FILE)
    rounded: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        is_matrix = name.endswith("_proj.weight")
        rounded |= round_to_8_bits(name, tensor) if is_matrix else {name: tensor}
    save_file(rounded, folder / SINGLE_FILE, {"format": "pt"})
    model: Any = load_checkpoint(opened(folder), LoadOptions("float32", "cpu")).model
    logits = model(torch.tensor([[3]])).logits[0]
    torch.testing.assert_close(logits, first_logits(load(folder, "float32")), rtol=1e-4, atol=1e-4)
