"""A decoder of attention and Mamba-2 layers on a CPU: one compiled call a pass.

Weights, workspaces and memories are those of our decoder and of our Mamba-2, which meet in the
residual stream.
"""

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from treesnake.clock import book_wait
from treesnake.errors import BrokenModelError, InvalidInputError
from treesnake.kernels.cpu.attention import SPARE_ROWS
from treesnake.kernels.cpu.hybrid import HybridRun, count_steps, decode_hybrid
from treesnake.kernels.cpu.state_space import REPLAY, StateSpaceRun
from treesnake.kernels.cpu.team import TEAM
from treesnake.models.hybrid_config import HybridConfig
from treesnake.models.hybrid_layers import admit_hybrid, read_mixers
from treesnake.models.state_space_cpu import CpuMamba2, task_of, tree_rows
from treesnake.models.state_space_packing import Ends, pack_mamba2_layers
from treesnake.models.state_space_state import (
    BorrowedState,
    GrownTree,
    StateSpaceState,
    extend_states,
)
from treesnake.models.transformer_cache import TransformerCache
from treesnake.models.transformer_cpu import CpuEngine
from treesnake.models.transformer_layers import read_final_norm
from treesnake.models.transformer_pass import NewNodes
from treesnake.models.tree_network import Part, TreeNetwork, rows_by_part
from treesnake.models.weight_stack import count_bytes
from treesnake.models.weights import exact_dtype
from treesnake.pauses import pause
from treesnake.states.branching import BranchingKind, ReplayedPaths
from treesnake.states.ssm import SsmBank, SsmState
from treesnake.threads import new_lock

SMALLEST_CAPACITY = 512


class CpuHybridMemory:
    """The memory of one text and its tree: rows of attention, and the states of mixers.

    Attributes:
        rows: keys and values.
        state: what the mixers remember.
    """

    has_rows = True
    """A part grows with the text, and lies there as long as the text begins so."""

    num_pending = 0
    """Targets have the bits of a text, so they are moved along each node by itself."""

    def __init__(self, rows: TransformerCache, state: SsmState) -> None:
        self.rows = rows
        self.state = state

    @property
    def num_bytes(self) -> int:
        """What it takes in memory, with room for the largest tree so far."""
        return self.rows.num_bytes + self.state.num_bytes

    @property
    def bank(self) -> SsmBank:
        """Of which the mixers' part has a slot."""
        return self.state.bank

    def reserve(self, num_nodes: int) -> None:
        """Makes room for a tree; rows that are full move to twice as many."""
        self.rows.reserve(self.rows.length + num_nodes)
        self.state.reserve(num_nodes)

    def commit(self, path: Sequence[int]) -> None:
        """Moves the text to the end of a path and forgets the tree."""
        self.rows.commit(path)
        self.state.commit(path)

    def reset(self) -> None:
        """Makes the text an empty one."""
        self.rows.rewind(0)
        self.state.reset()

    def mark(self) -> tuple[Shaped[Tensor, "..."], ...]:
        """Returns what brings the text back while a text that begins with it is held."""
        return self.state.copy()

    def return_to(self, length: int, marked: Sequence[Shaped[Tensor, "..."]]) -> None:
        """Makes the text its own beginning of a length, given what `mark` returned there."""
        self.rows.rewind(length)
        self.state.restore(length, marked)

    def copy(self) -> tuple[Shaped[Tensor, "..."], ...]:
        """Returns a copy of all of the text's part, for `restore` here or elsewhere."""
        return *self.rows.copy(), *self.state.copy()

    def restore(self, length: int, copied: Sequence[Shaped[Tensor, "..."]]) -> None:
        """Makes the text that of a length whose `copy` this is."""
        keys, values, *state = copied
        self.rows.restore((keys, values))
        self.state.restore(length, state)


class CpuHybrid:
    """Weights that the states of many texts share: a `TreeNetwork`.

    A node's logits have the same bits in a prompt, in a chain and in any tree, alone and with other
    texts, unless a state is asked to branch otherwise. Passes of several threads wait for each
    other.

    Args:
        config: the sizes.
        tensors: those of the transformers model by name, in any dtype. Each is read once.
        dtype: what matrices are rounded to, as in `Transformer`.
        where: the tensors come from, for messages.
        cache_dtype: of keys and values; by default what suits `dtype`.

    Raises:
        LoadError: if the tensors are not what the config promises.
    """

    prefill_chunk = CpuEngine.prefill_chunk
    """How many tokens of a prompt run at once."""

    def __init__(
        self,
        config: HybridConfig,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype = torch.float32,
        where: str = "the checkpoint",
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        config, tensors = admit_hybrid(config, tensors, where)
        self.config = config
        self._decoder = CpuEngine(config.decoder, tensors, dtype, cache_dtype)
        stacks = self._decoder.stacks
        ends = Ends(
            embedding=stacks["embedding"],
            final_norm=read_final_norm(tensors, config.decoder).float().numpy().copy(),
            head=stacks["head"],
            num_outputs=config.decoder.output_size,
        )
        self._packed = pack_mamba2_layers(
            config.mixer,
            read_mixers(config, tensors),
            ends,
            exact_dtype(tensors, dtype),
            config.gated_epsilon,
        )
        self._mixers = CpuMamba2(config.mixer, self._packed)
        self._attends = np.array(config.decoder.attends)
        self._lock = new_lock()

    @property
    def vocab_size(self) -> int:
        """The number of tokens that it reads."""
        return self.config.decoder.vocab_size

    @property
    def context_length(self) -> int:
        """The number of tokens that fit."""
        return self.config.decoder.context_length

    @property
    def cache_dtype(self) -> torch.dtype:
        """What keys and values are kept in."""
        return self._decoder.cache_dtype

    @property
    def num_bytes(self) -> int:
        """The bytes of the weights in memory."""
        decoder = self._decoder
        stacks = (*decoder.stacks.values(), *self._packed.stacks.values())
        return count_bytes(stacks, (*decoder.arrays, *self._packed.arrays))

    def new_state(self, branching: BranchingKind = ReplayedPaths) -> "CpuHybridState":
        """Returns the state of an empty text; replayed paths give a node the bits of a text."""
        rows = self._decoder.new_cache(SMALLEST_CAPACITY)
        return CpuHybridState(self, CpuHybridMemory(rows, self._mixers.new_memory(branching)))

    def extend_all(self, parts: Sequence[Part]) -> list[Float[Tensor, "_ vocab"]]:
        """Appends nodes to the trees of several texts in one pass; returns float32 logits.

        Raises:
            InvalidInputError: if a tree cannot grow so, a token does not exist, or two parts have
                one state; nothing has changed then.
        """
        return extend_states(parts, self, self._run_trees)

    def run_text(self, token_ids: Sequence[int], memory: CpuHybridMemory) -> None:
        """Moves the text's part of a memory along some tokens, part by part."""
        for begin in range(0, len(token_ids), self.prefill_chunk):
            pause()
            self._read(token_ids[begin : begin + self.prefill_chunk], memory, self._attends)

    def broken_model_error(self, token_ids: Sequence[int]) -> BrokenModelError:
        """Returns the error for logits that are no numbers, naming the first layer."""
        return BrokenModelError.in_layer(self.find_broken_layer(token_ids))

    def find_broken_layer(self, token_ids: Sequence[int]) -> str | None:
        """Names the first part of the network that makes numbers that are not finite, or None."""
        for num_layers in range(len(self._attends) + 1):
            hidden = self._read(token_ids, self.new_state().memory, self._attends[:num_layers])
            if not np.isfinite(hidden).all():
                return f"layer {num_layers - 1}" if num_layers else "the embedding"
        logits = self.new_state().extend(token_ids, range(-1, len(token_ids) - 1))
        return None if logits.isfinite().all() else "the output layer"

    def _run_trees(
        self, token_ids: Sequence[int], trees: Sequence[GrownTree[CpuHybridMemory]]
    ) -> Sequence[Float[Tensor, "_ vocab"]]:
        """Runs the new nodes of trees that branch in one way."""
        counts = [tree.num_new for tree in trees]
        tokens = torch.tensor(token_ids).split(counts)
        nodes = [
            NewNodes(own, tree.layout.ancestor_mask[-len(own) :], tree.memory.rows, len(own))
            for own, tree in zip(tokens, trees, strict=True)
        ]
        mixed = [GrownTree(each.num_new, each.layout, each.memory.state) for each in trees]
        logits = np.empty((len(token_ids) + SPARE_ROWS, self._packed.num_outputs), np.float32)
        asked = perf_counter()
        with self._lock:
            book_wait(asked)
            rows = tree_rows(task_of(mixed[0], REPLAY), token_ids, mixed)
            mixers = self._mixers.new_run(rows, max(len(tree.layout) for tree in trees))
            self._run(nodes, mixers, logits, len(token_ids), self._attends)
        return rows_by_part(logits, counts)

    def _read(
        self, token_ids: Sequence[int], memory: CpuHybridMemory, attends: np.ndarray
    ) -> np.ndarray:
        """Reads tokens of a text through the first layers; returns the residual stream."""
        memory.rows.reserve(memory.rows.length + len(token_ids))
        nodes = NewNodes.of_text(torch.tensor(token_ids), memory.rows, num_logits=0)
        nothing = np.empty((SPARE_ROWS, self._packed.num_outputs), np.float32)
        asked = perf_counter()
        with self._lock:
            book_wait(asked)
            mixers = self._mixers.text_run(token_ids, memory.state)
            residual = self._run([nodes], mixers, nothing, 0, attends)
            hidden = residual[: len(token_ids), : self.config.decoder.hidden_size].copy()
        memory.rows.commit(range(len(token_ids)))
        return hidden

    def _run(
        self,
        nodes: Sequence[NewNodes],
        mixers: StateSpaceRun,
        logits: np.ndarray,
        num_logits: int,
        attends: np.ndarray,
    ) -> np.ndarray:
        """Makes the compiled call; returns the residual stream, which the next call writes."""
        decoder = self._decoder.new_run(nodes, logits, num_logits)
        residual = decoder.work.residual
        stack = mixers.work.stack._replace(residual=residual)
        mixers = mixers._replace(work=mixers.work._replace(stack=stack))
        TEAM.run(decode_hybrid, count_steps(len(attends)), HybridRun(decoder, mixers, attends))
        return residual


class CpuHybridState(StateSpaceState[CpuHybridMemory]):
    """The state of a text, which a network of the same form may borrow."""

    def lent_to(self, network: TreeNetwork) -> BorrowedState[CpuHybridMemory]:
        """Returns a state of the network on this text's memory."""
        own = self.network
        assert isinstance(own, CpuHybrid)
        is_alike = isinstance(network, CpuHybrid) and (network.config, network.cache_dtype) == (
            own.config,
            own.cache_dtype,
        )
        if not is_alike:
            raise InvalidInputError(
                "the memory of a hybrid serves the network that made it, and copies of it with "
                "weights of other dtypes; the network that shall borrow it is another one"
            )
        return BorrowedState(network, self)
