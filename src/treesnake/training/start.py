"""What a drafter takes over from its target before it learns anything."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import Checkpoint
from treesnake.loading.state_space import read_embeddings
from treesnake.models.mamba2 import Mamba2, Mamba2Mixer
from treesnake.training.learner import Learner
from treesnake.training.training_recipe import Start

FINAL_NORMS = ("model.norm.weight", "model.language_model.norm.weight", "backbone.norm_f.weight")
"""What families call these tensors."""


@torch.no_grad()
def start_from_target(learner: Learner, start: Start, target: Checkpoint) -> None:
    """Copies what is to be taken over, and freezes what is not to be trained.

    Raises:
        InvalidInputError: if the target has no such weights, or they do not fit.
        UnsupportedModelError: if its embeddings have no name that is known.
    """
    if start.embeddings == "target":
        embeddings = _embeddings(target)
        rows = min(len(embeddings), learner.vocab_size)
        learner.embeddings[:rows] = narrowed(embeddings[:rows], learner.hidden_size)
    if start.final_norm == "target":
        _copy(_find(target, FINAL_NORMS), learner.final_norm, "the weight of the last norm")
    if start.attention_layers:
        _take_attention(learner, start.attention_layers, target)
    learner.final_norm.mul_(start.final_norm_scale)
    for weight in learner.output_projections:
        weight.mul_(start.output_scale)
    for part in start.frozen:
        getattr(learner, part).requires_grad_(False)


def keeps_target_embeddings(learner: Learner, start: Start, target: Checkpoint) -> bool:
    """Tells whether a drafter's embeddings are its target's and stay so, and need not be stored."""
    if start.embeddings != "target" or "embeddings" not in start.frozen or not learner.num_channels:
        return False
    return learner.embeddings.shape == _embeddings(target).shape


def narrowed(
    embeddings: Float[Tensor, "vocab hidden"], width: int
) -> Float[Tensor, "vocab narrow"]:
    """Returns the coordinates of embeddings on their principal directions.

    Products of two rows change as little as they can at that width. At full width nothing is done.

    Raises:
        InvalidInputError: if they are narrower than that.
    """
    hidden_size = embeddings.shape[1]
    if hidden_size < width:
        raise InvalidInputError(
            f"the target's embeddings are {hidden_size} wide and the drafter's {width}; make the "
            'drafter narrower, or let its embeddings start "random"'
        )
    if hidden_size == width:
        return embeddings
    _, directions = torch.linalg.eigh(embeddings.T @ embeddings)
    return embeddings @ directions[:, -width:].flip(-1)


def _take_attention(learner: Learner, layers: tuple[int, ...], target: Checkpoint) -> None:
    network = learner.network
    assert isinstance(network, Mamba2)
    if len(layers) != network.config.num_layers:
        raise InvalidInputError(
            f"attention_layers names {len(layers)} layers of the target, the drafter has "
            f"{network.config.num_layers}; name one for each"
        )
    for block, layer in zip(network.backbone.blocks, layers, strict=True):
        prefix = f"model.layers.{layer}"
        attention = {
            name: _find(target, (f"{prefix}.self_attn.{name}_proj.weight",)) for name in "qkvo"
        }
        norm = _find(target, (f"{prefix}.input_layernorm.weight",))
        _copy(norm, block.norm.weight, f"the norm of the target's layer {layer}")
        mixer = block.mixer
        assert isinstance(mixer, Mamba2Mixer)
        become_attention(mixer, attention, network.config.num_heads, network.config.head_dim)


@torch.no_grad()
def become_attention(
    mixer: Mamba2Mixer,
    attention: Mapping[str, Float[Tensor, "rows columns"]],
    num_heads: int,
    head_dim: int,
) -> None:
    """Makes a Mamba-2 layer begin as linear attention with an attention layer's weights.

    C is made as queries are, B as keys, x as values; what was summed goes through the output
    projection. The convolution passes its newest input, with nothing mixed in. Gates, steps and
    rates begin as they did; positions, which rotate queries and keys, are lost (Wang et al. 2024).

    Args:
        mixer: with a head, and a group of its own, for each head of queries.
        attention: the projections q, k, v and o.
        num_heads: of the mixer.
        head_dim: of its heads; its states have the same size.

    Raises:
        InvalidInputError: if the sizes do not fit.
    """
    channels = num_heads * head_dim
    queries, outputs = attention["q"], attention["o"]
    hidden_size = outputs.shape[0]
    expected = (2 * channels + 2 * channels + num_heads, hidden_size)
    if queries.shape[0] != channels or mixer.in_proj.weight.shape != expected:
        raise InvalidInputError(
            f"the target's attention has {queries.shape[0]} channels of queries; to begin as it, "
            f"a Mamba-2 needs as many heads and groups as it has heads of queries, with head_dim "
            "and state_dim equal to the size of a head"
        )
    repeats = channels // attention["k"].shape[0]
    keys, values = (
        attention[name].unflatten(0, (-1, head_dim)).repeat_interleave(repeats, 0).flatten(0, 1)
        for name in "kv"
    )
    mixer.in_proj.weight[channels : 4 * channels] = torch.cat([values, keys, queries])
    mixer.out_proj.weight.copy_(outputs)
    mixer.conv1d.weight.zero_()
    mixer.conv1d.weight[:, 0, -1] = 1.0
    if mixer.conv1d.bias is not None:
        mixer.conv1d.bias.zero_()


def _embeddings(target: Checkpoint) -> Float[Tensor, "vocab hidden"]:
    return read_embeddings(target).float()


def _find(target: Checkpoint, names: tuple[str, ...]) -> Float[Tensor, "..."]:
    weights = target.weights
    found = next((name for name in names if name in weights), None)
    if found is None:
        raise InvalidInputError(
            f"{target.name} has no tensor {' or '.join(names)}; this start is for targets in the "
            "Hugging Face layout that have these weights apart"
        )
    return weights[found].float()


def _copy(source: Float[Tensor, "..."], into: Float[Tensor, "..."], what: str) -> None:
    if source.shape != into.shape:
        raise InvalidInputError(
            f"{what} has shape {list(source.shape)}, the drafter's has {list(into.shape)}; choose "
            "equal hidden sizes"
        )
    into.copy_(source)
