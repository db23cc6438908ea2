"""Loads any network, and chooses the engine that runs it.

*Native* engines are our own: Mamba and Mamba-2 everywhere, and a decoder for the Llama-like
majority, with kernels of our own on a CPU. *Generic* is the unmodified model of transformers, for
every other family, with attention, recurrent layers or both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PretrainedConfig

from treesnake.errors import LoadError, TreesnakeError, UnsupportedModelError, reason_of
from treesnake.kernels.cpu.integer_dots import chosen_dot
from treesnake.loading.architecture import Architecture
from treesnake.loading.checkpoint import Checkpoint
from treesnake.loading.gguf_models import foreign_factors, rotary_factors
from treesnake.loading.memory import check_memory, give_back_memory
from treesnake.loading.options import DEFAULT_OPTIONS, INTEGER_DTYPES, OWN_DTYPES, LoadOptions
from treesnake.loading.pretrained import asks_for_integers, load_checkpoint, resolve_device
from treesnake.loading.state_space import load_state_space, stored_dtype
from treesnake.models.gguf import GgufFile, describe_formats, kept_packed
from treesnake.models.hf_network import hf_network
from treesnake.models.hf_replay import HfReplay
from treesnake.models.hybrid_config import HybridConfig, hybrid_obstacle, is_hybrid
from treesnake.models.hybrid_cpu import CpuHybrid
from treesnake.models.state_space import check_vocabulary
from treesnake.models.state_space_cpu import CpuNetwork
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig, unsupported_reason
from treesnake.models.transformer_layers import admit_tensors, restrict_output
from treesnake.models.tree_network import TreeNetwork, reads_inputs
from treesnake.models.weights import Weights, exact_dtype

STORED_INTEGERS = "stored"
"""The dtype of a network whose matrices are the integers of its file."""


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A network in memory.

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
    def is_in_integers(self) -> bool:
        """Whether its products are made in integers."""
        return self.dtype in (*INTEGER_DTYPES, STORED_INTEGERS)

    @property
    def description(self) -> dict[str, Any]:
        """What `treesnake info` shows of it."""
        in_integers = f"rounded to 8 bits, products in integers ({chosen_dot().name})"
        return {
            "name": self.checkpoint.name,
            "family": self.checkpoint.config.model_type,
            "engine": f"{self.engine} ({self.why})",
            "dtype": self.dtype,
            "activations": in_integers if self.is_in_integers else "not rounded",
            "device": self.device,
            "weights_bytes": self.num_bytes,
            "reads": "text and images" if reads_inputs(self.network) else "text",
            "vocabulary": self.network.vocab_size,
            "context": self.network.context_length,
        } | self._formats

    @property
    def _formats(self) -> dict[str, str]:
        """What is said of a packed file: its formats, and their bits if it runs as stored."""
        weights = self.checkpoint.weights
        if self.dtype != STORED_INTEGERS or not isinstance(weights, Weights):
            return {}
        return {"formats": describe_formats(weights.entries)}


def load_network(
    checkpoint: Checkpoint,
    options: LoadOptions = DEFAULT_OPTIONS,
    *,
    draft_vocab: Int[Tensor, " kept"] | None = None,
    target: Checkpoint | None = None,
    cache_dtype: torch.dtype | None = None,
) -> LoadedNetwork:
    """Loads a network of any architecture and chooses its engine.

    Args:
        checkpoint: the model.
        options: how it is loaded.
        draft_vocab: the only tokens that a drafter gives logits of, in this order; the engine is
            native.
        target: what it drafts for, whose embeddings it may share.
        cache_dtype: of the keys and values of our own decoder on a CPU; None is what suits its
            weights.

    Raises:
        LoadError: if its weights are broken or do not fit.
        UnsupportedModelError: if it cannot be run so, with the reason.
        InvalidInputError: if there is no such device, a token of the draft vocabulary does not
            exist, or the checkpoint leaves out embeddings that are not this target's.
    """
    _check_format(checkpoint)
    loaded = _load_in_engine(checkpoint, options, draft_vocab, target, cache_dtype)
    give_back_memory()
    return loaded


def _load_in_engine(
    checkpoint: Checkpoint,
    options: LoadOptions,
    draft_vocab: Int[Tensor, " kept"] | None,
    target: Checkpoint | None,
    cache_dtype: torch.dtype | None,
) -> LoadedNetwork:
    if checkpoint.found.architecture is Architecture.STATE_SPACE and options.engine != "generic":
        return _load_state_space(checkpoint, options, draft_vocab, target)
    device = resolve_device(options.device)
    obstacle = _native_obstacle(checkpoint, options, device)
    in_integers = asks_for_integers(options.dtype, checkpoint)
    if obstacle and (options.engine == "native" or in_integers):
        asked = options.engine == "native"
        needed = "the native engine" if asked else f"the native engine, as {options.dtype} must"
        raise UnsupportedModelError(f"{checkpoint.name} cannot run in {needed}: {obstacle}")
    if options.engine == "generic":
        obstacle = "as asked"
    if obstacle is None:
        return _load_native(checkpoint, options, device, draft_vocab, cache_dtype)
    if draft_vocab is not None:
        raise UnsupportedModelError(
            f"{checkpoint.name} comes with a draft vocabulary, which needs the native engine: "
            f"{obstacle}"
        )
    return _load_generic(checkpoint, options, obstacle)


def _check_format(checkpoint: Checkpoint) -> None:
    """Refuses weights that another library packed in a way of its own."""
    quantised = checkpoint.found.fields.get("quantization")
    packed = any(name.endswith(".scales") for name in checkpoint.weights)
    if isinstance(quantised, Mapping) and "bits" in quantised and packed:
        raise LoadError(
            f"the weights in {checkpoint.path} are quantised by MLX, whose format is not read here;"
            " choose the original model, or a GGUF file of it"
        )


def _load_state_space(
    checkpoint: Checkpoint,
    options: LoadOptions,
    draft_vocab: Int[Tensor, " kept"] | None,
    target: Checkpoint | None,
) -> LoadedNetwork:
    device = resolve_device(options.device)
    family = checkpoint.config.model_type
    obstacle = _state_space_obstacle(options, device)
    if obstacle is not None:
        raise UnsupportedModelError(
            f"{checkpoint.name} is of the family {family} and cannot run so: {obstacle}"
        )
    dtype = _native_dtype(checkpoint, options)
    check_memory(checkpoint, dtype, device)
    network = load_state_space(checkpoint, dtype, device, draft_vocab, target)
    if isinstance(network, CpuNetwork):
        num_bytes = network.num_bytes
    else:
        num_bytes = sum(parameter.nbytes for parameter in network.parameters())
    return LoadedNetwork(
        checkpoint=checkpoint,
        network=network,
        engine="native",
        why="as asked" if options.engine == "native" else f"our own for {family}",
        dtype=_name(dtype),
        device=str(device),
        num_bytes=num_bytes,
    )


def _state_space_obstacle(options: LoadOptions, device: torch.device) -> str | None:
    """Returns why our networks cannot run a Mamba as asked, or None."""
    if options.device_map is not None:
        return "our Mamba runs on one device, not on a device_map; choose the generic engine"
    if options.dtype in INTEGER_DTYPES and device.type != "cpu":
        return (
            f"a Mamba has {options.dtype} weights on a CPU only, not on {device}; choose bfloat16"
        )
    return None


def _native_obstacle(
    checkpoint: Checkpoint, options: LoadOptions, device: torch.device
) -> str | None:
    """Returns why our own decoder cannot run a checkpoint, or None."""
    if options.device_map is not None:
        return "it runs on one device, not on a device_map"
    if checkpoint.trust_remote_code:
        return "it does not run code that comes with a model"
    if isinstance(checkpoint.weights, GgufFile):
        return "it does not know the architecture of this GGUF file"
    if getattr(checkpoint.config, "quantization_config", None) is not None:
        return "it does not read weights that are stored quantised"
    if device.type not in ("cpu", "cuda"):
        return f"it runs on CPUs and CUDA devices, not on {device.type}"
    if options.dtype in INTEGER_DTYPES and device.type != "cpu":
        return f"it has {options.dtype} weights on a CPU only"
    if options.dtype == "stored" and checkpoint.is_packed and device.type != "cpu":
        return "it keeps the integers of a file on a CPU only"
    return _family_obstacle(checkpoint, device)


def _family_obstacle(checkpoint: Checkpoint, device: torch.device) -> str | None:
    if not is_hybrid(checkpoint.config):
        return unsupported_reason(checkpoint.config)
    if device.type != "cpu":
        return f"it runs hybrids on CPUs, not on {device.type}"
    return hybrid_obstacle(checkpoint.config)


def _load_native(
    checkpoint: Checkpoint,
    options: LoadOptions,
    device: torch.device,
    draft_vocab: Int[Tensor, " kept"] | None,
    cache_dtype: torch.dtype | None,
) -> LoadedNetwork:
    tensors = checkpoint.weights
    torch_dtype = _native_dtype(checkpoint, options)
    name = _name(torch_dtype)
    if keeps_integers(checkpoint, options, device):
        assert isinstance(tensors, Weights)
        tensors, torch_dtype, name = kept_packed(tensors), torch.int8, STORED_INTEGERS
        check_memory(checkpoint, None, device)
    else:
        in_memory = exact_dtype(tensors, torch_dtype) if device.type == "cpu" else torch_dtype
        check_memory(checkpoint, in_memory, device)
    where = str(checkpoint.path)
    network: Transformer | CpuHybrid
    if is_hybrid(checkpoint.config):
        _check_whole(checkpoint, draft_vocab)
        hybrid = _read_config(checkpoint, HybridConfig.from_hf)
        network = CpuHybrid(hybrid, tensors, torch_dtype, where, cache_dtype)
    else:
        config = _read_transformer_config(checkpoint)
        if draft_vocab is not None:
            check_vocabulary(draft_vocab, config.vocab_size)
            config, tensors = admit_tensors(config, tensors, where)
            tensors, config = restrict_output(tensors, config, draft_vocab)
        network = Transformer(config, tensors, torch_dtype, device, where, cache_dtype)
    asked = options.engine == "native"
    return LoadedNetwork(
        checkpoint=checkpoint,
        network=network,
        engine="native",
        why="as asked" if asked else f"fastest for {checkpoint.config.model_type}",
        dtype=name,
        device=str(device),
        num_bytes=network.num_bytes,
    )


def _check_whole(checkpoint: Checkpoint, draft_vocab: Int[Tensor, " kept"] | None) -> None:
    if draft_vocab is not None:
        raise UnsupportedModelError(
            f"{checkpoint.name} is a hybrid and comes with a draft vocabulary, which is for Mamba "
            "and Llama-like drafters; leave the vocabulary out of its folder"
        )


Config = TypeVar("Config", TransformerConfig, HybridConfig)


def _read_config(checkpoint: Checkpoint, read: Callable[[PretrainedConfig], Config]) -> Config:
    try:
        return read(checkpoint.config)
    except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError) as error:
        raise LoadError(f"the config of {checkpoint.name} makes no sense: {error!r}") from error


def _read_transformer_config(checkpoint: Checkpoint) -> TransformerConfig:
    config = _read_config(checkpoint, TransformerConfig.from_hf)
    factors = None if checkpoint.gguf is None else rotary_factors(checkpoint.gguf)
    if checkpoint.gguf is None or factors is None:
        return config
    frequencies = torch.tensor(config.inverse_frequencies)
    if frequencies.shape != (1, *factors.shape):
        raise foreign_factors(checkpoint.gguf, checkpoint.config.model_type)
    return replace(config, inverse_frequencies=(tuple((frequencies[0] / factors).tolist()),))


def _load_generic(checkpoint: Checkpoint, options: LoadOptions, why: str) -> LoadedNetwork:
    if "model_type" not in checkpoint.found.fields and checkpoint.gguf is None:
        raise UnsupportedModelError(
            f"{checkpoint.name} is in the layout of state-spaces, which transformers does not "
            "read; leave the engine at auto"
        )
    pretrained = load_checkpoint(checkpoint, options)
    module = pretrained.model
    try:
        network = hf_network(module)
    except TreesnakeError:
        raise
    except Exception as error:
        raise LoadError(
            f"the config of {checkpoint.name} is not one that its {type(module).__name__} can run: "
            f"{reason_of(error)}; fetch it again"
        ) from error
    if isinstance(network, HfReplay):
        why += "; its state is copied for every branch, which is slow"
    return LoadedNetwork(
        checkpoint=checkpoint,
        network=network,
        engine="generic",
        why=why,
        dtype=_name(module.dtype),
        device=str(module.device),
        num_bytes=module.get_memory_footprint(),
    )


def keeps_integers(checkpoint: Checkpoint, options: LoadOptions, device: torch.device) -> bool:
    """Tells whether matrices stay the integers of their file: in the native engine on a CPU."""
    is_own = options.dtype in OWN_DTYPES and options.engine != "generic"
    is_kept = is_own and checkpoint.is_packed and device.type == "cpu"
    return is_kept and _native_obstacle(checkpoint, options, device) is None


def _native_dtype(checkpoint: Checkpoint, options: LoadOptions) -> torch.dtype:
    """Returns the dtype of the weights; activations are float32 with all of them on a CPU."""
    is_own = options.dtype in OWN_DTYPES
    return stored_dtype(checkpoint) if is_own else getattr(torch, options.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
