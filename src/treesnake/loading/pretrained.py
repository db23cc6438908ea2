"""Loads models with their own weights as unmodified transformers modules."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from treesnake.errors import InvalidInputError, LoadError, UnsupportedModelError, reason_of
from treesnake.loading.architecture import Architecture
from treesnake.loading.checkpoint import DEFAULT_MODEL, Checkpoint, find_checkpoint
from treesnake.loading.gguf_models import check_all_read, names_in_file, scale_rotary_pairs
from treesnake.loading.memory import check_memory
from treesnake.loading.options import (
    DEFAULT_OPTIONS,
    INTEGER_DTYPES,
    OWN_DTYPES,
    DtypeName,
    LoadOptions,
    has_accelerate,
)
from treesnake.models.checkpoint import unpacked_tensors
from treesnake.models.gguf import GgufFile
from treesnake.models.rounded_weights import is_rounded
from treesnake.models.weight_gate import (
    check_dtypes,
    check_names,
    check_shapes,
    count_values,
    stored_shapes,
)
from treesnake.models.weights import InMemory, Weights


@dataclass(frozen=True)
class Pretrained:
    """A model in memory, ready for inference: evaluation mode, no gradients."""

    checkpoint: Checkpoint
    model: "transformers.PreTrainedModel"

    @property
    def name(self) -> str:
        """The name that it was asked for by."""
        return self.checkpoint.name

    @property
    def config(self) -> PreTrainedConfig:
        """The model's config."""
        return self.checkpoint.config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the chat template if there is one."""
        return self.checkpoint.tokenizer


def load_pretrained(
    name: str = DEFAULT_MODEL, options: LoadOptions = DEFAULT_OPTIONS
) -> Pretrained:
    """Finds a model as `find_checkpoint` does and loads it as `load_checkpoint` does."""
    return load_checkpoint(find_checkpoint(name, options), options)


def load_checkpoint(checkpoint: Checkpoint, options: LoadOptions = DEFAULT_OPTIONS) -> Pretrained:
    """Loads a checkpoint into memory as a transformers module.

    Args:
        checkpoint: a model found by `find_checkpoint`.
        options: the dtype, and the device or device_map; "auto" is float32 on a CPU, where half
            precision is slow, else the checkpoint's own. No engine is asked for.

    Raises:
        LoadError: if weights are missing or broken, or do not fit.
        UnsupportedModelError: if it is no language model, or the dtype is one of integers.
        InvalidInputError: if there is no such device.
    """
    checkpoint = _unpacked(checkpoint.for_transformers)
    model_class = find_model_class(checkpoint)
    found_device = resolve_device(options.device)
    device_map = options.device_map
    torch_dtype = resolve_dtype(options.dtype, checkpoint, found_device)
    if device_map is None:
        check_memory(checkpoint, torch_dtype, found_device)
    _check_size(checkpoint, model_class)
    arguments: dict[str, Any] = {
        "dtype": torch_dtype,
        "device_map": _direct_placement(found_device) if device_map is None else device_map,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # the report says which, and they are refused below
        "trust_remote_code": checkpoint.trust_remote_code,
        **_source(checkpoint, spread=device_map is not None),
    }
    try:
        model, report = model_class.from_pretrained(**arguments)
    except LoadError:
        raise
    except Exception as error:
        raise LoadError(
            f"transformers cannot load {checkpoint.name}: {reason_of(error)}"
        ) from error
    file = checkpoint.weights if isinstance(checkpoint.weights, GgufFile) else None
    names: Mapping[str, str] = {} if file is None else names_in_file(model, file)
    _check_report(checkpoint, model, report, {name: own for own, name in names.items()})
    if file is not None:
        check_all_read(names, file)
    if checkpoint.gguf is not None:
        scale_rotary_pairs(model, checkpoint.gguf)
    if device_map is None:
        model.to(found_device)
    model.config.name_or_path = str(checkpoint.path)
    model.generation_config = checkpoint.generation_config
    model.requires_grad_(False).eval()
    return Pretrained(checkpoint, model)


def _unpacked(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a Mamba whose matrices are stored in few bits as transformers reads it: in floats."""
    stored = checkpoint.weights
    if checkpoint.found.architecture is not Architecture.STATE_SPACE or not is_rounded(stored):
        return checkpoint
    tensors = unpacked_tensors(checkpoint.path, stored)
    entries = {name: InMemory(tensor) for name, tensor in tensors.items()}
    return replace(checkpoint, weights=Weights(entries))


def resolve_device(device: str) -> torch.device:
    """Returns the device of a name such as "cpu", "cuda", "cuda:1", "mps" or "auto".

    Raises:
        InvalidInputError: if there is no such device here.
    """
    if device == "auto":
        return torch.device(_best_device())
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InvalidInputError(f"unknown device {device!r}; try cpu, cuda, mps or auto") from error
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    count = counts.get(found.type, 0)
    if (found.index or 0) >= count:
        here = ", ".join(f"{number} x {kind}" for kind, number in counts.items() if number)
        raise InvalidInputError(f"there is no device {device!r} here; found: {here}")
    return found


def asks_for_integers(dtype: DtypeName, checkpoint: Checkpoint) -> bool:
    """Tells whether a dtype leaves nothing but products in integers."""
    return dtype in INTEGER_DTYPES or (dtype == "stored" and checkpoint.is_packed)


def resolve_dtype(dtype: DtypeName, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """Returns the dtype that a transformers module gets.

    Raises:
        UnsupportedModelError: for integers, which are no dtype of these modules.
    """
    if asks_for_integers(dtype, checkpoint):
        raise UnsupportedModelError(
            f"{dtype} weights exist in the native CPU engine only; load {checkpoint.name} with "
            "that, or choose float32, float16 or bfloat16"
        )
    if dtype not in OWN_DTYPES:
        return getattr(torch, dtype)
    stored = checkpoint.config.get_text_config().dtype
    if (device.type == "cpu" and dtype == "auto") or not isinstance(stored, torch.dtype):
        return torch.float32
    return stored


def find_model_class(checkpoint: Checkpoint) -> Any:
    """Returns the transformers class of a language model, or of one that also sees images.

    Raises:
        UnsupportedModelError: for encoders, and models of an encoder and a decoder.
    """
    config = checkpoint.config
    if checkpoint.trust_remote_code and hasattr(config, "auto_map"):
        return transformers.AutoModelForCausalLM
    if not config.is_encoder_decoder:
        for mapping in (
            transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
            transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        ):
            if type(config) in mapping:
                return _named_class(mapping[type(config)], config.architectures)
    raise UnsupportedModelError(
        f"{checkpoint.name} has the model type {config.model_type!r}, which is no decoder-only "
        "language model"
    )


class _StoredTensor:
    """A tensor that is read from disk when transformers slices it, as it slices lazily read files.

    So at most a few tensors are in memory in both the stored and the wanted dtype. The usual way
    maps the file, whose pages count as resident until loading ends.
    """

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read

    def __getitem__(self, _index: object) -> Shaped[Tensor, "..."]:
        return self._read()


def _source(checkpoint: Checkpoint, *, spread: bool) -> dict[str, Any]:
    """Returns the arguments by which transformers reads the weights."""
    weights = checkpoint.weights
    if isinstance(weights, GgufFile):
        return {
            "pretrained_model_name_or_path": weights.path.parent,
            "gguf_file": weights.path.name,
            "config": checkpoint.config,
        }
    reads_itself = _is_quantised(checkpoint) or spread or checkpoint.trust_remote_code
    if reads_itself and checkpoint.gguf is None:
        return {
            "pretrained_model_name_or_path": checkpoint.path,
            "use_safetensors": True,
        }
    return {
        "pretrained_model_name_or_path": None,
        "config": checkpoint.config,
        "state_dict": {name: _StoredTensor(partial(weights.__getitem__, name)) for name in weights},
    }


def _direct_placement(device: torch.device) -> dict[str, torch.device] | None:
    """Returns a map that sends each tensor straight to its device, where accelerate is there."""
    if device.type == "cpu" or not has_accelerate():
        return None
    return {"": device}


def _named_class(classes: Any, architectures: list[str] | None) -> Any:
    """Returns the class that a config names, where a model type has several, else the first."""
    if isinstance(classes, type):
        return classes
    return next((each for each in classes if each.__name__ in (architectures or [])), classes[0])


def _check_size(checkpoint: Checkpoint, model_class: Any) -> None:
    """Refuses a config of a larger model than the files hold, before memory is taken for it.

    Where names in the files are those of the model, the first shape that differs is named.
    """
    if checkpoint.trust_remote_code or _is_quantised(checkpoint):
        return
    try:
        with torch.device("meta"):
            model = model_class(copy.deepcopy(checkpoint.config))
    except Exception as error:
        raise LoadError(
            f"transformers cannot build {checkpoint.name}: {reason_of(error)}"
        ) from error
    num_stored = count_values(checkpoint.weights)
    if model.num_parameters() <= num_stored:
        return
    if isinstance(checkpoint.weights, GgufFile):
        raise LoadError(
            f"the metadata of {checkpoint.path} do not belong to its tensors: they describe a "
            f"model of {model.num_parameters()} numbers, and the file holds {num_stored}; fetch it "
            "again"
        )
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = stored_shapes(checkpoint.weights)
    where = str(checkpoint.path)
    check_shapes(
        [
            (name, shape, shapes[name])
            for name, shape in stored.items()
            if name in shapes and shapes[name] != list(shape)
        ],
        where,
    )
    found = {*stored, *(f"{model.base_model_prefix}.{name}" for name in stored)}
    missing = shapes.keys() - found - model.all_tied_weights_keys.keys()
    check_names(shapes, missing, (), where, stored)
    raise LoadError(
        f"the config of {where} does not belong to its weights: it is of a model of "
        f"{model.num_parameters()} numbers, and the files hold {num_stored}"
    )


def _check_report(
    checkpoint: Checkpoint,
    model: "transformers.PreTrainedModel",
    report: Mapping[str, Any],
    names: Mapping[str, str],
) -> None:
    """Refuses what transformers would fill with random numbers, cut, leave out or round.

    `names` are those in the file, where they differ from those of the model.
    """
    where = str(checkpoint.path)
    check_shapes(
        [(names.get(name, name), *shapes) for name, *shapes in sorted(report["mismatched_keys"])],
        where,
    )
    surplus = [] if _is_quantised(checkpoint) else _without_extra_layers(checkpoint, report)
    missing = {names.get(name, name) for name in report["missing_keys"]}
    promised = {names.get(name, name) for name in model.state_dict()}
    check_names(promised, missing, surplus, where, checkpoint.weights)
    if isinstance(checkpoint.weights, Weights) and not _is_quantised(checkpoint):
        parameters = dict(model.named_parameters())
        entries = checkpoint.weights.entries
        check_dtypes({name: entries[name].dtype for name in parameters if name in entries}, where)


def _without_extra_layers(checkpoint: Checkpoint, report: Mapping[str, Any]) -> list[str]:
    """Returns the names that a model has no use for, but for layers that only predict further."""
    config = checkpoint.config.get_text_config(decoder=True)
    first = getattr(config, "num_hidden_layers", 0)
    number = getattr(config, "num_nextn_predict_layers", 0) or 0
    extra = tuple(f".layers.{layer}." for layer in range(first, first + number))
    return [name for name in report["unexpected_keys"] if not any(map(name.__contains__, extra))]


def _is_quantised(checkpoint: Checkpoint) -> bool:
    return getattr(checkpoint.config, "quantization_config", None) is not None


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
