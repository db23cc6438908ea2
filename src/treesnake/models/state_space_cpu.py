"""Mamba and Mamba-2 on a CPU: packed weights, and one compiled call a pass over them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from treesnake.clock import book_wait
from treesnake.errors import BrokenModelError, InvalidInputError
from treesnake.kernels.cpu import mamba as mamba_kernels
from treesnake.kernels.cpu import mamba2 as mamba2_kernels
from treesnake.kernels.cpu.grouped import new_rounded_rows
from treesnake.kernels.cpu.linear import TILES, padded
from treesnake.kernels.cpu.ssm_rows import REPLAYED_CHANNELS
from treesnake.kernels.cpu.state_space import (
    COPIES,
    MEMORIES,
    PART,
    REPLAY,
    SUMS,
    TEXT,
    MemoryShape,
    PassRows,
    StackWeights,
    StackWorkspace,
    StateSpaceRun,
)
from treesnake.kernels.cpu.team import TEAM
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space import StateSpaceConfig
from treesnake.models.state_space_packing import PackedNetwork, pack_mamba, pack_mamba2
from treesnake.models.state_space_state import (
    BorrowedState,
    GrownTree,
    StateSpaceState,
    extend_states,
)
from treesnake.models.tree_network import Part, TreeNetwork, rows_by_part
from treesnake.models.weight_stack import count_bytes
from treesnake.pauses import pause
from treesnake.states.branching import (
    BranchingKind,
    PathSums,
    ReplayedPaths,
    StateCopies,
    StateShape,
)
from treesnake.states.ssm import SsmBank, SsmState
from treesnake.states.tree_layout import TreeLayout
from treesnake.threads import new_lock

PREFILL_CHUNK = 128
"""Tokens of a prompt that are run at once: their activations stay in the cache."""

SPARE_ROWS = TILES[0][0]
"""Rows that the last tile may go beyond the tokens."""

CPU = torch.device("cpu")


class CpuNetwork(ABC):
    """A network for inference on a CPU, with weights in a dtype of choice.

    It does what a `StateSpaceNetwork` does for states and trees, in one compiled call for all
    layers and all texts; a text has the same bits alone and with others. Activations and states are
    float32. States are its own: their axes are padded to whole vectors. Calls from several threads
    wait for each other.
    """

    context_length: int | None = None
    """None: the memory of a text has one size, however long the text."""

    _replay_task = SUMS
    """What runs `ReplayedPaths`; the sums of a Mamba are replayed anyhow."""

    _most_pending = 0
    """Of the committed nodes of a text that sums along paths."""

    def __init__(
        self,
        config: StateSpaceConfig,
        shape: StateShape,
        memory_shape: MemoryShape,
        packed: PackedNetwork,
        branching: BranchingKind,
    ) -> None:
        self.config = config
        self._shape = shape
        self._memory_shape = memory_shape
        self._packed = packed
        self._weights = packed.weights
        self._branching = branching
        self._lock = new_lock()
        self._room = (1, 1, torch.get_num_threads())
        self._work = self._new_workspace(*self._room)
        self._text_windows = _text_windows(1, shape.conv_width)

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory; what is tied counts once."""
        return count_bytes(self._packed.stacks.values(), self._packed.arrays)

    @property
    def vocab_size(self) -> int:
        """The number of tokens that it reads."""
        return self.config.vocab_size

    def new_state(self, branching: BranchingKind | None = None) -> "CpuState":
        """Returns the state of an empty text; by default with the fastest way to branch."""
        return CpuState(self, self.new_memory(branching or self._branching))

    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Appends nodes to the trees of several texts; returns the logits after each node.

        Costs one pass over the weights for all texts that branch in the same way.

        Raises:
            InvalidInputError: if a tree cannot grow so, two parts have one state, or a token does
                not exist.
        """
        return extend_states(parts, self, self._run_trees)

    def run_text(
        self, token_ids: Sequence[int], memory: SsmState, chunk: int = PREFILL_CHUNK
    ) -> None:
        """Moves the text's part of a memory along some tokens, `chunk` of them at a time."""
        memory.settle()
        for begin in range(0, len(token_ids), chunk):
            pause()
            asked = perf_counter()
            with self._lock:
                book_wait(asked)
                self._call(self.text_run(token_ids[begin : begin + chunk], memory))

    def hidden_states(self, token_ids: Sequence[int]) -> Iterator[Float[Tensor, "_ hidden"]]:
        """Yields what the output layer sees behind each token of a text, chunk by chunk."""
        memory, width = self.new_memory(self._branching), self.config.hidden_size
        for begin in range(0, len(token_ids), PREFILL_CHUNK):
            chunk = token_ids[begin : begin + PREFILL_CHUNK]
            with self._lock:
                self._call(self.text_run(chunk, memory))
                rows = self._work.stack.normed[: len(chunk), :width].copy()
            yield torch.from_numpy(rows)

    def output_weight(self) -> Float[Tensor, "outputs hidden"]:
        """Returns a copy of the output layer in float32: a network of no layers that embeds it."""
        stack = self._weights.stack
        reading = stack._replace(embedding=stack.head, norm=stack.norm[:0])
        memory = self.new_memory(self._branching)
        rows = range(self._packed.num_outputs)
        parts = [rows[begin : begin + PREFILL_CHUNK] for begin in rows[::PREFILL_CHUNK]]
        read = [self._residual_behind(part, memory, reading) for part in parts]
        return torch.from_numpy(np.concatenate(read))

    def replace_output(self, weight: Float[Tensor, "outputs hidden"]) -> None:
        """Exchanges the output layer, which is rounded as the one before."""
        packed = self._packed.with_output(weight)
        with self._lock:
            self._packed, self._weights = packed, packed.weights

    def broken_model_error(self, token_ids: Sequence[int]) -> BrokenModelError:
        """Returns the error for logits that are no numbers, naming the first layer."""
        return BrokenModelError.in_layer(self.find_broken_layer(token_ids))

    def find_broken_layer(self, token_ids: Sequence[int]) -> str | None:
        """Names the first part of the network whose output for a text is not finite, or None."""
        for num_layers in range(self._shape.num_layers + 1):
            if not np.isfinite(self._hidden_after(num_layers, token_ids)).all():
                return f"layer {num_layers - 1}" if num_layers else "the embedding"
        logits = self.new_state().extend(token_ids, range(-1, len(token_ids) - 1))
        return None if logits.isfinite().all() else "the output layer"

    def _hidden_after(self, num_layers: int, token_ids: Sequence[int]) -> np.ndarray:
        # The compiled call runs as many layers as there are norms.
        stack = self._weights.stack._replace(norm=self._weights.stack.norm[:num_layers])
        return self._residual_behind(token_ids, self.new_memory(self._branching), stack)

    def _residual_behind(
        self, token_ids: Sequence[int], memory: SsmState, stack: StackWeights
    ) -> Float[np.ndarray, "tokens hidden"]:
        """Moves a text along with other weights in the stack; returns the residual stream."""
        with self._lock:
            run = self.text_run(token_ids, memory)
            self._call(run._replace(weights=self._weights._replace(stack=stack)))
            return self._work.stack.residual[: len(token_ids), : self.config.hidden_size].copy()

    def text_run(self, token_ids: Sequence[int], memory: SsmState) -> StateSpaceRun:
        """Returns the call that moves a text along; its caller holds a lock."""
        num_rows = len(token_ids)
        self._make_room(num_rows, 0)
        windows = self._text_windows.ctypes.data
        parts = _parts([(0, num_rows, 0, windows, 0, 0, 0, *_addresses(memory))])
        return self.new_run(PassRows(TEXT, _array(token_ids), parts))

    def new_run(self, rows: PassRows, num_nodes: int = 0) -> StateSpaceRun:
        """Returns a call that wants no logits, in the workspace; its caller holds a lock."""
        self._make_room(len(rows.token_ids), num_nodes)
        epsilon, nothing = np.float32(self.config.norm_eps), np.empty((0, 0), np.float32)
        shape = self._memory_shape
        return StateSpaceRun(self._weights, self._work, rows, shape, epsilon, 0, nothing)

    def _run_trees(
        self, token_ids: Sequence[int], trees: Sequence[GrownTree[SsmState]]
    ) -> Sequence[Float[Tensor, "_ vocab"]]:
        """Runs the new nodes of trees that branch in one way."""
        task = task_of(trees[0], self._replay_task)
        rows = tree_rows(task, token_ids, trees)
        num_nodes, num_logits = max(len(tree.layout) for tree in trees), len(token_ids)
        logits = np.empty((num_logits + SPARE_ROWS, self._packed.num_outputs), np.float32)
        asked = perf_counter()
        with self._lock:
            book_wait(asked)
            run = self.new_run(rows, num_nodes)
            self._call(run._replace(num_logits=num_logits, logits=logits))
        return rows_by_part(logits, [tree.num_new for tree in trees])

    def _make_room(self, num_rows: int, num_nodes: int) -> None:
        needs = (num_rows, num_nodes, torch.get_num_threads())
        if any(need > has for need, has in zip(needs, self._room, strict=True)):
            room = tuple(map(max, needs, self._room))
            self._work = self._new_workspace(*room)
            self._text_windows = _text_windows(room[0], self._shape.conv_width)
            self._room = room  # last: an interrupt before must not promise room

    def new_memory(self, branching: BranchingKind) -> SsmState:
        """Returns the memory of an empty text."""
        most_pending = self._most_pending if branching is PathSums else 0
        return SsmBank(self._shape, branching, CPU).new_state(self._commit_path, most_pending)

    def _commit_path(self, memory: SsmState, path: Sequence[int]) -> None:
        """Moves the text's part of a memory to the end of a path: one compiled call."""
        weights, bank = self._weights.stack, memory.bank
        parts = _parts([(0, 0, bank.num_rows, 0, 0, 0, 0, *_addresses(memory))])
        shape, kernel = self._memory_shape, self._commit_kernel()
        TEAM.run(kernel, 1, weights.A, weights.conv, shape, parts, _array(path))

    @abstractmethod
    def _new_workspace(self, num_rows: int, num_nodes: int, num_threads: int) -> Any:
        """Allocates zeros: the padding of rows is never written."""

    @abstractmethod
    def _call(self, run: StateSpaceRun) -> None:
        """Makes the compiled call."""

    @abstractmethod
    def _commit_kernel(self) -> Callable[..., int]:
        """Returns the kernel that moves a text to the end of a path."""


class CpuState(StateSpaceState[SsmState]):
    """The state of a text, which a network of the same form may borrow."""

    def lent_to(self, network: TreeNetwork) -> BorrowedState[SsmState]:
        """Returns a state of the network on this text's memory."""
        own = self.network
        assert isinstance(own, CpuNetwork)
        if not isinstance(network, CpuNetwork) or network.config != own.config:
            raise InvalidInputError(
                "a recurrent state serves the network that made it, and copies of it with weights "
                "of other dtypes; the network that shall borrow it is another one"
            )
        return BorrowedState(network, self)


class CpuMamba(CpuNetwork):
    """Mamba for inference on a CPU.

    A token's logits have the same bits in a prompt, in a chain and in any tree, in either way to
    branch.
    """

    def __init__(self, config: MambaConfig, packed: PackedNetwork) -> None:
        channels, state_dim = padded(config.num_channels), padded(config.state_dim)
        shape = replace(
            config.state_shape,
            conv_channels=channels,
            state=(channels, state_dim),
            x=(channels,),
            dt=(channels,),
            B=(state_dim,),
        )
        memory_shape = MemoryShape(
            num_cells=channels,
            state_dim=state_dim,
            num_groups=1,
            x_width=channels,
            dt_width=channels,
        )
        super().__init__(config, shape, memory_shape, packed, branching=StateCopies)

    def _new_workspace(
        self, num_rows: int, num_nodes: int, num_threads: int
    ) -> mamba_kernels.MambaWorkspace:
        hidden, (channels, state_dim) = padded(self.config.hidden_size), self._shape.state
        rows = num_rows + SPARE_ROWS
        return mamba_kernels.MambaWorkspace(
            stack=StackWorkspace(
                residual=_zeros(rows, hidden),
                normed=_zeros(rows, hidden),
                projected=_zeros(rows, 2 * channels),
                conv_inputs=_zeros(rows, channels),
                convolved=_zeros(rows, channels),
                dt=_zeros(rows, channels),
                B=_zeros(rows, state_dim),
                y=_zeros(rows, channels),
                rounded=new_rounded_rows(rows, max(hidden, channels)),
            ),
            selected=_zeros(rows, self._weights.x_proj.shape[1]),
            scratch=_zeros(num_threads, num_nodes + 1, REPLAYED_CHANNELS, state_dim),
        )

    def _call(self, run: StateSpaceRun) -> None:
        TEAM.run(mamba_kernels.run_mamba, mamba_kernels.count_steps(self._shape.num_layers), run)

    def _commit_kernel(self) -> Callable[..., int]:
        return mamba_kernels.commit_mamba


class CpuMamba2(CpuNetwork):
    """Mamba-2 for inference on a CPU.

    Trees are summed in another order than texts unless their states are replayed, which targets
    ask for: then a token's logits have the same bits in a prompt, in a chain and in any tree.
    """

    _replay_task = REPLAY

    _most_pending = 8
    """Each is one more ancestor for every node."""

    def __init__(self, config: Mamba2Config, packed: PackedNetwork) -> None:
        channels, state_dim = padded(config.num_channels), padded(config.state_dim)
        shape = replace(
            config.state_shape,
            conv_channels=channels + 2 * config.num_groups * state_dim,
            state=(config.num_heads, config.head_dim, state_dim),
            x=(channels,),
            dt=(padded(config.num_heads),),
            B=(config.num_groups, state_dim),
        )
        memory_shape = MemoryShape(
            num_cells=config.num_channels,
            state_dim=state_dim,
            num_groups=config.num_groups,
            x_width=channels,
            dt_width=padded(config.num_heads),
        )
        super().__init__(config, shape, memory_shape, packed, branching=PathSums)

    def _new_workspace(
        self, num_rows: int, num_nodes: int, num_threads: int
    ) -> mamba2_kernels.Mamba2Workspace:
        hidden, shape = padded(self.config.hidden_size), self._shape
        (channels,), (steps,), (groups, state_dim) = shape.x, shape.dt, shape.B
        rows = num_rows + SPARE_ROWS
        return mamba2_kernels.Mamba2Workspace(
            stack=StackWorkspace(
                residual=_zeros(rows, hidden),
                normed=_zeros(rows, hidden),
                projected=_zeros(rows, channels + shape.conv_channels + steps),
                conv_inputs=_zeros(rows, shape.conv_channels),
                convolved=_zeros(rows, shape.conv_channels),
                dt=_zeros(rows, steps),
                B=_zeros(rows * groups, state_dim),
                y=_zeros(rows, channels),
                rounded=new_rounded_rows(rows, max(hidden, channels)),
            ),
            C=_zeros(groups, rows, state_dim),
            scores=_zeros(groups, rows, num_nodes),
            scratch=_zeros(num_threads, num_nodes * shape.state[1], state_dim),
        )

    def new_exact_state(self) -> "CpuState":
        """Returns the state of an empty text, with a way to branch that has the bits of a text."""
        return self.new_state(ReplayedPaths)

    def _call(self, run: StateSpaceRun) -> None:
        TEAM.run(mamba2_kernels.run_mamba2, mamba2_kernels.count_steps(self._shape.num_layers), run)

    def _commit_kernel(self) -> Callable[..., int]:
        return mamba2_kernels.commit_mamba2


def to_cpu(
    network: Mamba | Mamba2,
    dtype: torch.dtype = torch.float32,
    draft_vocab: Int[Tensor, " kept"] | None = None,
) -> CpuMamba | CpuMamba2:
    """Packs a network for inference on a CPU.

    Args:
        network: where the weights come from; it is not kept.
        dtype: what weights are rounded to: float32, float16, bfloat16, int8 or int4.
        draft_vocab: tokens that there are logits of, in this order; None for all.
    """
    if isinstance(network, Mamba):
        return CpuMamba(network.config, pack_mamba(network, dtype, draft_vocab))
    return CpuMamba2(network.config, pack_mamba2(network, dtype, draft_vocab))


def tree_rows(
    task: int, token_ids: Sequence[int], trees: Sequence[GrownTree[SsmState]]
) -> PassRows:
    """Returns the rows of a pass over new nodes, by addresses: the trees must stay.

    Args:
        task: how they branch.
        token_ids: the new nodes of one tree after those of another.
        trees: what grows.
    """
    fields: list[tuple[int, ...]] = []
    first_row = 0
    for tree in trees:
        layout = _layout_fields(tree.layout, tree.num_new)
        fields.append((first_row, *layout, *_addresses(tree.memory)))
        first_row += tree.num_new
    return PassRows(task, _array(token_ids), _parts(fields))


def task_of(tree: GrownTree[SsmState], replay_task: int) -> int:
    """Returns what runs a tree that branches as its memory does."""
    branching = tree.memory.bank.branching
    if isinstance(branching, ReplayedPaths):
        return replay_task
    return SUMS if isinstance(branching, PathSums) else COPIES


@lru_cache(maxsize=1024)
def _layout_fields(layout: TreeLayout, num_new: int) -> tuple[int, ...]:
    """Returns the fields of `PART` from `num_rows` to the last one of the layout.

    A layout that was seen lately costs nothing, as in `tree_layout`.
    """
    num_nodes, windows = len(layout), layout.windows
    old = num_nodes - num_new
    return (
        num_new,
        num_nodes,
        windows.data_ptr() + old * windows.shape[1] * windows.element_size(),
        layout.parents.data_ptr(),
        layout.ancestor_mask.data_ptr() + old * num_nodes,
        layout.needed.ctypes.data + (num_new - 1) * num_nodes,
    )


def _addresses(memory: SsmState) -> list[int]:
    """Returns the fields of `PART` for a memory, whose bank is its own: its slot is the first."""
    bank, branch = memory.bank, memory.bank.branching
    tensors = {
        "history": bank.history,
        "recurrent": bank.recurrent,
        "conv_inputs": bank.conv_inputs,
    }
    if isinstance(branch, PathSums):
        tensors |= {"node_x": branch.x, "node_dt": branch.dt, "node_B": branch.B}
    else:
        tensors["node_states"] = branch.states
    fields: list[int] = []
    for name in MEMORIES:
        tensor = tensors.get(name)
        if tensor is None:
            fields += (0, 0)
        else:
            fields += (tensor.data_ptr(), tensor.stride(0) * tensor.element_size())
    return fields


def _parts(fields: Iterable[tuple[int, ...]]) -> np.ndarray:
    return np.array(list(fields), PART)


def _text_windows(num_rows: int, conv_width: int) -> np.ndarray:
    """Returns the windows of the tokens of a text: each sees itself and those before."""
    return np.arange(num_rows)[:, None] + np.arange(conv_width)


def _array(token_ids: Sequence[int]) -> np.ndarray:
    return np.array(token_ids, np.int64)


def _zeros(*axes: int) -> np.ndarray:
    return np.zeros(axes, np.float32)
