"""The tensors of a decoder of attention and Mamba-2 layers, read from a state dict.

Attention, MLPs and both ends of the network are handed on by the names that they have in a Llama,
under which `transformer_layers` reads them.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.models.hybrid_config import HybridConfig
from treesnake.models.mamba2 import Mamba2Config, Mamba2Mixer
from treesnake.models.state_space_packing import Layers
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_layers import EMBEDDING, FINAL_NORM, HEAD, check_heads
from treesnake.models.weight_gate import Promise, Shape, Tie, admit
from treesnake.models.weights import InMemory, Weights

LLAMA_NAMES = {
    "shared_mlp.input_linear": "mlp.gate_up_proj",
    "shared_mlp.output_linear": "mlp.down_proj",
}
"""Parts of a layer by their names here, and those in a Llama."""


def admit_hybrid(
    config: HybridConfig, tensors: Mapping[str, Tensor], where: str
) -> tuple[HybridConfig, Mapping[str, Tensor]]:
    """Returns the tensors of a network and its config, which says what is really tied.

    The last norm divides the logits, too.

    Raises:
        LoadError: if the tensors are not those that the config promises.
    """
    check_heads(config.decoder, where)
    admitted = admit(_promised_tensors(config), tensors, where)
    decoder = replace(config.decoder, tied_embeddings=admitted.is_tied)
    norm = admitted.tensors[FINAL_NORM].float() / config.logits_divisor
    return replace(config, decoder=decoder), _as_in_a_llama(admitted.tensors, norm)


def read_mixers(config: HybridConfig, tensors: Mapping[str, Tensor]) -> Layers:
    """Reads the mixers, as they are stored, and the norms before them."""
    mixers: list[Mamba2Mixer] = []
    norms: list[Tensor] = []
    for number, attends in enumerate(config.decoder.attends):
        if attends:
            continue
        prefix = f"model.layers.{number}."
        with torch.device("meta"):
            mixer = Mamba2Mixer(config.mixer)
        own = {name: tensors[f"{prefix}mamba.{name}"] for name in mixer.state_dict()}
        mixer.load_state_dict(own, assign=True)
        mixers.append(mixer)
        norms.append(tensors[f"{prefix}input_layernorm.weight"])
    return Layers(mixers, norms)


def _promised_tensors(config: HybridConfig) -> Promise:
    decoder = config.decoder
    hidden = decoder.hidden_size
    shapes: dict[str, Shape] = {
        EMBEDDING: (decoder.vocab_size, hidden),
        HEAD: (decoder.output_size, hidden),
        FINAL_NORM: (hidden,),
    }
    both: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "shared_mlp.input_linear.weight": (2 * decoder.mlp_size, hidden),
        "shared_mlp.output_linear.weight": (hidden, decoder.mlp_size),
    }
    attention, mixer = _attention_shapes(decoder), _mixer_shapes(config.mixer)
    for number, attends in enumerate(decoder.attends):
        layer = both | (attention if attends else mixer)
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    tie = Tie(EMBEDDING, HEAD) if decoder.tied_embeddings else None
    return Promise(shapes, "model.", tie)


def _attention_shapes(config: TransformerConfig) -> dict[str, Shape]:
    hidden = config.hidden_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
    }


def _mixer_shapes(config: Mamba2Config) -> dict[str, Shape]:
    with torch.device("meta"):
        mixer = Mamba2Mixer(config)
    return {f"mamba.{name}": tuple(each.shape) for name, each in mixer.state_dict().items()}


def _as_in_a_llama(
    tensors: Mapping[str, Tensor], final_norm: Float[Tensor, " hidden"]
) -> Mapping[str, Tensor]:
    names = {_called(name): name for name in tensors}
    if isinstance(tensors, Weights):
        entries = {called: tensors.entries[name] for called, name in names.items()}
        return Weights(entries | {FINAL_NORM: InMemory(final_norm)})
    return {called: tensors[name] for called, name in names.items()} | {FINAL_NORM: final_norm}


def _called(name: str) -> str:
    for part, other in LLAMA_NAMES.items():
        name = name.replace(part, other)
    return name
