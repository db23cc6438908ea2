"""The one gate for weights: what a config promises is compared with what the files hold.

Only names, shapes and dtypes are looked at, which a checkpoint's headers state. So a config of
another network is refused before anything is built or read. Nothing is filled in, cut or broadcast.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from treesnake.errors import LoadError
from treesnake.models.weights import StoredTensor, Weights, read_blocks

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]

LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")

WRAPPERS = ("module.", "_orig_mod.")
"""What data parallel training and torch.compile put in front of every name."""

MOST_NAMED = 3
ROWS_COMPARED = 4096

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SIZES = (
    "vocab_size",
    "hidden_size",
    "n_embd",
    "d_model",
    "intermediate_size",
    "n_inner",
    "head_dim",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "num_heads",
    "state_size",
    "n_groups",
    "conv_kernel",
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
)
"""Keys of configs that are an axis of some tensor, or divide one."""

PACKED_VALUES = 8
"""Values that a stored number may hold at most, where weights are quantised: 4 bits of 32."""


@dataclass(frozen=True)
class Tie:
    """Two tensors that a config says are one.

    Attributes:
        embedding: the name of the embedding.
        head: the name of the output layer.
    """

    embedding: str
    head: str


@dataclass(frozen=True)
class Promise:
    """The tensors that a network of a certain config has.

    Attributes:
        shapes: of each, by the name that it has in the network; both tensors of a tie are named.
        base: what names begin with but for the output layer's. A file of the base class leaves it
            out, as transformers' `LlamaModel.save_pretrained` does.
        tie: what the config ties.
    """

    shapes: Mapping[str, Shape]
    base: str
    tie: Tie | None = None


@dataclass(frozen=True, eq=False)
class Admitted:
    """Tensors that are what was promised.

    Attributes:
        tensors: all of the network, and no others; of a tie the embedding only.
        is_tied: whether the output layer is the embedding.
    """

    tensors: Mapping[str, Tensor]
    is_tied: bool


def admit(promise: Promise, stored: Mapping[str, Tensor], where: str) -> Admitted:
    """Compares a checkpoint with what its config promises.

    Ties are those of transformers: where both tensors are there and differ, each is used; where one
    is missing, it is the other.

    Args:
        promise: what the network needs.
        stored: what the files hold, under their names.
        where: the folder, for messages.

    Raises:
        LoadError: if a tensor is missing, has another shape, or holds no floating-point numbers;
            or if the files hold more of such a network than the config promises.
    """
    names = _names_in_files(promise, stored, where)
    missing = promise.shapes.keys() - names.keys()
    if promise.tie is not None:
        pair = (promise.tie.embedding, promise.tie.head)
        for name, other in (pair, pair[::-1]):
            if name in missing and other in names:
                names[name] = names[other]
                missing.discard(name)
    check_names(promise.shapes, missing, stored.keys() - set(names.values()), where, stored)
    kinds = {name: _kind(stored, own) for name, own in names.items()}
    check_shapes(
        [
            (own, kinds[name][0], promise.shapes[name])
            for name, own in sorted(names.items())
            if kinds[name][0] != promise.shapes[name]
        ],
        where,
    )
    check_dtypes({own: kinds[name][1] for name, own in names.items()}, where)
    is_tied = promise.tie is not None and _is_one(stored, names, promise.tie, where)
    if is_tied and promise.tie is not None:
        del names[promise.tie.head]
    if isinstance(stored, Weights):
        entries = {name: stored.entries[own] for name, own in names.items()}
        return Admitted(Weights(entries), is_tied)
    return Admitted({name: stored[own] for name, own in names.items()}, is_tied)


def check_names(
    promised: Collection[str],
    missing: Collection[str],
    surplus: Iterable[str],
    where: str,
    stored: Iterable[str],
) -> None:
    """Refuses a checkpoint that lacks tensors of a network, or has some of a larger one.

    Tensors that no network of this kind could have are left out, which is logged.

    Args:
        promised: the names of the network's tensors.
        missing: those of them that the files lack.
        surplus: names in the files that the network does not have.
        where: the folder, for messages.
        stored: all names in the files.

    Raises:
        LoadError: naming the tensors.
    """
    if missing:
        first = min(stored, default="")
        wrapper = next((each for each in WRAPPERS if first.startswith(each)), None)
        advice = "is it complete, and does its config belong to it?"
        if wrapper:
            advice = f"its names begin with {wrapper!r}: save the module inside of the wrapper"
        raise LoadError(
            f"{where} lacks {len(missing)} of the tensors that its config promises, "
            f"{_first_of(missing)}; {advice}"
        )
    foreign = sorted(surplus)
    if not foreign:
        return
    owners = {name.rpartition(".")[0] for name in promised}
    patterns = {LAYER_NUMBER.sub("*", owner) for owner in owners}
    stacks = {LAYER_NUMBER.split(name)[0] for name in promised if LAYER_NUMBER.search(name)}
    unused = [name for name in foreign if _belongs(name, owners, patterns, stacks)]
    if unused:
        raise LoadError(
            f"{where} holds more of its network than its config promises, {len(unused)} times, "
            f"{_first_of(unused)}; does the config belong to it?"
        )
    logger.warning(
        "%s holds %d tensors that are no part of its network and are not loaded, %s",
        where,
        len(foreign),
        _first_of(foreign),
    )


def check_shapes(
    mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]], where: str
) -> None:
    """Refuses tensors of other shapes than the config promises.

    Args:
        mismatched: name, shape in the file and promised shape of each.
        where: the folder, for messages.

    Raises:
        LoadError: with the shapes of the first ones, if there are any.
    """
    if not mismatched:
        return
    shown = "; ".join(
        f"{name} has shape {list(found)}, the config promises {list(promised)}"
        for name, found, promised in mismatched[:MOST_NAMED]
    )
    others = len(mismatched) - MOST_NAMED
    more = f"; and {others} others" if others > 0 else ""
    raise LoadError(f"the weights in {where} do not fit its config: {shown}{more}")


def check_sizes(fields: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> None:
    """Refuses a config with sizes that its files cannot hold, before anything is made of it.

    Args:
        fields: what config.json says, with those of a text model in it.
        weights: opened, not read.
        where: the folder, for messages.

    Raises:
        LoadError: if a size is larger than all tensors together.
    """
    most = PACKED_VALUES * count_values(weights)
    for key in (*LAYERS, *SIZES):
        limit = len(weights) if key in LAYERS else most
        value = fields.get(key)
        for size in value if isinstance(value, list) else [value]:
            if type(size) is int and size > limit:
                raise LoadError(
                    f"the config of {where} does not belong to its weights: it says {key} = {size},"
                    f" and the files hold {len(weights)} tensors of {count_values(weights)} numbers"
                )
    for part in ("text_config", "llm_config", "language_config"):
        if isinstance(fields.get(part), Mapping):
            check_sizes(fields[part], weights, where)


def count_values(weights: Mapping[str, Tensor]) -> int:
    """Returns how many numbers the tensors of a checkpoint have, without reading any."""
    if isinstance(weights, Weights):
        return sum(entry.num_elements for entry in weights.entries.values())
    return sum(tensor.numel() for tensor in weights.values())


def stored_shapes(weights: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Returns the shape of each tensor of a checkpoint, without reading any."""
    if isinstance(weights, Weights):
        return {name: entry.shape for name, entry in weights.entries.items()}
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def check_dtypes(kinds: Mapping[str, torch.dtype], where: str) -> None:
    """Refuses tensors of other numbers than a network that is not quantised has.

    Args:
        kinds: the dtype of each tensor that the network uses, by its name in the files.
        where: the folder, for messages.

    Raises:
        LoadError: naming one that holds no floating-point numbers.
    """
    for name, dtype in kinds.items():
        if not dtype.is_floating_point:
            raise LoadError(
                f"the weights in {where} do not fit its config: {name} holds {dtype}, which are no "
                "floating-point numbers, and the config says nothing of quantisation"
            )


def _names_in_files(promise: Promise, stored: Mapping[str, Tensor], where: str) -> dict[str, str]:
    """Returns the name in the files of each promised tensor that they hold."""
    names: dict[str, str] = {}
    for own in stored:
        choices = (own, promise.base + own, own.removeprefix(promise.base))
        name = next((choice for choice in choices if choice in promise.shapes), None)
        if name is None:
            continue
        if name in names:
            raise LoadError(f"{where} holds {name} twice, as {names[name]} and as {own}")
        names[name] = own
    return names


def _belongs(
    name: str, owners: Collection[str], patterns: Collection[str], stacks: Collection[str]
) -> bool:
    """Tells whether a tensor would change what a network of this kind computes."""
    owner = name.rpartition(".")[0]
    if owner in owners or LAYER_NUMBER.sub("*", owner) in patterns:
        return True
    numbered = LAYER_NUMBER.search(name) and LAYER_NUMBER.split(name)[0] in stacks
    return bool(numbered) and name.endswith((".weight", ".bias"))


def _kind(stored: Mapping[str, Tensor], name: str) -> tuple[Shape, torch.dtype]:
    kind: StoredTensor | Tensor
    kind = stored.entries[name] if isinstance(stored, Weights) else stored[name]
    return tuple(kind.shape), kind.dtype


def _is_one(stored: Mapping[str, Tensor], names: Mapping[str, str], tie: Tie, where: str) -> bool:
    """Tells whether both tensors of a tie are the same; they are read only if they are two."""
    embedding, head = names[tie.embedding], names[tie.head]
    if embedding == head:
        return True
    blocks = (_blocks(stored, name) for name in (embedding, head))
    if all(torch.equal(one, other) for one, other in zip(*blocks, strict=True)):
        return True
    logger.warning(
        "the config of %s ties %s to %s, and its files hold two that differ: each is used",
        where,
        tie.head,
        tie.embedding,
    )
    return False


def _blocks(stored: Mapping[str, Tensor], name: str) -> Iterable[Float[Tensor, "rows width"]]:
    return (block.float() for block in read_blocks(stored, name, ROWS_COMPARED))


def _first_of(names: Collection[str]) -> str:
    shown = sorted(names)[:MOST_NAMED]
    return ", ".join(shown) + (" first" if len(names) > MOST_NAMED else "")
