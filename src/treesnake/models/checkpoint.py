"""Mamba networks on disk: the Hugging Face folder layout, and the original one of state-spaces.

A folder has config.json, weights (safetensors, in one file or in shards; or an older
pytorch_model.bin, of which only tensors are read), and the files of a tokenizer, which are carried
along unread. Written folders are of the Hugging Face layout and load in transformers, but for those
that leave out embeddings which are their target's own: a few rows of them are stored, to tell a
target that has others.
"""

import json
import math
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from treesnake.models.pointers import check_no_pointer
from treesnake.models.rounded_weights import unrounded
from treesnake.models.weight_gate import Promise, Shape, Tie, admit
from treesnake.models.weights import INDEX_FILE, SINGLE_FILE, Weights, open_weights, without_index

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
HEAD = "lm_head.weight"
BASE = "backbone."
LAYERS = "backbone.layers."
FIRST_LAYER = "backbone.layers.0."

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
        _Key("intermediate_size", "intermediate_size", None),
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
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path} cannot be used: {error}") from error
    except ValueError as error:
        raise LoadError(f"{path} makes no sense: {error}") from error
    except (TypeError, KeyError, AttributeError, ArithmeticError) as error:
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
        target_embeddings: used if the folder leaves them out, or has the same in fewer bits.

    Raises:
        LoadError: if a file is broken, or tensors do not fit the config.
        InvalidInputError: if embeddings are left out, and the target's are missing or others.
    """
    weights = _with_one_embedding(unrounded(weights, str(folder)), target_embeddings)
    promise = promised_tensors(config)
    is_shared = SAMPLED_EMBEDDINGS in weights
    if is_shared:
        promise = _without_embeddings(promise, config, weights)
    admitted = admit(promise, weights, str(folder))
    if not is_shared:
        config = replace(config, tie_embeddings=admitted.is_tied)
    elif HEAD in promise.shapes:
        config = replace(config, tie_embeddings=False)
    tensors = {}
    for name, tensor in admitted.tensors.items():
        if name == SAMPLED_EMBEDDINGS:
            shape = (config.vocab_size, config.hidden_size)
            _check_embeddings(folder, tensor, target_embeddings, torch.Size(shape))
            assert target_embeddings is not None
            tensors[EMBEDDINGS] = target_embeddings.to(device, dtype)
            continue
        kept = torch.float32 if name.endswith((".A_log", ".D", ".dt_bias")) else dtype
        tensors[name] = tensor.to(device, kept)
    if config.tie_embeddings:
        tensors[HEAD] = tensors[EMBEDDINGS]
    network = _empty_network(config)
    network.load_state_dict(tensors, assign=True)
    if config.tie_embeddings:
        network.tie_embeddings()
    return network.eval()


def unpacked_tensors(folder: Path, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the tensors of a folder as floats, by their names in transformers.

    Args:
        folder: for messages.
        weights: what `open_tensors` returns.
    """
    return _with_one_embedding(unrounded(weights, str(folder)), None)


def _with_one_embedding(
    weights: Mapping[str, Tensor], target_embeddings: Float[Tensor, "vocab hidden"] | None
) -> Mapping[str, Tensor]:
    """Returns the weights without those embeddings that are not used, if there are two."""
    if SAMPLED_EMBEDDINGS not in weights or EMBEDDINGS not in weights:
        return weights
    sampled = weights[SAMPLED_EMBEDDINGS]
    is_targets = target_embeddings is not None and _are_same(sampled, target_embeddings)
    unused = EMBEDDINGS if is_targets else SAMPLED_EMBEDDINGS
    return {name: weights[name] for name in weights if name != unused}


def promised_tensors(config: NetworkConfig) -> Promise:
    """Returns the tensors that a network of this config has, by their names in transformers.

    The layers are alike, so a network of one layer says it for any number of them.

    Raises:
        LoadError: if no network can have these sizes.
    """
    try:
        one_layer = _empty_network(replace(config, num_layers=1)).state_dict()
    except (RuntimeError, OverflowError, ZeroDivisionError) as error:
        raise LoadError(f"a network cannot have the sizes of {config}: {error}") from error
    shapes: dict[str, Shape] = {}
    for name, tensor in one_layer.items():
        numbers = range(config.num_layers if name.startswith(FIRST_LAYER) else 1)
        for number in numbers:
            own = name.replace(FIRST_LAYER, f"{LAYERS}{number}.")
            shapes[own] = tuple(tensor.shape)
    return Promise(shapes, BASE, Tie(EMBEDDINGS, HEAD) if config.tie_embeddings else None)


def _without_embeddings(
    promise: Promise, config: NetworkConfig, weights: Mapping[str, Tensor]
) -> Promise:
    """Returns what a drafter promises that leaves out the embeddings which are its target's."""
    shapes = dict(promise.shapes)
    shapes[SAMPLED_EMBEDDINGS] = (NUM_SAMPLED_EMBEDDINGS, config.hidden_size)
    del shapes[EMBEDDINGS]
    if config.tie_embeddings and HEAD not in weights:
        del shapes[HEAD]
    return Promise(shapes, promise.base)


def _empty_network(config: NetworkConfig) -> Network:
    with torch.device("meta"):
        return Mamba(config) if isinstance(config, MambaConfig) else Mamba2(config)


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
    raise LoadError(
        f"{folder} holds no weights: neither {SINGLE_FILE} nor {PICKLE_FILE}{without_index(folder)}"
    )


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
            f"{folder.name} shares the embeddings of its target; load it together with the target, "
            "or train it with stands_alone = true for others"
        )
    if embeddings.shape != shape:
        raise InvalidInputError(
            f"{folder.name} shares embeddings of shape {list(shape)} with the target that it was "
            f"trained for; this target has {list(embeddings.shape)}: choose another drafter"
        )
    if not _are_same(sampled, embeddings):
        raise InvalidInputError(
            f"{folder.name} shares the embeddings of the target that it was trained for, and this "
            "target has others: choose another drafter, train one for it, or one with "
            "stands_alone = true for all"
        )


def _are_same(
    sampled: Float[Tensor, "sampled hidden"], embeddings: Float[Tensor, "some_vocab some_hidden"]
) -> bool:
    """Tells whether sampled rows are those of embeddings, but for rounding."""
    if embeddings.shape[1] != sampled.shape[1]:
        return False
    cosines = F.cosine_similarity(_sampled_embeddings(embeddings).float(), sampled.float())
    return bool(cosines.median() >= SAME_EMBEDDINGS)


def _read_hugging_face(config: Mapping[str, Any], model_type: str) -> NetworkConfig:
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UnsupportedModelError(f'only the activation "silu" is known, not "{activation}"')
    fields = _cleaned({key.field: config.get(key.name, key.default) for key in _KEYS[model_type]})
    if fields.get("intermediate_size") == fields.get("expand", 1) * fields["hidden_size"]:
        fields["intermediate_size"] = None  # as transformers writes it beside `expand`
    return _CONFIGS[model_type](**fields)


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
    _check_field("pad_vocab_size_multiple", multiple)
    _check_field("vocab_size", config["vocab_size"])
    fields = {
        "vocab_size": -(-config["vocab_size"] // multiple) * multiple,
        "hidden_size": hidden_size,
        "num_layers": config["n_layer"],
        "tie_embeddings": config.get("tie_embeddings", True),
        **{names[key]: value for key, value in ssm.items() if key in names},
    }
    if layer == "Mamba1":
        return MambaConfig(**_cleaned(fields))
    fields = _cleaned({"head_dim": 64, "expand": ssm.get("expand", 2)} | fields)
    num_heads = fields.pop("expand") * hidden_size // fields["head_dim"]
    return Mamba2Config(num_heads=num_heads, **fields)


def _cleaned(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turns what JSON cannot say back into what it stands for, and checks the rest."""
    cleaned = dict(fields)
    if cleaned.get("time_step_rank") == "auto":
        cleaned["time_step_rank"] = None
    if isinstance(cleaned.get("eos_token_id"), list):
        cleaned["eos_token_id"] = tuple(cleaned["eos_token_id"])
    if "time_step_limit" in cleaned:
        cleaned["time_step_limit"] = _read_limits(cleaned["time_step_limit"])
    for name, value in cleaned.items():
        _check_field(name, value)
    return cleaned


def _read_limits(stated: object) -> tuple[float, float]:
    """Reads bounds of step sizes; null is no bound."""
    if stated is None:
        return 0.0, math.inf
    if not isinstance(stated, Sequence) or isinstance(stated, str) or len(stated) != 2:
        raise ValueError(f"time_step_limit is {stated!r:.40} and not two numbers")
    low, high = stated
    limits = 0.0 if low is None else float(low), math.inf if high is None else float(high)
    if not 0 <= limits[0] <= limits[1]:
        raise ValueError(f"time_step_limit is {stated!r:.40}, which bounds nothing")
    return limits


def _check_field(name: str, value: object) -> None:
    """Raises ValueError unless a value is of the kind that its field has."""
    if name == "time_step_limit":
        return
    if name == "norm_eps":
        known = isinstance(value, float | int) and 0 <= value < math.inf
    elif name in ("use_bias", "use_conv_bias", "tie_embeddings"):
        known = isinstance(value, bool)
    elif name.endswith("_token_id"):
        known = all(
            one is None or type(one) is int
            for one in (value if isinstance(value, tuple) else (value,))
        )
    else:
        is_optional = name in ("time_step_rank", "intermediate_size")
        known = (value is None and is_optional) or (type(value) is int and value > 0)
    if not known:
        raise ValueError(f"{name} is {value!r:.40}")


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
    """Reads the tensors of a pickle, of which nothing runs; mapped, where the format allows it.

    Raises:
        LoadError: if it holds anything but named tensors with a number of its own for every value.
    """
    check_no_pointer(path)
    try:
        stored = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:
        # What torch says of it advises to run the code in the file.
        raise LoadError(
            f"{path} holds more than tensors, or is broken; fetch it again, or save the network's "
            "state_dict alone, as transformers' save_pretrained does"
        ) from error
    if not isinstance(stored, Mapping):
        raise LoadError(f"{path} holds a {type(stored).__name__} and not tensors by name")
    for name, tensor in stored.items():
        if fault := _fault_of(name, tensor):
            raise LoadError(
                f"{path} holds {fault} as {name!r:.80}; save the network's state_dict alone, as "
                "transformers' save_pretrained does"
            )
    return stored


def _fault_of(name: object, tensor: object) -> str | None:
    """Says what keeps an entry of a pickle from being a named tensor, or returns None."""
    if not isinstance(name, str):
        return "a tensor without a name"
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return "a sparse, quantised or nested tensor"
    if tensor.is_meta:
        return "a tensor without values"
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        return f"a tensor of shape {list(tensor.shape)} with fewer values than that"
    return None


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
