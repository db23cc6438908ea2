"""Mamba networks on disk: the Hugging Face folder layout, and the original one of state-spaces.

A folder has config.json, weights (safetensors, in one file or in shards; or an older
pytorch_model.bin, of which only tensors are read), and the files of a tokenizer, which are carried
along unread. Written folders are of the Hugging Face layout and load in transformers, but for those
that leave out embeddings which are their target's own: a few rows of them are stored, to tell a
target that has others.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from treesnake.errors import InvalidInputError, LoadError, UnsupportedModelError
from treesnake.models.json_files import read_json_object
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.weights import INDEX_FILE, SINGLE_FILE, Weights, open_weights

CONFIG_FILE = "config.json"
PICKLE_FILE = "pytorch_model.bin"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)

MAX_SHARD_BYTES = 5 * 1024**3

FLOAT_TAG = "__float__"

EMBEDDINGS = "backbone.embeddings.weight"
SAMPLED_EMBEDDINGS = "sampled_embeddings"
"""Every so many rows of embeddings that are left out, first and last ones included."""

NUM_SAMPLED_EMBEDDINGS = 17
SAME_EMBEDDINGS = 0.9
"""The cosine from which on rows count as the same: 4-bit rounding keeps 0.99, others have 0."""

Network = Mamba | Mamba2
NetworkConfig = MambaConfig | Mamba2Config


@dataclass(frozen=True)
class _Key:
    """A key of a Hugging Face config: what we call it, and what it means where it is missing."""

    name: str
    field: str
    default: Any


_SHARED_KEYS = (
    _Key("conv_kernel", "conv_width", 4),
    _Key("use_bias", "use_bias", False),
    _Key("use_conv_bias", "use_conv_bias", True),
    _Key("layer_norm_epsilon", "norm_eps", 1e-5),
    _Key("bos_token_id", "bos_token_id", 0),
)
_KEYS: Final[Mapping[str, tuple[_Key, ...]]] = {
    "mamba": (
        *_SHARED_KEYS,
        _Key("vocab_size", "vocab_size", 50280),
        _Key("hidden_size", "hidden_size", 768),
        _Key("num_hidden_layers", "num_layers", 32),
        _Key("state_size", "state_dim", 16),
        _Key("expand", "expand", 2),
        _Key("time_step_rank", "time_step_rank", "auto"),
        _Key("tie_word_embeddings", "tie_embeddings", True),
        _Key("eos_token_id", "eos_token_id", 0),
        _Key("pad_token_id", "pad_token_id", 0),
    ),
    "mamba2": (
        *_SHARED_KEYS,
        _Key("vocab_size", "vocab_size", 32768),
        _Key("hidden_size", "hidden_size", 4096),
        _Key("num_hidden_layers", "num_layers", 64),
        _Key("num_heads", "num_heads", 128),
        _Key("head_dim", "head_dim", 64),
        _Key("n_groups", "num_groups", 8),
        _Key("state_size", "state_dim", 128),
        _Key("time_step_limit", "time_step_limit", (0.0, float("inf"))),
        _Key("tie_word_embeddings", "tie_embeddings", False),
        _Key("eos_token_id", "eos_token_id", 2),
        _Key("pad_token_id", "pad_token_id", 1),
    ),
}
_CONFIGS: Final[Mapping[str, type[MambaConfig] | type[Mamba2Config]]] = {
    "mamba": MambaConfig,
    "mamba2": Mamba2Config,
}

_ORIGINAL_KEYS = {
    "Mamba1": {
        "d_state": "state_dim",
        "d_conv": "conv_width",
        "expand": "expand",
        "dt_rank": "time_step_rank",
        "bias": "use_bias",
        "conv_bias": "use_conv_bias",
    },
    "Mamba2": {
        "d_state": "state_dim",
        "d_conv": "conv_width",
        "headdim": "head_dim",
        "ngroups": "num_groups",
        "dt_limit": "time_step_limit",
        "bias": "use_bias",
        "conv_bias": "use_conv_bias",
    },
}
"""What each key of the original `ssm_cfg` is called here."""

_ORIGINAL_TRAINING_KEYS = frozenset(
    {"layer", "expand", "chunk_size", "use_fast_path", "use_mem_eff_path", "conv_init"}
    | {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range"}
)
"""Keys of `ssm_cfg` that change how a network is trained or where it runs, not what it computes."""


def read_fields(folder: Path) -> dict[str, Any]:
    """Reads config.json, with the infinities that transformers writes as objects.

    Raises:
        LoadError: as `read_json_object` does.
    """
    path = folder / CONFIG_FILE
    fields = read_json_object(path)
    try:
        return {key: _decoded(value) for key, value in fields.items()}
    except (TypeError, ValueError) as error:
        raise LoadError(f"{path} holds a number that is none: {error}") from error


def is_state_space(fields: Mapping[str, Any]) -> bool:
    """Tells whether a config is that of a Mamba or Mamba-2, in either layout."""
    return fields.get("model_type") in _KEYS or ("model_type" not in fields and "ssm_cfg" in fields)


def parse_config(fields: Mapping[str, Any], path: Path) -> NetworkConfig:
    """Returns the sizes of a network of either layout.

    Args:
        fields: what its config says.
        path: of the config, for messages.

    Raises:
        LoadError: if the config makes no sense.
        UnsupportedModelError: if it describes another kind of network.
    """
    model_type = fields.get("model_type")
    try:
        if model_type in _KEYS:
            return _read_hugging_face(fields, model_type)
        if model_type is None and "d_model" in fields:
            return _read_original(fields)
    except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError) as error:
        raise LoadError(f"{path} makes no sense: {error!r}") from error
    raise UnsupportedModelError(
        f'{path} is of model type "{model_type}"; the networks here are mamba and mamba2'
    )


def read_config(folder: Path) -> NetworkConfig:
    """Reads the sizes of the network in a folder; see `read_fields` and `parse_config`."""
    return parse_config(read_fields(folder), folder / CONFIG_FILE)


def read_network(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    target_embeddings: Float[Tensor, "vocab hidden"] | None = None,
) -> Network:
    """Reads the network in a folder, of either layout: what `save_network` writes, or another.

    See `open_tensors` and `build_network`, also for what they raise.
    """
    return build_network(
        folder, read_config(folder), open_tensors(folder), dtype, device, target_embeddings
    )


def build_network(
    folder: Path,
    config: NetworkConfig,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    target_embeddings: Float[Tensor, "vocab hidden"] | None = None,
) -> Network:
    """Returns a network with the weights of a folder, ready for inference.

    The rates and step biases of the recurrences stay float32 whatever `dtype` is.

    Args:
        folder: where all of it comes from, for messages.
        config: the sizes.
        weights: what `open_tensors` returns.
        dtype: of the weights.
        device: where they go.
        target_embeddings: used if the folder leaves them out.

    Raises:
        LoadError: if a file is broken, or tensors do not fit the config.
        InvalidInputError: if embeddings are left out, and the target's are missing or others.
    """
    with torch.device("meta"):
        network = Mamba(config) if isinstance(config, MambaConfig) else Mamba2(config)
    expected = network.state_dict()
    tensors = {}
    for name in weights:
        if name == "lm_head.weight" and config.tie_embeddings:
            continue
        tensor = weights[name]
        if name == SAMPLED_EMBEDDINGS:
            _check_embeddings(folder, tensor, target_embeddings, expected[EMBEDDINGS].shape)
            assert target_embeddings is not None
            tensors[EMBEDDINGS] = target_embeddings.to(device, dtype)
            continue
        if name not in expected or tensor.shape != expected[name].shape:
            fits = list(expected[name].shape) if name in expected else "no such tensor"
            raise LoadError(
                f"the weights in {folder} do not fit its config: {name} has shape "
                f"{list(tensor.shape)}, the network has {fits}"
            )
        kept = torch.float32 if name.endswith((".A_log", ".D", ".dt_bias")) else dtype
        tensors[name] = tensor.to(device, kept)
    if config.tie_embeddings and EMBEDDINGS in tensors:
        tensors["lm_head.weight"] = tensors[EMBEDDINGS]
    if missing := sorted(expected.keys() - tensors.keys()):
        raise LoadError(f"{folder} lacks {len(missing)} tensors, {missing[0]} first")
    network.load_state_dict(tensors, assign=True)
    if config.tie_embeddings:
        network.tie_embeddings()
    return network.eval()


def open_tensors(folder: Path) -> Mapping[str, Tensor]:
    """Opens the weights of a folder under the names that they have in a network.

    Raises:
        LoadError: if there are none, or a file is broken.
    """
    if (folder / INDEX_FILE).is_file() or (folder / SINGLE_FILE).is_file():
        entries = open_weights(folder).entries
        return Weights({_renamed(name): entry for name, entry in entries.items()})
    if (folder / PICKLE_FILE).is_file():
        tensors = _read_pickle(folder / PICKLE_FILE)
        return {_renamed(name): tensor for name, tensor in tensors.items()}
    raise LoadError(f"{folder} holds no weights: neither {SINGLE_FILE} nor {PICKLE_FILE}")


def save_network(
    network: Network,
    folder: Path,
    tokenizer_folder: Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    leave_out_embeddings: bool = False,
) -> None:
    """Writes a network in the Hugging Face layout, overwriting what a folder held.

    Args:
        network: what to write; tied embeddings are written once.
        folder: made if it does not exist.
        tokenizer_folder: where to copy the tokenizer's files from.
        max_shard_bytes: weights above this size are split into several files.
        leave_out_embeddings: for a drafter whose embeddings are its target's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    if network.config.tie_embeddings:
        del tensors["lm_head.weight"]
    if leave_out_embeddings:
        tensors[SAMPLED_EMBEDDINGS] = _sampled_embeddings(tensors.pop(EMBEDDINGS))
    _write_tensors(tensors, folder, max_shard_bytes)
    dtype = str(network.lm_head.weight.dtype).removeprefix("torch.")
    config = _encoded(hugging_face_fields(network.config) | {"dtype": dtype})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    for name in TOKENIZER_FILES:
        if tokenizer_folder is not None and (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, folder / name)


def hugging_face_fields(config: NetworkConfig) -> dict[str, Any]:
    """Returns a network's config in the Hugging Face layout, but for its dtype."""
    is_mamba = isinstance(config, MambaConfig)
    model_type = "mamba" if is_mamba else "mamba2"
    fields = {key.name: getattr(config, key.field) for key in _KEYS[model_type]}
    if isinstance(fields["eos_token_id"], tuple):
        fields["eos_token_id"] = list(fields["eos_token_id"])
    if isinstance(config, MambaConfig):
        fields["time_step_rank"] = config.time_step_rank or "auto"
        fields["intermediate_size"] = config.num_channels
    return fields | {
        "architectures": ["MambaForCausalLM" if is_mamba else "Mamba2ForCausalLM"],
        "expand": config.expand,
        "hidden_act": "silu",
        "model_type": model_type,
    }


def shares_embeddings(folder: Path) -> bool:
    """Tells whether a folder leaves out embeddings that are its target's."""
    is_safe = (folder / INDEX_FILE).is_file() or (folder / SINGLE_FILE).is_file()
    return is_safe and SAMPLED_EMBEDDINGS in open_weights(folder)


def _sampled_embeddings(
    embeddings: Float[Tensor, "vocab hidden"],
) -> Float[Tensor, "sampled hidden"]:
    return embeddings[torch.linspace(0, len(embeddings) - 1, NUM_SAMPLED_EMBEDDINGS).long()].clone()


def _check_embeddings(
    folder: Path,
    sampled: Float[Tensor, "sampled hidden"],
    embeddings: Float[Tensor, "some_vocab some_hidden"] | None,
    shape: torch.Size,
) -> None:
    if embeddings is None:
        raise InvalidInputError(
            f"{folder.name} shares the embeddings of its target; load it together with the target"
        )
    if embeddings.shape != shape:
        raise InvalidInputError(
            f"{folder.name} shares embeddings of shape {list(shape)} with the target that it was "
            f"trained for; this target has {list(embeddings.shape)}: choose another drafter"
        )
    cosines = F.cosine_similarity(_sampled_embeddings(embeddings).float(), sampled.float())
    if cosines.median() < SAME_EMBEDDINGS:
        raise InvalidInputError(
            f"{folder.name} shares the embeddings of the target that it was trained for, and this "
            "target has others: choose another drafter, or train one for it"
        )


def _read_hugging_face(config: Mapping[str, Any], model_type: str) -> NetworkConfig:
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UnsupportedModelError(f'only the activation "silu" is known, not "{activation}"')
    fields = {key.field: config.get(key.name, key.default) for key in _KEYS[model_type]}
    return _CONFIGS[model_type](**_cleaned(fields))


def _read_original(config: Mapping[str, Any]) -> NetworkConfig:
    ssm = config.get("ssm_cfg") or {}
    layer = ssm.get("layer", "Mamba1")
    names = _ORIGINAL_KEYS.get(layer)
    if names is None or config.get("attn_layer_idx") or config.get("d_intermediate"):
        raise UnsupportedModelError(
            f"only pure Mamba and Mamba-2 networks are known; this one has layers {layer}, "
            f"attention in {config.get('attn_layer_idx') or 'none'} of them and an MLP of width "
            f"{config.get('d_intermediate') or 0}"
        )
    if unknown := sorted(ssm.keys() - names.keys() - _ORIGINAL_TRAINING_KEYS):
        raise UnsupportedModelError(f"ssm_cfg has keys with unknown effect: {', '.join(unknown)}")
    if not config.get("rms_norm", True):
        raise UnsupportedModelError("only networks with RMS norms are known, not with layer norms")
    multiple = config.get("pad_vocab_size_multiple", 8)
    hidden_size = config["d_model"]
    fields = {
        "vocab_size": -(-config["vocab_size"] // multiple) * multiple,
        "hidden_size": hidden_size,
        "num_layers": config["n_layer"],
        "tie_embeddings": config.get("tie_embeddings", True),
        **{names[key]: value for key, value in ssm.items() if key in names},
    }
    if layer == "Mamba1":
        return MambaConfig(**_cleaned(fields))
    num_heads = ssm.get("expand", 2) * hidden_size // fields.setdefault("head_dim", 64)
    return Mamba2Config(num_heads=num_heads, **_cleaned(fields))


def _cleaned(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turns what JSON cannot say back into what it stands for."""
    cleaned = dict(fields)
    if cleaned.get("time_step_rank") == "auto":
        cleaned["time_step_rank"] = None
    if isinstance(cleaned.get("eos_token_id"), list):
        cleaned["eos_token_id"] = tuple(cleaned["eos_token_id"])
    if "time_step_limit" in cleaned:
        low, high = (float(bound) for bound in cleaned["time_step_limit"])
        cleaned["time_step_limit"] = (low, high)
    return cleaned


def _decoded(value: Any) -> Any:
    """Returns the floats that objects stand for, as transformers writes infinities."""
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {FLOAT_TAG}:
        return float(value[FLOAT_TAG])
    return {key: _decoded(part) for key, part in value.items()}


def _encoded(value: Any) -> Any:
    """Writes infinities as objects, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {key: _encoded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(part) for part in value]
    return {FLOAT_TAG: "Infinity"} if value == float("inf") else value


def _renamed(name: str) -> str:
    return name.replace("backbone.embedding.", "backbone.embeddings.")


def _read_pickle(path: Path) -> Mapping[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise LoadError(f"{path} holds more than tensors or is broken: {error}") from error


def _write_tensors(
    tensors: Mapping[str, Float[Tensor, "..."]], folder: Path, max_shard_bytes: int
) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    for stale in (*folder.glob("model-*-of-*.safetensors"), folder / INDEX_FILE):
        stale.unlink(missing_ok=True)
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE_FILE, metadata={"format": "pt"})
        return
    (folder / SINGLE_FILE).unlink(missing_ok=True)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
