"""Mamba networks on disk, in both layouts, against transformers' reading and writing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from treesnake.errors import InvalidInputError, LoadError, UnsupportedModelError
from treesnake.models.checkpoint import (
    build_network,
    open_tensors,
    parse_config,
    read_config,
    read_network,
    save_network,
)
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config

VOCAB = 48
TOKENS = torch.arange(20).unsqueeze(0) % VOCAB


def tiny_network(architecture: str, *, tied: bool) -> Mamba | Mamba2:
    torch.manual_seed(0)
    if architecture == "mamba":
        return Mamba(
            MambaConfig(
                vocab_size=VOCAB, hidden_size=16, num_layers=2, state_dim=4, tie_embeddings=tied
            )
        )
    return Mamba2(
        Mamba2Config(
            vocab_size=VOCAB,
            hidden_size=16,
            num_layers=2,
            num_heads=4,
            head_dim=8,
            num_groups=2,
            state_dim=4,
            tie_embeddings=tied,
            eos_token_id=(3, 4),
        )
    )


def logits_of(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result = network(TOKENS)
    return result if isinstance(result, torch.Tensor) else result.logits


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 3000])
def test_what_was_saved_loads_here_and_in_transformers(
    tmp_path: Path, architecture: str, tied: bool, max_shard_bytes: int
) -> None:
    network = tiny_network(architecture, tied=tied)
    save_network(network, tmp_path, max_shard_bytes=max_shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_bytes == 3000)
    ours = read_network(tmp_path)
    assert ours.config == network.config
    assert (ours.lm_head.weight is ours.backbone.embeddings.weight) == tied
    torch.testing.assert_close(logits_of(ours), logits_of(network))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits_of(theirs), logits_of(network), rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_saved_loads(tmp_path: Path, architecture: str, tied: bool) -> None:
    torch.manual_seed(0)
    shared: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 4,
        "tie_word_embeddings": tied,
    }
    if architecture == "mamba":
        theirs: Any = transformers.MambaForCausalLM(transformers.MambaConfig(**shared))
    else:
        theirs = transformers.Mamba2ForCausalLM(
            transformers.Mamba2Config(**shared, num_heads=4, head_dim=16, n_groups=1)
        )
    theirs.eval().save_pretrained(tmp_path, max_shard_size="10KB")
    torch.testing.assert_close(
        logits_of(read_network(tmp_path)), logits_of(theirs), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_the_original_layout_loads(tmp_path: Path, architecture: str) -> None:
    network = tiny_network(architecture, tied=True)
    tensors = {
        name.replace("embeddings", "embedding"): tensor
        for name, tensor in network.state_dict().items()
    }
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    ssm: dict[str, Any] = {"d_state": 4}
    if architecture == "mamba2":
        ssm |= {"layer": "Mamba2", "headdim": 8, "ngroups": 2, "chunk_size": 64}
    config = {
        "d_model": 16,
        "n_layer": 2,
        "vocab_size": VOCAB - 3,
        "ssm_cfg": ssm,
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = read_network(tmp_path)
    assert loaded.config.vocab_size == VOCAB
    torch.testing.assert_close(logits_of(loaded), logits_of(network))


def test_the_published_configs_are_the_defaults(tmp_path: Path) -> None:
    """As state-spaces/mamba-130m and mamba2-130m have them."""
    published = {"d_model": 768, "n_layer": 24, "vocab_size": 50277, "rms_norm": True}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**published, "ssm_cfg": {}, "pad_vocab_size_multiple": 8}))
    assert read_config(tmp_path) == MambaConfig()
    ssm = {"layer": "Mamba2"}
    path.write_text(json.dumps({**published, "ssm_cfg": ssm, "pad_vocab_size_multiple": 16}))
    assert read_config(tmp_path) == Mamba2Config()


def test_weights_take_the_dtype_that_was_asked_for_but_rates_stay_exact(tmp_path: Path) -> None:
    network = tiny_network("mamba2", tied=True)
    save_network(network, tmp_path)
    loaded = read_network(tmp_path, dtype=torch.bfloat16)
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    torch.testing.assert_close(
        loaded.backbone.blocks[0].mixer.A_log, network.backbone.blocks[0].mixer.A_log
    )


def test_the_tokenizer_travels_along(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "model.safetensors").write_text("not carried along")
    save_network(tiny_network("mamba", tied=True), folder, tokenizer_folder=source)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}


def test_saving_again_in_fewer_files_leaves_no_stale_shards(tmp_path: Path) -> None:
    network = tiny_network("mamba", tied=True)
    save_network(network, tmp_path, max_shard_bytes=3000)
    save_network(network, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    read_network(tmp_path)


def test_an_infinite_limit_of_step_sizes_survives(tmp_path: Path) -> None:
    network = tiny_network("mamba2", tied=True)
    save_network(network, tmp_path)
    assert "Infinity" in (tmp_path / "config.json").read_text()
    assert read_config(tmp_path) == network.config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "model type"),
        ({}, "model type"),
        ({"model_type": "mamba", "hidden_act": "gelu"}, "silu"),
        ({"d_model": 16, "n_layer": 2, "attn_layer_idx": [1], "vocab_size": 8}, "attention"),
        ({"d_model": 16, "n_layer": 2, "d_intermediate": 64, "vocab_size": 8}, "MLP of width 64"),
        ({"d_model": 16, "ssm_cfg": {"rmsnorm": False}}, "unknown effect: rmsnorm"),
        ({"d_model": 16, "n_layer": 2, "rms_norm": False}, "RMS norms"),
    ],
)
def test_other_networks_are_refused_by_name(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=message) as refusal:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(refusal.value)


def test_broken_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no config\.json"):
        read_network(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LoadError, match="is no JSON object"):
        read_network(tmp_path)
    (tmp_path / "config.json").write_text('{"d_model": 16}')
    with pytest.raises(LoadError, match="makes no sense"):
        read_network(tmp_path)
    network = tiny_network("mamba", tied=False)
    save_network(network, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="holds no weights"):
        read_network(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no tensors")
    with pytest.raises(LoadError, match="broken"):
        read_network(tmp_path)
    tensors = network.state_dict()
    del tensors["backbone.norm_f.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"lacks 1 of the tensors .*, backbone\.norm_f"):
        read_network(tmp_path)
    torch.save(tensors | {"backbone.norm_f.weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        LoadError, match=r"norm_f\.weight has shape \[2\], the config promises \[16\]"
    ):
        read_network(tmp_path)


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
def test_embeddings_that_are_the_targets_are_left_out_and_put_back(
    architecture: str, tmp_path: Path
) -> None:
    network = tiny_network(architecture, tied=True)
    embeddings = network.backbone.embeddings.weight.detach().clone()
    save_network(network, tmp_path, leave_out_embeddings=True)
    stored = (tmp_path / "model.safetensors").stat().st_size
    save_network(network, tmp_path / "whole")
    assert stored < (tmp_path / "whole" / "model.safetensors").stat().st_size
    loaded = read_network(tmp_path, target_embeddings=embeddings)
    assert torch.equal(logits_of(loaded), logits_of(network))


def test_embeddings_of_another_target_are_refused(tmp_path: Path) -> None:
    network = tiny_network("mamba2", tied=True)
    save_network(network, tmp_path, leave_out_embeddings=True)
    with pytest.raises(InvalidInputError, match="load it together with the target"):
        read_network(tmp_path)
    with pytest.raises(InvalidInputError, match=r"this target has \[48, 8\]"):
        read_network(tmp_path, target_embeddings=torch.randn(VOCAB, 8))
    with pytest.raises(InvalidInputError, match="this target has others"):
        read_network(tmp_path, target_embeddings=torch.randn(VOCAB, 16))


def test_rounded_embeddings_are_still_the_targets_own(tmp_path: Path) -> None:
    network = tiny_network("mamba2", tied=True)
    save_network(network, tmp_path, leave_out_embeddings=True)
    embeddings = network.backbone.embeddings.weight.detach()
    step = embeddings.abs().amax() / 7
    read_network(tmp_path, target_embeddings=(embeddings / step).round() * step)


def saved_by_transformers(folder: Path, **fields: Any) -> transformers.MambaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2}
    config = transformers.MambaConfig(**sizes, state_size=4, **fields)
    model = transformers.MambaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def as_in_transformers(folder: Path) -> None:
    theirs: Any = transformers.MambaForCausalLM
    expected = logits_of(theirs.from_pretrained(folder, dtype=torch.float32).eval())
    torch.testing.assert_close(logits_of(read_network(folder)), expected, rtol=0, atol=1e-4)


def test_an_output_layer_of_its_own_is_kept_although_the_config_ties_it(tmp_path: Path) -> None:
    model = saved_by_transformers(tmp_path)
    tensors = {**model.state_dict(), "lm_head.weight": torch.randn(VOCAB, 16)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    as_in_transformers(tmp_path)
    assert not read_network(tmp_path).config.tie_embeddings


def test_a_file_of_the_base_class_loads(tmp_path: Path) -> None:
    model = saved_by_transformers(tmp_path)
    model.backbone.save_pretrained(tmp_path)
    as_in_transformers(tmp_path)


def test_channels_need_not_be_a_multiple_of_the_hidden_size(tmp_path: Path) -> None:
    saved_by_transformers(tmp_path, intermediate_size=40)
    as_in_transformers(tmp_path)
    network = read_network(tmp_path)
    save_network(network, tmp_path / "again")
    assert read_config(tmp_path / "again") == network.config


@pytest.mark.parametrize(
    ("stated", "limits"),
    [
        (None, (0.0, float("inf"))),
        ([None, None], (0.0, float("inf"))),
        ([0.5, "inf"], (0.5, float("inf"))),
        ([0, 1], (0.0, 1.0)),
    ],
)
def test_limits_of_step_sizes_are_read_in_every_spelling(
    tmp_path: Path, stated: Any, limits: tuple[float, float]
) -> None:
    fields = {"model_type": "mamba2", "num_heads": 128, "time_step_limit": stated}
    config = parse_config(fields, tmp_path)
    assert isinstance(config, Mamba2Config)
    assert config.time_step_limit == limits


@pytest.mark.parametrize(
    "fields",
    [
        {"time_step_limit": []},
        {"time_step_limit": "inf"},
        {"time_step_limit": [1, 0]},
        {"time_step_limit": ["a", "b"]},
        {"time_step_limit": [0, float("nan")]},
        {"vocab_size": -1},
        {"vocab_size": None},
        {"hidden_size": 16.0},
        {"num_hidden_layers": True},
        {"n_groups": 0},
        {"use_bias": "false"},
        {"layer_norm_epsilon": float("nan")},
        {"eos_token_id": [2.0]},
        {"eos_token_id": [[2]]},
    ],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match="makes no sense"):
        parse_config({"model_type": "mamba2", **fields}, tmp_path)
    with pytest.raises(LoadError):
        read_config(write_config(tmp_path, [fields]))


def write_config(folder: Path, content: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_a_config_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' + "[" * 100_000)
    with pytest.raises(LoadError, match="deep"):
        read_config(tmp_path)


def test_many_layers_are_refused_before_they_are_built(tmp_path: Path) -> None:
    saved_by_transformers(tmp_path)
    config = replace(read_config(tmp_path), num_layers=10_000)
    with pytest.raises(LoadError, match="lacks 99980 of the tensors"):
        build_network(tmp_path, config, open_tensors(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "a list and not tensors by name"),
        (torch.ones(2), "a Tensor and not tensors by name"),
        ({"state_dict": {"a": torch.ones(2)}}, "a dict as 'state_dict'"),
        ({3: torch.ones(2)}, "without a name"),
        ({"a": torch.ones(2, 2).to_sparse()}, "sparse"),
        ({"a": torch.ones(2, device="meta")}, "without values"),
        ({"a": torch.ones(1).expand(10**9)}, "fewer values than that"),
        ({"a": torch.ones(5).as_strided((3, 3), (1, 1))}, "fewer values than that"),
        ({"a": 3}, "an? int as 'a'"),
    ],
)
def test_pickles_hold_tensors_with_values_and_nothing_else(
    tmp_path: Path, content: Any, message: str
) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(LoadError, match=message):
        open_tensors(tmp_path)


def test_pickles_of_the_old_format_load(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3)}
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert torch.equal(open_tensors(tmp_path)["a"], tensors["a"])
