"""Mamba and Mamba-2 on a CPU: packed weights, and one compiled call a pass over them."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.kernels.cpu import mamba as mamba_kernels
from treesnake.kernels.cpu import mamba2 as mamba2_kernels
from treesnake.kernels.cpu import ssd, ssm
from treesnake.kernels.cpu.linear import STORAGE, TILES, padded, write_weight
from treesnake.kernels.cpu.ssm_rows import REPLAYED_CHANNELS
from treesnake.kernels.cpu.state_space import COPIES, SUMS, TEXT, Memory, Tokens
from treesnake.kernels.cpu.team import TEAM
from treesnake.kernels.dispatch import SsmKernels
from treesnake.models.mamba import Mamba, MambaMixer
from treesnake.models.mamba2 import Mamba2, Mamba2Mixer
from treesnake.models.state_space import StateSpaceNetwork, check_growth, check_vocabulary
from treesnake.states.branching import PathSums, StateCopies, StateShape
from treesnake.states.ssm import SsmState
from treesnake.states.topology import topology

PREFILL_CHUNK = 128
"""Tokens of a prompt that are run at once: their activations stay in the cache."""

SPARE_ROWS = TILES[0][0]
"""Rows that the last tile may go beyond the tokens."""

CPU = torch.device("cpu")


class CpuNetwork(ABC):
    """A network for inference on a CPU, with weights in a dtype of choice.

    It does what `StateSpaceNetwork.extend` and `prefill` do, in one compiled call for all layers.
    Activations and states are float32. States are its own: their axes are padded to whole vectors.
    Calls from several threads wait for each other.
    """

    kernels: SsmKernels

    def __init__(
        self,
        network: StateSpaceNetwork[Any],
        shape: StateShape,
        weights: Any,
        branching: type[StateCopies] | type[PathSums],
    ) -> None:
        self.config = network.config
        self._shape = shape
        self._weights = weights
        self._branching = branching
        self._lock = threading.Lock()
        self._work = self._new_workspace(num_rows=1, num_nodes=1)
        self._room = (1, 1, torch.get_num_threads())

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory; what is tied counts once."""
        arrays = {array.ctypes.data: array.nbytes for array in self._weights}
        return sum(arrays.values())

    def new_state(self, branching: type[StateCopies] | type[PathSums] | None = None) -> SsmState:
        """Returns the state of an empty text; by default with the fastest way to branch."""
        rates = torch.from_numpy(self._weights.rates)
        branch = (branching or self._branching)(self._shape, self.kernels, rates)
        return SsmState(self._shape, branch, CPU)

    def prefill(
        self,
        token_ids: Sequence[int] | Int[Tensor, " tokens"],
        state: SsmState,
        chunk: int = PREFILL_CHUNK,
    ) -> None:
        """Runs a text, `chunk` tokens at a time, and commits it; a tree that was there is dropped.

        Pending tokens are run in front of it.
        """
        state.clear_tree()
        state.commit(())
        tokens = _with_pending(state.take_pending(), token_ids)
        for part in np.split(tokens, range(chunk, len(tokens), chunk)) if len(tokens) else ():
            windows = np.arange(len(part))[:, None] + np.arange(self._shape.conv_width)
            nothing = topology((), self._shape.conv_width, CPU)
            parents, mask = nothing.parents.numpy(), nothing.ancestor_mask.numpy()
            run = Tokens(TEXT, part, windows, parents, np.zeros(0, bool))
            self._run(run, mask, state, num_logits=0)
            state.advance(len(part))

    def extend(
        self,
        token_ids: Sequence[int] | Int[Tensor, " new"],
        parents: Sequence[int],
        state: SsmState,
    ) -> Float[Tensor, "new vocab"]:
        """Appends nodes to the tree and returns the logits after each; see `StateSpaceNetwork`."""
        check_growth(token_ids, parents)
        tokens = _with_pending(state.append(parents), token_ids)
        tree = state.topology
        mask = tree.ancestor_mask.numpy()[-len(tokens) :]
        run = Tokens(
            SUMS if isinstance(state.branching, PathSums) else COPIES,
            tokens,
            tree.windows.numpy()[-len(tokens) :],
            tree.parents.numpy(),
            np.logical_or.reduce(mask, axis=0),
        )
        return self._run(run, mask, state, num_logits=len(parents))

    def _run(
        self, tokens: Tokens, ancestor_mask: np.ndarray, state: SsmState, num_logits: int
    ) -> Float[Tensor, "new vocab"]:
        logits = np.empty((num_logits + SPARE_ROWS, len(self._weights.head)), np.float32)
        memory = _memory_of(state)
        with self._lock:
            self._make_room(len(tokens.token_ids), len(tokens.parents))
            self._call(tokens, ancestor_mask, memory, num_logits, logits)
        return torch.from_numpy(logits)[:num_logits]

    def _make_room(self, num_rows: int, num_nodes: int) -> None:
        needs = (num_rows, num_nodes, torch.get_num_threads())
        if any(need > has for need, has in zip(needs, self._room, strict=True)):
            self._room = tuple(map(max, needs, self._room))
            self._work = self._new_workspace(*self._room[:2])

    @abstractmethod
    def _new_workspace(self, num_rows: int, num_nodes: int) -> Any:
        """Allocates zeros: the padding of rows is never written."""

    @abstractmethod
    def _call(
        self,
        tokens: Tokens,
        ancestor_mask: np.ndarray,
        memory: Memory,
        num_logits: int,
        logits: np.ndarray,
    ) -> None:
        """Makes the compiled call."""


class CpuMamba(CpuNetwork):
    """Mamba for inference on a CPU.

    A token's logits have the same bits in a prompt, in a chain and in any tree, in either way to
    branch.

    Args:
        network: where the weights come from; it is not kept.
        dtype: what weights are rounded to: float32, float16, bfloat16 or int8.
        draft_vocab: tokens that `extend` gives logits of, in this order; None for all.
    """

    kernels = ssm

    def __init__(
        self,
        network: Mamba,
        dtype: torch.dtype = torch.float32,
        draft_vocab: Int[Tensor, " kept"] | None = None,
    ) -> None:
        config = network.config
        channels, state_dim = padded(config.num_channels), padded(config.state_dim)
        shape = replace(
            config.state_shape,
            conv_channels=channels,
            state=(channels, state_dim),
            x=(channels,),
            dt=(channels,),
            B=(state_dim,),
        )
        self._rank = padded(config.rank)
        weights = _pack_mamba(network, dtype, draft_vocab)
        super().__init__(network, shape, weights, branching=StateCopies)

    def _new_workspace(self, num_rows: int, num_nodes: int) -> mamba_kernels.Workspace:
        hidden, (channels, state_dim) = padded(self.config.hidden_size), self._shape.state
        rows = num_rows + SPARE_ROWS
        return mamba_kernels.Workspace(
            residual=_zeros(rows, hidden),
            normed=_zeros(rows, hidden),
            entered=_zeros(rows, 2 * channels),
            conv_inputs=_zeros(rows, channels),
            x=_zeros(rows, channels),
            selected=_zeros(rows, self._rank + 2 * state_dim),
            B=_zeros(rows, state_dim),
            dt=_zeros(rows, channels),
            y=_zeros(rows, channels),
            scratch=_zeros(torch.get_num_threads(), num_nodes + 1, REPLAYED_CHANNELS, state_dim),
        )

    def _call(
        self,
        tokens: Tokens,
        ancestor_mask: np.ndarray,
        memory: Memory,
        num_logits: int,
        logits: np.ndarray,
    ) -> None:
        epsilon = np.float32(self.config.norm_eps)
        run = mamba_kernels.Run(
            self._weights, memory, tokens, self._work, epsilon, self._rank, num_logits, logits
        )
        TEAM.run(mamba_kernels.run_mamba, mamba_kernels.count_steps(self._shape.num_layers), run)


class CpuMamba2(CpuNetwork):
    """Mamba-2 for inference on a CPU.

    Args:
        network: where the weights come from; it is not kept.
        dtype: what weights are rounded to: float32, float16, bfloat16 or int8.
        draft_vocab: tokens that `extend` gives logits of, in this order; None for all.
    """

    kernels = ssd

    def __init__(
        self,
        network: Mamba2,
        dtype: torch.dtype = torch.float32,
        draft_vocab: Int[Tensor, " kept"] | None = None,
    ) -> None:
        config = network.config
        channels, state_dim = padded(config.num_channels), padded(config.state_dim)
        shape = replace(
            config.state_shape,
            conv_channels=channels + 2 * config.num_groups * state_dim,
            state=(config.num_heads, config.head_dim, state_dim),
            x=(channels,),
            dt=(padded(config.num_heads),),
            B=(config.num_groups, state_dim),
        )
        weights = _pack_mamba2(network, dtype, draft_vocab)
        super().__init__(network, shape, weights, branching=PathSums)

    def _new_workspace(self, num_rows: int, num_nodes: int) -> mamba2_kernels.Workspace:
        hidden, shape = padded(self.config.hidden_size), self._shape
        (channels,), (steps,), (groups, state_dim) = shape.x, shape.dt, shape.B
        rows = num_rows + SPARE_ROWS
        return mamba2_kernels.Workspace(
            residual=_zeros(rows, hidden),
            normed=_zeros(rows, hidden),
            entered=_zeros(rows, channels + shape.conv_channels + steps),
            conv_inputs=_zeros(rows, shape.conv_channels),
            convolved=_zeros(rows, shape.conv_channels),
            dt=_zeros(rows, steps),
            B=_zeros(rows, groups, state_dim),
            C=_zeros(groups, rows, state_dim),
            scores=_zeros(groups, rows, num_nodes),
            y=_zeros(rows, channels),
        )

    def _call(
        self,
        tokens: Tokens,
        ancestor_mask: np.ndarray,
        memory: Memory,
        num_logits: int,
        logits: np.ndarray,
    ) -> None:
        epsilon = np.float32(self.config.norm_eps)
        run = mamba2_kernels.Run(
            self._weights, memory, tokens, ancestor_mask, self._work, epsilon, num_logits, logits
        )
        TEAM.run(mamba2_kernels.run_mamba2, mamba2_kernels.count_steps(self._shape.num_layers), run)


def to_cpu(
    network: Mamba | Mamba2,
    dtype: torch.dtype = torch.float32,
    draft_vocab: Int[Tensor, " kept"] | None = None,
) -> CpuMamba | CpuMamba2:
    """Packs a network for inference on a CPU."""
    if isinstance(network, Mamba):
        return CpuMamba(network, dtype, draft_vocab)
    return CpuMamba2(network, dtype, draft_vocab)


def _with_pending(
    pending: tuple[int, ...], token_ids: Sequence[int] | Int[Tensor, " tokens"]
) -> np.ndarray:
    return np.array([*pending, *torch.as_tensor(token_ids).tolist()], np.int64)


def _memory_of(state: SsmState) -> Memory:
    nothing = np.zeros
    branch, layers = state.branching, state.shape.num_layers
    shape = state.shape
    if isinstance(branch, PathSums):
        states = nothing((layers, 0, *shape.state), np.float32)
        sums = [part.numpy() for part in (branch.x, branch.dt, branch.B)]
    else:
        states = branch.states.numpy()
        sums = [nothing((layers, 0, *axes), np.float32) for axes in (shape.x, shape.dt, shape.B)]
    history, recurrent, inputs = state.history, state.recurrent, state.conv_inputs
    return Memory(history.numpy(), recurrent.numpy(), inputs.numpy(), states, *sums)


def _zeros(*axes: int) -> np.ndarray:
    return np.zeros(axes, np.float32)


class _Stack:
    """The same matrix of every layer, as the kernels read it."""

    def __init__(self, matrices: Sequence[Float[Tensor, "outputs inputs"]], dtype: torch.dtype):
        outputs, inputs = matrices[0].shape
        self.values = np.zeros((len(matrices), outputs, padded(inputs)), STORAGE[dtype])
        self.scale = np.ones((len(matrices), outputs), np.float32)
        for layer, matrix in enumerate(matrices):
            values = self.values[layer, :, :inputs]
            write_weight(matrix.detach().cpu(), dtype, values, self.scale[layer])


def _stacks(
    network: StateSpaceNetwork[Any], dtype: torch.dtype, draft_vocab: Int[Tensor, " kept"] | None
) -> dict[str, np.ndarray]:
    """Packs what both architectures have outside of their layers, and the norms of layers."""
    output = network.lm_head.weight
    if draft_vocab is not None:
        check_vocabulary(draft_vocab, network.config.vocab_size)
        output = output[draft_vocab]
    embedding = _Stack([network.backbone.embeddings.weight], dtype)
    is_shared = network.config.tie_embeddings and draft_vocab is None
    head = embedding if is_shared else _Stack([output], dtype)
    return {
        "embedding": embedding.values[0],
        "embedding_scale": embedding.scale[0],
        "norm": _vectors([block.norm.weight for block in network.backbone.blocks]),
        "final_norm": _vectors([network.backbone.norm_f.weight])[0],
        "head": head.values[0],
        "head_scale": head.scale[0],
    }


def _matrices(name: str, matrices: list[Tensor], dtype: torch.dtype) -> dict[str, np.ndarray]:
    stack = _Stack(matrices, dtype)
    return {name: stack.values, f"{name}_scale": stack.scale}


def _vectors(tensors: Sequence[Float[Tensor, "*axes"]]) -> np.ndarray:
    return torch.stack([tensor.detach().float().cpu() for tensor in tensors]).numpy().copy()


def _biases(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> np.ndarray:
    return _vectors(
        [torch.zeros(0) if bias is None else _pad_parts(bias, sizes) for bias in tensors]
    )


def _pack_mamba(
    network: Mamba, dtype: torch.dtype, draft_vocab: Tensor | None
) -> mamba_kernels.Weights:
    config = network.config
    channels, rank, state_dim = config.num_channels, config.rank, config.state_dim
    selected = [rank, state_dim, state_dim]
    mixers = [cast("MambaMixer", block.mixer) for block in network.backbone.blocks]
    # Step sizes are exponents of decays, and these two matrices are small: no 8 bits for them.
    fine = torch.float16 if dtype == torch.int8 else dtype
    entering = [_pad_parts(mixer.in_proj.weight, [channels] * 2) for mixer in mixers]
    selecting = [_pad_parts(mixer.x_proj.weight, selected) for mixer in mixers]
    width = selecting[0].shape[0]
    stepping = []
    for mixer in mixers:
        weight = _pad_parts(mixer.dt_proj.weight, [channels])
        stepping.append(torch.cat([weight, weight.new_zeros(len(weight), width - rank)], dim=1))
    return mamba_kernels.Weights(
        **_stacks(network, dtype, draft_vocab),
        **_matrices("enter", entering, dtype),
        enter_bias=_biases([mixer.in_proj.bias for mixer in mixers], [channels] * 2),
        conv=_vectors([_conv_weight(mixer.conv1d, [channels]) for mixer in mixers]),
        conv_bias=_vectors([_conv_bias(mixer.conv1d, [channels]) for mixer in mixers]),
        **_matrices("select", selecting, fine),
        **_matrices("steps", stepping, fine),
        steps_bias=_biases([mixer.dt_proj.bias for mixer in mixers], [channels]),
        rates=_vectors(
            [_pad_parts(_pad_parts(mixer.rates, [channels]).T, [state_dim]).T for mixer in mixers]
        ),
        skip=_biases([mixer.D for mixer in mixers], [channels]),
        **_matrices("leave", [mixer.out_proj.weight for mixer in mixers], dtype),
        leave_bias=_biases([mixer.out_proj.bias for mixer in mixers], [config.hidden_size]),
    )


def _pack_mamba2(
    network: Mamba2, dtype: torch.dtype, draft_vocab: Tensor | None
) -> mamba2_kernels.Weights:
    config = network.config
    channels, heads = config.num_channels, config.num_heads
    convolved = [channels, *[config.state_dim] * (2 * config.num_groups)]
    entered = [channels, *convolved, heads]
    mixers = [cast("Mamba2Mixer", block.mixer) for block in network.backbone.blocks]
    entering = [_pad_parts(mixer.in_proj.weight, entered) for mixer in mixers]
    return mamba2_kernels.Weights(
        **_stacks(network, dtype, draft_vocab),
        **_matrices("enter", entering, dtype),
        enter_bias=_biases([mixer.in_proj.bias for mixer in mixers], entered),
        conv=_vectors([_conv_weight(mixer.conv1d, convolved) for mixer in mixers]),
        conv_bias=_vectors([_conv_bias(mixer.conv1d, convolved) for mixer in mixers]),
        steps_bias=_biases([mixer.dt_bias for mixer in mixers], [heads]),
        rates=_vectors([mixer.rates for mixer in mixers]),
        skip=_biases([mixer.D.repeat_interleave(config.head_dim) for mixer in mixers], [channels]),
        gated_norm=_vectors([mixer.norm.weight for mixer in mixers]),
        **_matrices("leave", [mixer.out_proj.weight for mixer in mixers], dtype),
        leave_bias=_biases([mixer.out_proj.bias for mixer in mixers], [config.hidden_size]),
    )


def _conv_weight(conv: torch.nn.Conv1d, sizes: Sequence[int]) -> Float[Tensor, "width channels"]:
    return _pad_parts(conv.weight.squeeze(1), sizes).T


def _conv_bias(conv: torch.nn.Conv1d, sizes: Sequence[int]) -> Float[Tensor, " channels"]:
    bias = torch.zeros(sum(sizes)) if conv.bias is None else conv.bias
    return _pad_parts(bias, sizes)


def _pad_parts(rows: Float[Tensor, " rows *axes"], sizes: Sequence[int]) -> Tensor:
    """Pads consecutive parts of the first axis with zeros, each to whole vectors."""
    parts: list[Tensor] = []
    for part in rows.detach().split(list(sizes)):
        parts += [part, part.new_zeros(padded(len(part)) - len(part), *part.shape[1:])]
    return torch.cat(parts)
