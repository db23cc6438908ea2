"""Chooses the engine that runs an attention model, and loads it.

*Native* is our own network for the Llama-like majority, with kernels of our own on a CPU. *Generic*
is the unmodified model of transformers, for every family with attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from treesnake.errors import InvalidInputError, UnsupportedModelError
from treesnake.loading.checkpoint import DEFAULT_MODEL, Checkpoint, find_checkpoint
from treesnake.loading.memory import check_memory
from treesnake.loading.pretrained import (
    DeviceMap,
    DtypeName,
    check_options,
    load_checkpoint,
    resolve_device,
)
from treesnake.models.gguf import GgufFile
from treesnake.models.hf_attention import HfAttention
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig, unsupported_reason
from treesnake.models.transformer_layers import restrict_output
from treesnake.models.tree_network import TreeNetwork
from treesnake.models.weights import exact_dtype

EngineName = Literal["auto", "native", "generic"]


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """An attention model in memory.

    Attributes:
        checkpoint: where it came from: config, tokenizer, generation config.
        network: the weights, in the engine that runs them.
        engine: "native" or "generic".
        why: the reason for this engine.
        dtype: of the weights.
        device: where it runs.
        num_bytes: what the weights take in memory.
    """

    checkpoint: Checkpoint
    network: TreeNetwork
    engine: str
    why: str
    dtype: str
    device: str
    num_bytes: int

    @property
    def description(self) -> dict[str, Any]:
        """What `treesnake info` shows of it."""
        return {
            "name": self.checkpoint.name,
            "family": self.checkpoint.config.model_type,
            "engine": f"{self.engine} ({self.why})",
            "dtype": self.dtype,
            "device": self.device,
            "weights_bytes": self.num_bytes,
            "vocabulary": self.network.vocab_size,
            "context": self.network.context_length,
        }


def load_attention_network(
    name: str = DEFAULT_MODEL,
    *,
    dtype: DtypeName = "auto",
    device: str = "auto",
    engine: EngineName = "auto",
    device_map: DeviceMap | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    draft_vocab: Int[Tensor, " kept"] | None = None,
) -> LoadedNetwork:
    """Loads an attention model and chooses its engine.

    Args:
        name: "smollm2", a folder, a GGUF file, or a name at the hub.
        dtype: of the weights. "auto" is the checkpoint's own, except that the generic engine
            computes in float32 on a CPU, where it is slow in half precision. int8 rounds each row
            of a weight to 8 bits and needs the native engine on a CPU.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto" for the best there is.
        engine: "auto" is native on a CPU for the families that it knows, else generic.
        device_map: spreads the layers over several devices with accelerate; the engine is generic.
        revision: of a model at the hub.
        trust_remote_code: runs code that comes with the model; the engine is generic.
        draft_vocab: the only tokens that a drafter gives logits of, in this order; the engine is
            native.

    Raises:
        LoadError: if the model cannot be had, or its weights are broken or do not fit.
        UnsupportedModelError: if it cannot be run so, with the reason.
        InvalidInputError: for options that do not exist or contradict each other.
    """
    if engine not in get_args(EngineName):
        names = ", ".join(get_args(EngineName))
        raise InvalidInputError(f"unknown engine {engine!r}; choose one of {names}")
    if engine == "generic" and dtype == "int8":
        raise InvalidInputError("int8 weights are for the native engine; leave the engine at auto")
    check_options(dtype, device, device_map)
    checkpoint = find_checkpoint(name, revision=revision, trust_remote_code=trust_remote_code)
    place = resolve_device(device)
    obstacle = _native_obstacle(checkpoint, dtype, place, device_map)
    if obstacle and (engine == "native" or dtype == "int8"):
        needed = "the native engine" if engine == "native" else "the native engine, as int8 must"
        raise UnsupportedModelError(f"{name} cannot run in {needed}: {obstacle}")
    if engine == "auto" and place.type != "cpu" and draft_vocab is None:
        obstacle = obstacle or "the default for this device"
    if engine == "generic":
        obstacle = "as asked"
    if obstacle is None:
        why = "as asked" if engine == "native" else f"fastest for {checkpoint.config.model_type}"
        return _load_native(checkpoint, dtype, place, why, draft_vocab)
    if draft_vocab is not None:
        raise UnsupportedModelError(
            f"{name} comes with a draft vocabulary, which needs the native engine: {obstacle}"
        )
    return _load_generic(checkpoint, dtype, device, device_map, obstacle)


def _native_obstacle(
    checkpoint: Checkpoint, dtype: str, device: torch.device, device_map: DeviceMap | None
) -> str | None:
    """Returns why the native engine cannot run a checkpoint, or None."""
    if device_map is not None:
        return "it runs on one device, not on a device_map"
    if checkpoint.trust_remote_code:
        return "it does not run code that comes with a model"
    if isinstance(checkpoint.weights, GgufFile):
        return "it reads safetensors, this is a GGUF file"
    if getattr(checkpoint.config, "quantization_config", None) is not None:
        return "it does not read weights that are stored quantised"
    if device.type not in ("cpu", "cuda"):
        return f"it runs on CPUs and CUDA devices, not on {device.type}"
    if dtype == "int8" and device.type != "cpu":
        return "it has int8 weights on a CPU only"
    return unsupported_reason(checkpoint.config)


def _load_native(
    checkpoint: Checkpoint,
    dtype: str,
    device: torch.device,
    why: str,
    draft_vocab: Int[Tensor, " kept"] | None,
) -> LoadedNetwork:
    torch_dtype = _native_dtype(checkpoint, dtype)
    tensors: Mapping[str, Tensor] = checkpoint.weights
    in_memory = exact_dtype(tensors, torch_dtype) if device.type == "cpu" else torch_dtype
    check_memory(checkpoint, in_memory, device)
    config = TransformerConfig.from_hf(checkpoint.config)
    if draft_vocab is not None:
        tensors, config = restrict_output(tensors, config, draft_vocab)
    network = Transformer(config, tensors, torch_dtype, device)
    return LoadedNetwork(
        checkpoint=checkpoint,
        network=network,
        engine="native",
        why=why,
        dtype=_name(torch_dtype),
        device=str(device),
        num_bytes=network.num_bytes,
    )


def _load_generic(
    checkpoint: Checkpoint, dtype: DtypeName, device: str, device_map: DeviceMap | None, why: str
) -> LoadedNetwork:
    pretrained = load_checkpoint(checkpoint, dtype=dtype, device=device, device_map=device_map)
    module = pretrained.model
    return LoadedNetwork(
        checkpoint=checkpoint,
        network=HfAttention(module),
        engine="generic",
        why=why,
        dtype=_name(module.dtype),
        device=str(module.device),
        num_bytes=module.get_memory_footprint(),
    )


def _native_dtype(checkpoint: Checkpoint, dtype: str) -> torch.dtype:
    """Returns the dtype of the weights; activations are float32 with all of them on a CPU."""
    if dtype != "auto":
        return getattr(torch, dtype)
    stored = checkpoint.config.get_text_config().dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
