"""Which form of a kernel a torch module runs: Triton on NVIDIA GPUs, elsewhere plain torch.

On a CPU two kernels are compiled: the scan of Mamba-1, because training needs it, and the gated
delta rule of transformers' models. Our own networks are packed and compiled as a whole there
(`treesnake.kernels.cpu.mamba` and `mamba2`).

The forms of a kernel are modules of the same name with the same functions, so that a module is
what is chosen. Text kernels (`causal_conv`, `scan`) are differentiable in every form and take batch
axes; tree kernels are for inference, and for the trees of several texts (`TreeRows`).
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from treesnake.kernels.cpu import gated_delta as cpu_gated_delta
from treesnake.kernels.cpu import ssm as cpu_ssm
from treesnake.kernels.reference import conv as reference_conv
from treesnake.kernels.reference import gated_delta as reference_gated_delta
from treesnake.kernels.reference import ssd as reference_ssd
from treesnake.kernels.reference import ssm as reference_ssm
from treesnake.kernels.tree_rows import TreeRows


@runtime_checkable
class ConvKernels(Protocol):
    """`conv` in one of its forms."""

    def causal_conv(
        self,
        inputs: Float[Tensor, "*batch tokens channels"],
        weight: Float[Tensor, "channels conv_width"],
        bias: Float[Tensor, " channels"] | None,
        history: Float[Tensor, "*batch history channels"],
    ) -> Float[Tensor, "*batch tokens channels"]:
        """Convolves a text."""
        ...

    def tree_conv(
        self,
        inputs: Float[Tensor, "slots rows channels"],
        weight: Float[Tensor, "channels conv_width"],
        bias: Float[Tensor, " channels"] | None,
        history: Float[Tensor, "slots history channels"],
        new: TreeRows,
    ) -> Float[Tensor, "trees new channels"]:
        """Convolves new nodes of trees."""
        ...

    def causal_filter(
        self,
        inputs: Float[Tensor, "*batch tokens channels"],
        weight: Float[Tensor, "channels conv_width"],
        bias: Float[Tensor, " channels"] | None,
        history: Float[Tensor, "*batch history channels"],
    ) -> Float[Tensor, "*batch tokens channels"]:
        """Convolves a text, without the activation behind it."""
        ...

    def tree_filter(
        self,
        inputs: Float[Tensor, "slots rows channels"],
        weight: Float[Tensor, "channels conv_width"],
        bias: Float[Tensor, " channels"] | None,
        history: Float[Tensor, "slots history channels"],
        new: TreeRows,
    ) -> Float[Tensor, "trees new channels"]:
        """Convolves new nodes of trees, without the activation behind it."""
        ...


@runtime_checkable
class SsmKernels(Protocol):
    """`ssm` or `ssd` in one of its forms; the axes of x, dt, A, B and the state are their own."""

    def scan(
        self,
        x: Float[Tensor, "*batch_tokens_x"],
        dt: Float[Tensor, "*batch_tokens_dt"],
        A: Float[Tensor, "*a_axes"],
        B: Float[Tensor, "*batch_tokens_b"],
        C: Float[Tensor, "*batch_tokens_b"],
        D: Float[Tensor, "*dt_axes"],
        state: Float[Tensor, "*batch_state"],
    ) -> tuple[Float[Tensor, "*batch_tokens_x"], Float[Tensor, "*batch_state"]]:
        """Returns the outputs of a text and the state after it."""
        ...

    def extend_copies(
        self,
        x: Float[Tensor, " trees new *x_axes"],
        dt: Float[Tensor, " trees new *dt_axes"],
        A: Float[Tensor, "*a_axes"],
        B: Float[Tensor, " trees new *b_axes"],
        C: Float[Tensor, " trees new *b_axes"],
        D: Float[Tensor, "*dt_axes"],
        committed: Float[Tensor, " slots *state_axes"],
        node_states: Float[Tensor, " slots rows *state_axes"],
        new: TreeRows,
    ) -> Float[Tensor, " trees new *x_axes"]:
        """Runs the new nodes of trees from their parents' states and writes their own."""
        ...

    def extend_sums(
        self,
        x: Float[Tensor, " slots rows *x_axes"],
        dt: Float[Tensor, " slots rows *dt_axes"],
        A: Float[Tensor, "*a_axes"],
        B: Float[Tensor, " slots rows *b_axes"],
        C: Float[Tensor, " trees new *b_axes"],
        D: Float[Tensor, "*dt_axes"],
        committed: Float[Tensor, " slots *state_axes"],
        new: TreeRows,
    ) -> Float[Tensor, " trees new *x_axes"]:
        """Runs the new nodes of trees from the inputs of their ancestors."""
        ...

    def commit_sums(
        self,
        x: Float[Tensor, " layers path *x_axes"],
        dt: Float[Tensor, " layers path *dt_axes"],
        A: Float[Tensor, " layers *a_axes"],
        B: Float[Tensor, " layers path *b_axes"],
        committed: Float[Tensor, " layers *state_axes"],
    ) -> None:
        """Moves the committed states of all layers along a path, in place."""
        ...


@runtime_checkable
class DeltaKernels(Protocol):
    """`gated_delta` in one of its forms, for inference and for one text."""

    def scan(
        self,
        query: Float[Tensor, "tokens heads key_dim"],
        key: Float[Tensor, "tokens heads key_dim"],
        value: Float[Tensor, "tokens heads value_dim"],
        log_decay: Float[Tensor, "tokens heads decays"],
        beta: Float[Tensor, "tokens heads"],
        state: Float[Tensor, "heads key_dim value_dim"],
    ) -> tuple[Float[Tensor, "tokens heads value_dim"], Float[Tensor, "heads key_dim value_dim"]]:
        """Returns the outputs of a text and the state after it."""
        ...

    def extend_sums(
        self,
        query: Float[Tensor, "new heads key_dim"],
        key: Float[Tensor, "nodes heads key_dim"],
        value: Float[Tensor, "nodes heads value_dim"],
        log_decay: Float[Tensor, "nodes heads decays"],
        beta: Float[Tensor, "nodes heads"],
        ancestor_mask: Bool[Tensor, "nodes nodes"],
        committed: Float[Tensor, "heads key_dim value_dim"],
    ) -> Float[Tensor, "new heads value_dim"]:
        """Runs the newest nodes of a tree from the inputs of all nodes."""
        ...

    def commit_sums(
        self,
        key: Float[Tensor, "path heads key_dim"],
        value: Float[Tensor, "path heads value_dim"],
        log_decay: Float[Tensor, "path heads decays"],
        beta: Float[Tensor, "path heads"],
        committed: Float[Tensor, "heads key_dim value_dim"],
    ) -> Float[Tensor, "heads key_dim value_dim"]:
        """Returns the committed state moved along a path."""
        ...


Kernels = TypeVar("Kernels", ConvKernels, SsmKernels, DeltaKernels)


def conv_kernels(device: torch.device) -> ConvKernels:
    """Returns the short causal convolution for a device."""
    return _choose("conv", device, reference_conv)


def ssm_kernels(device: torch.device) -> SsmKernels:
    """Returns the selective state space of Mamba-1 for a device."""
    return _choose("ssm", device, cpu_ssm if device.type == "cpu" else reference_ssm)


def ssd_kernels(device: torch.device) -> SsmKernels:
    """Returns the state space dual of Mamba-2 for a device."""
    return _choose("ssd", device, reference_ssd)


def delta_kernels(device: torch.device) -> DeltaKernels:
    """Returns the gated delta rule for a device."""
    on_cpu = device.type == "cpu"
    return _choose("gated_delta", device, cpu_gated_delta if on_cpu else reference_gated_delta)


def _choose(name: str, device: torch.device, elsewhere: Kernels) -> Kernels:
    if device.type == "cuda" and find_spec("triton"):
        return cast("Kernels", import_module(f"treesnake.kernels.triton.{name}"))
    return elsewhere
