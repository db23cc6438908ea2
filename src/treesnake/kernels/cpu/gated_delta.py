"""The gated delta rule for torch modules on a CPU, compiled: some columns of a state at a time.

Functions are those of `treesnake.kernels.reference.gated_delta`; so are names. The columns of a
state know nothing of each other. So a tile of columns goes through a whole text, or a whole tree,
in the first caches. Texts, trees and paths run the same operations in the same order: a node has
the bits of its path, whatever tree it is in. The states of nodes are made where a child needs
them, and are gone afterwards.

With s = exp(a) S, a token writes u = beta (v - s^T k), its output is s^T q + (k . q) u, and the
state becomes s + k u^T. So the output needs no new state, and a leaf makes none.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from treesnake.kernels.cpu import simd
from treesnake.kernels.cpu.jit import kernel
from treesnake.kernels.cpu.ssm_rows import members
from treesnake.kernels.cpu.team import TEAM, enter, finish_unit, next_unit, together, wait

TILE = 2 * simd.PADDING
"""Columns that go together: enough sums that none waits for another, and states of 128 rows that
the first cache holds."""

VECTORS = TILE // simd.LANES

NO_SLOT = -1
"""For a node whose state nobody needs."""


class DeltaRows(NamedTuple):
    """What tokens or nodes bring, and what comes out: a row for each head of each of them.

    Heads of one node follow each other. `query` and `outputs` have rows of the newest nodes only,
    or none. `beta` has one axis. `decay` is exp(log_decay), with one column or one for each of the
    key's.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    decay: np.ndarray
    beta: np.ndarray
    outputs: np.ndarray


class Walk(NamedTuple):
    """In which order nodes are run: each after its parent.

    `parents` has -1 for nodes that continue the text. `slots` says where each node's state goes,
    `NO_SLOT` if it is not made. A node whose state is not made and that has no output is not run.
    """

    parents: np.ndarray
    slots: np.ndarray


class Tile(NamedTuple):
    """Columns of a head's state: those from `column` on, with rows from `row` on."""

    states: np.ndarray
    row: int
    column: int


class _TileCode:
    """Writes the code that runs one node on a tile.

    It is given what `_advance_tile` says, as values of LLVM.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self._builder = builder
        self._given = members(context, builder, signature.args[0], arguments[0])
        self._cell, self._read_cell, self._column = arguments[1:4]
        self._source, self._target = (
            members(context, builder, signature.args[number], arguments[number])
            for number in (4, 5)
        )
        self._keys, self._decays = (self._row(name, self._cell) for name in ("key", "decay"))
        widths = (cgutils.unpack_tuple(builder, self._given[n].shape)[1] for n in ("key", "decay"))
        self._key_dim, num_decays = widths
        self._has_one_decay = builder.icmp_signed("==", num_decays, simd.index(1))

    def read(self, *, has_output: bool) -> tuple[list[Any], list[Any], Any]:
        """Returns s^T k, and with an output s^T q and k . q."""
        queries = self._row("query", self._read_cell) if has_output else None

        def step(position: Any, sums: Sequence[Any]) -> list[Any]:
            states, key = self._kept(position), self._number(self._keys, position)
            known = self._add_products(key, states, sums[:VECTORS])
            if not has_output:
                return known
            query = self._number(queries, position)
            read = self._add_products(query, states, sums[VECTORS:-1])
            return [*known, *read, simd.fused_multiply_add(self._builder, key, query, sums[-1])]

        carried = [simd.ZERO] * VECTORS
        if has_output:
            carried += [*carried, simd.FLOAT(0.0)]
        sums = self._loop(carried, step)
        return sums[:VECTORS], sums[VECTORS:-1], sums[-1]

    def writes(self, known: Sequence[Any]) -> list[Any]:
        """Returns what the node writes along its key."""
        builder = self._builder
        beta = simd.splat(builder, self._number(self._given["beta"].data, self._cell))
        pairs = zip(self._load(self._columns("value", self._cell)), known, strict=True)
        return [builder.fmul(beta, builder.fsub(value, each)) for value, each in pairs]

    def write_output(self, read: Sequence[Any], shared: Any, writes: Sequence[Any]) -> None:
        """Writes the output of the node."""
        outputs = self._add_products(shared, writes, read)
        self._store(outputs, self._columns("outputs", self._read_cell))

    def write_state(self, writes: Sequence[Any]) -> None:
        """Writes the state after the node."""

        def step(position: Any, _: Sequence[Any]) -> list[Any]:
            key = self._number(self._keys, position)
            moved = self._add_products(key, writes, self._kept(position))
            self._store(moved, self._state_row(self._target, position))
            return []

        self._loop([], step)

    def _loop(self, carried: Sequence[Any], step: simd.LoopBody) -> list[Any]:
        return simd.loop(self._builder, simd.index(0), self._key_dim, 1, carried, step)

    def _kept(self, position: Any) -> list[Any]:
        """Returns what is left of a row of the state before."""
        builder = self._builder
        at = builder.select(self._has_one_decay, simd.index(0), position)
        decay = simd.splat(builder, self._number(self._decays, at))
        states = self._load(self._state_row(self._source, position))
        return [builder.fmul(decay, state) for state in states]

    def _add_products(self, factor: Any, vectors: Sequence[Any], sums: Sequence[Any]) -> list[Any]:
        factor = simd.splat(self._builder, factor)
        pairs = zip(vectors, sums, strict=True)
        return [simd.fused_multiply_add(self._builder, factor, x, total) for x, total in pairs]

    def _row(self, name: str, cell: Any) -> Any:
        return simd.row_pointer(self._builder, self._given[name], cell)

    def _columns(self, name: str, cell: Any) -> list[Any]:
        return self._vectors(self._builder.gep(self._row(name, cell), [self._column]))

    def _state_row(self, tile: dict[str, Any], position: Any) -> list[Any]:
        row = self._builder.add(tile["row"], position)
        pointer = simd.row_pointer(self._builder, tile["states"], row)
        return self._vectors(self._builder.gep(pointer, [tile["column"]]))

    def _vectors(self, pointer: Any) -> list[Any]:
        offsets = range(0, TILE, simd.LANES)
        return [self._builder.gep(pointer, [simd.index(offset)]) for offset in offsets]

    def _number(self, pointer: Any, position: Any) -> Any:
        return self._builder.load(self._builder.gep(pointer, [position]))

    def _load(self, pointers: Sequence[Any]) -> list[Any]:
        return [simd.load(self._builder, pointer, types.float32) for pointer in pointers]

    def _store(self, values: Sequence[Any], pointers: Sequence[Any]) -> None:
        for value, pointer in zip(values, pointers, strict=True):
            simd.store(self._builder, value, pointer, types.float32)


def _advance_tile(*, has_output: bool, has_state: bool) -> Any:
    """Builds the intrinsic that runs one node on a tile.

    `cell` is the node's row of keys and values, `read_cell` that of queries and outputs, `column`
    the first of the tile among the values. The state before is `source`; that after it goes to
    `target`, if it is made.
    """

    @intrinsic
    def advance(typing_context, rows, cell, read_cell, column, source, target):
        def generate(context, builder, signature, arguments):
            code = _TileCode(context, builder, signature, arguments)
            known, read, shared = code.read(has_output=has_output)
            writes = code.writes(known)
            if has_output:
                code.write_output(read, shared, writes)
            if has_state:
                code.write_state(writes)
            return context.get_dummy_value()

        at = types.intp
        return types.void(rows, at, at, at, source, target), generate

    return advance


_advance = _advance_tile(has_output=True, has_state=True)
_advance_silently = _advance_tile(has_output=False, has_state=True)
_read_only = _advance_tile(has_output=True, has_state=False)


@kernel
def _run_tile(rows, walk, committed, states, head, column, first_row):
    """Runs all nodes on a tile of a head, that from `column` on.

    Its slots begin at row `first_row` of `states`.
    """
    num_nodes, key_dim = walk.parents.shape[0], rows.key.shape[1]
    num_heads = committed.shape[0] // key_dim
    first_new = num_nodes - rows.query.shape[0] // num_heads
    for node in range(num_nodes):
        parent, slot = walk.parents[node], walk.slots[node]
        source = Tile(committed, head * key_dim, column)
        if parent >= 0:
            source = Tile(states, first_row + walk.slots[parent] * key_dim, 0)
        target = Tile(states, first_row + max(slot, 0) * key_dim, 0)
        cell, read_cell = node * num_heads + head, (node - first_new) * num_heads + head
        if node < first_new:
            if slot >= 0:
                _advance_silently(rows, cell, 0, column, source, target)
        elif slot >= 0:
            _advance(rows, cell, read_cell, column, source, target)
        else:
            _read_only(rows, cell, read_cell, column, source, target)


@together
def _run(barrier, rows, walk, log_decay, committed, states, after):
    """Runs nodes through all heads.

    `committed` has rows (heads * key_dim) of values. In `states` (threads * slots * key_dim, TILE)
    each thread makes states of nodes. `after` is like `committed` and gets the states in the first
    slot, unless it has no rows.
    """
    thread = enter(barrier)
    key_dim = rows.key.shape[1]
    num_heads = committed.shape[0] // key_dim
    num_nodes = walk.parents.shape[0]
    node = next_unit(barrier, 0)
    while node < num_nodes:
        for cell in range(node * num_heads, (node + 1) * num_heads):
            for column in range(log_decay.shape[1]):
                rows.decay[cell, column] = math.exp(log_decay[cell, column])
        node = finish_unit(barrier, 0)
    step = wait(barrier, 0, num_nodes)
    num_tiles = committed.shape[1] // TILE
    first_row = thread * (states.shape[0] // barrier.size)
    unit = next_unit(barrier, step)
    while unit < num_heads * num_tiles:
        head, number = divmod(unit, num_tiles)
        column = number * TILE
        _run_tile(rows, walk, committed, states, head, column, first_row)
        if after.shape[0] > 0:
            for row in range(key_dim):
                for offset in range(TILE):
                    after[head * key_dim + row, column + offset] = states[first_row + row, offset]
        unit = finish_unit(barrier, step)
    wait(barrier, step, num_heads * num_tiles)


def scan(
    query: Float[Tensor, "tokens heads key_dim"],
    key: Float[Tensor, "tokens heads key_dim"],
    value: Float[Tensor, "tokens heads value_dim"],
    log_decay: Float[Tensor, "tokens heads decays"],
    beta: Float[Tensor, "tokens heads"],
    state: Float[Tensor, "heads key_dim value_dim"],
) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "heads key_dim value_dim"]]:
    """Returns the outputs of a text and the state after it."""
    return _run_text(query, key, value, log_decay, beta, state)


def extend_sums(
    query: Float[Tensor, "new heads key_dim"],
    key: Float[Tensor, "nodes heads key_dim"],
    value: Float[Tensor, "nodes heads value_dim"],
    log_decay: Float[Tensor, "nodes heads decays"],
    beta: Float[Tensor, "nodes heads"],
    ancestor_mask: Bool[Tensor, "nodes nodes"],
    committed: Float[Tensor, "heads key_dim value_dim"],
) -> Float[Tensor, "new heads value_dim"]:
    """Runs the newest nodes of a tree from the inputs of all nodes; no state is kept."""
    walk, num_slots = _tree_walk(ancestor_mask.numpy(), len(query))
    rows, flat = _rows(query, key, value, log_decay, beta), _flat(committed)
    states, after = _scratch(num_slots, key.shape[2]), np.empty((0, flat.shape[1]), np.float32)
    TEAM.run(_run, 2, rows, walk, _matrix(log_decay), flat, states, after)
    return _outputs(rows, query, value)


def commit_sums(
    key: Float[Tensor, "path heads key_dim"],
    value: Float[Tensor, "path heads value_dim"],
    log_decay: Float[Tensor, "path heads decays"],
    beta: Float[Tensor, "path heads"],
    committed: Float[Tensor, "heads key_dim value_dim"],
) -> Float[Tensor, "heads key_dim value_dim"]:
    """Returns the committed state moved along a path, token by token."""
    return _run_text(key[:0], key, value, log_decay, beta, committed)[1]


def _run_text(
    query: Float[Tensor, "read heads key_dim"],
    key: Float[Tensor, "tokens heads key_dim"],
    value: Float[Tensor, "tokens heads value_dim"],
    log_decay: Float[Tensor, "tokens heads decays"],
    beta: Float[Tensor, "tokens heads"],
    state: Float[Tensor, "heads key_dim value_dim"],
) -> tuple[Float[Tensor, "read heads value_dim"], Float[Tensor, "heads key_dim value_dim"]]:
    """Runs a text, or a path without queries; returns outputs and the state after it."""
    rows, committed = _rows(query, key, value, log_decay, beta), _flat(state)
    after, num_tokens = np.empty_like(committed), len(key)
    walk = Walk(np.arange(-1, num_tokens - 1), np.zeros(num_tokens, np.int64))
    TEAM.run(_run, 2, rows, walk, _matrix(log_decay), committed, _scratch(1, key.shape[2]), after)
    moved = torch.from_numpy(after).view(*state.shape[:2], -1)[..., : state.shape[2]]
    return _outputs(rows, query, value), moved.contiguous()


def _tree_walk(ancestor_mask: Bool[np.ndarray, "nodes nodes"], num_new: int) -> tuple[Walk, int]:
    """Returns how to run a tree, and how many nodes have a child for whose sake they are run."""
    strict = np.tril(ancestor_mask, -1)
    num_nodes = len(strict)
    parents = np.where(strict, np.arange(num_nodes), -1).max(1)
    is_inner = strict[num_nodes - num_new :].any(0)
    return Walk(parents, np.where(is_inner, is_inner.cumsum() - 1, NO_SLOT)), int(is_inner.sum())


def _scratch(num_slots: int, key_dim: int) -> Float[np.ndarray, "rows columns"]:
    return np.empty((torch.get_num_threads() * num_slots * key_dim, TILE), np.float32)


def _rows(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor) -> DeltaRows:
    values = _matrix(_whole_tiles(value))
    outputs = np.empty((query.shape[0] * query.shape[1], values.shape[1]), np.float32)
    decay = np.empty((beta.numel(), log_decay.shape[-1]), np.float32)
    betas = beta.float().contiguous().view(-1).numpy()
    return DeltaRows(_matrix(query), _matrix(key), values, decay, betas, outputs)


def _outputs(
    rows: DeltaRows, query: Tensor, value: Tensor
) -> Float[Tensor, "read heads value_dim"]:
    outputs = torch.from_numpy(rows.outputs).view(*query.shape[:2], rows.outputs.shape[1])
    return outputs[..., : value.shape[2]].to(value.dtype)


def _flat(state: Float[Tensor, "heads key_dim value_dim"]) -> Float[np.ndarray, "rows columns"]:
    return _matrix(_whole_tiles(state))


def _whole_tiles(part: Float[Tensor, "*axes values"]) -> Float[Tensor, "*axes columns"]:
    """Pads the last axis with zeros, if tiles do not fill it."""
    missing = -part.shape[-1] % TILE
    return F.pad(part, (0, missing)) if missing else part


def _matrix(part: Float[Tensor, "*axes columns"]) -> Float[np.ndarray, "rows columns"]:
    """Returns rows in float32, those of all other axes one after the other."""
    return part.float().contiguous().view(-1, part.shape[-1]).numpy()
