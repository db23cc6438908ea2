"""Mamba and Mamba-2 on a CPU: packed weights, and one compiled call a pass over them."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.clock import book_wait
from treesnake.errors import InvalidInputError
from treesnake.kernels.cpu import mamba as mamba_kernels
from treesnake.kernels.cpu import mamba2 as mamba2_kernels
from treesnake.kernels.cpu import ssd, ssm
from treesnake.kernels.cpu.linear import TILES, padded
from treesnake.kernels.cpu.ssm_rows import REPLAYED_CHANNELS
from treesnake.kernels.cpu.state_space import COPIES, SUMS, TEXT, Memory, Tokens
from treesnake.kernels.cpu.team import TEAM
from treesnake.kernels.dispatch import SsmKernels
from treesnake.models.mamba import Mamba
from treesnake.models.mamba2 import Mamba2
from treesnake.models.state_space import StateSpaceNetwork, check_growth
from treesnake.models.state_space_packing import pack_mamba, pack_mamba2
from treesnake.states.branching import PathSums, StateCopies, StateShape
from treesnake.states.ssm import SsmState
from treesnake.states.tree_layout import tree_layout

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
        known = self._known(token_ids)
        state.clear_tree()
        state.commit(())
        tokens = np.array([*state.take_pending(), *known], np.int64)
        for part in np.split(tokens, range(chunk, len(tokens), chunk)) if len(tokens) else ():
            windows = np.arange(len(part))[:, None] + np.arange(self._shape.conv_width)
            nothing = tree_layout((), self._shape.conv_width, CPU)
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
        known = self._known(token_ids)
        tokens = np.array([*state.append(parents), *known], np.int64)
        tree = state.layout
        mask = tree.ancestor_mask.numpy()[-len(tokens) :]
        run = Tokens(
            SUMS if isinstance(state.branching, PathSums) else COPIES,
            tokens,
            tree.windows.numpy()[-len(tokens) :],
            tree.parents.numpy(),
            np.logical_or.reduce(mask, axis=0),
        )
        return self._run(run, mask, state, num_logits=len(parents))

    def _known(self, token_ids: Sequence[int] | Int[Tensor, " tokens"]) -> list[int]:
        """Returns the tokens, which compiled code would look up without a check."""
        known = torch.as_tensor(token_ids).tolist()
        if known and not 0 <= min(known) <= max(known) < self.config.vocab_size:
            raise InvalidInputError(
                f"the network has tokens 0 to {self.config.vocab_size - 1}, got ids from "
                f"{min(known)} to {max(known)}"
            )
        return known

    def _run(
        self, tokens: Tokens, ancestor_mask: np.ndarray, state: SsmState, num_logits: int
    ) -> Float[Tensor, "new vocab"]:
        logits = np.empty((num_logits + SPARE_ROWS, len(self._weights.head)), np.float32)
        memory = _memory_of(state)
        asked = perf_counter()
        with self._lock:
            book_wait(asked)
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
        weights = pack_mamba(network, dtype, draft_vocab)
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
        weights = pack_mamba2(network, dtype, draft_vocab)
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
