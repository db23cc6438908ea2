"""How mixers of unmodified transformers models reach our tree kernels.

The mixers of recurrent and hybrid families call functions of their own module for the convolution
and the recurrence. `install` puts a dispatch in the place of these functions, once for each module
and for good. Outside a pass of ours it calls what it replaced; within one, which a `ContextVar`
tells, it hands the inputs to the memories of the texts. This is the only thing that is changed in
transformers.

A pass also keeps watch: every recurrent layer must come by, convolve by a function that is known
here, and run its recurrence by one. A release of transformers that calls other functions is
refused, with their name, instead of being wrong in silence.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from treesnake.errors import UnsupportedModelError
from treesnake.states.grown_nodes import GrownNodes
from treesnake.states.hybrid import HybridMemory
from treesnake.states.recurrences import (
    GatedDelta,
    Recurrence,
    Rows,
    SelectiveScan,
    StateSpaceDual,
)

Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class PassText:
    """A text in a pass.

    Attributes:
        memory: of the text.
        num_new: its tokens or nodes in the pass; further ones only fill up.
        grown: its tree with the new nodes; None if tokens of the text are run.
    """

    memory: HybridMemory
    num_new: int
    grown: GrownNodes | None


class MixerPass:
    """One pass of a model, as its recurrent layers see it.

    Args:
        texts: a text for each row of the batch.
    """

    def __init__(self, texts: Sequence[PassText]) -> None:
        self._texts = texts
        self._missing = set(texts[0].memory.layers)
        self._layer = -1
        self._waiting_conv: int | None = None
        self._num_recurrences = 0

    def enter(self, layer: int, conv: int) -> None:
        """Notes that a layer is about to run one of its convolutions."""
        self._check_convolved()
        if layer != self._layer:
            self._layer, self._num_recurrences = layer, 0
            self._missing.discard(layer)
        self._waiting_conv = conv

    def convolve(
        self,
        inputs: Float[Tensor, "texts channels new"],
        weight: Float[Tensor, "channels conv_width"],
        bias: Float[Tensor, " channels"] | None,
        activation: str | None,
    ) -> Float[Tensor, "texts channels new"]:
        """Runs the convolution that was announced."""
        conv, self._waiting_conv = self._waiting_conv, None
        if conv is None:
            raise UnsupportedModelError("a layer convolves without having told its cache of it")
        outputs = torch.zeros_like(inputs)
        for row, text in enumerate(self._texts):
            memory = text.memory.layers[self._layer]
            given = inputs[row, :, : text.num_new].T
            filtered = memory.convolve(conv, given, weight, bias, text.grown)
            outputs[row, :, : text.num_new] = filtered.T
        if activation is None:
            return outputs
        return transformers.activations.ACT2FN[activation](outputs)

    def recur(
        self, recurrence: Recurrence, moving: Rows, reading: Float[Tensor, "texts new ..."]
    ) -> Float[Tensor, "texts new ..."]:
        """Runs the next recurrence of the layer; inputs have an axis of texts before the rows."""
        self._check_convolved()
        number, self._num_recurrences = self._num_recurrences, self._num_recurrences + 1
        outputs: list[Tensor] = []
        for row, text in enumerate(self._texts):
            new = slice(text.num_new)
            memory = text.memory.layers[self._layer]
            given = tuple(rows[row, new] for rows in moving)
            run = memory.run(number, recurrence, given, reading[row, new], text.grown)
            outputs.append(run)
        return pad_sequence(outputs, batch_first=True)

    def leave(self, layer: int) -> None:
        """Notes that a layer has run its recurrence."""
        self._check_convolved()
        if layer != self._layer or not self._num_recurrences:
            raise UnsupportedModelError(
                f"layer {layer} has a recurrence that is not run by a function known here: "
                f"{', '.join(RECURRENCES)}"
            )

    def finish(self) -> None:
        """Checks that every layer was here."""
        self._check_convolved()
        if self._missing:
            raise UnsupportedModelError(
                f"layer {min(self._missing)} keeps a recurrent state and did not tell its cache"
            )

    def _check_convolved(self) -> None:
        if self._waiting_conv is not None:
            raise UnsupportedModelError(
                f"layer {self._layer} has a convolution that is not run by {CONVOLUTION}, the "
                "function that is known here"
            )


_RUNNING: ContextVar[MixerPass | None] = ContextVar("running", default=None)
"""The pass that runs in this context, if one of ours does."""


def running_pass() -> MixerPass:
    """Returns the pass that runs in this context."""
    running = _RUNNING.get()
    assert running is not None, "caches of ours are for passes of ours"
    return running


@contextmanager
def mixer_pass(texts: Sequence[PassText]) -> Iterator[None]:
    """Lets the recurrent layers of a model run on memories of ours, in this context.

    Raises:
        UnsupportedModelError: if a layer did not run as is known here.
    """
    running = MixerPass(texts)
    token = _RUNNING.set(running)
    try:
        yield
        running.finish()
    finally:
        _RUNNING.reset(token)


def _convolve(
    running: MixerPass,
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **_unused: object,
) -> Tensor:
    return running.convolve(hidden_states, weight, bias, activation)


def _steps(dt: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    """Returns step sizes as stepping has them, which does not clamp them."""
    if bias is not None:
        dt = dt + bias.to(dt.dtype)
    return F.softplus(dt) if softplus else dt


def _select(
    running: MixerPass,
    hidden_states: Float[Tensor, "texts channels new"],
    dt: Float[Tensor, "texts channels new"],
    A: Float[Tensor, "channels state_dim"],
    B: Float[Tensor, "texts state_dim new"],
    C: Float[Tensor, "texts state_dim new"],
    D: Float[Tensor, " channels"] | None = None,
    z: Float[Tensor, "texts channels new"] | None = None,
    delta_bias: Float[Tensor, " channels"] | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_unused: object,
) -> object:
    x, dt, B, C = (each.mT for each in (hidden_states, dt, B, C))
    recurrence = SelectiveScan(A.float(), _skip(D, A))
    y = running.recur(recurrence, (x, _steps(dt, delta_bias, delta_softplus), B), C).mT
    if z is not None:
        y = y * F.silu(z)
    return (y, y.new_empty(0)) if return_last_state else y


def _dual(
    running: MixerPass,
    hidden_states: Float[Tensor, "texts new heads head_dim"],
    dt: Float[Tensor, "texts new heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "texts new groups state_dim"],
    C: Float[Tensor, "texts new groups state_dim"],
    chunk_size: int,
    D: Float[Tensor, " heads"] | None = None,
    dt_bias: Float[Tensor, " heads"] | None = None,
    initial_states: None = None,
    dt_softplus: bool = False,
    return_final_states: bool = False,
    **_unused: object,
) -> object:
    recurrence = StateSpaceDual(A.float(), _skip(D, A))
    moving = (hidden_states, _steps(dt, dt_bias, dt_softplus), B)
    y = running.recur(recurrence, moving, C)
    return (y, y.new_empty(0)) if return_final_states else y


def _delta(
    running: MixerPass,
    query: Float[Tensor, "texts new key_heads key_dim"],
    key: Float[Tensor, "texts new key_heads key_dim"],
    value: Float[Tensor, "texts new heads value_dim"],
    g: Float[Tensor, "texts new heads ..."],
    beta: Float[Tensor, "texts new heads"],
    use_qk_l2norm_in_kernel: bool = False,
    **_unused: object,
) -> tuple[Tensor, Tensor]:
    shared = value.shape[2] // key.shape[2]
    query, key = (each.float().repeat_interleave(shared, dim=2) for each in (query, key))
    if use_qk_l2norm_in_kernel:
        query, key = (_unit(each) for each in (query, key))
    query = query * query.shape[-1] ** -0.5
    log_decay = g[..., None] if g.ndim == beta.ndim else g
    moving = (key, value.float(), log_decay.float(), beta.float())
    y = running.recur(GatedDelta(), moving, query).to(value.dtype)
    return y, y.new_empty(0)


def _unit(vectors: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + 1e-6)


def _skip(D: Tensor | None, A: Tensor) -> Tensor:
    return A.new_zeros(len(A)) if D is None else D


CONVOLUTION = "causal_conv1d_fn"
"""The function by which all families convolve, by its name in their modules."""

RECURRENCES: dict[str, Function] = {
    "mamba_selective_scan": _select,
    "mamba2_chunk_scan": _dual,
    "torch_chunk_gated_delta_rule": _delta,
    "chunk_kimi_delta_attention": _delta,
}
"""What takes the place of each recurrence in a pass of ours, by its name in their modules."""

DISPATCHED: dict[str, Function] = {CONVOLUTION: _convolve, **RECURRENCES}


def install(model: nn.Module) -> None:
    """Puts the dispatch in the place of the functions that a model's mixers call.

    Raises:
        UnsupportedModelError: if one of the functions takes other arguments than are known here.
    """
    names = {type(module).__module__ for module in model.modules()}
    for module in (sys.modules[name] for name in names):
        for name, ours in DISPATCHED.items():
            theirs = vars(module).get(name)
            if theirs is not None and not hasattr(theirs, "dispatches_to"):
                setattr(module, name, _dispatching(module, theirs, ours))


def _dispatching(module: ModuleType, theirs: Function, ours: Function) -> Function:
    _check_arguments(module, theirs, ours)

    @wraps(theirs)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        running = _RUNNING.get()
        return theirs(*args, **kwargs) if running is None else ours(running, *args, **kwargs)

    vars(dispatch)["dispatches_to"] = ours
    return dispatch


def _check_arguments(module: ModuleType, theirs: Function, ours: Function) -> None:
    """Checks that ours can stand in for theirs: the same names, in the same places."""
    known = [
        name
        for name, parameter in inspect.signature(ours).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ][1:]
    found = list(inspect.signature(theirs).parameters)
    in_place = [name for name, other in zip(known, found, strict=False) if name == other]
    if not set(known) <= set(found) or in_place[:5] != known[:5]:
        raise UnsupportedModelError(
            f"{module.__name__}.{theirs.__name__} takes the arguments {', '.join(found)}, which "
            f"are not those known here: {', '.join(known)}; this release of transformers is newer "
            "or older than those that treesnake was tested with"
        )
